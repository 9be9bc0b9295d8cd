"""What a recogniser's labels are: those of its pretrained head, or SentencePiece's pieces.

A tokenizer is trained once, on the training transcripts, by SpeechBrain's ``SentencePiece``. It
lies in the save folder with a note of its bits, and in every checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.tokenizers.SentencePiece import SentencePiece
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.lobes.pieces import Pieces
from speechbrain_mam.model_files.read import sha256_of
from speechbrain_mam.results.fields import get
from speechbrain_mam.text_files import read_json, read_table

logger = get_logger(__name__)

PRETRAINED = "pretrained"
UNITS = (PRETRAINED, "char", "unigram", "bpe")
NOTE = "units.json"
"""In the save folder: which units, and the SHA-256 of their tokenizer."""


@register_checkpoint_hooks
class TokenizerRecord:
    """A tokenizer among a checkpoint's objects: the file itself.

    Its bits are those that the head's labels were trained with, so they are compared, not loaded.
    """

    def __init__(self, file: Path):
        self.file = file

    @mark_as_saver
    def _save(self, path: Path) -> None:
        shutil.copyfile(self.file, path)

    @mark_as_loader
    def _load(self, path: Path, end_of_epoch: bool) -> None:
        if sha256_of(Path(path)) != sha256_of(self.file):
            raise MAMError(
                f"'{self.file}' is not the tokenizer that the checkpoint '{Path(path).parent}' was "
                "trained with; put the former one back, or choose another output_folder"
            )


def set_units(hparams: Mapping[str, Any]) -> None:
    """Train or find the tokenizer that ``units`` asks for, and give the encoder a head over it.

    It follows the corpus's preparation and precedes the Brain. ``units: pretrained`` changes
    nothing.

    Arguments
    ---------
    hparams : mapping
        A recipe's: ``units``, ``vocab_size``, ``save_folder`` (with ``train.csv``), ``encoder``,
        ``checkpointer``.

    Raises
    ------
    MAMError
        If ``units`` or ``vocab_size`` cannot be had, are others than those of the run that the
        folder holds, or nothing would train the new head.
    """
    asked, save = check_units(hparams), Path(hparams["save_folder"])
    if asked["units"] == PRETRAINED:
        return
    run_on_main(_train_once, args=[save, asked])
    attach(save, hparams["encoder"], hparams.get("checkpointer"))


def check_units(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, checked before anything of a run's folder is written.

    Returns
    -------
    dict
        ``units``, and ``vocab_size`` where it has a meaning.

    Raises
    ------
    MAMError
        As :func:`set_units`.

    Example
    -------
    >>> check_units({"units": "char", "vocab_size": 200, "save_folder": "no such folder"})
    {'units': 'char', 'vocab_size': None}
    """
    units, save = hparams.get("units", PRETRAINED), Path(hparams["save_folder"])
    one_of("units", units, UNITS)
    asked = _asked(units, hparams.get("vocab_size"))
    _check_former(save, asked)
    if units != PRETRAINED:
        _check_trained(hparams, save)
    elif hparams.get("dnn_layers") and hparams.get("new_alphabet") is None:
        raise MAMError(
            "key 'dnn_layers': the pretrained head is one linear layer; a new one takes 'units' or "
            "'new_alphabet'"
        )
    return asked


def attach(save: Path, encoder: HubertCTC, checkpointer: Any = None) -> None:
    """Give an encoder the head that a run's save folder tells of; nothing where it tells of none.

    Raises
    ------
    MAMError
        If the tokenizer is missing or not the one that was noted.
    """
    if not (save / NOTE).is_file():
        return
    note = _read_note(save)
    file = save / get(note, "file", str, save / NOTE)
    pieces = Pieces(file, encoder.alphabet.spelling)
    if sha256_of(file) != note.get("sha256"):
        raise MAMError(
            f"'{file}' is not the tokenizer that '{NOTE}' beside it tells of: it was changed or "
            "damaged; take it from a checkpoint, where it is 'tokenizer.ckpt'"
        )
    encoder.use(pieces)
    if checkpointer is not None:
        checkpointer.add_recoverable("tokenizer", TokenizerRecord(file))


def _asked(units: str, vocab_size: Any) -> dict[str, Any]:
    sized = units in ("unigram", "bpe")
    if sized and vocab_size is None:
        raise MAMError(f"key 'vocab_size': 'units: {units}' needs a number of pieces, as in 200")
    return {"units": units, "vocab_size": int(vocab_size) if sized else None}


def _read_note(save: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(save / NOTE)
    return found


def _check_former(save: Path, asked: Mapping[str, Any]) -> None:
    """A folder is of one kind of labels: a checkpoint's head fits no other."""
    if (save / NOTE).is_file():
        former = _read_note(save)
    elif any(save.glob("CKPT*")):
        former = _asked(PRETRAINED, None)
    else:
        return
    for key, value in asked.items():
        if former.get(key) != value:
            raise MAMError(
                f"key '{key}': '{save}' holds a run with {former.get(key)}, now it is {value}. Use "
                "the former value, or another output_folder"
            )


def _check_trained(hparams: Mapping[str, Any], save: Path) -> None:
    if hparams.get("trainable") == "none":
        raise MAMError("key 'trainable': 'none' would leave the new head of 'units' untrained")
    if hparams.get("number_of_epochs") == 0 and not any(save.glob("CKPT*")):
        raise MAMError(
            f"key 'units': '{hparams['units']}' makes a new head, and number_of_epochs 0 would "
            f"leave it untrained; train it, or use 'units: {PRETRAINED}'"
        )


def _train_once(save: Path, asked: Mapping[str, Any]) -> None:
    """The tokenizer and its note, where they are not there yet; the note is written last."""
    if (save / NOTE).is_file():
        return
    units, table = asked["units"], save / "train.csv"
    size = asked["vocab_size"] or _number_of_characters(table)
    part = save / ".tokenizer.part"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        SentencePiece(
            model_dir=str(part),
            vocab_size=size,
            annotation_train=str(table),
            annotation_read="wrd",
            model_type=units,
        )
    except RuntimeError as error:
        raise MAMError(_reason(str(error), units, size, table)) from error
    name = f"{size}_{units}"
    for suffix in ("vocab", "model"):
        (part / f"{name}.{suffix}").replace(save / f"{name}.{suffix}")
    shutil.rmtree(part)
    note = {**asked, "file": f"{name}.model", "sha256": sha256_of(save / f"{name}.model")}
    write_text_beside(save / NOTE, json.dumps(note, indent=2) + "\n")


def _number_of_characters(table: Path) -> int:
    """The labels of ``units: char``: every character, the beginning of a word, the blank."""
    characters = {c for row in read_table(table) for c in row["wrd"]} - {" "}
    return len(characters) + 2


def _reason(told: str, units: str, size: int, table: Path) -> str:
    """SentencePiece's error in the words of a YAML."""
    if found := re.search(r"value <= (\d+)", told):
        return (
            f"key 'vocab_size': {size} pieces are more than the texts of '{table}' have for "
            f"'{units}'; use {found[1]} or fewer"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", told):
        return (
            f"key 'vocab_size': {size} pieces are fewer than the characters of '{table}'; use "
            f"{found[1]} or more"
        )
    reason = " ".join(told.split())
    return f"SentencePiece cannot make {size} pieces ('{units}') of '{table}': {reason}"
