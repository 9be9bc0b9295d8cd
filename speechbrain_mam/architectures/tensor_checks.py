"""What every tensor that is merged must be: floating point, and finite.

A tensor of bytes or integers is a code for weights (its scale lies elsewhere), and one NaN makes a
whole model answer nothing; both merge without any error of PyTorch's. Every tensor of a donor and
of a target goes through here, of any file or live.

The functions take NumPy's arrays as well as PyTorch's tensors, and import neither.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from speechbrain_mam.errors import MAMError

FLOATING = ("float64", "float32", "float16", "bfloat16")
"""The types that can be merged."""

SHORT_NAMES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BOOL": "bool", "C64": "complex64"},
}
"""What safetensors calls the types, and PyTorch."""

Values = TypeVar("Values")


def type_name(values: Any) -> str:
    """The type of an array's or a tensor's elements, as PyTorch calls it.

    Example
    -------
    >>> import torch
    >>> type_name(torch.zeros(1, dtype=torch.float8_e5m2))
    'float8_e5m2'
    """
    return str(values.dtype).removeprefix("torch.")


def check_type(kind: str, name: str, where: str) -> None:
    """Refuse a type that is not floating point.

    Arguments
    ---------
    kind : str
        As :func:`type_name` or safetensors gives it.
    name : str
        The tensor.
    where : str
        Its file or model.

    Raises
    ------
    MAMError
        If values of that type are no weights.

    Example
    -------
    >>> check_type("I8", "encoder.query.weight", "'model.safetensors'")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: 'model.safetensors': 'encoder.query.weight' is stored as \
int8, expected floating point (float64, float32, float16 or bfloat16): take the model's \
unquantised weights, or load it, dequantise it and save it in one of these types
    """
    kind = SHORT_NAMES.get(kind, kind)
    if kind not in FLOATING:
        raise MAMError(
            f"{where}: '{name}' is stored as {kind}, expected floating point "
            f"({', '.join(FLOATING[:-1])} or {FLOATING[-1]}): take the model's unquantised "
            "weights, or load it, dequantise it and save it in one of these types"
        )


def check_plain(tensor: Any, name: str, where: str) -> None:
    """Refuse a live tensor that is not floating point, or only looks so.

    A quantised tensor of a subclass (torchao's) says ``float32`` and holds integers: a merge in
    place would quantise once more, or write to a copy.

    Raises
    ------
    MAMError
        If it cannot be merged; the message names it.

    Example
    -------
    >>> import torch
    >>> check_plain(torch.zeros(2, dtype=torch.bfloat16), "weight", "the model")
    """
    kind = type(tensor)
    dispatch = getattr(kind, "__torch_dispatch__", None)
    plain = getattr(dispatch, "__name__", "_disabled_torch_dispatch_impl")
    own = plain != "_disabled_torch_dispatch_impl"  # what torch.Tensor and Parameter have
    check_type(kind.__name__ if own else type_name(tensor), name, where)


def all_finite(values: Any) -> bool:
    """Whether no value is NaN or infinite.

    Example
    -------
    >>> import numpy as np
    >>> all_finite(np.float32([1, 2])), all_finite(np.float32([3e38, 3e38, np.nan]))
    (True, False)
    """
    if not math.prod(values.shape):
        return True
    # NaN is passed on by both, and neither makes a copy or can overflow, as a sum could.
    return math.isfinite(float(values.max())) and math.isfinite(float(values.min()))


def check_finite(values: Any, name: str, where: str) -> None:
    """Refuse NaN and infinite values.

    Arguments
    ---------
    values : tensor or array
        Of a type that :func:`check_type` lets pass.
    name, where : str
        The tensor, and its file or model.

    Raises
    ------
    MAMError
        If there is one; the message tells how many.
    """
    if getattr(values, "is_meta", False):
        raise MAMError(f"{where}: '{name}' has no values (device 'meta'): load the weights first")
    if all_finite(values):
        return
    total = math.prod(values.shape)
    count = total - int((values - values == 0).sum())
    raise MAMError(
        f"{where}: {count} of {total} values of '{name}' are NaN or infinite, expected numbers: "
        "the file is damaged or its training went wrong; take another checkpoint of this model"
    )


def checked(values: Values, name: str, where: str) -> Values:
    """The values, if they are floating point and finite.

    Raises
    ------
    MAMError
        See :func:`check_plain` and :func:`check_finite`.

    Example
    -------
    >>> import torch
    >>> checked(torch.tensor([1.0, float("nan")]), "encoder.query.bias", "'model.bin'")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: 'model.bin': 1 of 2 values of 'encoder.query.bias' are NaN or \
infinite, expected numbers: the file is damaged or its training went wrong; take another \
checkpoint of this model
    """
    check_plain(values, name, where)
    check_finite(values, name, where)
    return values


def checked_result(values: Values, name: str, kind: str = "") -> Values:
    """A merged tensor in the target's type, if it is finite.

    Arguments
    ---------
    values : tensor or array
        After the cast.
    name : str
        The target's tensor.
    kind : str
        What the message calls the type, where ``values`` has another.

    Raises
    ------
    MAMError
        If the cast, or the merge, made it infinite.

    Example
    -------
    >>> import torch
    >>> checked_result(torch.tensor([70000.0]).half(), "layers.0.q_proj.weight")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: 'layers.0.q_proj.weight' would hold values that are not \
finite in float16: the donor's tensor that is mixed into it is out of range; use \
'donor_scale: match_norm', a λ nearer to 1, or a target in float32
    """
    if not all_finite(values):
        raise MAMError(
            f"'{name}' would hold values that are not finite in {kind or type_name(values)}: the "
            "donor's tensor that is mixed into it is out of range; use 'donor_scale: match_norm', "
            "a λ nearer to 1, or a target in float32"
        )
    return values


def norm_ratio(target: float, donor: float, name: str) -> float:
    """‖target‖ / ‖donor‖ of two Frobenius norms, the factor of ``donor_scale: match_norm``.

    Raises
    ------
    MAMError
        If the donor's tensor, which the message calls ``name``, is all zeros.

    Example
    -------
    >>> norm_ratio(5.0, 1.0, "encoder.query.weight")
    5.0
    """
    if donor == 0:
        raise MAMError(
            f"key 'donor_scale': the donor's '{name}' is all zeros and cannot be scaled to the "
            "target's norm; use 'none'"
        )
    return target / donor
