"""The donor's tensors as a plan merges them: cropped, aligned, scaled, one donor's or several's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from speechbrain_mam.architectures.tensor_checks import checked, checked_result, norm_ratio
from speechbrain_mam.donors.donor import TensorSource
from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.merging.plan import MergePlan, PlanEntry


def own_part(entry: PlanEntry, tensor: torch.Tensor) -> torch.Tensor:
    """What of a target's tensor an entry of the plan is about: to be read."""
    return tensor if entry.target_part is None else entry.target_part.take(tensor)


def write_part(entry: PlanEntry, tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Write into a target's tensor what an entry of the plan is about."""
    if entry.target_part is None:
        tensor.copy_(values)
    else:
        entry.target_part.put(tensor, values)


def donor_tensors(
    plan: MergePlan, donor: TensorSource, read_target: Callable[[str], torch.Tensor]
) -> Iterator[tuple[PlanEntry, torch.Tensor]]:
    """The donor's tensor for every entry of a plan: cropped, scaled, aligned as the plan says.

    Of several donors (:class:`~speechbrain_mam.donors.mix.DonorMix`) each is prepared by itself,
    and the weighted mean is given.

    Arguments
    ---------
    plan : MergePlan
        What is merged, and how.
    donor : TensorSource
        Where the donor's tensors are read.
    read_target : callable
        Gives the target's tensor of a name, whole.
    """
    if not isinstance(donor, DonorMix):
        yield from _prepared(plan, donor, read_target)
        return
    for entry, parts in donor_parts(plan, donor, read_target):
        pairs = zip(donor.shares, parts, strict=True)
        yield entry, torch.stack([share * part for share, part in pairs]).sum(0)


def donor_parts(
    plan: MergePlan, donor: DonorMix, read_target: Callable[[str], torch.Tensor]
) -> Iterator[tuple[PlanEntry, list[torch.Tensor]]]:
    """As :func:`donor_tensors`, of each donor singly."""
    for found in zip(*(_prepared(plan, part, read_target) for part in donor.parts), strict=True):
        yield found[0][0], [tensor for _, tensor in found]


def _prepared(
    plan: MergePlan, donor: TensorSource, read_target: Callable[[str], torch.Tensor]
) -> Iterator[tuple[PlanEntry, torch.Tensor]]:
    for _, group in itertools.groupby(plan.entries, key=lambda entry: entry.layer):
        entries = {(entry.projection, entry.kind): entry for entry in group}
        for entry in entries.values():
            checked(own_part(entry, read_target(entry.target)), entry.target, "the target")
        theirs = {
            name: checked(donor.tensor(entry.donor_key), entry.donor, "the donor")
            for name, entry in entries.items()
        }
        # cropped, where the donor is wider
        theirs = {n: theirs[n][tuple(slice(s) for s in e.shape)] for n, e in entries.items()}
        for name, entry in entries.items():
            if entry.donor_factor != 1:
                theirs[name] = theirs[name] * entry.donor_factor
        if plan.align != "none":
            from speechbrain_mam.merging.alignment import (
                align_layer,  # SciPy takes its time to load
            )

            ours = {n: own_part(e, read_target(e.target)).cpu() for n, e in entries.items()}
            theirs = align_layer(ours, theirs, plan.target_heads, plan.align == "rotation")
        factor = 1.0
        for name, entry in entries.items():
            if plan.donor_scale == "match_norm":
                if entry.kind == "weight":
                    # A projection's bias is scaled by its weight's factor, so that the donor's
                    # x ↦ W·x + b is scaled as a whole.
                    ours_now = own_part(entry, read_target(entry.target))
                    factor = norm_ratio(_norm(ours_now), _norm(theirs[name]), entry.donor)
                theirs[name] = theirs[name] * factor
                checked_result(theirs[name], entry.donor)
            yield entry, theirs[name]


def _norm(tensor: torch.Tensor) -> float:
    return tensor.double().norm().item()
