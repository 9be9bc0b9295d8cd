"""Merged projections beyond the paper's: other methods, several donors, fused tensors.

They are written with plain autograd, so they keep the merged weight for the backward pass; the
paper's merge, :class:`~speechbrain_mam.merged_linear.MergedLinear`, does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechbrain_mam.merged_linear import MergedLinearByWeight, MergedModule
from speechbrain_mam.methods import MergeMethod


class MethodLinear(MergedLinearByWeight):
    """A projection merged by any :class:`~speechbrain_mam.methods.MergeMethod`.

    Arguments as for :class:`~speechbrain_mam.merged_linear.MergedLinear`, and ``method``.
    ``weight`` and ``bias`` are the merged tensors, for attention that reads them.

    Example
    -------
    >>> from speechbrain_mam.methods import METHODS
    >>> plain, lam = nn.Linear(4, 4), nn.Parameter(torch.tensor([1.0]))
    >>> donor = torch.randn(4, 4)
    >>> merged = MethodLinear(plain, donor, None, lam, method=METHODS["multi_path"])
    >>> torch.equal(merged.weight, plain.weight), merged.donor_weight.requires_grad
    (True, True)
    """

    def __init__(self, linear: nn.Linear, *arguments: Any, method: MergeMethod, **options: Any):
        options["trains_donor"] = method.trains_donor
        super().__init__(linear, *arguments, **options)
        self.method = method

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, differentiable."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        lam, merge = self.share(), self.method.function
        column = lam if lam.numel() == 1 else lam.unsqueeze(1)
        merged = merge(cast("Tensor", weight), self.donor_weight, column)
        if bias is None or self.donor_bias is None:
            return merged, bias
        return merged, merge(bias, self.donor_bias, lam)


class ManyDonorsLinear(MethodLinear):
    """W = λ_0 · W_target + Σ_k λ_k · W_k with λ on the simplex: λ_k ≥ 0 and Σ λ = 1.

    ``donor_weight`` is ``[donors, out, in]``, ``donor_bias`` ``[donors, out]`` and ``lam``
    ``(1 + donors,)``, the target's share first; with ``sigmoid`` its logits, λ = softmax(lam).
    """

    def lams(self) -> Tensor:
        """λ_0 … λ_K."""
        return self.lam.softmax(0) if self.sigmoid else self.lam

    def share(self) -> Tensor:
        """λ_0 … λ_K in the donors' precision."""
        return self.lams().to(self.donor_weight.dtype)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, differentiable."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        lam = self.share()
        merged = lam[0] * cast("Tensor", weight) + torch.tensordot(lam[1:], self.donor_weight, 1)
        if bias is None or self.donor_bias is None:
            return merged, bias
        return merged, lam[0] * bias + torch.tensordot(lam[1:], self.donor_bias, 1)


class MergedRows(MergedModule):
    """Mixed with a class that keeps several projections on top of each other in one tensor.

    For ``nn.Linear`` these are ``weight`` and ``bias``, for ``nn.MultiheadAttention``
    ``in_proj_weight`` and ``in_proj_bias``: reading them gives the merged tensors. Rows that no
    plan names stay the target's.
    """

    names: tuple[str, str]
    pieces: tuple[tuple[slice, Tensor, bool], ...]
    method: MergeMethod

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged tensors, whole, differentiable."""
        weight, bias = (self._parameters[name] for name in self.names)
        lams, merge = self.lams().to(self.donor_weight.dtype), self.method.function
        merged_weight = cast("Tensor", weight).clone()
        merged_bias = None if bias is None else bias.clone()
        for rows, places, with_bias in self.pieces:
            lam = lams[places]
            column = lam if lam.numel() == 1 else lam.unsqueeze(1)
            merged_weight[rows] = merge(
                cast("Tensor", weight)[rows], self.donor_weight[rows], column
            )
            if with_bias:
                assert bias is not None and merged_bias is not None and self.donor_bias is not None
                merged_bias[rows] = merge(bias[rows], self.donor_bias[rows], lam)
        return merged_weight, merged_bias


class _MergedRowsLinear(MergedRows, nn.Linear):
    names = ("weight", "bias")

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.merged()[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.merged()[1]

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *self.merged())


class _MergedRowsAttention(MergedRows):
    names = ("in_proj_weight", "in_proj_bias")

    @property
    def in_proj_weight(self) -> Tensor:
        return self.merged()[0]

    @property
    def in_proj_bias(self) -> Tensor | None:
        return self.merged()[1]


@cache
def _attention_class(plain: Hashable) -> type:
    """``plain`` with merged tensors; by its own name, so that it is found by it."""
    assert isinstance(plain, type)
    return type(plain.__name__, (_MergedRowsAttention, plain), {"__module__": plain.__module__})


def merge_rows(
    module: nn.Module,
    names: tuple[str, str],
    pieces: Sequence[tuple[slice, Tensor, bool]],
    donor_weight: Tensor,
    donor_bias: Tensor | None,
    lam: nn.Parameter,
    method: MergeMethod,
    sigmoid: bool,
    owns_lam: bool,
) -> MergedRows:
    """A twin of ``module`` that shares its parameters and is merged in rows of one tensor.

    Arguments
    ---------
    module : nn.Module
        An ``nn.Linear``, or an ``nn.MultiheadAttention``; it is left as it is.
    names : tuple of str
        What its weight ``[out, in]`` and bias ``[out]`` are called.
    pieces : sequence
        For each projection its rows, which λ they have (``(1,)``, or one for each row), and whether
        its bias is merged.
    donor_weight, donor_bias
        The donor's, of the full shape; rows outside of the pieces are not read.
    """
    twin = copy_module(module)
    linear = names[0] == "weight"
    plain = cast("Hashable", type(module))
    twin.__class__ = _MergedRowsLinear if linear else _attention_class(plain)
    merged = cast("MergedRows", twin)
    merged.pieces, merged.method = tuple(pieces), method
    merged._hold(lam, donor_weight, donor_bias, sigmoid, owns_lam, method.trains_donor)
    return merged


def copy_module(module: nn.Module) -> nn.Module:
    """Another module with the same parameters, buffers and parts, whose own set of them may change.

    Example
    -------
    >>> plain = nn.Linear(2, 2)
    >>> twin = copy_module(plain)
    >>> twin.register_parameter("extra", None)
    >>> twin.weight is plain.weight, hasattr(plain, "extra")
    (True, False)
    """
    twin = module.__new__(type(module))
    twin.__dict__ = dict(module.__dict__)
    for kind in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        twin.__dict__[kind] = module.__dict__[kind].copy()
    return twin
