"""Fields of JSON files, with errors that name the file and the field."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechbrain_mam.errors import MAMError

MOST = 2**31
"""Above all counts of an utterance; sums of so many stay exact."""


def number(value: Any, key: str, where: Path | str) -> float:
    """A value that must be a number, and a finite one.

    Example
    -------
    >>> number(float("nan"), "lam", "sweep.json")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: 'sweep.json': field 'lam' is nan, expected a finite number
    """
    found = get({key: value}, key, (int, float), where)
    if not abs(found) <= sys.float_info.max:
        raise MAMError(f"'{where}': field '{key}' is {found}, expected a finite number")
    return float(found)


def counts(values: Sequence[Any], key: str, where: Path | str) -> np.ndarray:
    """Values that must be numbers of errors, words or characters, as ``[N]``."""
    for value in values:
        if type(value) is not int or not 0 <= value < MOST:
            raise MAMError(
                f"'{where}': field '{key}': {value!r} is no number of errors, words or characters"
            )
    return np.array(values, dtype=np.int64)


def get(content: Any, key: str, kind: Any, where: Path | str, optional: bool = False) -> Any:
    """A field that must be there and of a kind.

    Arguments
    ---------
    content : mapping
        Where to look.
    key : str
        The field.
    kind : type or tuple of type
        What it must be. A bool is no int here.
    where : Path or str
        For the message.
    optional : bool
        Whether it may be ``None``.

    Raises
    ------
    MAMError
        Names the file and the field.

    Example
    -------
    >>> get({"seed": "1"}, "seed", int, "run/results.json")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: 'run/results.json': field 'seed' is '1', expected int
    """
    if not isinstance(content, dict) or key not in content:
        raise MAMError(f"'{where}': field '{key}' is missing")
    value = content[key]
    if optional and value is None:
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise MAMError(f"'{where}': field '{key}' is {value!r}, expected {names}")
    return value
