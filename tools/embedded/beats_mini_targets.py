"""What BEATs-mini learns from: Whisper's states, filter banks' statistics, labels of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.embedded.beats_mini_model import BINS, MEL_PATCHES, PATCH
from tools.embedded.whisper_init import WhisperTeacher

TEACHER_LAYERS = (2, 4)
"""Whisper's layers after which its states are learned."""


def _unit(wavs: Tensor) -> Tensor:
    return wavs / wavs.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)


@torch.no_grad()
def teacher_rows(teacher: WhisperTeacher, wavs: Tensor) -> Tensor:
    """Whisper's states, a mean for each row of patches: ``[B, T]`` → ``[B, rows, 2 · C]``."""
    hidden = teacher.embed(_unit(wavs))
    rows = -(-hidden.shape[1] // MEL_PATCHES)
    hidden = hidden + teacher.positions[: hidden.shape[1]]
    states = []
    for i, layer in enumerate(teacher.layers, start=1):
        output = layer(hidden)
        hidden = output[0] if isinstance(output, tuple) else output
        if i in TEACHER_LAYERS:
            last = i == len(teacher.layers)
            states.append(teacher.layer_norm(hidden) if last else hidden)
    both = torch.cat(states, -1).transpose(1, 2)
    # 50 frames a second and rows of 0.16 s: eight frames a row, fewer in the last one
    missing = rows * MEL_PATCHES - both.shape[2]
    both = F.pad(both, (0, missing), mode="replicate")
    return F.avg_pool1d(both, MEL_PATCHES).transpose(1, 2)


class Quantizer(nn.Module):
    """Labels of patches by a random projection and a random codebook (BEST-RQ).

    label = argmin_i ‖unit(codebook_i) − unit(A · patch)‖, with A and the codebook never trained;
    patches of a clip are first brought to mean 0 and standard deviation 1. Chiu et al.,
    "Self-supervised Learning with Random-projection Quantizer for Speech Recognition",
    arXiv 2202.01855; BEATs' first iteration uses it for audio.

    Example
    -------
    >>> Quantizer()(torch.randn(2, 3, 256)).shape
    torch.Size([2, 3])
    """

    projection: Tensor
    codebook: Tensor

    def __init__(self, codes: int = 1024, dim: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        projection = torch.randn(PATCH * PATCH, dim, generator=generator)
        codebook = torch.randn(codes, dim, generator=generator)
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", F.normalize(codebook, dim=-1))

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """``[B, N, 256]`` to ``[B, N]``."""
        mean = patches.mean((1, 2), keepdim=True)
        spread = patches.std((1, 2), keepdim=True).clamp(min=1e-3)
        return (((patches - mean) / spread) @ self.projection @ self.codebook.t()).argmax(-1)


def statistics(fbank: Tensor) -> Tensor:
    """Mean and standard deviation over time of each mel bin, whatever the level: ``[B, 256]``.

    Example
    -------
    >>> fbank = torch.randn(2, 40, 128)
    >>> torch.allclose(statistics(fbank), statistics(fbank + 1), atol=1e-5)
    True
    """
    mean = fbank.mean(1)
    return torch.cat([mean - mean.mean(1, keepdim=True), fbank.std(1)], -1)


class Heads(nn.Module):
    """What BEATs-mini predicts in training; none of it is shipped.

    Arguments
    ---------
    kinds : int
        Number of kinds of sound.
    rows : Tensor
        ``[N, rows, 2 · C]``, some of :func:`teacher_rows`, for mean and deviation of each feature.
    fbanks : Tensor
        ``[N, frames, 128]``, normalised filter banks, for those of :func:`statistics`.
    width : int
        BEATs' width.
    codes : int
        Number of the quantizer's labels.
    """

    mean: Tensor
    std: Tensor
    statistics_mean: Tensor
    statistics_std: Tensor

    def __init__(
        self, kinds: int, rows: Tensor, fbanks: Tensor, width: int = 384, codes: int = 1024
    ) -> None:
        super().__init__()
        flat, known = rows.float().flatten(0, 1), statistics(fbanks)
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("std", flat.std(0).clamp(min=1e-3))
        self.register_buffer("statistics_mean", known.mean(0))
        # The empty filter's deviation is zero in every clip.
        self.register_buffer("statistics_std", known.std(0).clamp(min=1e-2))
        self.codes = nn.Linear(width, codes)
        self.kinds = nn.Linear(width, kinds)
        self.teacher = nn.Linear(width, rows.shape[-1])
        self.statistics = nn.Linear(width, 2 * BINS)

    def teacher_error(self, features: Tensor, rows: Tensor) -> Tensor:
        """Mean squared error of the standardised teacher's rows and of their mean over the clip."""
        target = (rows.float() - self.mean) / self.std
        heard = self.teacher(features.unflatten(1, (-1, MEL_PATCHES)).mean(2)).float()
        clips = (heard.mean(1) - target.mean(1)).square().mean() / target.mean(1).var().clamp(1e-3)
        return 0.5 * (heard - target).square().mean() + 0.5 * clips

    def statistics_error(self, features: Tensor, fbank: Tensor) -> Tensor:
        """Mean squared error of the standardised statistics."""
        target = (statistics(fbank) - self.statistics_mean) / self.statistics_std
        return (self.statistics(features.mean(1)).float() - target).square().mean()
