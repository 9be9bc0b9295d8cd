"""The first-order probe: which layers, projections and heads would gain from a donor, in one pass.

At λ = 1, where the target is untouched, a small step towards the donor changes the loss by

    ∂L/∂(1 − λ) = −∂L/∂λ = Σ ⟨∂L/∂W, W_donor − W_target⟩,

summed over the weights and biases that share λ. One backward pass over a validation set gives it
for every head at once. Negative: moving towards the donor lowers the loss. It says nothing of
larger steps, where the loss bends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.donors.donor import TensorSource
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.arithmetic import first_step
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.prepare import donor_tensors, own_part


@dataclass(frozen=True)
class Probe:
    """Scores by layer, projection and head. Make one with :func:`probe`.

    ``values[batch, layer, projection, head]`` is ∂L/∂(1 − λ) of each batch, with ``weights`` the
    batches' sizes; ``layers`` and ``projections`` name the axes. Rows of a projection are dealt to
    the target's heads; the output projection is not a head's own, and its score is spread evenly.
    """

    layers: tuple[int, ...]
    projections: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray

    def score(self, *axes: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean over utterances and its standard error, for each value of the named axes.

        Arguments
        ---------
        *axes : str
            Of ``layer``, ``projection``, ``head``, in this order; the others are summed over.
        """
        names = ("layer", "projection", "head")
        others = tuple(i + 1 for i, name in enumerate(names) if name not in axes)
        values = self.values.sum(axis=others)
        share = (self.weights / self.weights.sum()).reshape(-1, *[1] * (values.ndim - 1))
        mean = (share * values).sum(0)
        return mean, np.sqrt((share**2 * (values - mean) ** 2).sum(0))

    def ranking(self) -> list[int]:
        """The layers, the one whose merge promises most first."""
        mean, _ = self.score("layer")
        return [self.layers[i] for i in np.argsort(mean, kind="stable")]

    def as_dict(self) -> dict[str, Any]:
        """What ``probe.json`` holds."""
        rows: dict[str, Any] = {
            "method": "first-order probe",
            "utterances": int(self.weights.sum()),
        }
        for name, axes in (
            ("layers", ("layer",)),
            ("projections", ("layer", "projection")),
            ("heads", ("layer", "head")),
        ):
            mean, error = self.score(*axes)
            rows[name] = [
                {axis: self._label(axis, i) for axis, i in zip(axes, place, strict=True)}
                | {"score": float(value), "stderr": float(error[place])}
                for place, value in np.ndenumerate(mean)
            ]
        return rows

    def _label(self, axis: str, i: int) -> Any:
        return {"layer": self.layers, "projection": self.projections}.get(axis, range(i + 1))[i]

    def __str__(self) -> str:
        mean, error = self.score("layer")
        by_projection, _ = self.score("layer", "projection")
        rows = [["layer", "∂L/∂(1 − λ)", "std. error", *self.projections]]
        for layer in self.ranking():
            i = self.layers.index(layer)
            rows.append([str(layer), f"{mean[i]:+.5f}", f"{error[i]:.5f}"])
            rows[-1] += [f"{value:+.5f}" for value in by_projection[i]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(["Negative: moving towards the donor lowers the loss.", *lines])


def probe(
    target: nn.Module,
    plan: MergePlan,
    donor: TensorSource,
    losses: Iterable[tuple[Tensor, int]],
    kept: dict[str, Tensor] | None = None,
) -> Probe:
    """Rank layers, projections and heads by −∂L/∂λ at λ = 1.

    Arguments
    ---------
    target : nn.Module
        The untouched model, in evaluation mode.
    plan : MergePlan
        Which tensors meet which; its λ do not matter.
    donor : TensorSource
        The donor's tensors.
    losses : iterable of (Tensor, int)
        For each batch the mean loss over its utterances, and their number. It is consumed lazily,
        one backward pass each, so a generator that runs the model is what is wanted.
    kept : dict, optional
        Gets ∂L/∂W of the whole set by parameter, for :func:`ranking_of` other donors.

    Returns
    -------
    Probe

    Raises
    ------
    MAMError
        If there is no batch, or a loss that is not finite.

    Example
    -------
    >>> from speechbrain_mam import Donor, find_attention, make_plan
    >>> from transformers import AutoModelForCTC
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> model = AutoModelForCTC.from_pretrained(donor.folder.path).eval()
    >>> plan = make_plan(find_attention(model), donor.index, layer_map=[1, 2, 3, 0])
    >>> batches = ((model(torch.randn(1, 4000)).logits.square().mean(), 1) for _ in range(2))
    >>> sorted(probe(model, plan, donor, batches).ranking())
    [0, 1, 2, 3]
    """
    heads = find_attention(target).heads
    parameters = dict(target.named_parameters())
    held = [(entry, parameters[entry.target]) for entry in plan.entries]
    steps = []
    for entry, theirs in donor_tensors(plan, donor, lambda n: parameters[n].detach()):
        ours = own_part(entry, parameters[entry.target].detach())
        steps.append((entry, first_step(ours, theirs.to(ours), plan.method)))
    # Only Q/K/V need a gradient: the rest is neither kept for backward nor accumulated.
    before = {name: p.requires_grad for name, p in parameters.items()}
    shape = (len(plan.layers), len(plan.projections), heads)
    values, weights = [], []
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for _, parameter in held:
            parameter.requires_grad_(True)
        for number, (loss, size) in enumerate(losses):
            if not torch.isfinite(loss):
                raise MAMError(f"the probe's loss of batch {number} is {loss.item()}")
            found = torch.autograd.grad(loss, [p for _, p in held], allow_unused=True)
            gradient = dict(zip((p for _, p in held), found, strict=True))
            scores = np.zeros(shape)
            for entry, step in steps:
                whole = gradient[parameters[entry.target]]
                change = _by_head(None if whole is None else own_part(entry, whole), step, heads)
                if entry.projection == "output":
                    change = np.full(heads, change.sum() / heads)
                place = plan.layers.index(entry.layer), plan.projections.index(entry.projection)
                scores[place] += change
            values.append(scores)
            weights.append(size)
            if kept is not None:
                # once each: several projections may be parts of one parameter
                for name in {entry.target for entry, _ in held}:
                    if (part := gradient[parameters[name]]) is not None:
                        kept[name] = kept.get(name, torch.zeros_like(part)) + size * part
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
    if not values:
        raise MAMError("the probe got no batch to work on")
    return Probe(plan.layers, plan.projections, np.stack(values), np.array(weights, float))


def ranking_of(
    target: nn.Module, plan: MergePlan, donor: TensorSource, gradients: Mapping[str, Tensor]
) -> list[int]:
    """The layers as :meth:`Probe.ranking` has them, for another donor and without another pass.

    Arguments
    ---------
    target, plan, donor
        As for :func:`probe`.
    gradients : mapping of str to Tensor
        What a probe has ``kept``; its plan must have had these parameters.
    """
    parameters = dict(target.named_parameters())
    scores = dict.fromkeys(plan.layers, 0.0)
    for entry, theirs in donor_tensors(plan, donor, lambda n: parameters[n].detach()):
        if entry.target in gradients:
            ours = own_part(entry, parameters[entry.target].detach())
            step = first_step(ours, theirs.to(ours), plan.method)
            product = own_part(entry, gradients[entry.target]).double() * step.double()
            scores[entry.layer] += product.sum().item()
    return sorted(plan.layers, key=lambda layer: scores[layer])


def _by_head(gradient: Tensor | None, change: Tensor, heads: int) -> np.ndarray:
    """⟨gradient, change⟩ over the rows of each head."""
    if gradient is None:
        return np.zeros(heads)
    product = (gradient.double() * change.double()).reshape(heads, -1)
    return product.sum(1).cpu().numpy()
