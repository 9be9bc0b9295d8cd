"""A donor in a CTranslate2 file: reads the weights out of a ``model.bin``, without CTranslate2.

Faster-Whisper's models come as such files. The layout (little-endian): uint32 format version; spec
name; uint32 spec revision; uint32 number of variables, and for each its name, uint8 rank, rank ×
uint32 shape, uint8 type, uint32 size in bytes and the bytes; uint32 number of aliases, and for each
alias its name and the variable's. A name is a uint16 length, the terminating NUL counted, and the
characters.

A weight of 8 or 16 bits is an integer matrix beside its scale, one for each row or for all:

    W = NAME / NAME_scale

Any other integers, and those with a zero point, are refused.
"""

from __future__ import annotations

import struct
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechbrain_mam.architectures.tensor_checks import check_finite, check_type
from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.folder import DonorFolder
from speechbrain_mam.model_files.weight_files import WeightFiles

if TYPE_CHECKING:
    import torch

_TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2", "bfloat16")
_VERSIONS = (4, 5, 6)

MOST_AXES = 8
"""Of a variable; NumPy has a limit of its own, which differs between its versions."""

SCALES = {
    "int8": lambda shape: ((), (1,), (shape[0],)),
    "int16": lambda shape: ((), (1,)),
}
"""Integers that can be brought back, and the shapes of their scale: one for all, or one a row."""


class _Cursor:
    """Reads forward through a file's bytes and says so when they end too early."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:  # mapped, since a donor's attention is a part of it
            empty = path.stat().st_size == 0
            self.content = memoryview(
                b"" if empty else mmap(stream.fileno(), 0, access=ACCESS_READ)
            )
        self.at = 0

    def take(self, size: int) -> memoryview:
        if self.at + size > len(self.content):
            raise MAMError(
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
            raise MAMError(f"{self.path}: not a CTranslate2 model: a name without end {raw[:20]!r}")
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
    MAMError
        If the file is truncated or of another kind.
    """
    cursor = _Cursor(Path(path))
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise MAMError(
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
            raise MAMError(f"{path}: variable {name!r} has the unknown type {type_id}")
        kind = _TYPES[type_id]
        expected = prod(shape) * (2 if kind == "bfloat16" else np.dtype(kind).itemsize)
        if size != expected:
            raise MAMError(f"{path}: {name!r} {shape} takes {expected} bytes, not {size}")
        if len(shape) > MOST_AXES:
            raise MAMError(f"{path}: variable {name!r} has {len(shape)} axes")
        variables[name] = _to_array(cursor.take(size), kind, shape)
    for _ in range(cursor.number("I")):
        alias, name = cursor.name(), cursor.name()
        if name not in variables:
            raise MAMError(f"{path}: alias {alias!r} of {name!r}, which is not there")
        variables[alias] = variables[name]
    return spec, variables


class CTranslate2File(DonorFolder):
    """The tensors of a CTranslate2 ``model.bin``, read as those of a model folder are.

    Names have dots for slashes. Quantised weights are widened to float32 by their scales.

    Arguments
    ---------
    path : Path
        The file.

    Raises
    ------
    MAMError
        If it is no whole CTranslate2 file.

    Attributes
    ----------
    config : dict
        ``model_type``, which is ``ctranslate2/`` and the specification's name, and the encoder's
        ``num_heads``.
    """

    def __init__(self, path: Path):
        self.path, self.weights = path, WeightFiles((path,))
        spec, variables = read_model(path)
        self._variables = variables
        self.config = {"model_type": f"ctranslate2/{spec}"}
        heads = variables.get("encoder/num_heads")
        if heads is not None:
            if heads.size != 1 or heads.dtype.kind != "i":
                raise MAMError(f"{path}: expected one whole number as 'encoder/num_heads'")
            self.config["encoder"] = {"num_heads": int(heads.item())}
        names = {name.replace("/", "."): name for name in variables if not name.endswith("_scale")}
        self._names = {name: stored for name, stored in names.items() if variables[stored].ndim}
        self.shapes = {name: variables[stored].shape for name, stored in self._names.items()}
        self.types = {name: self._type(stored) for name, stored in self._names.items()}
        self.files = dict.fromkeys(self.shapes, path)

    def _type(self, stored: str) -> str:
        """What :meth:`read` gives: float32 where the integers have the scale that they need."""
        values, scale = self._variables[stored], self._variables.get(f"{stored}_scale")
        kind = values.dtype.name
        if kind not in SCALES or values.ndim != 2 or scale is None:
            return kind if kind.startswith("float") else f"{kind} without a scale"
        fits = scale.dtype.kind == "f" and scale.shape in SCALES[kind](values.shape)
        # AWQ and its kin have a zero point too, of which the formula above knows nothing
        known = fits and f"{stored}_zero" not in self._variables
        return "float32" if known else f"{kind} with a scale of another scheme"

    def read(self, name: str) -> torch.Tensor:
        """One tensor: as it is stored, or in float32 where that is an integer with a scale."""
        import torch

        stored = self._names[name]
        check_type(self.types[name], stored, f"'{self.path}'")
        values = self._variables[stored]
        if values.dtype.kind == "i":
            wide = self._variables[f"{stored}_scale"].astype(np.float32)
            check_finite(wide, f"{stored}_scale", f"'{self.path}'")
            if not (wide > 0).all():
                raise MAMError(
                    f"'{self.path}': '{stored}_scale' has values that are not above 0, by which "
                    "nothing can be divided: convert the model again"
                )
            values = values.astype(np.float32) / (wide[:, None] if wide.size > 1 else wide)
        return torch.from_numpy(values.copy())
