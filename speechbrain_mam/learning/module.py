"""What every merged module is: λ and the donor's tensors in the place of a plain module.

λ and the donor's tensors are float32, or float64 where the target is, whatever precision the target
is kept in: λ = 0.999 is 1 in bfloat16, and a merge is computed in float32 and cast once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from speechbrain_mam.errors import MAMError
from speechbrain_mam.learning.once_a_forward import once_a_forward


def autocast_as_now(device: torch.device) -> Callable[[], AbstractContextManager]:
    """Gives contexts with the present autocast of a device, for a backward pass later on."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    return functools.partial(torch.autocast, device.type, dtype, enabled)


def mean(lam: Tensor) -> Tensor:
    """The mean ``(1,)``, in double: λ that are equal have themselves as their mean."""
    exact = torch.float32 if lam.device.type == "mps" else torch.float64
    return lam.to(exact).mean(0, keepdim=True).to(lam.dtype)


def own_parameter(target: nn.Module, name: str) -> nn.Parameter:
    """The target's own parameter of a name, also where it is merged.

    ``target.get_parameter(name)`` reads the attribute, which is the merged tensor where attention
    reads it.

    Raises
    ------
    MAMError
        If there is none.

    Example
    -------
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> own_parameter(model, "0.weight") is model[0].weight
    True
    """
    path, _, leaf = name.rpartition(".")
    try:
        found = target.get_submodule(path)._parameters.get(leaf)
    except AttributeError:
        found = None
    if found is None:
        raise MAMError(f"{type(target).__name__} has no parameter '{name}'")
    return found


class MergedModule(nn.Module):
    """λ, and the donor's tensors, in a module whose projections are mixed at every forward pass.

    It keeps the parameters of the module that it replaces under their names, so a checkpoint of the
    plain model loads. λ is shared by the projections of a layer: each holds the same ``Parameter``,
    one of them writes it into the state dict. The donor's tensors are in no checkpoint, unless they
    are trained. ``half()`` and the like do not narrow λ and the donor's tensors below float32.
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

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, differentiable."""
        raise NotImplementedError

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as :class:`~speechbrain_mam.merging.apply.Merge` would write them."""
        raise NotImplementedError

    def own(self, name: str) -> Any:
        """The target's own weight or bias, by the name that it has in the plain module."""
        # torch.nn.DataParallel's copies keep their parameters elsewhere
        replicated = name not in self._parameters and getattr(self, "_is_replica", False)
        return vars(self)["_former_parameters" if replicated else "_parameters"][name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        tensors = (self.lam, self.donor_weight, self.donor_bias)
        held = [t for tensor in tensors if tensor is not None for t in (tensor, tensor.grad)]
        ours = {id(tensor) for tensor in held}

        def at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in ours and moved.dtype.itemsize < 4:
                return tensor.to(moved.device, torch.float32)
            return moved

        former = self.lam
        super()._apply(at_least_float32, recurse)
        if self.lam is not former:
            # torch.__future__.set_overwrite_module_params_on_conversion: each module that shares λ
            # is given a new one, and must share the first.
            while (moved := getattr(former, "_mam_moved_to", None)) is not None:
                self.lam = former = moved
            if self.lam is not former:
                former._mam_moved_to = self.lam  # type: ignore[attr-defined]
        return self

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


def read_merged(module: MergedModule) -> tuple[Tensor, Tensor | None]:
    """``module.merged()``, once in a forward pass of whoever reads it.

    Without gradients too, the tensors say that they require them, as a parameter does: PyTorch
    takes a product with others for one that may be batched, which is twice as slow.
    """

    def merge() -> tuple[Tensor, Tensor | None]:
        weight, bias = module.merged()
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return weight, bias
        weight = weight.detach().requires_grad_()
        return weight, None if bias is None else bias.detach().requires_grad_()

    return once_a_forward(module, merge)


def merged_attribute(place: int, doc: str) -> Any:
    """A property that is the merged weight (place 0) or bias (1), once a forward pass."""

    def read(module: MergedModule) -> Tensor | None:
        return read_merged(module)[place]

    def write(module: MergedModule, value: Tensor) -> None:
        # torch.nn.DataParallel gives its copies their parameters as attributes too; `own` has them.
        if not getattr(module, "_is_replica", False):
            raise AttributeError("a merged tensor cannot be set; set the target's own parameter")

    return property(read, write, doc=doc)
