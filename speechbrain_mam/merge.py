"""Zero-shot MAM: apply a plan to a live model in place, and take it back bit for bit.

W = λ · W_target + (1 − λ) · W_donor, computed in float32 and cast once to the target's precision.

Source: Sundar et al., "Multimodal Attention Merging for Improved Speech Recognition and Audio
Event Classification", arXiv 2312.14378.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

import torch

from speechbrain_mam.donor import TensorSource
from speechbrain_mam.errors import MAMError
from speechbrain_mam.plan import MergePlan, PlanEntry


def linear(target: torch.Tensor, donor: torch.Tensor, lam: float) -> torch.Tensor:
    """λ · target + (1 − λ) · donor, the paper's merge.

    Arguments
    ---------
    target, donor : torch.Tensor
        Same shape, any floating-point precision.
    lam : float
        The target's share. 1 gives the target's bits, 0 the donor's.

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
    if lam == 1:
        return target.clone()
    if lam == 0:
        return donor.to(target.dtype, copy=True)
    wide = torch.promote_types(target.dtype, torch.float32)
    return torch.lerp(donor.to(wide), target.to(wide), lam).to(target.dtype)


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


def donor_tensors(
    plan: MergePlan, donor: TensorSource, read_target: Callable[[str], torch.Tensor]
) -> Iterator[tuple[PlanEntry, torch.Tensor]]:
    """The donor's tensor for every entry of a plan, scaled as the plan says.

    Under ``match_norm`` a projection's bias is scaled by its weight's factor, so that the donor's
    projection x ↦ W·x + b is scaled as a whole.
    """
    factors: dict[tuple[int, str], float] = {}
    for entry in plan.entries:
        tensor = donor.tensor(entry.donor_key)
        if plan.donor_scale == "match_norm":
            if entry.kind == "weight":
                factor = norm_ratio(read_target(entry.target), tensor, entry.donor)
                factors[entry.layer, entry.projection] = factor
            tensor = tensor * factors[entry.layer, entry.projection]
        yield entry, tensor


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
        If a tensor of the plan is not a parameter of ``target``, or has another shape, or if the
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
            if found is None or tuple(found.shape) != entry.shape:
                shape = None if found is None else list(found.shape)
                raise MAMError(
                    f"the plan names '{entry.target}' of shape {list(entry.shape)}, "
                    f"{type(target).__name__} has {shape or 'no such parameter'}"
                )
        self._originals: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        try:
            for entry, theirs in donor_tensors(plan, donor, lambda name: parameters[name].detach()):
                parameter = parameters[entry.target]
                self._originals.append((parameter, parameter.detach().clone()))
                merged = linear(parameter.detach(), theirs.to(parameter.device), entry.lam)
                with torch.no_grad():
                    parameter.copy_(merged)
        except BaseException:
            self.undo()
            raise

    @torch.no_grad()
    def undo(self) -> None:
        """Give every touched tensor its former bits back. A second call does nothing."""
        for parameter, original in self._originals:
            parameter.copy_(original)
        self._originals = []

    def __enter__(self) -> Merge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()
