"""Tensors of a safetensors file, read and overwritten where they lie.

Header, metadata, padding, order and every other tensor keep their bytes, and one tensor at a time
is in memory.

NumPy does the arithmetic, a second time beside :mod:`speechbrain_mam.merging.arithmetic`, since
importing torch takes more memory and CPU time than a whole merge. ``python
benchmarks/merge_memory.py --ways numpy torch --times 3``: at HuBERT-Large's and BERT-large's shapes
100 MB and 4.6 s, with torch 594 MB and 7.1 s; of HuBERT-mini 60 MB and 0.9 s, 555 MB and 3.8 s.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speechbrain_mam.architectures.tensor_checks import (
    SHORT_NAMES,
    check_finite,
    check_type,
    checked_result,
)

Array = npt.NDArray[np.floating[Any]]

NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""How the floating-point types of safetensors are read; NumPy knows no bfloat16, only its bits."""


class TensorFile:
    """Single tensors of a safetensors file, read and overwritten in place.

    Plain reads and writes: pages of a mapped file would count as this process's memory.

    Arguments
    ---------
    path : Path
        A whole safetensors file, which :class:`~speechbrain_mam.model_files.folder.ModelFolder` has
        checked.
    mode : str
        ``"rb"``, or ``"r+b"`` to overwrite.
    copy_of : Path, optional
        The file that messages name, where this one is a copy that nobody knows of.
    """

    def __init__(self, path: Path, mode: str = "rb", copy_of: Path | None = None):
        self.path = copy_of or path
        self._stream = path.open(mode)
        (length,) = struct.unpack("<Q", self._stream.read(8))
        self._header: dict[str, Any] = json.loads(self._stream.read(length))
        self._data_start = 8 + length

    def read(self, name: str) -> Array:
        """The values of one tensor, flat: float64 where that is stored, float32 otherwise.

        Raises
        ------
        MAMError
            If they are of a type that cannot be merged, or not finite.
        """
        dtype = self._dtype(name)
        start, end = self._header[name]["data_offsets"]
        self._stream.seek(self._data_start + start)
        raw = np.frombuffer(self._stream.read(end - start), NUMPY_TYPES[dtype])
        # bfloat16 is the upper half of a float32
        wide = (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw
        values: Array = wide if dtype == "F64" else wide.astype("<f4", copy=False)
        check_finite(values, name, f"'{self.path}'")
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the header gives one tensor."""
        return tuple(self._header[name]["shape"])

    def write(self, name: str, values: Array) -> None:
        """Overwrite one tensor, with one cast to the precision that it is stored in."""
        dtype = self._dtype(name)
        wide = values.astype("<f4" if dtype == "BF16" else NUMPY_TYPES[dtype])
        raw = _round_to_bfloat16(wide) if dtype == "BF16" else wide
        # what is rounded to bfloat16 is widened again, to be looked at
        cast = (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw
        checked_result(cast, name, SHORT_NAMES[dtype])
        self._stream.seek(self._data_start + self._header[name]["data_offsets"][0])
        self._stream.write(raw.tobytes())

    def close(self) -> None:
        """Write what is still buffered and close the file."""
        self._stream.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _dtype(self, name: str) -> str:
        dtype: str = self._header[name]["dtype"]
        check_type(dtype, name, f"'{self.path}'")
        return dtype


def _round_to_bfloat16(values: Array) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The nearest bfloat16, ties to even, as torch rounds; NaN is left for the caller to find."""
    bits = values.view("<u4")
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")


def mix(target: Array, donor: Array, lam: float) -> Array:
    """λ · target + (1 − λ) · donor, to the bit as in :mod:`speechbrain_mam.merging.arithmetic`.

    ``torch.lerp`` starts from the nearer end and rounds its multiply-add once (FMA). NumPy has no
    FMA, but float64 holds the product of two float32 exactly.

    Arguments
    ---------
    target, donor : Array
        Flat, float32 or float64; the result has the target's precision.
    lam : float
        The target's share. 1 gives the target's bits, 0 the donor's.

    Example
    -------
    >>> mix(np.float32([1, 2]), np.float32([3, 6]), lam=0.5).tolist()
    [2.0, 4.0]
    """
    donor = donor.astype(target.dtype, copy=False)
    if lam in (0, 1):
        return target if lam == 1 else donor
    share = target.dtype.type(lam)
    base, factor = (donor, share) if share < 0.5 else (target, share - target.dtype.type(1))
    step = np.float64(factor) * (target - donor).astype(np.float64)
    wide = base.astype(np.float64)
    mixed = wide + step
    if target.dtype == np.float32:
        _round_ties(mixed, wide, step)
    return mixed.astype(target.dtype)


def _round_ties(mixed: Array, base: Array, step: Array) -> None:
    """Move sums that float64 rounded to the middle between two float32 back to their side of it."""
    ties = np.flatnonzero((mixed.view("<u8") & 0x1FFFFFFF) == 0x10000000)
    if not ties.size:
        return
    a, b, found = base[ties], step[ties], mixed[ties]
    part = found - a
    error = (a - (found - part)) + (b - part)  # exact: Knuth's two-sum
    mixed[ties] = np.where(error == 0, found, np.nextafter(found, np.copysign(np.inf, error)))
