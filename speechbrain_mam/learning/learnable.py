"""Learnable-MAM: one λ per layer (or model, projection, head), learned with the target.

    W = λ · W_target + (1 − λ) · W_donor,      ∂L/∂λ = Σ ⟨∂L/∂W, W_target − W_donor⟩

:class:`LearnableMAM` puts a :class:`~speechbrain_mam.learning.linear.MergedLinear` in the place of
every projection of a plan, and :meth:`LearnableMAM.fold` writes the result back into plain
``nn.Linear`` modules.

Source: Sundar et al., arXiv 2312.14378, section "Learnable-MAM".
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from speechbrain_mam.architectures.tensor_checks import check_plain
from speechbrain_mam.donors.donor import TensorSource
from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.learning.insert import build_sites, check_donors
from speechbrain_mam.learning.lambdas import nearest_on_simplex, start_values, with_shares
from speechbrain_mam.learning.module import MergedModule
from speechbrain_mam.learning.once_a_forward import keep_merged_within
from speechbrain_mam.merging.plan import MergePlan

GRANULARITIES = ("model", "layer", "projection", "head")
CONSTRAINTS = ("project", "sigmoid", "none")


class LearnableMAM:
    """λ inside a live model: put in, read, constrained, folded, taken out.

    λ are parameters of the target, so that whatever wraps it (DDP) sees them. The donor's tensors
    are buffers that no checkpoint holds; :attr:`donor_hash` is what a checkpoint keeps of them.

    Arguments
    ---------
    target : nn.Module
        The model; changed in place.
    plan : MergePlan
        What to merge; its λ are the start.
    donor : TensorSource
        Where the donor's tensors are read.
    granularity : str
        One λ per ``model``, ``layer``, ``projection`` (of a layer) or ``head`` (of a layer). A
        head's are its rows of the query, key and value projections, with their biases, and its
        columns of the output projection, whose bias is no head's own: it has the mean of their λ.
    constraint : str
        ``project`` clamps λ to [0, 1] after each step (:meth:`project_`), ``sigmoid`` learns the
        logit of λ, ``none`` leaves λ free. Of several donors λ is a vector, the target's share and
        theirs, which stays on the simplex: ``sigmoid`` is a softmax then.

    Raises
    ------
    MAMError
        If a key has an unknown value, if the plan's λ are finer than the granularity, or if the
        target has been merged already.

    Example
    -------
    >>> from speechbrain_mam import Donor, MergedLinear, find_attention, make_plan
    >>> from transformers import AutoModelForCTC
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> model = AutoModelForCTC.from_pretrained(donor.folder.path)
    >>> mam = LearnableMAM(model, make_plan(find_attention(model), donor.index, lam=0.9), donor)
    >>> mam.values()["layer 0"]
    0.9
    >>> mam.fold()
    >>> any(isinstance(module, MergedLinear) for module in model.modules())
    False
    """

    def __init__(
        self,
        target: nn.Module,
        plan: MergePlan,
        donor: TensorSource,
        granularity: str = "layer",
        constraint: str = "project",
    ):
        one_of("granularity", granularity, GRANULARITIES)
        one_of("constraint", constraint, CONSTRAINTS)
        if any(isinstance(module, MergedModule) for module in target.modules()):
            raise MAMError(f"{type(target).__name__} carries a Learnable-MAM already")
        self.plan, self.granularity, self.constraint = plan, granularity, constraint
        self.donors = donor.names if isinstance(donor, DonorMix) else ()
        names = {entry.target for entry in plan.entries}
        touched = {name: p for name, p in target.named_parameters() if name in names}
        for name, parameter in touched.items():
            check_plain(parameter, name, type(target).__name__)
        dtypes = [parameter.dtype for parameter in touched.values()]
        dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        lams = start_values(plan, granularity, constraint, dtype)
        if isinstance(donor, DonorMix):
            check_donors(plan, granularity, len(donor.parts))
            lams = [with_shares(lam, donor.shares, constraint) for lam in lams]
        self._sites = build_sites(target, plan, donor, lams, granularity, constraint)
        # Each λ is found again by a module that holds it: a move may replace the parameter.
        holders = {id(site.merged.lam): site.merged for site in self._sites}
        self._holders = [holders[id(lam)] for lam in lams]
        self._hooks: list[RemovableHandle] = []
        self.insert()

    @property
    def lams(self) -> list[nn.Parameter]:
        """The learned λ (logits under ``sigmoid``), one of the model or of each layer."""
        return [holder.lam for holder in self._holders]

    def insert(self) -> None:
        """Put the merged projections (back) in."""
        self._begin_change()
        for site in self._sites:
            site.put(site.merged)
        readers = {id(site.reader): site.reader for site in self._sites if site.reads_weight}
        self._hooks = keep_merged_within(readers.values())

    def remove(self) -> None:
        """Take them out: the target's own projections, with their own current weights, are back."""
        self._begin_change()
        for site in self._sites:
            site.put(site.plain)

    @torch.no_grad()
    def fold(self) -> None:
        """Replace every merged module by a plain one that holds the merged tensors.

        They have the bits that a zero-shot merge with this λ gives. :meth:`insert` undoes it: λ and
        the target's weights are kept.

        Raises
        ------
        MAMError
            If a merged tensor is out of the range of the target's half precision. λ is in the
            model then as before.
        """
        self._begin_change()
        try:
            for site in self._sites:
                site.put(site.folded())
        except MAMError:
            self.insert()
            raise

    def _begin_change(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        for site in self._sites:  # all of them first: a site may be inside of another
            site.follow()

    def parameters(self) -> list[nn.Parameter]:
        """The learned λ (logits under ``sigmoid``)."""
        return self.lams

    @torch.no_grad()
    def project_(self) -> None:
        """Put λ back into [0, 1] (of several donors, onto the simplex) under ``project``.

        To be called after each optimizer step.
        """
        if self.constraint == "project":
            for lam in self.lams:
                if self.donors:
                    lam.copy_(nearest_on_simplex(lam))
                else:
                    lam.clamp_(0.0, 1.0)

    @torch.no_grad()
    def shares(self) -> list[torch.Tensor]:
        """λ of the model, or of each layer, whatever they are learned as."""
        if self.constraint != "sigmoid":
            return [lam.detach().clone() for lam in self.lams]
        return [lam.softmax(0) if self.donors else torch.sigmoid(lam) for lam in self.lams]

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """λ by name: ``layer 3``, ``layer 3 query``, ``layer 3 head 0`` or ``model``."""
        found: dict[str, Any] = {}
        for i, share in enumerate(self.shares()):
            name = "model" if self.granularity == "model" else f"layer {self.plan.layers[i]}"
            for j, value in enumerate(share.tolist()):
                if self.donors and j:
                    found[f"{name} {self.donors[j - 1]}"] = round(value, 6)
                elif self.granularity == "projection":
                    found[f"{name} {self.plan.projections[j]}"] = round(value, 6)
                else:
                    found[f"{name} head {j}" if self.granularity == "head" else name] = round(
                        value, 6
                    )
        return found


def keep_donor_out_of_ddp(module: nn.Module) -> None:
    """Tell ``DistributedDataParallel`` not to broadcast the donor's tensors.

    It sends every buffer from rank 0 at each forward pass: for BERT-large 300 MB a step, of tensors
    that never change. To be called on the module that will be wrapped, before it is;
    :class:`~speechbrain_mam.brain.brain.MAMBrain` does so.
    """
    names = [
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if isinstance(part, MergedModule)
        for name, _ in part.named_buffers(recurse=False)
    ]
    others = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    module._ddp_params_and_buffers_to_ignore = sorted(others.union(names))  # type: ignore[assignment]
