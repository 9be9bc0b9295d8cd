"""What a YAML says is checked before any work: its numbers, by a table, and its donors.

For the donors nothing of the YAML is called and no model is built, so that a series of trainings
can ask for all of them before its first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.open_donor import open_donor
from speechbrain_mam.runs.yaml_files import OF_WHAT_IS_CALLED, base_and_overrides, files_of, keys_of


@dataclass(frozen=True)
class Range:
    """Which numbers a key may have.

    Arguments
    ---------
    low, high : float
        The ends; ``high`` belongs to it.
    whole : bool
        Whether only whole numbers.
    open_low : bool
        Whether ``low`` itself is outside.
    nothing : bool
        Whether null is allowed too.
    """

    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    open_low: bool = False
    nothing: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is allowed."""
        if value is None:
            return self.nothing
        if (
            isinstance(value, bool)
            or not isinstance(value, Real)
            or not math.isfinite(float(value))
        ):
            return False
        number = float(value)
        if self.whole and not number.is_integer():
            return False
        return (number > self.low if self.open_low else number >= self.low) and number <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        ends = f"above {self.low:g}" if self.open_low else f"from {self.low:g} on"
        if math.isfinite(self.high):
            ends = f"{ends.removesuffix(' on')} to {self.high:g}"
        return f"{kind} {ends}" + (" or null" if self.nothing else "")


_COUNT, _ONE = Range(whole=True), Range(1, whole=True)
_POSITIVE, _SHARE = Range(open_low=True), Range(0, 1)

RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1, whole=True),
    "control_seed": Range(0, 2**32 - 1, whole=True),
    "fresh_seed": Range(0, 2**32 - 1, whole=True),
    "number_of_epochs": _COUNT,
    "lr": _POSITIVE,
    "lr_mam": _POSITIVE,
    "lr_final": Range(),
    "lr_layer_decay": Range(0, 1, open_low=True),
    "weight_decay": Range(),
    "max_grad_norm": Range(),  # 0: no clipping
    "grad_accumulation_factor": _ONE,
    "early_stopping_patience": _ONE,
    "early_stopping_warmup": _COUNT,
    "ckpt_interval_minutes": Range(),
    "num_checkpoints": _ONE,
    "max_batch_length_s": _POSITIVE,
    "batch_size": _ONE,
    "test_batch_size": _ONE,
    "num_workers": _COUNT,
    "layerdrop": _SHARE,
    "dropout": Range(0, 1, nothing=True),
    "label_smoothing": _SHARE,
    "mixup": _SHARE,
    "spec_drops": _COUNT,
    "dnn_layers": _COUNT,
    "dnn_neurons": _ONE,
    "lr_head": Range(open_low=True, nothing=True),
    "freeze_steps": _COUNT,
    "vocab_size": Range(1, whole=True, nothing=True),
    "valid_share": Range(0, 1, open_low=True),
    "num_classes": _ONE,
    "random_draws": _ONE,
    "cache_mb": Range(),
    "equivalence_margin": Range(open_low=True, nothing=True),
}
"""What each key of the recipes may be. Keys that a recipe lacks are not asked for."""


def check_ranges(hparams: Mapping[str, Any], asked: Iterable[str] = tuple(RANGES)) -> None:
    """That every number of a YAML, and of the command line, is one that can be worked with.

    Raises
    ------
    MAMError
        Names the key, its value, and what was expected.

    Example
    -------
    >>> check_ranges({"number_of_epochs": 2, "dropout": None})
    >>> check_ranges({"max_grad_norm": -1})
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: key 'max_grad_norm': expected a number from 0 on, got -1
    """
    for key in asked:
        if key in hparams and not RANGES[key].holds(hparams[key]):
            raise MAMError(f"key '{key}': expected {RANGES[key]}, got {hparams[key]!r}")


def asked_donors(yaml: Path, words: Sequence[str] = ()) -> list[str]:
    """The donors that a YAML names: of each ``!new:…MAM``, and a search's ``donor_models``.

    Arguments
    ---------
    yaml : Path
        A recipe's YAML.
    words : sequence of str
        Overrides as on the recipe's command line. Those that are no key of the YAML are options of
        the recipe or of SpeechBrain.

    Returns
    -------
    list of str
        Each once. None of a YAML that HyperPyYAML cannot resolve, for a value that is missing or a
        mistake: its recipe says so as soon as it starts.

    Raises
    ------
    MAMError
        If a file does not exist, is no mapping, or replaces a key that is not there.

    Example
    -------
    >>> import tempfile
    >>> yaml = Path(tempfile.mkdtemp()) / "mam.yaml"
    >>> _ = yaml.write_text('''
    ... donor_model: bert
    ... mam: !new:speechbrain_mam.MAM
    ...     donor: !ref <donor_model>
    ... ''')
    >>> asked_donors(yaml), asked_donors(yaml, ["--donor_model=vit", "--folds", "all"])
    (['bert'], ['vit'])
    """
    try:
        known = set(keys_of(files_of(yaml)[-1]))
        base, replaced = base_and_overrides(yaml, _overrides(words, known))
        with base.open(encoding="utf-8") as stream:
            tree = YAML().load(resolve_references(stream, replaced)) or {}
    except MAMError:  # which is a ValueError, too
        raise
    except (*OF_WHAT_IS_CALLED, ValueError, KeyError, RuntimeError, OSError):
        return []
    found = [name for node in _mappings(tree) if _is_mam(node) for name in _names(node, "donor")]
    if tree.get("search"):
        found += _names(tree, "donor_models")
    return list(dict.fromkeys(found))


def check_asked_donors(yaml: Path, words: Sequence[str] = ()) -> None:
    """That every donor which a YAML names can be opened; one on the Hub is fetched.

    Raises
    ------
    MAMError
        Which cannot, and why.
    """
    for name in asked_donors(yaml, words):
        try:
            open_donor(name)
        except MAMError as error:
            raise MAMError(f"'{yaml}' asks for the donor '{name}': {error}") from error


def _overrides(words: Sequence[str], known: set[str]) -> str:
    """The command line's values of keys, as YAML; the last one of each counts."""
    found = {}
    for word, after in pairwise([*words, "--"]):
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = after
        if word.startswith("--") and key in known and (equals or not value.startswith("--")):
            found[key] = value
    return "\n".join(f"{key}: {value}" for key, value in found.items())


def _mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for value in values:
        yield from _mappings(value)


def _is_mam(node: dict[str, Any]) -> bool:
    tag = getattr(getattr(node, "tag", None), "value", None) or ""
    return str(tag).startswith("!new:") and str(tag).endswith(".MAM")


def _names(node: dict[str, Any], key: str) -> list[str]:
    """A name, or several; what is none is not this one's to judge."""
    value = node.get(key)
    values = value if isinstance(value, list) else [value]
    return [str(one) for one in values if isinstance(one, str)]
