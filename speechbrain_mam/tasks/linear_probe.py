"""A linear classifier on fixed features: what an encoder knows before anything in it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties that are tried, on weights of standardised features, beside the mean loss."""
_STEPS = 200


@dataclass(frozen=True)
class LinearProbe:
    """``logits = features @ weight.T + bias``, with the penalty that validation data chose.

    ``weight`` ``[classes, D]``, ``bias`` ``[classes]``.
    """

    weight: Tensor
    bias: Tensor
    penalty: float


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    valid_features: Tensor,
    valid_labels: Tensor,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """Multinomial logistic regression; the L2 penalty with the fewest validation errors.

    Of equal ones the one with the lower validation loss. The problem is convex and starts from
    zeros, so that the result depends on nothing else.

    Arguments
    ---------
    features, valid_features : Tensor
        ``[N, D]``.
    labels, valid_labels : Tensor
        ``[N]``, 0 to ``classes`` − 1.
    classes : int
        Number of classes.
    penalties : sequence of float
        To choose from.

    Example
    -------
    >>> x, y = torch.tensor([[0.0, 5.0], [1.0, 5.0]]).repeat(8, 1), torch.tensor([0, 1]).repeat(8)
    >>> probe = fit_linear_probe(x, y, x, y, classes=2)
    >>> (x @ probe.weight.t() + probe.bias).argmax(1).tolist() == y.tolist()
    True
    """
    mean = features.double().mean(0)
    # A feature that is the same everywhere has nothing to say, and must not be divided by zero.
    std = features.double().std(0, correction=0).clamp(min=1e-6)
    train, valid = ((x.double() - mean) / std for x in (features, valid_features))
    best: tuple[tuple[int, float], LinearProbe] | None = None
    for penalty in penalties:
        weight, bias = _fit(train, labels, classes, penalty)
        logits = valid @ weight.t() + bias
        errors = int((logits.argmax(1) != valid_labels).sum())
        quality = errors, float(F.cross_entropy(logits, valid_labels))
        if best is None or quality < best[0]:
            weight = weight / std
            found = LinearProbe(weight.float(), (bias - weight @ mean).float(), penalty)
            best = quality, found
    assert best is not None, "no penalty to choose from"
    return best[1]


def _fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.t() + bias, labels)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()
