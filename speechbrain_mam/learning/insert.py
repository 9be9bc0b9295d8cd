"""The merged twins of a target's projections: which class each one needs, and where it goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.architectures.parts import Part
from speechbrain_mam.architectures.tensor_checks import checked_result
from speechbrain_mam.donors.donor import TensorSource
from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.errors import MAMError
from speechbrain_mam.learning.linear import MergedLinear, MergedLinearByWeight
from speechbrain_mam.learning.other_layers import (
    ManyDonorsLinear,
    MergedRows,
    MethodLinear,
    Piece,
    copy_module,
    merge_rows,
)
from speechbrain_mam.merging.arithmetic import wide
from speechbrain_mam.merging.methods import method_named
from speechbrain_mam.merging.plan import MergePlan, PlanEntry
from speechbrain_mam.merging.prepare import donor_parts, donor_tensors

Found = Sequence[tuple[PlanEntry, Tensor]]
"""The entries of one module with the donor's tensors (of several donors, on top of each other)."""


class Site(NamedTuple):
    """Where a merged module goes: to ``path`` in ``target``, in the place of ``plain``.

    Both hold the target's own parameters. ``reads_weight``: it is read, and not called.
    """

    target: nn.Module
    path: str
    plain: nn.Module
    merged: MergedLinear | MergedRows
    reads_weight: bool = False

    @property
    def present(self) -> nn.Module:
        """What is there now."""
        return self.target.get_submodule(self.path)

    @property
    def reader(self) -> nn.Module:
        """The module whose forward pass reads the merged tensors, where they are read."""
        if isinstance(self.merged, MergedRows) and not isinstance(self.plain, nn.Linear):
            return self.present
        return self.target.get_submodule(self.path.rpartition(".")[0])

    def put(self, module: nn.Module) -> None:
        """Put a module there. Sites that hold other sites come first: their parts are new then."""
        parent, _, name = self.path.rpartition(".")
        # A multi-head attention has a dropout of its own, so the mode matters.
        module.train(self.present.training)
        setattr(self.target.get_submodule(parent), name, module)

    def follow(self) -> None:
        """What is not in the model learns what happened to what is.

        A load may have assigned parameters, a move replaced them; and a move or a cast of the model
        has not reached the modules outside of it, and the donor's tensors with them.
        """
        present, names = self.present, list(self.plain._parameters)
        if present is self.plain:
            self.merged._parameters.update({n: self.plain._parameters[n] for n in names})
        like = next(present.parameters(recurse=False), None)
        if present is not self.merged and like is not None:
            own, donor = self.merged.own(names[0]), self.merged.donor_weight
            found = (own.dtype, own.device, donor.dtype, donor.device)
            if found != (like.dtype, like.device, wide(like.dtype), like.device):
                # parts of it that are sites follow by themselves
                self.merged._apply(lambda tensor: tensor.to(like.device, like.dtype), recurse=False)
        self.plain._parameters.update({n: self.merged._parameters[n] for n in names})

    def folded(self) -> nn.Module:
        """A plain module that holds the merged tensors."""
        merged, folded = self.merged, copy_module(self.plain)
        names = merged.names if isinstance(merged, MergedRows) else ("weight", "bias")
        for name, tensor in zip(names, merged.folded(), strict=False):
            if tensor is not None:
                if tensor.element_size() == 2:  # the cast to it is what may overflow
                    checked_result(tensor, f"{self.path}.{name}")
                trained = merged.own(name).requires_grad
                folded._parameters[name] = nn.Parameter(tensor.clone(), requires_grad=trained)
        return folded


def build_sites(
    target: nn.Module,
    plan: MergePlan,
    donor: TensorSource,
    lams: Sequence[nn.Parameter],
    granularity: str,
    constraint: str,
) -> list[Site]:
    """A merged twin of every module that holds projections of the plan; none is put in yet.

    Raises
    ------
    MAMError
        If a module is of a class whose weights cannot be replaced, or several donors meet a fused
        tensor.
    """
    parameters = dict(target.named_parameters())

    def read(name: str) -> Tensor:
        return parameters[name].detach()

    tensors: Iterable[tuple[PlanEntry, Tensor]]
    if isinstance(donor, DonorMix):
        pairs = donor_parts(plan, donor, read)
        tensors = ((entry, torch.stack(parts)) for entry, parts in pairs)
    else:
        tensors = donor_tensors(plan, donor, read)
    by_owner: dict[str, list[tuple[PlanEntry, Tensor]]] = defaultdict(list)
    for entry, tensor in tensors:
        by_owner[entry.target.rpartition(".")[0]].append((entry, tensor))
    reads_weight = find_attention(target).architecture.reads_weight
    sites, owned = [], set()
    for path, found in by_owner.items():
        first = found[0][0]
        lam = lams[0 if granularity == "model" else plan.layers.index(first.layer)]
        lam.data = lam.data.to(parameters[first.target].device)
        plain = target.get_submodule(path)
        options = {"sigmoid": constraint == "sigmoid", "owns_lam": id(lam) not in owned}
        owned.add(id(lam))
        merged: MergedLinear | MergedRows
        if first.target_part is None:
            merged = _merged_linear(plan, plain, found, lam, granularity, reads_weight, options)
        else:
            merged = _merged_rows(plan, plain, found, lam, granularity, options)
        is_read = reads_weight or type(plain) is not nn.Linear
        sites.append(Site(target, path, plain, merged, is_read))
    return sorted(sites, key=lambda site: site.path.count("."))


