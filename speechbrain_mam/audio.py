"""Recordings as models want them: one channel at their sample rate."""

from __future__ import annotations

from functools import lru_cache

import torch
import torchaudio
from speechbrain.dataio import audio_io


@lru_cache(maxsize=8)
def _resampler(source_hz: int, target_hz: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(source_hz, target_hz)


def load_audio(file: str, sample_rate_hz: int) -> torch.Tensor:
    """One recording as ``[samples]``, mixed down to one channel and resampled.

    ``speechbrain.dataio.dataio.read_audio`` does neither.
    """
    signal, rate_hz = audio_io.load(file)
    signal = signal.mean(0)
    return signal if rate_hz == sample_rate_hz else _resampler(rate_hz, sample_rate_hz)(signal)
