"""Reads the weights out of a CTranslate2 ``model.bin``, without CTranslate2.

The file (little-endian): uint32 format version; spec name; uint32 spec revision; uint32 number of
variables, and for each its name, uint8 rank, rank × uint32 shape, uint8 type, uint32 size in bytes
and the bytes; uint32 number of aliases, and for each alias its name and the variable's. A name is a
uint16 length, the terminating NUL counted, and the characters.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import numpy as np

_TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2", "bfloat16")
_VERSIONS = (4, 5, 6)


class _Cursor:
    """Reads forward through a file's bytes and says so when they end too early."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = memoryview(path.read_bytes())
        self.at = 0

    def take(self, size: int) -> memoryview:
        if self.at + size > len(self.content):
            raise ValueError(
                f"{self.path}: not a complete CTranslate2 model: {size} bytes expected at byte "
                f"{self.at}, the file has {len(self.content)} in all"
            )
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def name(self) -> str:
        raw = bytes(self.take(self.number("H")))
        if not raw.endswith(b"\0"):
            raise ValueError(
                f"{self.path}: not a CTranslate2 model: a name without end {raw[:20]!r}"
            )
        return raw[:-1].decode("utf-8", errors="replace")


def _to_array(raw: memoryview, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "bfloat16":
        # The upper half of a float32.
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    return np.frombuffer(raw, kind).reshape(shape)


def read_model(path: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """The spec name and the variables of a CTranslate2 model.

    Arguments
    ---------
    path : str or Path
        A ``model.bin`` of format version 4 to 6.

    Returns
    -------
    tuple
        Spec name such as ``"WhisperSpec"``, and name → array in the stored type (bfloat16 widened
        to float32). Aliases share their variable's memory. Quantised weights stay integers, beside
        their ``NAME_scale``.

    Raises
    ------
    ValueError
        If the file is truncated or of another kind.
    """
    cursor = _Cursor(Path(path))
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise ValueError(
            f"{path}: not a CTranslate2 model of version {_VERSIONS[0]} to {_VERSIONS[-1]}: "
            f"its first number is {version}"
        )
    spec = cursor.name()
    cursor.number("I")  # the spec's revision changes nothing in the layout
    variables: dict[str, np.ndarray] = {}
    for _ in range(cursor.number("I")):
        name = cursor.name()
        shape = tuple(cursor.number("I") for _ in range(cursor.number("B")))
        type_id, size = cursor.number("B"), cursor.number("I")
        if type_id >= len(_TYPES):
            raise ValueError(f"{path}: variable {name!r} has the unknown type {type_id}")
        kind = _TYPES[type_id]
        expected = prod(shape) * (2 if kind == "bfloat16" else np.dtype(kind).itemsize)
        if size != expected:
            raise ValueError(f"{path}: {name!r} {shape} takes {expected} bytes, not {size}")
        variables[name] = _to_array(cursor.take(size), kind, shape)
    for _ in range(cursor.number("I")):
        alias, name = cursor.name(), cursor.name()
        if name not in variables:
            raise ValueError(f"{path}: alias {alias!r} of {name!r}, which is not there")
        variables[alias] = variables[name]
    return spec, variables
