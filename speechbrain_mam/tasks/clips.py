"""What classification of clips computes beside the model: pooling, mixtures, a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from speechbrain_mam.architectures.index import layer_path
from speechbrain_mam.architectures.live import find_attention

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties that are tried, on weights of standardised features, beside the mean loss."""
_STEPS = 200


def mean_feature(features: Tensor, lens: Tensor) -> Tensor:
    """Mean over the valid steps: ``[B, T, D]`` and relative lengths ``[B]`` to ``[B, D]``.

    SpeechBrain's ``StatisticsPooling`` adds noise to it, also in evaluation.

    Example
    -------
    >>> mean_feature(torch.tensor([[[1.0], [3.0], [8.0], [8.0]]]), torch.tensor([0.5]))
    tensor([[2.]])
    """
    steps = torch.arange(features.shape[1], device=features.device)
    valid = steps < (lens * features.shape[1]).round()[:, None]
    return (features * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def roll(wavs: Tensor, wav_lens: Tensor) -> Tensor:
    """Each clip turned in time by a random amount, within its own length.

    SpeechBrain's ``RandomShift`` turns all of a batch together, padding included.

    Arguments
    ---------
    wavs : Tensor
        ``[B, samples]``.
    wav_lens : Tensor
        ``[B]``, relative.
    """
    samples = (wav_lens * wavs.shape[1]).round().clamp(min=1)[:, None]
    start = (torch.rand(len(wavs), 1, device=wavs.device) * samples).floor()
    steps = torch.arange(wavs.shape[1], device=wavs.device)[None]
    turned = torch.where(steps < samples, (steps + start) % samples, steps)
    return wavs.gather(1, turned.long())


def mixup(
    wavs: Tensor, wav_lens: Tensor, alpha: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Mixtures of each clip with another one of the batch (Zhang et al., arXiv 1710.09412).

    Arguments
    ---------
    wavs : Tensor
        ``[B, samples]``.
    wav_lens : Tensor
        ``[B]``, relative.
    alpha : float
        The shares are drawn from Beta(α, α).

    Returns
    -------
    wavs : Tensor
        share · wavs + (1 − share) · wavs[order].
    wav_lens : Tensor
        Of the longer one.
    tuple
        ``order``, and share of the first clip ``[B]``.
    """
    order = torch.randperm(len(wavs), device=wavs.device)
    share = torch.distributions.Beta(alpha, alpha).sample((len(wavs),)).to(wavs)
    mixed = share[:, None] * wavs + (1 - share[:, None]) * wavs[order]
    return mixed, torch.maximum(wav_lens, wav_lens[order]), (order, share)


def layer_groups(modules: torch.nn.ModuleDict, decay: float) -> dict[float, list[Tensor]]:
    """Trained parameters by their share of the learning rate, decay^(layers above).

    The classifier has 1, the top layer ``decay``, what lies below the layers the least.
    """
    index = find_attention(modules["encoder"])
    depths: dict[int, int] = {}
    for depth in range(index.num_layers):
        layer = modules["encoder"].get_submodule(layer_path(index, depth))
        depths |= {id(p): depth + 1 for p in layer.parameters()}
    below = {id(p) for p in modules["encoder"].parameters()}
    groups: dict[float, list[Tensor]] = {}
    for parameter in modules.parameters():
        if parameter.requires_grad:
            top = index.num_layers + 1
            depth = depths.get(id(parameter), 0 if id(parameter) in below else top)
            groups.setdefault(decay ** (top - depth), []).append(parameter)
    return dict(sorted(groups.items()))


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
