"""A donor in another basis of its residual stream: one orthogonal R for all of its layers.

    W_q, W_k, W_v ← W · R        W_o, b_o ← Rᵀ · W_o, Rᵀ · b_o

With x = R · x′ every layer computes what it did, said in x′; only the directions of the residual
stream have other names. A donor whose basis matters to a target loses that, and nothing else.

``random``
    R uniform among the orthogonal matrices, as of the control ``conjugate``;
``hadamard``
    R = H · diag(s) / √n with random signs s: each old direction is spread evenly over all of the
    new ones. H is Sylvester's of 2^k, times Paley's of 12 or 20 (R. E. A. C. Paley, "On orthogonal
    matrices", 1933).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from speechbrain_mam.donors.control_tensors import generator, haar
from speechbrain_mam.donors.donor import Donor, IndexedSource, TensorKey
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.options import ROTATIONS

_PALEY = (12, 20)


class RotatedDonor(Donor):
    """A donor whose residual stream has another basis; it is read like the donor itself.

    Arguments
    ---------
    donor : IndexedSource
        The real one.
    rotate : str
        ``random`` or ``hadamard``.
    seed : int
        Of R.

    Raises
    ------
    MAMError
        If there is no Hadamard matrix here of the donor's width.

    Example
    -------
    >>> from speechbrain_mam import Donor
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> turned = RotatedDonor(donor, "hadamard")
    >>> key, out = (0, "value", "weight"), (0, "output", "weight")
    >>> theirs, ours = (d.tensor(out) @ d.tensor(key) for d in (donor, turned))
    >>> r = turned.basis.float()
    >>> torch.allclose(r @ ours @ r.T, theirs, atol=1e-4)
    True
    """

    def __init__(self, donor: IndexedSource, rotate: str, seed: int = 0):
        one_of("rotate", rotate, ROTATIONS)
        self.donor, self.rotate, self.seed = donor, rotate, seed
        self.name, self.index = donor.name, donor.index
        if rotate == "hadamard":
            hadamard_factors(self.index.hidden_size)

    @cached_property
    def basis(self) -> torch.Tensor:
        """R, ``[hidden, hidden]`` in float64: x_donor = R · x."""
        return rotation(self.index.hidden_size, self.rotate, self.seed)

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """The tensor of ``(layer, projection, kind)``, in its own precision."""
        theirs = self.donor.tensor(key)
        return in_basis(theirs, key[1], key[2], self.basis).to(theirs.dtype)


def turned(donors: Sequence[Donor], rotate: str, seed: int = 0) -> list[Donor]:
    """Each of the donors in another basis, all by the same R; ``none`` leaves them as they are."""
    one_of("rotate", rotate, ROTATIONS)
    if rotate == "none":
        return list(donors)
    return [RotatedDonor(donor, rotate, seed) for donor in donors]


def in_basis(tensor: torch.Tensor, projection: str, kind: str, basis: torch.Tensor) -> torch.Tensor:
    """W · R of what reads the residual stream, Rᵀ · W and Rᵀ · b of what writes to it, in float64.

    Example
    -------
    >>> r = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    >>> b = torch.tensor([1.0, 2.0])
    >>> in_basis(b, "output", "bias", r).tolist(), in_basis(b, "query", "bias", r).tolist()
    ([-2.0, 1.0], [1.0, 2.0])
    """
    wide = tensor.double()
    if projection == "output":
        return basis.T @ wide
    return wide @ basis if kind == "weight" else wide


def turned_name(name: str, rotate: str, seed: int) -> str:
    """A donor's name in a plan, which says how it was turned.

    Example
    -------
    >>> turned_name("bert", "random", 3), turned_name("bert", "none", 3)
    ('bert [rotate: random, seed 3]', 'bert')
    """
    return name if rotate == "none" else f"{name} [rotate: {rotate}, seed {seed}]"


def rotation(width: int, rotate: str, seed: int = 0) -> torch.Tensor:
    """An orthogonal ``[width, width]`` in float64, ``random`` or ``hadamard``.

    Example
    -------
    >>> r = rotation(24, "hadamard")
    >>> torch.allclose(r @ r.T, torch.eye(24).double()), r.abs().std().item() < 1e-9
    (True, True)
    """
    draw = generator(seed, rotate, width)
    if rotate == "hadamard":
        sylvester, paley = hadamard_factors(width)
        signs = torch.randint(2, (width,), generator=draw) * 2 - 1
        whole = torch.kron(_sylvester(sylvester), _paley(paley))
        return (whole * signs).double() / width**0.5
    return haar(width, draw).double()


def hadamard_factors(width: int) -> tuple[int, int]:
    """The power of two and the order 1, 12 or 20 whose product is ``width``.

    Raises
    ------
    MAMError
        If there are none: names the widths there are.

    Example
    -------
    >>> hadamard_factors(384), hadamard_factors(1024), hadamard_factors(1280)
    ((32, 12), (1024, 1), (64, 20))
    """
    for paley in (1, *_PALEY):
        power, rest = divmod(width, paley)
        if not rest and power > 0 and power & (power - 1) == 0:
            return power, paley
    raise MAMError(
        f"key 'rotate': no Hadamard matrix of the donor's width {width}; there is one of 2^k "
        "(256, 512, 1024), 12 · 2^k (384, 768) and 20 · 2^k (320, 640, 1280): use 'rotate: random'"
    )


def _sylvester(order: int) -> torch.Tensor:
    whole, pair = torch.ones(1, 1), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(whole) < order:
        whole = torch.kron(pair, whole)
    return whole


def _paley(order: int) -> torch.Tensor:
    """Paley's first construction: order − 1 is a prime that leaves 3 when divided by 4."""
    if order == 1:
        return torch.ones(1, 1)
    prime = order - 1
    squares = {i * i % prime for i in range(1, prime)}
    skew = torch.zeros(order, order)
    skew[0, 1:], skew[1:, 0] = 1, -1
    for i in range(prime):
        for j in range(prime):
            if i != j:
                skew[i + 1, j + 1] = 1 if (j - i) % prime in squares else -1
    return skew + torch.eye(order)
