"""Clips as the audio-event recipe sees them: audio, classes, sets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.tasks.audio import load_audio, sort_by_duration
from speechbrain_mam.tasks.manifest import cluster_keys
from speechbrain_mam.text_files import read_table

SPLITS = ("train", "valid", "test")


def class_names(manifests: Path) -> list[str]:
    """The classes that the manifests of a fold name, in the order of their numbers."""
    found: dict[int, str] = {}
    for split in SPLITS:
        file = manifests / f"{split}.csv"
        try:
            found |= {int(row["class_id"]): row["class_name"] for row in read_table(file)}
        except (KeyError, ValueError) as error:
            raise MAMError(f"'{file}': expected class_id and class_name in each row") from error
    return [found[number] for number in sorted(found)]


def check_classes(names: list[str], hparams: Mapping[str, Any]) -> None:
    """The classifier must have one output for each class.

    Raises
    ------
    MAMError
        If ``num_classes`` is another number than the corpus has.

    Example
    -------
    >>> check_classes(["dog", "rain"], {"num_classes": 50, "data_folder": "ESC-50"})
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: key 'num_classes' is 50, but 'ESC-50' has 2 classes
    """
    if hparams["num_classes"] != len(names):
        raise MAMError(
            f"key 'num_classes' is {hparams['num_classes']}, but '{hparams['data_folder']}' has "
            f"{len(names)} classes"
        )


def event_dataset(manifest: Path, data_root: str, encoder: BEATsEncoder) -> DynamicItemDataset:
    """The clips of a manifest with ``id``, ``sig``, ``label``, ``fold`` and any ``cluster``.

    Waveforms are read and resampled once and kept: 320 kB for a clip of 5 s.

    Arguments
    ---------
    manifest : Path
        SpeechBrain's CSV with the columns ``ID, duration, wav, fold, class_id, class_name``;
        ``cluster`` is optional.
    data_root : str
        What ``$data_root`` in it stands for.
    encoder : BEATsEncoder
        Its sample rate is what audio is brought to.
    """

    @cache
    def read(name: str, wav: str) -> torch.Tensor:
        return load_audio(wav, encoder.sample_rate, f"clip {name} of '{manifest}'")

    @sb.utils.data_pipeline.takes("id", "wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(name, wav):
        return read(name, wav)

    @sb.utils.data_pipeline.takes("class_id")
    @sb.utils.data_pipeline.provides("label")
    def class_pipeline(class_id):
        return int(class_id)

    clips = DynamicItemDataset.from_csv(
        csv_path=str(manifest),
        replacements={"data_root": data_root},
        dynamic_items=[audio_pipeline, class_pipeline],
    )
    clips.set_output_keys(["id", "sig", "label", "fold", *cluster_keys(clips.data)])
    return clips


def dataio_prepare(hparams: Mapping[str, Any]) -> dict[str, DynamicItemDataset]:
    """The train, valid and test sets of the manifests in ``save_folder``.

    Training clips are drawn at random or sorted, as ``sorting`` says; validation and test keep the
    corpus's order, so that the composition of test batches is fixed.
    """
    folder, data_root = Path(hparams["save_folder"]), str(hparams["data_folder"])
    check_classes(class_names(folder), hparams)
    sets = {
        split: event_dataset(folder / f"{split}.csv", data_root, hparams["encoder"])
        for split in SPLITS
    }
    return {**sets, "train": sort_by_duration(sets["train"], hparams["sorting"])}
