"""Recordings as models want them, and in the order in which they are wanted."""

from __future__ import annotations

from functools import lru_cache

import torch
import torchaudio
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.tasks.recordings import check_samples


@lru_cache(maxsize=8)
def _resampler(source_hz: int, target_hz: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(source_hz, target_hz)


def load_audio(file: str, sample_rate_hz: int, where: str = "recording") -> torch.Tensor:
    """One recording as ``[samples]``, mixed down to one channel and resampled.

    ``speechbrain.dataio.dataio.read_audio`` does neither.

    Arguments
    ---------
    file : str
        The recording.
    sample_rate_hz : int
        What it is brought to.
    where : str
        The utterance or clip, for the message.

    Raises
    ------
    MAMError
        If it is no audio, has samples that are no numbers, or nothing is heard in it
        (:func:`~speechbrain_mam.tasks.recordings.check_samples`).
    """
    try:
        signal, rate_hz = audio_io.load(file)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise MAMError(f"{where}: '{file}' is not readable audio: {reason}") from error
    check_samples([signal.numpy().T], file, where)
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
