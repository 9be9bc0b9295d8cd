"""MergedLinear: a linear projection mixed with a donor's, with λ as a parameter.

W = λ · W_target + (1 − λ) · W_donor,      ∂L/∂λ = Σ ⟨∂L/∂W, W_target − W_donor⟩
"""

from __future__ import annotations

import threading
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Buffers(threading.local):
    """Memory for results that are used up before the next one of their kind; one set a thread."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, like: Tensor, use: str) -> Tensor | None:
        """A tensor of ``like``'s shape to write to, or None: allocate one.

        On a CPU, a fresh weight-sized tensor costs page faults and leaves the cache, which is most
        of what a merge takes. A GPU's caching allocator has neither problem, and a compiler plans
        by itself.
        """
        if like.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        buffer = self.kept.get((use, like.dtype))
        if buffer is None or buffer.shape != like.shape:
            buffer = self.kept[use, like.dtype] = torch.empty_like(like, requires_grad=False)
        return buffer


_BUFFERS = _Buffers()


class _MergedLinearFunction(torch.autograd.Function):
    """``x @ lerp(W_donor, W_target, λ).T + lerp(b_donor, b_target, λ)``.

    The merged weight is recomputed in backward instead of being kept: what is saved are ``x``, as
    for a plain linear layer, and parameters that exist anyway.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, donor_weight, donor_bias, lam):
        device = x.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        ctx.save_for_backward(x, weight, bias, donor_weight, donor_bias, lam)
        merged = torch.lerp(donor_weight, weight, _column(lam), out=_BUFFERS.get(weight, "merged"))
        projected = F.linear(x, merged, _merge_bias(bias, donor_bias, lam))
        # Of three axes it is a view, which autograd lets nobody change in place; BEATs scales its
        # queries so. The same memory under another name is no view.
        return torch.ops.aten._unsafe_view(projected, projected.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, bias, donor_weight, donor_bias, lam = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, _, needs_lam = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = grad_lam = None
        # Attention hands back a transposed gradient: one copy to rows serves every product, while
        # `grad @ weight` on it would become a batched one.
        flat, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        # W_target − W_donor serves twice: in the merged weight and in ∂L/∂λ.
        difference = torch.sub(weight, donor_weight, out=_BUFFERS.get(weight, "difference"))
        with torch.autocast(**ctx.autocast):
            if needs_x:
                merged = torch.addcmul(
                    donor_weight, difference, _column(lam), out=_BUFFERS.get(weight, "merged")
                )
                grad_x = (flat @ merged).view(x.shape)
            if needs_weight or needs_lam:
                grad_weight = flat.t() @ rows
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if bias is not None and (needs_bias or needs_lam):
            grad_bias = flat.sum(0).to(bias.dtype)
        if needs_lam:
            grad_lam = _inner(grad_weight, difference, lam)
            if donor_bias is not None:
                grad_lam = grad_lam + _inner(grad_bias, bias - donor_bias, lam)
        if needs_weight:
            grad_weight = grad_weight.mul_(_column(lam))
        if needs_bias and donor_bias is not None:
            grad_bias = grad_bias.mul_(lam)
        return (
            grad_x,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            None,
            None,
            grad_lam,
        )


def _merge_bias(bias: Tensor | None, donor_bias: Tensor | None, lam: Tensor) -> Tensor | None:
    return bias if bias is None or donor_bias is None else torch.lerp(donor_bias, bias, lam)


def _column(lam: Tensor) -> Tensor:
    return lam if lam.numel() == 1 else lam.unsqueeze(1)


def _inner(grad: Tensor, difference: Tensor, lam: Tensor) -> Tensor:
    """⟨grad, difference⟩, over everything or for each row where λ has one value a row."""
    if lam.numel() == 1:
        return torch.dot(grad.reshape(-1), difference.reshape(-1)).reshape(lam.shape)
    return (grad * difference).reshape(lam.numel(), -1).sum(1)


class MergedModule(nn.Module):
    """λ, and the donor's tensors, in a module whose projections are mixed at every forward pass.

    It keeps the parameters of the module that it replaces under their names, so a checkpoint of the
    plain model loads. λ is shared by the projections of a layer: each holds the same ``Parameter``,
    one of them writes it into the state dict. The donor's tensors are in no checkpoint, unless they
    are trained.
    """

    lam: nn.Parameter
    donor_weight: Tensor
    donor_bias: Tensor | None

    def _hold(
        self,
        lam: nn.Parameter,
        donor_weight: Tensor,
        donor_bias: Tensor | None,
        sigmoid: bool,
        owns_lam: bool,
        trains_donor: bool = False,
    ) -> None:
        self.register_parameter("lam", lam)
        for name, tensor in (("donor_weight", donor_weight), ("donor_bias", donor_bias)):
            if trains_donor and tensor is not None:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor, persistent=False)
        self.sigmoid, self.owns_lam, self.trains_donor = sigmoid, owns_lam, trains_donor

    def lams(self) -> Tensor:
        """The module's λ, whatever they are learned as."""
        return torch.sigmoid(self.lam) if self.sigmoid else self.lam

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.owns_lam:
            del destination[prefix + "lam"]

    def _load_from_state_dict(self, state_dict, prefix, meta, strict, missing, unexpected, errors):
        # λ is copied in place (it is shared). It and a trained donor may be missing: a plain model
        # has none.
        ours = ["lam", *(n for n in ("donor_weight", "donor_bias") if n in self._parameters)]
        kept = {name: self._parameters.pop(name) for name in ours}
        saved = {name: state_dict.pop(prefix + name, None) for name in ours}
        super()._load_from_state_dict(state_dict, prefix, meta, strict, missing, unexpected, errors)
        for name, parameter in kept.items():
            self.register_parameter(name, parameter)
            if parameter is None or (value := saved[name]) is None:
                continue
            if value.shape != parameter.shape:
                found, expected = list(value.shape), list(parameter.shape)
                errors.append(f"{prefix}{name}: shape {found}, expected {expected}")
            else:
                with torch.no_grad():
                    parameter.copy_(value)


