"""MergedLinear: a linear projection mixed with a donor's, with λ as a parameter.

W = λ · W_target + (1 − λ) · W_donor,      ∂L/∂λ = Σ ⟨∂L/∂W, W_target − W_donor⟩
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechbrain_mam.learning.module import MergedModule as MergedModule
from speechbrain_mam.learning.module import (
    autocast_as_now,
    mean,
    merged_attribute,
    read_merged,
)
from speechbrain_mam.merging import arithmetic, methods
from speechbrain_mam.merging.arithmetic import wide
from speechbrain_mam.merging.methods import METHODS, MergeMethod


class _Buffers(threading.local):
    """Memory for results that are used up before the next one of their kind; one set a thread."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, like: Tensor, use: str) -> Tensor | None:
        """A tensor of ``like``'s shape to write to, or None: allocate one.

        On a CPU, a fresh weight-sized tensor costs page faults and leaves the cache, which is most
        of what a merge takes. A GPU's caching allocator has neither problem, and a compiler or a
        tracer plans by itself.
        """
        if like.device.type != "cpu" or type(like) not in (Tensor, nn.Parameter):
            return None
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        buffer = self.kept.get((use, like.dtype))
        if buffer is None or buffer.shape != like.shape:
            with torch.inference_mode(False):  # made there, no other mode could write to it
                buffer = torch.empty_like(like, requires_grad=False)
            self.kept[use, like.dtype] = buffer
        return buffer


_BUFFERS = _Buffers()


