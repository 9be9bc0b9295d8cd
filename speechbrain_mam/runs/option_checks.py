"""Which numbers a recipe's YAML may have, as data: nonsense is refused before any work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from speechbrain_mam.errors import MAMError


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
