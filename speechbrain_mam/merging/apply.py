"""Zero-shot MAM: apply a plan to a live model in place, and take it back bit for bit.

W = λ · W_target + (1 − λ) · W_donor, computed in float32 and cast once to the target's precision.

Source: Sundar et al., "Multimodal Attention Merging for Improved Speech Recognition and Audio
Event Classification", arXiv 2312.14378.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from speechbrain_mam.architectures.tensor_checks import checked_result
from speechbrain_mam.donors.donor import TensorSource
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.arithmetic import linear
from speechbrain_mam.merging.plan import MergePlan, PlanEntry
from speechbrain_mam.merging.prepare import donor_tensors, own_part, write_part


class Merge:
    """A plan applied to a live model. Undone by :meth:`undo`, or at the end of a ``with`` block.

    Arguments
    ---------
    target : torch.nn.Module
        The module whose paths the plan names.
    plan : MergePlan
        What to touch.
    donor : TensorSource
        Where the donor's tensors are read.

    Raises
    ------
    MAMError
        If a tensor of the plan is not a parameter of ``target``, or has another shape, if one of
        either model is not floating point or not finite, if the merged one would not be, or if the
        donor's is all zeros under ``match_norm``. Nothing is changed then.

    Example
    -------
    >>> from speechbrain_mam import Donor, find_attention, make_plan
    >>> from transformers import AutoModelForCTC
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> model = AutoModelForCTC.from_pretrained(donor.folder.path)
    >>> plan = make_plan(find_attention(model), donor.index, lam=0.5, layers=[1], layer_map=[0] * 4)
    >>> weight = model.get_parameter(plan.entries[0].target)
    >>> before = weight.detach().clone()
    >>> with Merge(model, plan, donor):
    ...     torch.equal(weight, before)
    False
    >>> torch.equal(weight, before)
    True
    """

    def __init__(self, target: torch.nn.Module, plan: MergePlan, donor: TensorSource):
        parameters = dict(target.named_parameters())
        for entry in plan.entries:
            found = parameters.get(entry.target)
            if found is None or tuple(found.shape) != _whole_shape(entry):
                shape = None if found is None else list(found.shape)
                raise MAMError(
                    f"the plan names '{entry.target}' of shape {list(_whole_shape(entry))}, "
                    f"{type(target).__name__} has {shape or 'no such parameter'}"
                )
        self._target = target
        # By name, and whole tensors of their own: a move of the model replaces its storages, so
        # that a view of one would soon be of nothing.
        self._originals: list[tuple[PlanEntry, torch.nn.Parameter, torch.Tensor]] = []
        try:
            for entry, theirs in donor_tensors(plan, donor, lambda name: parameters[name].detach()):
                parameter = parameters[entry.target]
                ours = own_part(entry, parameter.detach()).clone()
                self._originals.append((entry, parameter, ours))
                mixed = linear(ours, theirs.to(ours.device), entry.lam, plan.method)
                write_part(entry, parameter.detach(), checked_result(mixed, entry.target))
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Give every touched tensor its former bits back. A second call does nothing.

        Moved to another device or precision meanwhile, it gets them there.

        Raises
        ------
        MAMError
            If a touched parameter is no longer in the model.
        """
        for entry, now, original in self._present():
            write_part(entry, now, original)
        self._originals = []

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Within the block the target has its own bits; after it, the merged ones again."""
        present = self._present()
        merged = [own_part(entry, now).clone() for entry, now, _ in present]
        for entry, now, original in present:
            write_part(entry, now, original)
        try:
            yield
        finally:
            for (entry, now, _), tensor in zip(self._present(), merged, strict=True):
                write_part(entry, now, tensor)

    def _present(self) -> list[tuple[PlanEntry, torch.Tensor, torch.Tensor]]:
        """Which tensor each touched one is now, and the former bits of what was merged of it."""
        by_name = dict(self._target.named_parameters())
        here = {id(parameter) for parameter in by_name.values()}
        found = []
        for entry, parameter, original in self._originals:
            # An adapter that was put around a projection later gives its weight another name.
            now = by_name.get(entry.target, parameter if id(parameter) in here else None)
            if now is None:
                raise MAMError(
                    f"'{entry.target}' was merged, and is no longer in "
                    f"{type(self._target).__name__}: its own weights cannot be put back"
                )
            found.append((entry, now.detach(), original))
        return found

    def __enter__(self) -> Merge:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def _whole_shape(entry: PlanEntry) -> tuple[int, ...]:
    """The shape of the target's tensor that an entry is a part of."""
    part = entry.target_part
    rows = entry.shape[0] if part is None else part.size * part.of * part.blocks
    return (rows, *entry.shape[1:])
