"""Learnable-MAM: one λ per layer (or model, projection, head), learned with the target.

    W = λ · W_target + (1 − λ) · W_donor,      ∂L/∂λ = Σ ⟨∂L/∂W, W_target − W_donor⟩

:class:`LearnableMAM` puts a :class:`MergedLinear` in the place of every projection of a plan, and
:meth:`LearnableMAM.fold` writes the result back into plain ``nn.Linear`` modules.

Source: Sundar et al., arXiv 2312.14378, section "Learnable-MAM".
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechbrain_mam.attention import find_attention
from speechbrain_mam.choices import one_of
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merge import TensorSource, donor_tensors
from speechbrain_mam.plan import MergePlan, PlanEntry

GRANULARITIES = ("model", "layer", "projection", "head")
CONSTRAINTS = ("project", "sigmoid", "none")


class _MergedLinearFunction(torch.autograd.Function):
    """``x @ lerp(W_donor, W_target, λ).T + lerp(b_donor, b_target, λ)``.

    The merged weight is recomputed in backward instead of being kept: what is saved are ``x``, as
    for a plain linear layer, and parameters that exist anyway.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, donor_weight, donor_bias, lam):
        device = x.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        ctx.save_for_backward(x, weight, bias, donor_weight, donor_bias, lam)
        return F.linear(x, *_merge(weight, bias, donor_weight, donor_bias, lam))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, bias, donor_weight, donor_bias, lam = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, _, needs_lam = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = grad_lam = None
        flat = grad.flatten(0, -2)
        with torch.autocast(**ctx.autocast):
            if needs_x:
                grad_x = grad @ torch.lerp(donor_weight, weight, _column(lam))
            if needs_weight or needs_lam:
                grad_weight = flat.t() @ x.flatten(0, -2)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if bias is not None and (needs_bias or needs_lam):
            grad_bias = flat.sum(0).to(bias.dtype)
        if needs_lam:
            grad_lam = _inner(grad_weight, weight - donor_weight, lam)
            if donor_bias is not None:
                grad_lam = grad_lam + _inner(grad_bias, bias - donor_bias, lam)
        if needs_weight:
            grad_weight = grad_weight.mul_(_column(lam))
        if needs_bias and donor_bias is not None:
            grad_bias = grad_bias.mul_(lam)
        return (
            grad_x,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            None,
            None,
            grad_lam,
        )


def _merge(weight, bias, donor_weight, donor_bias, lam):
    merged_bias = bias if donor_bias is None else torch.lerp(donor_bias, bias, lam)
    return torch.lerp(donor_weight, weight, _column(lam)), merged_bias


def _column(lam: Tensor) -> Tensor:
    return lam if lam.numel() == 1 else lam.unsqueeze(1)


def _inner(grad: Tensor, difference: Tensor, lam: Tensor) -> Tensor:
    """⟨grad, difference⟩, over everything or for each row where λ has one value a row."""
    if lam.numel() == 1:
        return torch.dot(grad.reshape(-1), difference.reshape(-1)).reshape(lam.shape)
    return (grad * difference).reshape(lam.numel(), -1).sum(1)


class MergedLinear(nn.Linear):
    """A linear projection that is mixed with a donor's at every forward pass.

    y = x · (λ·W + (1 − λ)·W_donor)ᵀ + λ·b + (1 − λ)·b_donor

    It keeps the parameters of the layer that it replaces under their names, ``weight`` and
    ``bias``, so a checkpoint of the plain model loads. λ is shared by the projections of a layer:
    each holds the same ``Parameter``, one of them writes it into the state dict.

    Arguments
    ---------
    linear : nn.Linear
        The target's projection, whose parameters are taken over.
    donor_weight : Tensor
        ``[out, in]``.
    donor_bias : Tensor or None
        ``[out]``; None keeps the target's bias.
    lam : nn.Parameter
        ``(1,)``, ``(projections,)`` or ``(heads,)``.
    index : int, optional
        Which value of ``lam`` belongs to this projection (granularity ``projection``).
    sigmoid : bool
        Whether λ = sigmoid(lam).
    owns_lam : bool
        Whether this layer writes λ into the state dict.

    Example
    -------
    >>> plain = nn.Linear(4, 4)
    >>> merged = MergedLinear(plain, torch.zeros(4, 4), None, nn.Parameter(torch.tensor([0.5])))
    >>> x = torch.randn(2, 4)
    >>> torch.allclose(merged(x), x @ (0.5 * plain.weight).t() + plain.bias)
    True
    """

    lam: nn.Parameter
    donor_weight: Tensor
    donor_bias: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        donor_weight: Tensor,
        donor_bias: Tensor | None,
        lam: nn.Parameter,
        index: int | None = None,
        sigmoid: bool = False,
        owns_lam: bool = True,
    ):
        nn.Module.__init__(self)  # not nn.Linear's: it would allocate a weight to throw away
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Not by attribute: a subclass has properties of these names.
        self._parameters["weight"] = linear.weight
        self._parameters["bias"] = cast("nn.Parameter | None", linear.bias)
        self.register_parameter("lam", lam)
        self.register_buffer("donor_weight", donor_weight.to(linear.weight), persistent=False)
        self.register_buffer(
            "donor_bias",
            None if donor_bias is None else donor_bias.to(linear.bias),
            persistent=False,
        )
        self.index, self.sigmoid, self.owns_lam = index, sigmoid, owns_lam
        self.train(linear.training)

    def share(self) -> Tensor:
        """λ of this projection: ``(1,)``, or ``(out,)`` with one value for each row."""
        lam = torch.sigmoid(self.lam) if self.sigmoid else self.lam
        if self.index is not None:
            lam = lam[self.index : self.index + 1]
        elif lam.numel() > 1:
            lam = lam.repeat_interleave(self.out_features // lam.numel())
        return lam.to(self.donor_weight.dtype)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, differentiable."""
        parameters = self._parameters
        return _merge(
            parameters["weight"],
            parameters["bias"],
            self.donor_weight,
            self.donor_bias,
            self.share(),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Project ``[..., in]`` to ``[..., out]`` with the merged weight."""
        return _MergedLinearFunction.apply(
            input, self.weight, self.bias, self.donor_weight, self.donor_bias, self.share()
        )

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.owns_lam:
            del destination[prefix + "lam"]

    def _load_from_state_dict(self, state_dict, prefix, meta, strict, missing, unexpected, errors):
        # λ is copied in place (it is shared), and may be missing: a plain model has none.
        lam = self.lam
        del self._parameters["lam"]
        saved = state_dict.pop(prefix + "lam", None)
        super()._load_from_state_dict(state_dict, prefix, meta, strict, missing, unexpected, errors)
        self.register_parameter("lam", lam)
        if saved is not None and saved.shape != lam.shape:
            errors.append(f"{prefix}lam: shape {list(saved.shape)}, expected {list(lam.shape)}")
        elif saved is not None:
            with torch.no_grad():
                lam.copy_(saved)


class MergedLinearByWeight(MergedLinear):
    """For attention that reads ``weight`` and ``bias`` of its projections instead of calling them.

    Here both attributes are the merged tensors; parameters and state dict are the target's.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The merged weight ``[out, in]``."""
        return self.merged()[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The merged bias ``[out]``."""
        return self.merged()[1]

    def forward(self, input: Tensor) -> Tensor:
        """Project ``[..., in]`` to ``[..., out]`` with the merged weight."""
        return F.linear(input, *self.merged())


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
