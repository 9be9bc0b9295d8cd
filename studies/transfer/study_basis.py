"""A donor's residual basis, turned to where its attention lies nearest to a trained target's.

Two models that were trained apart name the directions of their residual streams differently, and a
layer's attention reads and writes in those names. One orthogonal R for all layers translates:

    W_q, W_k, W_v ← W · R        W_o, b_o ← Rᵀ · W_o, Rᵀ · b_o

It is chosen to make Σ ⟨target's, donor's⟩ over all layers and projections largest (orthogonal
Procrustes), by turns with the order and the rotations of heads (``align: rotation``), which leave
attention as it is. Each step raises the sum, so it ends, in a local maximum.

Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechbrain_mam import MAM
from speechbrain_mam.donors.controls import controlled
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.donors.rotation import RotatedDonor, in_basis
from speechbrain_mam.merging.alignment import align_layer
from speechbrain_mam.merging.prepare import own_part

Layer = dict[tuple[str, str], Tensor]
ROUNDS = 20


def in_targets_basis(model: nn.Module, donor: Donor, control: str, seed: int) -> RotatedDonor:
    """The donor, or its control, in the basis of ``model``; by Q, K, V and O of all layers."""
    mam = MAM(model, donor, learnable=False, projections="qkvo")
    source = controlled(donor, mam.plan.donor_layers, control, seed)
    parameters = dict(model.named_parameters())
    ours: dict[int, Layer] = {}
    theirs: dict[int, Layer] = {}
    for entry in mam.plan.entries:
        key = (entry.projection, entry.kind)
        own = own_part(entry, parameters[entry.target].detach())
        ours.setdefault(entry.layer, {})[key] = own
        theirs.setdefault(entry.layer, {})[key] = source.tensor(entry.donor_key)
    turned = RotatedDonor(donor, "random")
    turned.donor = source  # type: ignore[assignment]
    heads = mam.plan.target_heads if donor.index.heads == mam.plan.target_heads else None
    turned.basis = nearest_basis(list(ours.values()), list(theirs.values()), heads)
    return turned


def nearest_basis(ours: list[Layer], theirs: list[Layer], heads: int | None) -> Tensor:
    """R, ``[hidden, hidden]`` in float64, for donor's layers beside target's of the same keys.

    ``heads`` is None where the donor's are of another width: then they stay as they are.

    Example
    -------
    >>> from speechbrain_mam.donors.rotation import rotation
    >>> draw = torch.Generator().manual_seed(0)
    >>> names = ("query", "key", "value", "output")
    >>> layer = {(p, "weight"): torch.randn(8, 8, generator=draw) for p in names}
    >>> r = rotation(8, "random").float()
    >>> turned = {key: r.T @ w if key[0] == "output" else w @ r for key, w in layer.items()}
    >>> torch.allclose(nearest_basis([layer], [turned], heads=2).float(), r.T, atol=1e-4)
    True
    """
    aligned, best, basis = theirs, 0.0, None
    for _ in range(ROUNDS):
        left, sums, right = torch.linalg.svd(_product(ours, aligned))
        if basis is not None and sums.sum() <= best * (1 + 1e-5):
            break
        best, basis = float(sums.sum()), left @ right
        if heads is None:
            break
        aligned = [
            # of the turned donor come order and rotations, of the donor as it was the next product
            _turned(align_layer(o, _turned(t, basis), heads, rotate=True), basis.T)
            for o, t in zip(ours, theirs, strict=True)
        ]
    assert basis is not None
    return basis


def _product(ours: list[Layer], theirs: list[Layer]) -> Tensor:
    """Σ Wᵀ · T over what reads the residual stream, W · Tᵀ over what writes to it."""
    total: Tensor | int = 0
    for own, their in zip(ours, theirs, strict=True):
        for key, tensor in own.items():
            one, other = their[key].double(), tensor.double()
            if key[1] == "weight":
                total = total + (one @ other.T if key[0] == "output" else one.T @ other)
    assert isinstance(total, Tensor)
    return total


def _turned(layer: Layer, basis: Tensor) -> Layer:
    return {key: in_basis(tensor, *key, basis) for key, tensor in layer.items()}
