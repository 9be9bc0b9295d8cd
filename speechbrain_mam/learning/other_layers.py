"""Merged projections beyond the paper's: other methods, several donors, fused tensors.

They are written with plain autograd, so they keep the merged weight for the backward pass; the
paper's merge, :class:`~speechbrain_mam.learning.linear.MergedLinear`, does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechbrain_mam.architectures.parts import Part
from speechbrain_mam.learning.linear import MergedLinearByWeight, MergedModule
from speechbrain_mam.learning.module import merged_attribute, read_merged
from speechbrain_mam.merging.arithmetic import linear, mix, wide, without_autocast
from speechbrain_mam.merging.methods import MergeMethod


class MethodLinear(MergedLinearByWeight):
    """A projection merged by any :class:`~speechbrain_mam.merging.methods.MergeMethod`.

    Arguments as for :class:`~speechbrain_mam.learning.linear.MergedLinear`, and ``method``.
    ``weight`` and ``bias`` are the merged tensors, for attention that reads them.

    Example
    -------
    >>> from speechbrain_mam.merging.methods import METHODS
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


class ManyDonorsLinear(MethodLinear):
    """W = λ_0 · W_target + Σ_k λ_k · W_k with λ on the simplex: λ_k ≥ 0 and Σ λ = 1.

    ``donor_weight`` is ``[donors, out, in]``, ``donor_bias`` ``[donors, out]`` and ``lam``
    ``(1 + donors,)``, the target's share first; with ``sigmoid`` its logits, λ = softmax(lam).
    """

    def lams(self) -> Tensor:
        """λ_0 … λ_K."""
        return self.lam.softmax(0) if self.sigmoid else self.lam

    def share(self) -> Tensor:
        """λ_0 … λ_K in the precision of the merge."""
        return self.lams().to(self.donor_weight.dtype)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, differentiable."""
        weight, bias = self.own("weight"), self.own("bias")
        lam = self.share()
        merged = _sum_up(weight, self.donor_weight, lam)
        if bias is None or self.donor_bias is None:
            return merged, bias
        return merged, _sum_up(bias, self.donor_bias, lam)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias; the target's bits where no donor has a share."""
        lam = self.share()
        if lam[0] == 1 and not lam[1:].any():
            return self.own("weight"), self.own("bias")
        return self.merged()


def _sum_up(own: Tensor, donors: Tensor, lam: Tensor) -> Tensor:
    with without_autocast(own.device):
        merged = lam[0] * own.to(donors.dtype) + torch.tensordot(lam[1:], donors, 1)
    return merged.to(own.dtype)


class Piece(NamedTuple):
    """A projection in a tensor of several: what of it, its λ, whether its bias is merged."""

    part: Part
    lams: slice
    with_bias: bool

    def share(self, lams: Tensor, rows: int) -> Tensor:
        """λ of the piece, ``(1,)`` or one for each of so many rows."""
        lam = lams[self.lams]
        return lam if lam.numel() == 1 else lam.repeat_interleave(rows // lam.numel())


class MergedRows(MergedModule):
    """Mixed with a class that keeps several projections in one tensor.

    For ``nn.Linear`` these are ``weight`` and ``bias``, for attention ``in_proj_weight`` and, if it
    has one, ``in_proj_bias``: reading them gives the merged tensors. Rows that no plan names stay
    the target's.
    """

    names: tuple[str, ...]
    pieces: tuple[Piece, ...]
    method: MergeMethod

    def _merged_by(self, how) -> tuple[Tensor, Tensor | None]:
        weight, bias = (*(self.own(name) for name in self.names), None)[:2]
        lams = self.lams().to(self.donor_weight.dtype)
        merged_weight = weight.clone()
        merged_bias = None if bias is None else bias.clone()
        for piece in self.pieces:
            part, own = piece.part, piece.part.take(weight)
            lam = piece.share(lams, len(own))
            column = lam if lam.numel() == 1 else lam.unsqueeze(1)
            part.put(merged_weight, how(own, part.take(self.donor_weight), column, self.method))
            if piece.with_bias:
                assert merged_bias is not None and self.donor_bias is not None
                own = part.take(bias)
                part.put(merged_bias, how(own, part.take(self.donor_bias), lam, self.method))
        return merged_weight, merged_bias

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The merged tensors, whole, differentiable."""
        return self._merged_by(mix)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The merged tensors as :class:`~speechbrain_mam.merging.apply.Merge` would write them."""
        return self._merged_by(linear)


class _MergedRowsLinear(MergedRows, nn.Linear):
    names = ("weight", "bias")
    weight = merged_attribute(0, "The merged weight ``[out, in]``.")
    bias = merged_attribute(1, "The merged bias ``[out]``.")

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *read_merged(self))


class _MergedRowsAttention(MergedRows):
    names: tuple[str, ...] = ("in_proj_weight",)
    plain: type
    in_proj_weight = merged_attribute(0, "The merged weight ``[out, in]``.")

    def __reduce_ex__(self, protocol):
        # The class is made on the fly: pickle and copy are to make it again.
        return _new_attention, (self.plain,), self.__dict__


@cache
def _attention_class(plain: Hashable) -> type:
    """``plain`` with merged tensors; by its own name, so that it is found by it."""
    assert isinstance(plain, type)
    content: dict[str, Any] = {"__module__": plain.__module__, "plain": plain}
    if issubclass(plain, nn.MultiheadAttention):
        content["names"] = ("in_proj_weight", "in_proj_bias")
        content["in_proj_bias"] = merged_attribute(1, "The merged bias ``[out]``.")
    return type(plain.__name__, (_MergedRowsAttention, plain), content)


def _new_attention(plain: type) -> nn.Module:
    kind = _attention_class(cast("Hashable", plain))
    return cast("nn.Module", object.__new__(kind))


def merge_rows(
    module: nn.Module,
    pieces: Sequence[Piece],
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
        An ``nn.Linear``, or attention with an ``in_proj_weight``; it is left as it is.
    pieces : sequence of Piece
        The projections that are merged.
    donor_weight, donor_bias
        The donor's, of the full shape ``[out, in]`` and ``[out]``; rows outside of the pieces are
        not read.
    """
    twin = copy_module(module)
    plain = cast("Hashable", type(module))
    linear = isinstance(module, nn.Linear)
    twin.__class__ = _MergedRowsLinear if linear else _attention_class(plain)
    merged = cast("MergedRows", twin)
    merged.pieces, merged.method = tuple(pieces), method
    dtype = wide(merged.own(merged.names[0]).dtype)
    donor_bias = None if donor_bias is None else donor_bias.to(dtype)
    merged._hold(lam, donor_weight.to(dtype), donor_bias, sigmoid, owns_lam, method.trains_donor)
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
