"""Where learned λ start, and how they are kept where they belong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.plan import MergePlan


def start_values(
    plan: MergePlan, granularity: str, constraint: str, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    """λ at the values of a plan, a parameter for the model or for each layer.

    Arguments
    ---------
    plan : MergePlan
        Whose λ are the start.
    granularity, constraint : str
        See :class:`~speechbrain_mam.learning.learnable.LearnableMAM`.
    dtype : torch.dtype
        λ's precision, float32 or wider.

    Raises
    ------
    MAMError
        If the plan's λ are finer than the granularity, or have no logit where one is learned.
    """
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
        lam = torch.tensor(values, dtype=dtype)
        if constraint == "sigmoid":
            if not all(0 < value < 1 for value in values):
                raise MAMError(
                    f"key 'lam': {values[0]} has no finite logit; 'constraint: sigmoid' needs λ "
                    "strictly between 0 and 1"
                )
            lam = torch.logit(lam)
        start.append(nn.Parameter(lam))
    return start


def with_shares(lam: nn.Parameter, shares: Sequence[float], constraint: str) -> nn.Parameter:
    """λ of the target and of each donor: ``(1 + donors,)``, on the simplex, or their logits."""
    start = lam.detach()
    target = float(torch.sigmoid(start) if constraint == "sigmoid" else start)
    values = [target, *((1 - target) * share for share in shares)]
    vector = torch.tensor(values, dtype=start.dtype)
    if constraint == "sigmoid":
        if not bool((vector > 0).all()):
            raise MAMError(
                "key 'donor_shares': a share of 0 has no finite logit; 'constraint: sigmoid' needs "
                "every share above 0"
            )
        vector = vector.log()
    return nn.Parameter(vector)


def nearest_on_simplex(point: Tensor) -> Tensor:
    """The nearest point with no negative coordinate and the sum 1: ``[n]`` to ``[n]``.

    Source: Duchi et al., "Efficient projections onto the l1-ball", ICML 2008.

    Example
    -------
    >>> nearest_on_simplex(torch.tensor([0.5, 0.5, 0.3]))
    tensor([0.4000, 0.4000, 0.2000])
    >>> nearest_on_simplex(torch.tensor([2.0, 0.0]))
    tensor([1., 0.])
    """
    ordered = point.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1, device=point.device)
    above = int((ordered > excess).sum())
    return (point - excess[above - 1]).clamp(min=0)
