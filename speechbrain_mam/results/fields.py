"""Fields of JSON files, with errors that name the file and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechbrain_mam.errors import MAMError


def number(value: Any, key: str, file: Path) -> float:
    """A value that must be a number."""
    return float(get({key: value}, key, (int, float), file))


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