class MergedLinear(MergedModule, nn.Linear):
    """A linear projection that is mixed with a donor's at every forward pass.

    y = x · (λ·W + (1 − λ)·W_donor)ᵀ + λ·b + (1 − λ)·b_donor

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

    Example
    -------
    >>> plain = nn.Linear(4, 4)
    >>> merged = MergedLinear(plain, torch.zeros(4, 4), None, nn.Parameter(torch.tensor([0.5])))
    >>> x = torch.randn(2, 4)
    >>> torch.allclose(merged(x), x @ (0.5 * plain.weight).t() + plain.bias)
    True
    """

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
    ):
        nn.Module.__init__(self)  # not nn.Linear's: it would allocate a weight to throw away
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Not by attribute: a subclass has properties of these names.
        self._parameters |= {"weight": linear.weight, "bias": linear.bias}  # type: ignore[dict-item]
        bias = None if donor_bias is None else donor_bias.to(linear.bias)
        weight = donor_weight.to(linear.weight)
        self._hold(lam, weight, bias, sigmoid, owns_lam, trains_donor)
        self.index = index
        self.train(linear.training)

    def share(self) -> Tensor:
        """λ of this projection: ``(1,)``, or ``(out,)`` with one value for each row."""
        lam = self.lams()
        if self.index is not None:
            lam = lam[self.index : self.index + 1]
        elif lam.numel() > 1:
            lam = lam.repeat_interleave(self.out_features // lam.numel())
        return lam.to(self.donor_weight.dtype)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, differentiable."""
        parameters = self._parameters
        lam = self.share()
        weight = torch.lerp(self.donor_weight, cast("Tensor", parameters["weight"]), _column(lam))
        return weight, _merge_bias(parameters["bias"], self.donor_bias, lam)

    def forward(self, input: Tensor) -> Tensor:
        """Project ``[..., in]`` to ``[..., out]`` with the merged weight."""
        return _MergedLinearFunction.apply(
            input, self.weight, self.bias, self.donor_weight, self.donor_bias, self.share()
        )


class MergedLinearByWeight(MergedLinear):
    """For attention that reads ``weight`` and ``bias`` of its projections instead of calling them.

    Here both attributes are the merged tensors; parameters and state dict are the target's.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The merged weight ``[out, in]``."""
        return self.merged()[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The merged bias ``[out]``."""
        return self.merged()[1]

    def forward(self, input: Tensor) -> Tensor:
        """Project ``[..., in]`` to ``[..., out]`` with the merged weight."""
        return F.linear(input, *self.merged())
