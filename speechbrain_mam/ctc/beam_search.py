"""Beam search over a CTC head's log-probabilities, with or without an n-gram language model.

The search is SpeechBrain's ``CTCBeamSearcher``; what a recipe calls ``test_beam_search`` are its
arguments, under the names that SpeechBrain's own recipes give them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechbrain.decoders.ctc import CTCBeamSearcher
from torch import Tensor

from speechbrain_mam.ctc.language_model import (
    check_language_model,
    check_words,
    resolve_language_model,
)
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.lobes.hubert_ctc import Labels
from speechbrain_mam.model_files.read import sha256_of
from speechbrain_mam.results.decoding import BEAM, BEAM_LM, DECODINGS, GREEDY

OPTIONS: dict[str, Any] = {
    "beam_size": 100,
    "topk": 1,
    "beam_prune_logp": -10.0,
    "token_prune_min_logp": -5.0,
    "prune_history": True,
    "alpha": 0.5,
    "beta": 1.5,
    "kenlm_model_path": None,
}
"""The keys of ``test_beam_search``, with the searcher's own defaults."""
FIXED = ("blank_index", "space_token")
"""Keys of SpeechBrain's recipes that follow from the labels here."""
SPACE = " "


@dataclass(frozen=True)
class Decoding:
    """How a test's log-probabilities become texts.

    Arguments
    ---------
    name : str
        ``greedy``, ``beam`` or ``beam_lm``.
    options : mapping
        Of the search, all of :data:`OPTIONS`; empty for ``greedy``.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """This decoder, and the simpler ones that a test reports beside it."""
        return DECODINGS[: DECODINGS.index(self.name) + 1]

    def searcher(self, name: str, labels: Labels) -> Searcher:
        """The search of one of :attr:`names` over a head's labels."""
        without = {} if name == BEAM_LM else {"kenlm_model_path": None}
        if name == BEAM_LM:
            check_words(Path(self.options["kenlm_model_path"]), labels.letters)
        return Searcher(labels, {**self.options, **without})

    def described(self) -> dict[str, Any]:
        """What of it moves a figure, for ``results.json``; a language model by its bits."""
        content: dict[str, Any] = {"name": self.name, **self.options}
        model = content.pop("kenlm_model_path", None)
        if self.name != BEAM_LM:
            return {k: v for k, v in content.items() if k not in ("alpha", "beta")}
        return content | {"lm_sha256": sha256_of(Path(model))}


def read_decoding(hparams: Mapping[str, Any]) -> Decoding:
    """What a YAML's ``test_decoding`` and ``test_beam_search`` ask for, checked.

    Raises
    ------
    MAMError
        If a key is unknown or a number out of range, or the language model is missing, damaged, or
        cannot be read for want of kenlm.

    Example
    -------
    >>> read_decoding({}).name
    'greedy'
    >>> found = read_decoding({"test_decoding": "beam", "test_beam_search": {"beam_size": 20}})
    >>> found.options["beam_size"], found.names
    (20, ('greedy', 'beam'))
    """
    name = hparams.get("test_decoding", GREEDY)
    one_of("test_decoding", name, DECODINGS)
    if name == GREEDY:
        return Decoding(GREEDY, {})
    given = hparams.get("test_beam_search") or {}
    if not isinstance(given, Mapping):
        raise MAMError(f"key 'test_beam_search': expected keys and values, got {given!r}")
    for key in given:
        if key not in OPTIONS and key not in FIXED:
            raise MAMError(
                f"key 'test_beam_search': '{key}' is not known; its keys are {', '.join(OPTIONS)}"
            )
    options = {**OPTIONS, **{key: value for key, value in given.items() if key in OPTIONS}}
    _check(options)
    if name == BEAM:
        return Decoding(BEAM, options | {"kenlm_model_path": None})
    if options["kenlm_model_path"] is None:
        raise MAMError(
            "key 'kenlm_model_path': 'test_decoding: beam_lm' needs an n-gram model, an ARPA file "
            "or KenLM's own; mini_ljspeech and mini_vctk are those of the embedded corpora"
        )
    file = resolve_language_model(str(options["kenlm_model_path"]))
    check_language_model(file)
    return Decoding(BEAM_LM, options | {"kenlm_model_path": str(file)})


def _check(options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key == "kenlm_model_path":
            continue
        if key == "prune_history":
            right, expected = isinstance(value, bool), "True or False"
        elif key in ("beam_size", "topk"):
            right = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            expected = "a whole number from 1 on"
        else:
            right = isinstance(value, int | float) and not isinstance(value, bool)
            low, high = (float("-inf"), 0) if key.endswith("logp") else (-100, 100)
            right = right and low < value <= high
            expected = "a number up to 0" if key.endswith("logp") else "a number from -100 to 100"
        if not right:
            raise MAMError(f"key 'test_beam_search': {key} is {value!r}, expected {expected}")


class Searcher:
    """SpeechBrain's ``CTCBeamSearcher`` over the labels of a head.

    Arguments
    ---------
    labels : Labels
        Of the head.
    options : mapping
        As :func:`read_decoding` gives them.

    Example
    -------
    >>> import torch
    >>> from speechbrain_mam.lobes.alphabet import CTCAlphabet
    >>> labels = CTCAlphabet({"<pad>": 0, "|": 1, "A": 2, "B": 3})
    >>> frames = torch.tensor([2, 0, 2, 1, 3, 3])
    >>> log_probs = (torch.eye(4)[frames] * 9).log_softmax(-1)[None]
    >>> Searcher(labels, OPTIONS)(log_probs, torch.tensor([6])), labels.decode([2, 2, 1, 3])
    (['AA B'], 'AA B')
    """

    def __init__(self, labels: Labels, options: Mapping[str, Any]):
        with _without_remarks():
            self.search = CTCBeamSearcher(
                blank_index=labels.blank_index,
                vocab_list=written_labels(labels),
                space_token=SPACE,
                **options,
            )

    def __call__(self, log_probs: Tensor, frames: Tensor) -> list[str]:
        """The best text of each utterance.

        Arguments
        ---------
        log_probs : Tensor
            ``[B, frames, labels]``.
        frames : Tensor
            ``[B]``, how many of them are valid.
        """
        columns = log_probs.float().cpu().numpy()
        found = []
        for one, valid in zip(columns, frames.round().int().tolist(), strict=True):
            # Not the searcher's own relative lengths: it rounds 48.9999 frames down
            best = self.search.decode_log_probs(one, valid)
            found.append(best[0].text if best else "")
        return found


def written_labels(labels: Labels) -> list[str]:
    """What each label is written as in the search: a space between words, nothing for no text."""
    tokens = {index: token for token, index in labels.ids.items()}
    if not hasattr(labels, "text_of"):  # pieces stand for themselves
        return [tokens[i] for i in range(len(tokens))]
    texts = (labels.text_of(tokens[i]) if i in tokens else "" for i in range(1 + max(tokens)))
    return [tokens[i] if i == labels.blank_index else text for i, text in enumerate(texts)]


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Without SpeechBrain's warnings of small vocabularies, which no user can heed."""
    names = ("speechbrain.decoders.ctc", "speechbrain.integrations.decoders.kenlm_scorer")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
