"""HuBERT-mini's training data as SpeechBrain sees it: datasets, batches, augmentation."""

from __future__ import annotations

from pathlib import Path

from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import AddNoise, DropFreq, SpeedPerturb
from speechbrain.dataio.dataio import load_data_csv, read_audio
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from torch import Tensor, nn
from torchaudio.functional import resample

BATCH_S = 24.0
BUCKETS_S = [1.6, 2.0, 2.4, 2.8, 3.2, 3.6, 4.0, 4.5, 5.0, 6.0, 8.0]


class ShortFirstSampler(DynamicBatchSampler):
    """Dynamic batches; in the first epoch of a new model the short utterances come first."""

    def __init__(self, dataset: DynamicItemDataset, new_model: bool = True) -> None:
        self._short_first = new_model
        super().__init__(
            dataset,
            BATCH_S,
            bucket_boundaries=BUCKETS_S,
            length_func=lambda row: float(row["duration"]),
        )

    def _permute_batches(self) -> None:
        self._batch_ordering = "ascending" if self._short_first and self._epoch <= 1 else "random"
        super()._permute_batches()


def make_dataset(paths: list[Path]) -> DynamicItemDataset:
    """Rows of ``make_training_speech``'s CSVs with their waveform ``sig`` ``[T]``."""
    data: dict = {}
    for path in paths:
        data |= load_data_csv(path)
    dataset = DynamicItemDataset(data)
    dataset.add_dynamic_item(read_audio, takes="wav", provides="sig")
    dataset.set_output_keys(["id", "sig", "words"])
    return dataset


class Telephone(nn.Module):
    """Takes away what lies above 4 kHz, as a recording at 8 kHz has it.

    Example
    -------
    >>> import torch
    >>> Telephone()(torch.randn(2, 1600)).shape
    torch.Size([2, 1600])
    """

    def forward(self, waveforms: Tensor) -> Tensor:
        """``[B, T]`` to ``[B, T]``."""
        narrow = resample(waveforms, 2, 1)
        return resample(narrow, 1, 2)[:, : waveforms.shape[1]]


def make_augmenter(data: Path, share: float) -> Augmenter:
    """One or two of these on ``share`` of the batches.

    Speed 95 to 105 %, noise at 3 to 25 dB, telephone bandwidth, notches in the spectrum.
    """
    speed = SpeedPerturb(16000, speeds=[95, 100, 105])
    noise = AddNoise(
        str(data / "noise.csv"), csv_keys=["wav"], snr_low=3, snr_high=25, pad_noise=True
    )
    return Augmenter(
        augment_prob=share, min_augmentations=1, max_augmentations=2, shuffle_augmentations=True,
        augmentations=[speed, noise, Telephone(), DropFreq()],
    )  # fmt: skip