def check_donors(plan: MergePlan, granularity: str, donors: int) -> None:
    """Whether several donors, which have a vector of λ each time, go with the rest.

    Raises
    ------
    MAMError
        If the granularity or the method has no place for it.
    """
    for key, value, allowed in (
        ("granularity", granularity, ("model", "layer")),
        ("method", plan.method, ("linear", "norm_matched")),
    ):
        if value not in allowed:
            raise MAMError(
                f"key '{key}': {value!r} with {donors} donors; several donors have a vector of λ "
                f"where one has a number, which goes with {' or '.join(allowed)}"
            )


def _merged_linear(
    plan: MergePlan,
    plain: nn.Module,
    found: Found,
    lam: nn.Parameter,
    granularity: str,
    reads_weight: bool,
    options: dict[str, Any],
) -> MergedLinear:
    entry = found[0][0]
    if type(plain) is NonDynamicallyQuantizableLinear:
        reads_weight = True  # torch.nn.MultiheadAttention's output projection is never called
    elif type(plain) is not nn.Linear:
        raise MAMError(
            f"'{entry.target.rpartition('.')[0]}' is a {type(plain).__name__}, expected a plain "
            "torch.nn.Linear: add adapters to other modules"
        )
    if granularity == "head" and entry.projection == "output":
        options = options | {"heads_in_columns": True}
    theirs = {entry.kind: tensor for entry, tensor in found}
    index = plan.projections.index(entry.projection) if granularity == "projection" else None
    arguments = (plain, theirs["weight"], theirs.get("bias"), lam, index)
    method = method_named(plan.method)
    if theirs["weight"].dim() == 3:
        return ManyDonorsLinear(*arguments, method=method, **options)
    if not method.is_linear:
        return MethodLinear(*arguments, method=method, **options)
    return (MergedLinearByWeight if reads_weight else MergedLinear)(*arguments, **options)


def _merged_rows(
    plan: MergePlan,
    plain: nn.Module,
    found: Found,
    lam: nn.Parameter,
    granularity: str,
    options: dict[str, Any],
) -> MergedRows:
    path = found[0][0].target.rpartition(".")[0]
    names = {entry.kind: entry.target.rpartition(".")[2] for entry, _ in found}
    if type(plain) is not nn.Linear and names["weight"] != "in_proj_weight":
        raise MAMError(
            f"'{path}' is a {type(plain).__name__} with several projections in one tensor; λ can "
            "be learned in a torch.nn.Linear, or in attention with an 'in_proj_weight'"
        )
    if any(tensor.dim() > len(entry.shape) for entry, tensor in found):
        raise MAMError(
            f"'{path}' holds several projections in one tensor, where λ cannot be learned for "
            "several donors at once: choose one (key 'donor')"
        )
    whole: dict[str, Tensor] = {}
    for entry, tensor in found:
        like = plain._parameters[names[entry.kind]]
        assert like is not None
        zeros = torch.zeros_like(like, dtype=wide(like.dtype), requires_grad=False)
        _part(entry).put(whole.setdefault(entry.kind, zeros), tensor.to(zeros))
    biases = {entry.projection for entry, _ in found if entry.kind == "bias"}
    pieces = [
        Piece(_part(entry), _lams(plan, entry, granularity), entry.projection in biases)
        for entry, _ in found
        if entry.kind == "weight"
    ]
    return merge_rows(
        plain,
        pieces,
        whole["weight"],
        whole.get("bias"),
        lam,
        method_named(plan.method),
        **options,
    )


def _part(entry: PlanEntry) -> Part:
    return cast("Part", entry.target_part)


def _lams(plan: MergePlan, entry: PlanEntry, granularity: str) -> slice:
    """Which of a layer's λ an entry has."""
    if granularity == "projection":
        index = plan.projections.index(entry.projection)
        return slice(index, index + 1)
    return slice(None)
