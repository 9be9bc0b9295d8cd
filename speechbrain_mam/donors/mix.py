"""Several donors at once: W = λ · W_target + (1 − λ) · Σ_k μ_k · W_k with μ_k ≥ 0 and Σ μ_k = 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from speechbrain_mam.architectures.index import AttentionIndex, TensorRef
from speechbrain_mam.donors.controls import ControlDonor
from speechbrain_mam.donors.donor import Donor, TensorKey, TensorSource
from speechbrain_mam.errors import MAMError
from speechbrain_mam.options import map_layers

if TYPE_CHECKING:
    import torch


class _Mapped:
    """A donor as deep as the target: a layer of it for each of the target's layers.

    ``factor``: of its query, which gives its scores the scale of the first donor's.
    """

    def __init__(self, donor: TensorSource, layer_map: Sequence[int], factor: float):
        self.donor, self.layer_map, self.factor = donor, layer_map, factor

    def tensor(self, key: TensorKey) -> torch.Tensor:
        layer, projection, kind = key
        tensor = self.donor.tensor((self.layer_map[layer], projection, kind))
        return tensor * self.factor if projection == "query" and self.factor != 1 else tensor


class DonorMix:
    """Donors that are read as one. In the plan it has as many layers as the target.

    Arguments
    ---------
    donors : sequence of Donor
        At least two, of one width.
    target : AttentionIndex
        Of the target, for its depth.
    shares : sequence of float, optional
        μ, each donor's share of what the donors give together; the same for all by default.
    layer_map : str or sequence of int
        As for :func:`speechbrain_mam.merging.planner.make_plan`, for each donor by itself.
    control, control_seed
        A control of :mod:`speechbrain_mam.donors.controls` in the place of every donor.

    Raises
    ------
    MAMError
        If the shares are not as many as the donors, or not on the simplex, or the widths differ.

    Example
    -------
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> mix = DonorMix([donor, donor], donor.index, shares=[0.25, 0.75])
    >>> key = (1, "key", "bias")
    >>> bool((mix.tensor(key) - donor.tensor(key)).abs().max() < 1e-6)
    True
    """

    def __init__(
        self,
        donors: Sequence[Donor],
        target: AttentionIndex,
        shares: Sequence[float] | None = None,
        layer_map: str | Sequence[int] = "uniform",
        control: str = "none",
        control_seed: int = 0,
    ):
        self.donors = tuple(donors)
        self.shares = _checked_shares(shares, len(self.donors))
        widths = {donor.index.hidden_size: donor.name for donor in self.donors}
        if len(widths) > 1:
            found = ", ".join(f"'{name}' is {width} wide" for width, name in widths.items())
            raise MAMError(f"key 'donor': several donors must be of one width, but {found}")
        maps = [map_layers(layer_map, target.num_layers, d.index.num_layers) for d in self.donors]
        sources: list[TensorSource] = list(self.donors)
        if control != "none":
            sources = [
                ControlDonor(donor, control, donor.index.num_layers, control_seed + i)
                for i, donor in enumerate(self.donors)
            ]
        scales = [donor.index.scale for donor in self.donors]
        factors = [scale / scales[0] for scale in scales]
        self.parts = [_Mapped(*one) for one in zip(sources, maps, factors, strict=True)]
        self.name = " + ".join(
            f"{share:.4g}·{d.name}" for share, d in zip(self.shares, self.donors, strict=True)
        )
        self.index = self._index(target, maps)

    @property
    def names(self) -> tuple[str, ...]:
        """What the donors are called in λ's names; the place is part of it, where names repeat."""
        plain = [donor.name.rpartition("/")[2] for donor in self.donors]
        unique = len(set(plain)) == len(plain)
        return tuple(n if unique else f"{n} ({i + 1})" for i, n in enumerate(plain))

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """Σ_k μ_k · W_k of ``(layer of the target, projection, kind)``, in float32."""
        pairs = zip(self.shares, self.parts, strict=True)
        first, *others = (share * part.tensor(key) for share, part in pairs)
        for other in others:
            first = first + other
        return first

    def _index(self, target: AttentionIndex, maps: Sequence[Sequence[int]]) -> AttentionIndex:
        """What all donors have, layer by layer of the target."""
        indices = [donor.index for donor in self.donors]
        tensors = {}
        kinds = {(projection, kind) for _, projection, kind in indices[0].tensors}
        for layer in range(target.num_layers):
            for projection, kind in sorted(kinds):
                refs = [
                    index.tensors.get((layer_map[layer], projection, kind))
                    for index, layer_map in zip(indices, maps, strict=True)
                ]
                found = [ref for ref in refs if ref is not None]
                if len(found) == len(refs):
                    name = " + ".join(str(ref) for ref in found)
                    tensors[layer, projection, kind] = TensorRef(name, found[0].shape)
        names = " + ".join(dict.fromkeys(index.architecture.name for index in indices))
        # Where one differs from the target in its heads, the plan is to see that one.
        heads = next((i.heads for i in indices if i.heads != target.heads), target.heads)
        notes = dict.fromkeys(i.architecture.note for i in indices if i.architecture.note)
        return AttentionIndex(
            replace(indices[0].architecture, name=names, note="; ".join(notes)),
            target.num_layers,
            heads,
            indices[0].hidden_size,
            "",
            tensors,
            indices[0].scale,
        )


def _checked_shares(shares: Sequence[float] | None, donors: int) -> tuple[float, ...]:
    if donors < 2:
        raise MAMError(f"key 'donor': a list of {donors}; name one donor, or at least two")
    if shares is None:
        return (1 / donors,) * donors
    values = tuple(float(share) for share in shares)
    if len(values) != donors or min(values) < 0 or not math.isclose(sum(values), 1, abs_tol=1e-6):
        raise MAMError(
            f"key 'donor_shares': {list(values)}; expected {donors} numbers from 0 on, one for "
            "each donor, that sum to 1"
        )
    return values
