"""Two tensors by a merge method: the one place where torch computes a merge.

The formulas are the functions of :data:`speechbrain_mam.merging.methods.METHODS`; here is what all
of them need: float32 arithmetic with one cast to the target's precision, and exact ends.

Source: Sundar et al., "Multimodal Attention Merging for Improved Speech Recognition and Audio
Event Classification", arXiv 2312.14378.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from speechbrain_mam.merging.methods import METHODS, MergeMethod, method_named


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of a merge: float32, or float64 where the target is.

    Example
    -------
    >>> wide(torch.bfloat16), wide(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Autocast off: it would take sums of products, as several donors need, to half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def mix(
    target: Tensor, donor: Tensor, lam: float | Tensor, method: MergeMethod = METHODS["linear"]
) -> Tensor:
    """λ · target + (1 − λ) · donor, or another method's formula, differentiable.

    Arguments
    ---------
    target, donor : Tensor
        Same shape, any floating-point precision.
    lam : float or Tensor
        The target's share: one number, or a tensor that broadcasts.
    method : MergeMethod
        How.

    Returns
    -------
    Tensor
        In the target's precision; the arithmetic is in :func:`wide` precision.

    Example
    -------
    >>> mix(torch.ones(1).half(), torch.zeros(1), torch.tensor([0.999]))
    tensor([0.9990], dtype=torch.float16)
    """
    if isinstance(lam, Tensor) and lam.numel() == 1:
        # Like a Python number, it leaves the tensors' precision alone; a method that computes in
        # double is to have it in double (Apple's GPUs have none).
        number = torch.float32 if lam.device.type == "mps" else torch.float64
        lam = lam.reshape(()).to(lam.dtype if method.is_linear else number)
    dtype = wide(target.dtype)
    with without_autocast(target.device):
        return method.function(target.to(dtype), donor.to(dtype), lam).to(target.dtype)


def linear(
    target: Tensor, donor: Tensor, lam: float | Tensor, method: str | MergeMethod = "linear"
) -> Tensor:
    """:func:`mix` for good: λ = 1 gives the target's bits, and 0 of a linear method the donor's.

    Arguments as for :func:`mix`; a method may be given by its name.

    Example
    -------
    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), lam=0.5)
    tensor([2., 4.])
    >>> linear(torch.full((2, 1), -0.0), torch.ones(2, 1), torch.tensor([[1.0], [0.5]]))
    tensor([[-0.0000],
            [0.5000]])
    """
    # The ends are copied: in floating point −0 − (−5 · 0) is +0, which is another bit pattern.
    chosen = method_named(method) if isinstance(method, str) else method
    if isinstance(lam, Tensor) and lam.numel() > 1:
        mixed = mix(target, donor, lam, chosen).where(lam != 1, target)
        return mixed.where(lam != 0, donor.to(target.dtype)) if chosen.is_linear else mixed
    share = float(lam)
    if share == 1:
        return target.clone()
    if share == 0 and chosen.is_linear:
        return donor.to(target.dtype, copy=True)
    return mix(target, donor, share, chosen)


def first_step(target: Tensor, donor: Tensor, method: str = "linear") -> Tensor:
    """∂W/∂(1 − λ) at λ = 1: where a small step towards the donor goes.

    Of the linear methods W_donor − W_target; of the others by forward differentiation.

    Example
    -------
    >>> first_step(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))
    tensor([2., 4.])
    >>> first_step(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), "multi_path")
    tensor([3., 6.])
    """
    chosen = method_named(method)
    if chosen.is_linear:
        return donor - target
    one = torch.ones(1, dtype=target.dtype, device=target.device)
    found = torch.func.jvp(lambda lam: chosen.function(target, donor, lam), (one,), (-one,))
    step: Tensor = found[1]
    return step
