"""A CTC recogniser's Hugging Face folder: its weights, its alphabet, what its input looks like.

Folders differ in what they call the blank and where that is said, and transformers fills up with
random numbers whatever the weights lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.results.fields import get
from speechbrain_mam.text_files import read_json

HARMLESS = re.compile(r"masked_spec_embed|.*\.masked_spec_embed|.*\.num_batches_tracked")
"""What a model may lack: used only where transformers masks its input, which is not done here, or
only to count."""

USUAL_BLANKS = ("<pad>", "[PAD]")
NAMED = 5
"""How many names a message shows."""


def load_model(folder: Path, overrides: Mapping[str, Any], head: bool = True) -> Any:
    """transformers' recogniser in float32, whatever its file holds: it is trained and merged so.

    Arguments
    ---------
    folder : Path
        With ``config.json`` and the weights.
    overrides : mapping of str to object
        What to change in its configuration, where it has such a key.
    head : bool
        Whether its CTC head must be there.

    Raises
    ------
    MAMError
        If it cannot be loaded as a CTC recogniser, or its files lack a tensor, which transformers
        would draw at random.
    """
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(folder)
            for name, value in overrides.items():
                # data2vec's has no apply_spec_augment, but its model asks for it
                if hasattr(config, name) or name == "apply_spec_augment":
                    setattr(config, name, value)
            model, info = AutoModelForCTC.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # transformers checks a configuration with errors of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MAMError(f"'{folder}' cannot be loaded as a CTC recogniser: {reason}") from error
    missing = sorted(name for name in info["missing_keys"] if not HARMLESS.fullmatch(name))
    heads = [name for name in missing if name.startswith("lm_head.")]
    if heads and head:
        raise MAMError(
            f"'{folder}' has no CTC head: its weights lack {', '.join(heads)}; give a recogniser "
            "that was fine-tuned with CTC, or new_alphabet to train a new head"
        )
    if lost := [name for name in missing if name not in heads]:
        shown = ", ".join(lost[:NAMED]) + (", …" if len(lost) > NAMED else "")
        raise MAMError(
            f"the weights in '{folder}' lack {len(lost)} tensors of a {type(model).__name__}: "
            f"{shown}; the file is not that model's, or a part of it"
        )
    return model


def read_extractor(folder: Path) -> Any:
    """What makes the model's input of a waveform: transformers' feature extractor.

    It is ``preprocessor_config.json``, or a part of ``processor_config.json`` as transformers 5
    writes it.

    Raises
    ------
    MAMError
        If the folder has neither, or one of another kind.
    """
    nested = _optional(folder / "processor_config.json").get("feature_extractor")
    own = folder / "preprocessor_config.json"
    if not isinstance(nested, dict) and not own.is_file():
        raise MAMError(
            f"'{folder}' has neither preprocessor_config.json nor a feature_extractor in "
            "processor_config.json, which say how the model wants its waveforms (normalised or "
            "not); copy the file from the model that it was made of"
        )
    try:
        if isinstance(nested, dict):
            kind = getattr(transformers, str(nested.get("feature_extractor_type")))
            extractor = kind.from_dict(nested)
        else:
            extractor = AutoFeatureExtractor.from_pretrained(folder)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MAMError(f"the feature extractor of '{folder}' cannot be read: {reason}") from error
    if "input_features" not in extractor.model_input_names and not hasattr(
        extractor, "do_normalize"
    ):
        raise MAMError(
            f"the feature extractor of '{folder}' is a {type(extractor).__name__}, expected one "
            "that gives input_values or input_features"
        )
    return extractor


def read_alphabet(folder: Path, config: Any) -> CTCAlphabet:
    """The alphabet of the CTC head, as ``vocab.json`` and the tokenizer's files tell it.

    The blank is label ``pad_token_id`` of ``config.json``: that is what transformers trains with.

    Arguments
    ---------
    folder : Path
        With ``vocab.json``; one with a vocabulary for each language takes the tokenizer's
        ``target_lang``, or its only one.
    config : PretrainedConfig
        The model's, for ``pad_token_id`` and ``vocab_size``.

    Raises
    ------
    MAMError
        If there is no vocabulary, it does not fit the head, its language or its blank is not clear.
    """
    file, size = folder / "vocab.json", int(config.vocab_size)
    if not file.is_file():
        raise MAMError(f"'{file}': no such file; a pretrained CTC head needs its vocabulary")
    tokenizer = _optional(folder / "tokenizer_config.json")
    if "Phoneme" in str(tokenizer.get("tokenizer_class")):
        raise MAMError(f"the CTC head of '{folder}' writes phonemes, expected one that writes text")
    ids = _language(read_json(file), tokenizer.get("target_lang"), file)
    _check_indices(ids, size, file)
    roles = _roles(tokenizer, _optional(folder / "special_tokens_map.json"))
    added, special = _added_tokens(folder, tokenizer)
    taken = set(ids.values())
    # What a tokenizer adds of its own may lie beyond the head: then it is never written
    ids |= {
        token: index
        for token, index in added.items()
        if token not in ids and index < size and index not in taken
    }
    blank = _blank(ids, roles.get("pad_token"), getattr(config, "pad_token_id", None), folder)
    ids.setdefault(blank, int(config.pad_token_id or 0))
    delimiter = roles.get("word_delimiter_token", "|")
    if delimiter not in ids and " " in ids:
        delimiter = " "
    special |= {roles[role] for role in ("unk_token", "bos_token", "eos_token") if role in roles}
    return CTCAlphabet(ids, blank, delimiter, frozenset(special & ids.keys() - {blank, delimiter}))


def language_adapter(folder: Path) -> str | None:
    """The language whose adapter and head lie in a file of their own (MMS); ``None`` if none does.

    What is in the model's own weights may be another language's.
    """
    language = _optional(folder / "tokenizer_config.json").get("target_lang")
    return language if (folder / f"adapter.{language}.safetensors").is_file() else None


def _language(content: dict[str, Any], wanted: Any, file: Path) -> dict[str, int]:
    nested = {name: value for name, value in content.items() if isinstance(value, dict)}
    if not nested:
        return dict(content)
    if wanted is None and len(nested) == 1:
        return dict(next(iter(nested.values())))
    if wanted not in nested:
        names = sorted(nested)
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        raise MAMError(
            f"'{file}' has vocabularies for {len(names)} languages ({shown}), and "
            f"tokenizer_config.json asks for {'none' if wanted is None else repr(wanted)}: set its "
            "'target_lang' to one of them"
        )
    return dict(nested[wanted])


def _check_indices(ids: dict[str, int], size: int, file: Path) -> None:
    if not ids or not all(type(index) is int and index >= 0 for index in ids.values()):
        raise MAMError(f"'{file}': expected a number from 0 on for each label")
    if (highest := max(ids.values())) >= size:
        raise MAMError(f"'{file}' has the index {highest}, the CTC head only {size} labels")
    if len(set(ids.values())) < len(ids):
        raise MAMError(f"'{file}' gives one index to two labels")


def _roles(*sources: dict[str, Any]) -> dict[str, str]:
    """Which token is the padding, the unknown and so on; the first source wins."""
    found: dict[str, str] = {}
    for source in sources:
        for role, value in source.items():
            content = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(content, str):
                found.setdefault(role, content)
    return found


def _added_tokens(folder: Path, tokenizer: dict[str, Any]) -> tuple[dict[str, int], set[str]]:
    """What the tokenizer adds to ``vocab.json``, and which of it is no text."""
    file = folder / "added_tokens.json"
    added = {token: _index(i, token, file) for token, i in _optional(file).items()}
    special, file = set(), folder / "tokenizer_config.json"
    decoder = tokenizer.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise MAMError(f"'{file}': 'added_tokens_decoder' is {decoder!r}, expected an object")
    for index, entry in decoder.items():
        content = get(entry, "content", str, f"{file}', token '{index}")
        added[content] = _index(index, content, file)
        if entry.get("special"):
            special.add(content)
    return added, special


def _index(value: Any, token: str, file: Path) -> int:
    """A token's label, which JSON has as a number, or as text where it is a key."""
    if not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,9}", str(value)):
        return int(value)
    raise MAMError(f"'{file}': the index of {token!r} is {value!r}, expected a number from 0 on")


def _blank(ids: dict[str, int], named: str | None, index: int | None, folder: Path) -> str:
    tokens = {i: token for token, i in ids.items()}
    if named not in ids:
        named = next((token for token in USUAL_BLANKS if token in ids), None)
    if index is None:
        return named or USUAL_BLANKS[0]
    by_config = tokens.get(index)
    if named is not None and named != by_config:
        raise MAMError(
            f"'{folder}': config.json's pad_token_id makes label {index} ({by_config!r}) the CTC "
            f"blank, its vocabulary label {ids[named]} ({named!r}); set pad_token_id to the one "
            "that it was trained with"
        )
    return by_config if by_config is not None else "<blank>"


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' reports of what it made up: that is an error here."""
    logs = transformers.utils.logging
    before = logs.get_verbosity()
    logs.set_verbosity_error()
    try:
        yield
    finally:
        logs.set_verbosity(before)
