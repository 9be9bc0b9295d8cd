"""λ · target + (1 − λ) · donor of two tensors: the one place where a merge is computed.

Computed in float32 and cast once to the target's precision.

Source: Sundar et al., "Multimodal Attention Merging for Improved Speech Recognition and Audio
Event Classification", arXiv 2312.14378.
"""

from __future__ import annotations

import torch

from speechbrain_mam.merging.methods import method_named


def linear(
    target: torch.Tensor, donor: torch.Tensor, lam: float, method: str = "linear"
) -> torch.Tensor:
    """λ · target + (1 − λ) · donor, the paper's merge; or another method's.

    Arguments
    ---------
    target, donor : torch.Tensor
        Same shape, any floating-point precision.
    lam : float
        The target's share. 1 gives the target's bits, and 0 of a linear method the donor's.
    method : str
        One of :data:`speechbrain_mam.merging.methods.METHODS`.

    Returns
    -------
    torch.Tensor
        In the target's precision; the arithmetic is float32 (float64 where the target is).

    Example
    -------
    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), lam=0.5)
    tensor([2., 4.])
    """
    # The ends are copied: in floating point −0 − (−5 · 0) is +0, which is another bit pattern.
    chosen = method_named(method)
    if lam == 1:
        return target.clone()
    if lam == 0 and chosen.is_linear:
        return donor.to(target.dtype, copy=True)
    wide = torch.promote_types(target.dtype, torch.float32)
    return chosen.function(target.to(wide), donor.to(wide), lam).to(target.dtype)


def first_step(target: torch.Tensor, donor: torch.Tensor, method: str = "linear") -> torch.Tensor:
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
    step: torch.Tensor = found[1]
    return step
