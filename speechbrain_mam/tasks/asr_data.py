"""Speech as the recipes see it: audio, text, sets and batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.logger import get_logger

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.hubert_ctc import HubertCTC, Labels
from speechbrain_mam.lobes.pieces import Pieces
from speechbrain_mam.options import in_brackets
from speechbrain_mam.tasks.audio import load_audio, sort_by_duration
from speechbrain_mam.tasks.corpus import normalize_text
from speechbrain_mam.tasks.manifest import cluster_keys, read_manifest
from speechbrain_mam.tasks.recordings import check_audio

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "wrd")
"""Of a manifest of speech."""


def speech_dataset(manifest: Path, data_root: str, encoder: HubertCTC) -> DynamicItemDataset:
    """The utterances of a manifest with ``id``, ``sig``, ``wrd``, ``tokens`` and any ``cluster``.

    Arguments
    ---------
    manifest : Path
        SpeechBrain's CSV with the columns ``ID, duration, wav, wrd``; ``cluster`` is optional.
    data_root : str
        What ``$data_root`` in it stands for.
    encoder : HubertCTC
        Its sample rate and alphabet are what audio and text are brought to.

    Raises
    ------
    MAMError
        If the manifest cannot be read, or a transcript be written in the alphabet.
    """

    root = {"data_root": data_root}
    rows = read_manifest(manifest, COLUMNS, root)
    for name, row in rows.items():
        # Here, so that WER compares with what the tokens say; a dynamic item would be passed over.
        row["wrd"] = normalize_text(row["wrd"], encoder.alphabet, _where(name, manifest))
    _say_of_unseen_letters(rows, encoder.alphabet, manifest)

    @sb.utils.data_pipeline.takes("id", "wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(name, wav):
        return load_audio(wav, encoder.sample_rate, _where(name, manifest))

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(wrd):
        return torch.LongTensor(encoder.alphabet.encode(wrd))

    return DynamicItemDataset(
        rows,
        dynamic_items=[audio_pipeline, text_pipeline],
        output_keys=["id", "sig", "wrd", "tokens", *cluster_keys(rows)],
    )


def _say_of_unseen_letters(
    rows: Mapping[str, Mapping[str, str]], labels: Labels, manifest: Path
) -> None:
    """Letters of validation and test texts that no piece has: they cannot be written."""
    if not isinstance(labels, Pieces):
        return
    letters = sorted(labels.unseen("".join({c for row in rows.values() for c in row["wrd"]})))
    if letters:
        logger.warning(
            "'%s' has %s, which the tokenizer has not seen in the training texts: no label writes "
            "them, and each is an error of its word",
            manifest,
            letters,
        )


def check_recordings(dataset: DynamicItemDataset, manifest: Path) -> None:
    """All recordings of a manifest that no preparation has checked.

    Raises
    ------
    MAMError
        For the first that cannot be used (:func:`~speechbrain_mam.tasks.recordings.check_audio`).
    """
    for name, row in dataset.data.items():
        check_audio(Path(row["wav"]), _where(name, manifest))


def _where(name: str, manifest: Path) -> str:
    return f"utterance {name} of '{manifest}'"


def dataio_prepare(hparams: Mapping[str, Any]) -> dict[str, DynamicItemDataset]:
    """The train, valid and test sets in ``save_folder``, and further test sets of ``test_csv``.

    Training data are sorted, shuffled or batched by duration, as ``sorting`` and
    ``dynamic_batching`` say; validation and test are sorted ascending, so that the composition of
    test batches is fixed.
    """
    save_folder, data_root = Path(hparams["save_folder"]), str(hparams["data_folder"])
    sets = {
        split: speech_dataset(save_folder / f"{split}.csv", data_root, hparams["encoder"])
        for split in ("train", "valid", "test")
    }
    sets["train"] = sort_by_duration(sets["train"], hparams["sorting"])
    sets["valid"] = sets["valid"].filtered_sorted(sort_key="duration")
    sets["test"] = sets["test"].filtered_sorted(sort_key="duration")
    for name, manifest in further_tests(hparams.get("test_csv")).items():
        found = speech_dataset(manifest, data_root, hparams["encoder"])
        check_recordings(found, manifest)
        sets[name] = found.filtered_sorted(sort_key="duration")
    return sets


def further_tests(test_csv: Any) -> dict[str, Path]:
    """Further test sets, by the names of their manifests.

    Raises
    ------
    MAMError
        If a manifest does not exist, or two have one name.

    Example
    -------
    >>> further_tests(None), further_tests("[other/noisy.csv]")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: key 'test_csv': 'other/noisy.csv': no such file
    """
    asked = in_brackets("test_csv", test_csv) or []
    found: dict[str, Path] = {}
    for file in map(Path, [asked] if isinstance(asked, str) else asked):
        if not file.is_file():
            raise MAMError(f"key 'test_csv': '{file}': no such file")
        if file.stem in found or file.stem in ("train", "valid", "test"):
            raise MAMError(f"key 'test_csv': another set is called '{file.stem}'; rename '{file}'")
        found[file.stem] = file
    return found


def train_loader_options(
    hparams: Mapping[str, Any], train_set: DynamicItemDataset
) -> dict[str, Any]:
    """Keyword arguments of the training ``DataLoader``."""
    options = dict(hparams["train_dataloader_opts"])
    if not hparams.get("dynamic_batching"):
        options["shuffle"] = hparams["sorting"] == "random"
        return options
    sampler = DynamicBatchSampler(
        train_set,
        length_func=lambda item: float(item["duration"]),
        **hparams["dynamic_batch_sampler"],
    )
    options.pop("batch_size", None)
    return options | {"batch_sampler": sampler, "collate_fn": PaddedBatch}
