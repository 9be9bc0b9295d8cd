"""What classification of clips computes besides the model: pooling, mixtures, rates."""

from __future__ import annotations

import torch
from torch import Tensor

from speechbrain_mam.architectures.index import find_attention
from speechbrain_mam.search.prefix_cache import layer_path


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
