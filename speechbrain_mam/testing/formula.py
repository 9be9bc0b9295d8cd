"""What a merge must give, written once more, without any of the modules that learn it.

This twin of :mod:`speechbrain_mam.merging.arithmetic` and of the merged modules is meant: the
conformance check compares them with it, and would compare nothing if it called them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.mam import MAM
from speechbrain_mam.merging.methods import METHODS
from speechbrain_mam.merging.plan import MergePlan, PlanEntry
from speechbrain_mam.merging.prepare import donor_parts, donor_tensors
from speechbrain_mam.testing.settings import Setting


@dataclass(frozen=True)
class DonorTensors:
    """The donors' tensors of a plan, in float32, as they are mixed in.

    Arguments
    ---------
    plan : MergePlan
        Its entries are the pairs' first parts.
    parts : tuple
        For each entry one tensor of each donor.
    """

    plan: MergePlan
    parts: tuple[tuple[Tensor, ...], ...]
    shares: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, mam: MAM, own: Mapping[str, Tensor]) -> DonorTensors:
        """Those of a merge whose target has the weights ``own``."""
        source, found = mam.source, []
        shares: tuple[float, ...] = (1.0,)
        if isinstance(source, DonorMix):
            found = [tuple(parts) for _, parts in donor_parts(mam.plan, source, own.__getitem__)]
            shares = source.shares
        else:
            pairs = donor_tensors(mam.plan, source, own.__getitem__)
            found = [(tensor,) for _, tensor in pairs]
        return cls(mam.plan, tuple(found), shares)

    @property
    def targets(self) -> set[str]:
        """The names of the target's tensors that are merged."""
        return {entry.target for entry in self.plan.entries}

    def trained_in(self, model: nn.Module) -> DonorTensors:
        """With what training has made of the donor, where the method trains it."""
        parameters = dict(model.named_parameters())
        found = []
        for entry, parts in zip(self.plan.entries, self.parts, strict=True):
            owner = entry.target.rpartition(".")[0]
            trained = parameters.get(f"{owner}.donor_{entry.kind}")
            found.append(parts if trained is None else (trained.detach()[_rows(entry, trained)],))
        return replace(self, parts=tuple(found))

    def __iter__(self) -> Iterator[tuple[PlanEntry, tuple[Tensor, ...]]]:
        return iter(zip(self.plan.entries, self.parts, strict=True))


def merged_by_formula(
    theirs: DonorTensors, own: Mapping[str, Tensor], lams: Sequence[Tensor], setting: Setting
) -> dict[str, Tensor]:
    """Every merged tensor of the target, whole.

    Arguments
    ---------
    theirs : DonorTensors
        The donors' side.
    own : mapping
        The target's own tensors.
    lams : sequence of Tensor
        One λ for everything, or those of each layer: ``(1,)``, ``(projections,)``, ``(heads,)``;
        with several donors the target's share and theirs.
    setting : Setting
        The method and the granularity.
    """
    plan, merge = theirs.plan, METHODS[setting.method].function
    merged = {name: own[name].clone() for name in theirs.targets}
    for entry, parts in theirs:
        lam = lams[0 if len(lams) == 1 else plan.layers.index(entry.layer)].float()
        target = own[entry.target][_rows(entry, own[entry.target])].float()
        if len(parts) > 1:
            fixed = torch.cat([lam[:1], (1 - lam[:1]) * torch.tensor(theirs.shares)])
            shares = lam if len(lam) > 1 else fixed
            pairs = zip(shares[1:], parts, strict=True)
            mixed = shares[0] * target + sum(share * part for share, part in pairs)
        else:
            mixed = merge(target, parts[0].float(), _of_entry(entry, lam, plan, setting))
        merged[entry.target][_rows(entry, merged[entry.target])] = mixed.to(own[entry.target].dtype)
    return merged


def _of_entry(entry: PlanEntry, lam: Tensor, plan: MergePlan, setting: Setting) -> Tensor:
    """λ of an entry, in the shape that mixes it."""
    if len(lam) == 1:
        return lam
    if setting.granularity == "projection":
        return lam[plan.projections.index(entry.projection)].reshape(1)
    if entry.projection == "output":  # a head's are columns; the bias is no head's own
        if entry.kind == "bias":
            return lam.mean(0, keepdim=True)
        return lam.repeat_interleave(entry.shape[1] // len(lam))
    rows = lam.repeat_interleave(entry.shape[0] // len(lam))
    return rows.unsqueeze(1) if entry.kind == "weight" else rows


def _rows(entry: PlanEntry, tensor: Tensor) -> list[int]:
    """Which rows of a target's tensor an entry is about, in the order of its heads."""
    part = entry.target_part
    if part is None:
        return list(range(len(tensor)))
    width = len(tensor) // (part.of * part.blocks)
    starts = [(block * part.of + part.place) * width for block in range(part.blocks)]
    return [row for start in starts for row in range(start, start + width)]
