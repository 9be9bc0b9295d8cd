"""Recordings as models want them, and in the order in which they are wanted."""

from __future__ import annotations

from functools import lru_cache

import torch
import torchaudio
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_mam.choices import one_of


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


def sort_by_duration(dataset: DynamicItemDataset, sorting: str) -> DynamicItemDataset:
    """A training set sorted ``ascending`` or ``descending``, or as it is to be drawn at ``random``.

    Raises
    ------
    MAMError
        If ``sorting`` is something else.
    """
    one_of("sorting", sorting, ("ascending", "descending", "random"))
    if sorting == "random":
        return dataset
    return dataset.filtered_sorted(sort_key="duration", reverse=sorting == "descending")