class _MergedLinearFunction(torch.autograd.Function):
    """``x @ lerp(W_donor, W_target, λ).T + lerp(b_donor, b_target, λ)``.

    The merged weight is recomputed in backward instead of being kept: what is saved are ``x``, as
    for a plain linear layer, and parameters that exist anyway. λ is one number, or one for each row
    of the weight, or for each column, and then the bias has a λ of its own.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, donor_weight, donor_bias, lam, lam_bias):
        ctx.autocast = autocast_as_now(x.device)
        ctx.save_for_backward(x, weight, bias, donor_weight, donor_bias, lam, lam_bias)
        spread = lam if lam_bias is not None else _column(lam)
        merged = _merge(weight, donor_weight, spread, _BUFFERS.get(donor_weight, "merged"))
        lam_bias = lam if lam_bias is None else lam_bias
        projected = F.linear(x, merged, _merge_bias(bias, donor_bias, lam_bias))
        # Of three axes it is a view, which autograd lets nobody change in place; BEATs scales its
        # queries so. The same memory under another name is no view.
        return torch.ops.aten._unsafe_view(projected, projected.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, bias, donor_weight, donor_bias, lam, lam_bias = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, _, needs_lam, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = grad_lam = grad_lam_bias = None
        in_columns = lam_bias is not None
        spread, lam_bias = (lam, lam_bias) if in_columns else (_column(lam), lam)
        # Attention hands back a transposed gradient: one copy to rows serves every product, while
        # `grad @ weight` on it would become a batched one.
        flat, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        # W_target − W_donor serves twice: in the merged weight and in ∂L/∂λ.
        own, buffer = weight.to(donor_weight.dtype), _BUFFERS.get(donor_weight, "merged")
        difference = torch.sub(own, donor_weight, out=_BUFFERS.get(own, "difference"))
        with ctx.autocast():
            if needs_x:
                if weight.dtype == donor_weight.dtype:
                    # W_donor + λ · (W_target − W_donor), the difference being there
                    merged = torch.addcmul(donor_weight, difference, spread, out=buffer)
                else:  # cast as in forward, to the bit
                    merged = _merge(weight, donor_weight, spread, buffer)
                grad_x = (flat @ merged).view(x.shape)
            if needs_weight or needs_lam:
                grad_weight = flat.t() @ rows
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if bias is not None and (needs_bias or needs_lam):
            grad_bias = flat.sum(0).to(bias.dtype)
        if needs_lam:
            grad_lam = _inner(grad_weight, difference, lam, in_columns)
            if donor_bias is not None:
                difference = bias.to(donor_bias.dtype) - donor_bias
                grad_lam_bias = _inner(grad_bias, difference, lam_bias, in_columns)
                if not in_columns:
                    grad_lam, grad_lam_bias = grad_lam + grad_lam_bias, None
        if needs_weight:
            grad_weight = grad_weight.mul_(spread)
        if needs_bias and donor_bias is not None:
            grad_bias = grad_bias.mul_(lam_bias)
        return (
            grad_x,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            None,
            None,
            grad_lam,
            grad_lam_bias,
        )


def _merge(own: Tensor, donor: Tensor, lam: Tensor, out: Tensor | None = None) -> Tensor:
    return methods.linear(own.to(donor.dtype), donor, lam, out).to(own.dtype)


def _merge_bias(bias: Tensor | None, donor_bias: Tensor | None, lam: Tensor) -> Tensor | None:
    return bias if bias is None or donor_bias is None else _merge(bias, donor_bias, lam)


def _column(lam: Tensor) -> Tensor:
    return lam if lam.numel() == 1 else lam.unsqueeze(1)


def _inner(grad: Tensor, difference: Tensor, lam: Tensor, in_columns: bool) -> Tensor:
    """⟨grad, difference⟩ over everything, or for each row or column that has a λ of its own."""
    grad = grad.to(difference.dtype)
    if lam.numel() == 1:
        return torch.dot(grad.reshape(-1), difference.reshape(-1)).reshape(lam.shape)
    product = grad * difference
    return product.sum(0) if in_columns else product.reshape(lam.numel(), -1).sum(1)


class MergedLinear(MergedModule, nn.Linear):
    """A linear projection that is mixed with a donor's at every forward pass.

    y = x · (λ·W + (1 − λ)·W_donor)ᵀ + λ·b + (1 − λ)·b_donor

    It is computed in float32 (float64 where the target is) and cast once to the target's precision.

    Arguments
    ---------
    linear : nn.Linear
        The target's projection, whose parameters are taken over.
    donor_weight : Tensor
        ``[out, in]``.
    donor_bias : Tensor or None
        ``[out]``; None keeps the target's bias.
    lam : nn.Parameter
        ``(1,)``, ``(projections,)`` or ``(heads,)``.
    index : int, optional
        Which value of ``lam`` belongs to this projection (granularity ``projection``).
    sigmoid : bool
        Whether λ = sigmoid(lam).
    owns_lam : bool
        Whether this layer writes λ into the state dict.
    trains_donor : bool
        Whether the donor's tensors are parameters.
    heads_in_columns : bool
        Of ``(heads,)``: query, key and value give a head some rows, the output projection reads it
        with some columns. Its bias belongs to no head, and has the mean of their λ.

    Example
    -------
    >>> plain = nn.Linear(4, 4)
    >>> merged = MergedLinear(plain, torch.zeros(4, 4), None, nn.Parameter(torch.tensor([0.5])))
    >>> x = torch.randn(2, 4)
    >>> torch.allclose(merged(x), x @ (0.5 * plain.weight).t() + plain.bias)
    True
    """

    method: MergeMethod = METHODS["linear"]

    def __init__(
        self,
        linear: nn.Linear,
        donor_weight: Tensor,
        donor_bias: Tensor | None,
        lam: nn.Parameter,
        index: int | None = None,
        sigmoid: bool = False,
        owns_lam: bool = True,
        trains_donor: bool = False,
        heads_in_columns: bool = False,
    ):
        nn.Module.__init__(self)  # not nn.Linear's: it would allocate a weight to throw away
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Not by attribute: a subclass has properties of these names.
        self._parameters |= {"weight": linear.weight, "bias": linear.bias}  # type: ignore[dict-item]
        device, dtype = linear.weight.device, wide(linear.weight.dtype)
        weight = donor_weight.to(device, dtype)
        bias = None if donor_bias is None else donor_bias.to(device, dtype)
        self._hold(lam, weight, bias, sigmoid, owns_lam, trains_donor)
        self.index, self.heads_in_columns = index, heads_in_columns
        self.train(linear.training)

    def share(self) -> Tensor:
        """λ of this projection: ``(1,)``, or one value for each row (column) of the weight."""
        lam = self.lams()
        if self.index is not None:
            lam = lam[self.index : self.index + 1]
        elif lam.numel() > 1:
            size = self.in_features if self.heads_in_columns else self.out_features
            lam = lam.repeat_interleave(size // lam.numel())
        return lam.to(self.donor_weight.dtype)

    def share_of_bias(self) -> Tensor | None:
        """λ of the bias ``(1,)`` where it is not the weight's: see ``heads_in_columns``."""
        lam = self.lams()
        if not self.heads_in_columns or lam.numel() == 1 or self.index is not None:
            return None
        return mean(lam).to(self.donor_weight.dtype)

    def _merged_by(self, how) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.own("weight"), self.own("bias")
        lam, lam_bias = self.share(), self.share_of_bias()
        spread = _column(lam) if lam_bias is None else lam
        merged = how(weight, self.donor_weight, spread, self.method)
        if bias is None or self.donor_bias is None:
            return merged, bias
        return merged, how(
            bias, self.donor_bias, lam if lam_bias is None else lam_bias, self.method
        )

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, differentiable."""
        return self._merged_by(arithmetic.mix)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as :class:`~speechbrain_mam.merging.apply.Merge` would write them."""
        return self._merged_by(arithmetic.linear)

    def forward(self, input: Tensor) -> Tensor:
        """Project ``[..., in]`` to ``[..., out]`` with the merged weight."""
        if torch._C._are_functorch_transforms_active():  # torch.func has rules of its own
            return F.linear(input, *self.merged())
        weights = (self.weight, self.bias, self.donor_weight, self.donor_bias)
        return _MergedLinearFunction.apply(input, *weights, self.share(), self.share_of_bias())


class MergedLinearByWeight(MergedLinear):
    """For attention that reads ``weight`` and ``bias`` of its projections instead of calling them.

    Here both attributes are the merged tensors; parameters and state dict are the target's.
    """

    weight = merged_attribute(0, "The merged weight ``[out, in]``.")
    bias = merged_attribute(1, "The merged bias ``[out]``.")

    def forward(self, input: Tensor) -> Tensor:
        """Project ``[..., in]`` to ``[..., out]`` with the merged weight."""
        return F.linear(input, *read_merged(self))
