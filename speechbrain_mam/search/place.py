"""Where a model is measured: on which device, in which precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from speechbrain_mam.errors import MAMError, one_of

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """A device and a precision. Weights stay float32; products are computed in the precision.

    Arguments
    ---------
    device : torch.device
        Where model and batches are.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.
    """

    device: torch.device
    precision: str

    def autocast(self) -> torch.autocast:
        """What is put around a forward pass."""
        dtype, kind = PRECISIONS[self.precision], self.device.type
        return torch.autocast(kind, dtype=dtype, enabled=self.precision != "fp32")


def place(device: str | None = None, precision: str = "fp32") -> Place:
    """A place as a command line names it.

    Arguments
    ---------
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:1``; the GPU by default, where there is one.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.

    Raises
    ------
    MAMError
        If the machine has no such device, or the device no such precision.

    Example
    -------
    >>> place("cpu").device, place("cpu", "bf16").precision
    (device(type='cpu'), 'bf16')
    >>> place("cuda:99")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: key 'device': 'cuda:99' is not on this machine, which has ...
    """
    one_of("precision", precision, tuple(PRECISIONS))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = device if device is not None else ("cuda" if gpus else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise MAMError(
            f"key 'device': '{name}' is no device; expected cpu, cuda or cuda:1"
        ) from error
    there = found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < gpus)
    if not there:
        has = f"the CPU and {gpus} CUDA devices"
        raise MAMError(f"key 'device': '{name}' is not on this machine, which has {has}")
    if found.type == "cpu" and precision == "fp16":
        raise MAMError("key 'precision': fp16 on a CPU is not supported; use fp32 or bf16")
    return Place(found, precision)


def fast_precision() -> str:
    """``bf16`` where the hardware multiplies it, ``fp32`` elsewhere; for a YAML's ``precision``.

    A CPU without bf16 instructions emulates them: a training step then takes ten times as long as
    in float32, while one with them needs a quarter to a half of float32's time.

    Example
    -------
    >>> fast_precision() in ("bf16", "fp32")
    True
    """
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # not in every supported torch
        told: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(told.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bf16" if fast else "fp32"
