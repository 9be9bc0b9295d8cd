"""What each control puts in the place of a donor's tensor.

Pure functions of the tensor, its place and a seed; which control is made by which is in
:mod:`speechbrain_mam.donors.controls`. Weights are ``[out, in]``: x ↦ W · x + b. All is computed in
float32. Each tensor has its own generator, so that it does not matter which ones are asked for, or
when.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

MIMETIC = {"query": (0.7, 0.7), "value": (0.4, -0.4)}
"""α and β of Q and K, and of V and O: those of Trockman and Kolter's vision Transformers."""


@dataclass(frozen=True)
class Asked:
    """A donor's tensor that a control is to replace.

    Arguments
    ---------
    tensor : Tensor
        The donor's own, ``[out, in]`` or ``[out]``.
    layer, projection, kind
        Where it stands.
    heads : int
        The donor's; of the controls only ``mimetic`` needs them.
    seed : int
        Of what is drawn.
    """

    tensor: Tensor
    layer: int
    projection: str
    kind: str
    heads: int = 0
    seed: int = 0

    def generator(self, *name: object) -> torch.Generator:
        """Random numbers that hang on the seed and a name alone."""
        return generator(self.seed, *name)

    def noise(self, *name: object) -> Tensor:
        """Standard normal numbers in the tensor's shape."""
        place = (*name, self.layer, self.projection, self.kind)
        return torch.randn(self.tensor.shape, generator=self.generator(*place))


def generator(seed: int, *name: object) -> torch.Generator:
    """Random numbers that hang on a seed and a name alone."""
    return torch.Generator().manual_seed(zlib.crc32(repr((seed, *name)).encode()))


def unchanged(asked: Asked) -> Tensor:
    """W; which layer's it is may have been changed."""
    return asked.tensor


def zeros(asked: Asked) -> Tensor:
    """0."""
    return torch.zeros_like(asked.tensor)


def same_norm(asked: Asked) -> Tensor:
    """Z · ‖W‖ / ‖Z‖, with normal Z."""
    return _at_norm(asked.noise(), asked.tensor)


def same_moments(asked: Asked) -> Tensor:
    """mean(W) + sd(W) · Z, with normal Z."""
    theirs = asked.tensor.float()
    return theirs.mean() + theirs.std(correction=0) * asked.noise("moments")


def permuted_rows(asked: Asked) -> Tensor:
    """P · W and P · b: the same outputs of a projection, in another order."""
    # Weight and bias of a projection together
    draw = asked.generator(asked.layer, asked.projection)
    return asked.tensor[torch.randperm(len(asked.tensor), generator=draw)]


def same_spectrum(asked: Asked) -> Tensor:
    """U · diag(σ(W)) · Vᵀ, with U and V from Haar's distribution; a bias keeps its norm."""
    if asked.tensor.dim() < 2:
        return _at_norm(asked.noise("spectrum"), asked.tensor)
    values = torch.linalg.svdvals(asked.tensor.float())
    place = (asked.layer, asked.projection)
    left, right = (
        haar(size, asked.generator("spectrum", side, *place))[:, : len(values)]
        for side, size in zip(("left", "right"), asked.tensor.shape, strict=True)
    )
    return (left * values) @ right.T


def conjugate(asked: Asked) -> Tensor:
    """W · R of q, k and v; Rᵀ · W and Rᵀ · b of the output; one R for the whole donor."""
    theirs = asked.tensor.float()
    if asked.projection == "output":
        return _rotation(asked.seed, theirs.shape[0]).T @ theirs
    return theirs @ _rotation(asked.seed, theirs.shape[1]) if theirs.dim() == 2 else asked.tensor


def mimetic(asked: Asked) -> Tensor:
    """Factors of α · Z + β · I: Wqᵀ · Wk of each head, and (Wo · Wv)ᵀ; biases are 0."""
    if asked.kind == "bias":
        return zeros(asked)
    width = asked.tensor.shape[1]
    pair = "query" if asked.projection in ("query", "key") else "value"
    heads = asked.heads if pair == "query" else 1
    first, second = _mimetic_factors(asked.seed, asked.layer, pair, width, heads)
    if asked.projection == "output":
        return second.T
    return second if asked.projection == "key" else first


def haar(size: int, draw: torch.Generator) -> Tensor:
    """A random orthogonal matrix ``[size, size]``, from the uniform (Haar's) distribution.

    The Q of a normal matrix's QR decomposition with positive diagonal of R; without the signs it
    would not be uniform (Mezzadri, Notices of the AMS 54, 2007).

    Example
    -------
    >>> found = haar(4, generator(0, "example"))
    >>> torch.allclose(found @ found.T, torch.eye(4), atol=1e-5)
    True
    """
    q, r = torch.linalg.qr(torch.randn(size, size, generator=draw))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def _at_norm(noise: Tensor, theirs: Tensor) -> Tensor:
    return noise * (theirs.norm() / noise.norm())


@lru_cache(maxsize=1)
def _rotation(seed: int, width: int) -> Tensor:
    return haar(width, generator(seed, "conjugate", width))


@lru_cache(maxsize=2)  # of a layer's two pairs: its tensors are asked for one by one
def _mimetic_factors(
    seed: int, layer: int, pair: str, width: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Two ``[width, width]``: head by head √Σ · Uᵀ and √Σ · Vᵀ of α · Z + β · I = U · Σ · Vᵀ.

    Z is normal with variance 1 / width; each head keeps the largest width / heads of Σ.
    """
    alpha, beta = MIMETIC[pair]
    rows = width // heads
    first, second = [], []
    for head in range(heads):
        draw = generator(seed, "mimetic", layer, pair, head)
        z = torch.randn(width, width, generator=draw) / width**0.5
        u, values, v = torch.linalg.svd(alpha * z + beta * torch.eye(width))
        root = values[:rows].sqrt()[:, None]
        first.append(root * u.T[:rows])
        second.append(root * v[:rows])
    return torch.cat(first), torch.cat(second)
