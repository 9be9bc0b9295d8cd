"""Learnable-MAM: one λ per layer (or model, projection, head), learned with the target.

    W = λ · W_target + (1 − λ) · W_donor,      ∂L/∂λ = Σ ⟨∂L/∂W, W_target − W_donor⟩

:class:`LearnableMAM` puts a :class:`~speechbrain_mam.merged_linear.MergedLinear` in the place of
every projection of a plan, and :meth:`LearnableMAM.fold` writes the result back into plain
``nn.Linear`` modules.

Source: Sundar et al., arXiv 2312.14378, section "Learnable-MAM".
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from speechbrain_mam.attention import find_attention
from speechbrain_mam.choices import one_of
from speechbrain_mam.donor import TensorSource
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merge import donor_tensors
from speechbrain_mam.merged_linear import MergedLinear, MergedLinearByWeight
from speechbrain_mam.plan import MergePlan, PlanEntry

GRANULARITIES = ("model", "layer", "projection", "head")
CONSTRAINTS = ("project", "sigmoid", "none")


class LearnableMAM:
    """λ inside a live model: put in, read, constrained, folded, taken out.

    λ are parameters of the target, so that whatever wraps it (DDP) sees them. The donor's tensors
    are buffers that no checkpoint holds; :attr:`donor_hash` is what a checkpoint keeps of them.

    Arguments
    ---------
    target : nn.Module
        The model; changed in place.
    plan : MergePlan
        What to merge; its λ are the start.
    donor : TensorSource
        Where the donor's tensors are read.
    granularity : str
        One λ per ``model``, ``layer``, ``projection`` (of a layer) or ``head`` (of a layer).
    constraint : str
        ``project`` clamps λ to [0, 1] after each step (:meth:`project_`), ``sigmoid`` learns the
        logit of λ, ``none`` leaves λ free.

    Raises
    ------
    MAMError
        If a key has an unknown value, if the plan's λ are finer than the granularity, or if the
        target has been merged already.

    Example
    -------
    >>> from speechbrain_mam import Donor, find_attention, make_plan
    >>> from transformers import AutoModelForCTC
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> model = AutoModelForCTC.from_pretrained(donor.folder.path)
    >>> mam = LearnableMAM(model, make_plan(find_attention(model), donor.index, lam=0.9), donor)
    >>> mam.values()["layer 0"]
    0.9
    >>> mam.fold()
    >>> any(isinstance(module, MergedLinear) for module in model.modules())
    False
    """

    def __init__(
        self,
        target: nn.Module,
        plan: MergePlan,
        donor: TensorSource,
        granularity: str = "layer",
        constraint: str = "project",
    ):
        one_of("granularity", granularity, GRANULARITIES)
        one_of("constraint", constraint, CONSTRAINTS)
        if any(isinstance(module, MergedLinear) for module in target.modules()):
            raise MAMError(f"{type(target).__name__} carries a Learnable-MAM already")
        self.plan, self.granularity, self.constraint = plan, granularity, constraint
        self.lams = _start_values(plan, granularity, constraint)
        self._sites: list[tuple[nn.Module, str, nn.Linear, MergedLinear]] = []
        self._build(target, donor)
        self.insert()

    def _build(self, target: nn.Module, donor: TensorSource) -> None:
        parameters = dict(target.named_parameters())
        theirs: dict[tuple[int, str], dict[str, Tensor]] = defaultdict(dict)
        entries: dict[tuple[int, str], PlanEntry] = {}
        for entry, tensor in donor_tensors(self.plan, donor, lambda n: parameters[n].detach()):
            theirs[entry.layer, entry.projection][entry.kind] = tensor
            entries.setdefault((entry.layer, entry.projection), entry)
        cls = (
            MergedLinearByWeight
            if find_attention(target).architecture.reads_weight
            else MergedLinear
        )
        owned: set[int] = set()
        for (layer, projection), entry in entries.items():
            path = entry.target.rpartition(".")[0]
            linear = target.get_submodule(path)
            if type(linear) is not nn.Linear:
                raise MAMError(
                    f"'{path}' is a {type(linear).__name__}, expected a plain torch.nn.Linear: "
                    "add adapters to other modules, or after MAM"
                )
            lam = self.lams[0 if self.granularity == "model" else self.plan.layers.index(layer)]
            lam.data = lam.data.to(linear.weight.device)
            merged = cls(
                linear,
                theirs[layer, projection]["weight"],
                theirs[layer, projection].get("bias"),
                lam,
                self.plan.projections.index(projection)
                if self.granularity == "projection"
                else None,
                sigmoid=self.constraint == "sigmoid",
                owns_lam=id(lam) not in owned,
            )
            owned.add(id(lam))
            parent, _, name = path.rpartition(".")
            self._sites.append((target.get_submodule(parent), name, linear, merged))

    def insert(self) -> None:
        """Put the merged projections (back) in."""
        for parent, name, _, merged in self._sites:
            setattr(parent, name, merged)

    def remove(self) -> None:
        """Take them out: the target's own projections, with their own current weights, are back."""
        for parent, name, linear, _ in self._sites:
            setattr(parent, name, linear)

    @torch.no_grad()
    def fold(self) -> None:
        """Replace every merged projection by a plain ``nn.Linear`` that holds the merged weight.

        :meth:`insert` undoes it: λ and the target's weights are kept.
        """
        for parent, name, linear, merged in self._sites:
            weight, bias = merged.merged()
            folded = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            folded.weight = nn.Parameter(weight.clone(), requires_grad=linear.weight.requires_grad)
            if bias is not None:
                folded.bias = nn.Parameter(bias.clone(), requires_grad=linear.weight.requires_grad)
            setattr(parent, name, folded.train(merged.training))

    def parameters(self) -> list[nn.Parameter]:
        """The learned λ (logits under ``sigmoid``)."""
        return list(self.lams)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp λ to [0, 1] under ``constraint: project``; call it after each optimizer step."""
        if self.constraint == "project":
            for lam in self.lams:
                lam.clamp_(0.0, 1.0)

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """λ by name: ``layer 3``, ``layer 3 query``, ``layer 3 head 0`` or ``model``."""
        found: dict[str, Any] = {}
        for i, lam in enumerate(self.lams):
            share = torch.sigmoid(lam) if self.constraint == "sigmoid" else lam
            name = "model" if self.granularity == "model" else f"layer {self.plan.layers[i]}"
            for j, value in enumerate(share.tolist()):
                if self.granularity == "projection":
                    found[f"{name} {self.plan.projections[j]}"] = round(value, 6)
                else:
                    found[f"{name} head {j}" if self.granularity == "head" else name] = round(
                        value, 6
                    )
        return found


def keep_donor_out_of_ddp(module: nn.Module) -> None:
    """Tell ``DistributedDataParallel`` not to broadcast the donor's tensors.

    It sends every buffer from rank 0 at each forward pass: for BERT-large 300 MB a step, of tensors
    that never change. To be called on the module that will be wrapped, before it is;
    :class:`~speechbrain_mam.brain.MAMBrain` does so.
    """
    names = [
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if isinstance(part, MergedLinear)
        for name, _ in part.named_buffers(recurse=False)
    ]
    others = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    module._ddp_params_and_buffers_to_ignore = sorted(others.union(names))  # type: ignore[assignment]


def _start_values(plan: MergePlan, granularity: str, constraint: str) -> list[nn.Parameter]:
    groups: dict[Any, list[float]] = defaultdict(list)
    for layer in plan.layers:
        group = "model" if granularity == "model" else layer
        groups[group] += [plan.lam_of(layer, projection) for projection in plan.projections]
    start = []
    for group, values in groups.items():
        if granularity != "projection":
            if len(set(values)) > 1:
                raise MAMError(
                    f"key 'lam' gives {group if group == 'model' else f'layer {group}'} the values "
                    f"{sorted(set(values))}, but 'granularity: {granularity}' has one λ there"
                )
            values = values[:1] * (plan.target_heads if granularity == "head" else 1)
        lam = torch.tensor(values)
        if constraint == "sigmoid":
            if not all(0 < value < 1 for value in values):
                raise MAMError(
                    f"key 'lam': {values[0]} has no finite logit; 'constraint: sigmoid' needs λ "
                    "strictly between 0 and 1"
                )
            lam = torch.logit(lam)
        start.append(nn.Parameter(lam))
    return start
