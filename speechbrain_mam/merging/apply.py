"""Zero-shot MAM: apply a plan to a live model in place, and take it back bit for bit.

W = λ · W_target + (1 − λ) · W_donor, computed in float32 and cast once to the target's precision.

Source: Sundar et al., "Multimodal Attention Merging for Improved Speech Recognition and Audio
Event Classification", arXiv 2312.14378.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from speechbrain_mam.donors.donor import TensorSource
from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.methods import method_named
from speechbrain_mam.merging.planner import MergePlan, PlanEntry
from speechbrain_mam.tensor_checks import checked, checked_result


def linear(
    target: torch.Tensor, donor: torch.Tensor, lam: float, method: str = "linear"
) -> torch.Tensor:
    """λ · target + (1 − λ) · donor, the paper's merge; or another method's.

    Arguments
    ---------
    target, donor : torch.Tensor
        Same shape, any floating-point precision.
    lam : float
        The target's share. 1 gives the target's bits, and 0 of a linear method the donor's.
    method : str
        One of :data:`speechbrain_mam.merging.methods.METHODS`.

    Returns
    -------
    torch.Tensor
        In the target's precision; the arithmetic is float32 (float64 where the target is).

    Example
    -------
    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), lam=0.5)
    tensor([2., 4.])
    """
    # The ends are copied: in floating point −0 − (−5 · 0) is +0, which is another bit pattern.
    chosen = method_named(method)
    if lam == 1:
        return target.clone()
    if lam == 0 and chosen.is_linear:
        return donor.to(target.dtype, copy=True)
    wide = torch.promote_types(target.dtype, torch.float32)
    return chosen.function(target.to(wide), donor.to(wide), lam).to(target.dtype)


def first_step(target: torch.Tensor, donor: torch.Tensor, method: str = "linear") -> torch.Tensor:
    """∂W/∂(1 − λ) at λ = 1: where a small step towards the donor goes.

    Of the linear methods W_donor − W_target; of the others by forward differentiation.

    Example
    -------
    >>> first_step(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([2., 4.])
    >>> first_step(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), "multi_path")
    tensor([3., 6.])
    """
    chosen = method_named(method)
    if chosen.is_linear:
        return donor - target
    one = torch.ones(1, dtype=target.dtype, device=target.device)
    found = torch.func.jvp(lambda lam: chosen.function(target, donor, lam), (one,), (-one,))
    step: torch.Tensor = found[1]
    return step


def norm_ratio(target: torch.Tensor, donor: torch.Tensor, name: str = "tensor") -> float:
    """‖target‖ / ‖donor‖ (Frobenius), the factor of ``donor_scale: match_norm``.

    Raises
    ------
    MAMError
        If the donor is all zeros; ``name`` is what the message calls it.

    Example
    -------
    >>> norm_ratio(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    5.0
    """
    norm = donor.double().norm().item()
    if norm == 0:
        raise MAMError(
            f"key 'donor_scale': the donor's '{name}' is all zeros and cannot be scaled to the "
            "target's norm; use 'none'"
        )
    return target.double().norm().item() / norm


def own_part(entry: PlanEntry, tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a target's tensor that an entry of the plan is about, as a view."""
    return tensor if entry.target_rows is None else tensor[slice(*entry.target_rows)]


def donor_tensors(
    plan: MergePlan, donor: TensorSource, read_target: Callable[[str], torch.Tensor]
) -> Iterator[tuple[PlanEntry, torch.Tensor]]:
    """The donor's tensor for every entry of a plan: cropped, aligned, scaled as the plan says.

    Of several donors (:class:`~speechbrain_mam.donors.mix.DonorMix`) each is prepared by itself, and
    the weighted mean is given.

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
        if plan.align != "none":
            from speechbrain_mam.merging.alignment import align_layer  # SciPy takes its time to load

            ours = {n: own_part(e, read_target(e.target)).cpu() for n, e in entries.items()}
            theirs = align_layer(ours, theirs, plan.target_heads, plan.align == "rotation")
        factor = 1.0
        for name, entry in entries.items():
            if plan.donor_scale == "match_norm":
                if entry.kind == "weight":
                    # A projection's bias is scaled by its weight's factor, so that the donor's
                    # x ↦ W·x + b is scaled as a whole.
                    ours_now = own_part(entry, read_target(entry.target))
                    factor = norm_ratio(ours_now, theirs[name], entry.donor)
                theirs[name] = theirs[name] * factor
                checked_result(theirs[name], entry.donor)
            yield entry, theirs[name]


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
            if found is None or tuple(own_part(entry, found).shape) != entry.shape:
                shape = None if found is None else list(found.shape)
                raise MAMError(
                    f"the plan names '{entry.target}' of shape {list(entry.shape)}, "
                    f"{type(target).__name__} has {shape or 'no such parameter'}"
                )
        self._target = target
        # By name, and whole tensors of their own: a move of the model replaces its storages, so
        # that a view of one would soon be of nothing.
        self._originals: list[tuple[PlanEntry, torch.nn.Parameter, torch.Tensor]] = []
        try:
            for entry, theirs in donor_tensors(plan, donor, lambda name: parameters[name].detach()):
                parameter = parameters[entry.target]
                ours = own_part(entry, parameter.detach())  # the same memory
                self._originals.append((entry, parameter, ours.clone()))
                mixed = linear(ours, theirs.to(ours.device), entry.lam, plan.method)
                ours.copy_(checked_result(mixed, entry.target))
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
        for ours, original in self._present():
            ours.copy_(original)
        self._originals = []

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Within the block the target has its own bits; after it, the merged ones again."""
        merged = [ours.clone() for ours, _ in self._present()]
        for ours, original in self._present():
            ours.copy_(original)
        try:
            yield
        finally:
            for (ours, _), tensor in zip(self._present(), merged, strict=True):
                ours.copy_(tensor)

    def _present(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Where each touched tensor is now, and its former bits."""
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
            found.append((own_part(entry, now.detach()), original))
        return found

    def __enter__(self) -> Merge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()
