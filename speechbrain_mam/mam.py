"""MAM as one object: what stands in a recipe's YAML, and what :class:`MAMBrain` works with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.donors.controls import CONTROLS, DRAWN, controlled
from speechbrain_mam.donors.donor import Donor, TensorSource, as_list, fingerprint
from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.donors.rotation import turned, turned_name
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.learning.learnable import CONSTRAINTS, GRANULARITIES, LearnableMAM
from speechbrain_mam.merging.apply import Merge
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.merging.start import read_start
from speechbrain_mam.options import ROTATIONS, Lam, LayerChoice


class MAM:
    """A merge as it is configured: W = λ · W_target + (1 − λ) · W_donor.

    Building it reads and changes nothing, so that it can stand in a YAML before the pretrainer has
    run; :meth:`apply` does the work. :class:`~speechbrain_mam.brain.brain.MAMBrain` calls it.

    Arguments
    ---------
    target : nn.Module
        The encoder that is improved, or whatever holds it.
    donor : str, Donor or list of them
        Hub name, local folder, or an open donor; several donors share what is not the target's.
    lam, layers, projections, layer_map, bias, donor_scale, method, align, width
        See :func:`speechbrain_mam.merging.planner.make_plan`. None: what ``start`` says.
    learnable : bool
        Whether λ is learned (:class:`~speechbrain_mam.learning.learnable.LearnableMAM`) or fixed.
    start : str
        ``target``: λ is 0.95, of query, key and value. ``donor``: the chosen layers are not trained
        yet and begin with the donor's attention, λ = 0, of all four projections; with a fixed λ
        they are then trained like any other layers. See :mod:`speechbrain_mam.merging.start`.
    rotate : str
        The donor in another basis: see :mod:`speechbrain_mam.donors.rotation`.
    granularity, constraint
        See :class:`~speechbrain_mam.learning.learnable.LearnableMAM`.
    control, control_seed
        A donor that holds nothing, to compare with: see :mod:`speechbrain_mam.donors.controls`.
    donor_shares : list of float, optional
        Of several donors, each one's share of 1 − λ; they sum to 1, and are equal by default. With
        ``learnable`` they are where the donors' λ start.

    Example
    -------
    >>> from speechbrain_mam.lobes.hubert_ctc import HubertCTC
    >>> encoder = HubertCTC("speechbrain_mam/hubert-mini")
    >>> mam = MAM(encoder, donor="speechbrain_mam/hubert-mini", lam=0.9, learnable=False)
    >>> mam.apply()
    >>> len(mam.plan.entries) == mam.plan.target_layers * 3 * 2
    True
    """

    def __init__(
        self,
        target: nn.Module,
        donor: str | Path | Donor | Sequence[str | Path | Donor],
        lam: Lam | None = None,
        learnable: bool = True,
        granularity: str = "layer",
        layers: LayerChoice = "all",
        projections: str | Sequence[str] | None = None,
        layer_map: str | Sequence[int] = "uniform",
        bias: str = "where_both",
        donor_scale: str = "none",
        constraint: str = "project",
        control: str = "none",
        control_seed: int = 0,
        method: str = "linear",
        align: str = "none",
        width: str = "error",
        donor_shares: Sequence[float] | None = None,
        start: str = "target",
        rotate: str = "none",
    ):
        one_of("control", control, CONTROLS)
        one_of("rotate", rotate, ROTATIONS)
        one_of("granularity", granularity, GRANULARITIES)
        one_of("constraint", constraint, CONSTRAINTS)
        self.target, self.learnable = target, learnable
        self.granularity, self.constraint = granularity, constraint
        self.control, self.control_seed = control, control_seed
        self.start, self.rotate = start, rotate
        self._donors, self._several = as_list(donor)
        self.donor_shares = donor_shares
        if donor_shares is not None and not self._several:
            raise MAMError("key 'donor_shares': there is one donor; expected a list as 'donor'")
        chosen = read_start(start, lam, projections, method, align)
        self.options: dict[str, Any] = {
            "lam": chosen.lam,
            "layers": layers,
            "projections": chosen.projections,
            "layer_map": layer_map,
            "bias": bias,
            "donor_scale": donor_scale,
            "method": method,
            "align": align,
            "width": width,
        }
        self._merge: Merge | None = None
        self._live: LearnableMAM | None = None
        self.is_folded = self._adopted = False

    @cached_property
    def donor(self) -> Donor | DonorMix:
        """The donor, opened at first use."""
        return self._donors_with("none") if self._several else self._turned_donors[0]

    @cached_property
    def _opened_donors(self) -> list[Donor]:
        return [d if isinstance(d, Donor) else Donor(d) for d in self._donors]

    @cached_property
    def _turned_donors(self) -> list[Donor]:
        return turned(self._opened_donors, self.rotate, self.control_seed)

    def _donors_with(self, control: str) -> DonorMix:
        attention, layer_map = find_attention(self.target), self.options["layer_map"]
        shares, seed = self.donor_shares, self.control_seed
        return DonorMix(self._turned_donors, attention, shares, layer_map, control, seed)

    @cached_property
    def plan(self) -> MergePlan:
        """The plan, made and checked at first use; the target's weights must be loaded by then."""
        return make_plan(
            find_attention(self.target),
            self.donor.index,
            target_name=type(self.target).__name__,
            donor_name=self.donor.name + self._control_note(),
            # Each of several donors is mapped by itself, to the target's depth.
            **(self.options | ({"layer_map": "uniform"} if self._several else {})),
        )

    @property
    def control_name(self) -> str:
        """``none``, a control of :mod:`speechbrain_mam.donors.controls`, or ``match_norm``."""
        scale = self.options["donor_scale"]
        return scale if self.control == "none" and scale != "none" else self.control

    def _control_note(self) -> str:
        seed = f", seed {self.control_seed}" if self.control in DRAWN else ""
        note = "" if self.control == "none" else f" [control: {self.control}{seed}]"
        return turned_name("", self.rotate, self.control_seed) + note

    @cached_property
    def source(self) -> TensorSource:
        """What is mixed in: the donor's tensors, or those of a control."""
        if self._several:
            return self._donors_with(self.control)
        return controlled(
            self.donor,
            self.plan.donor_layers,
            self.control,
            self.control_seed,
            keep=not self.learnable,
        )

    @cached_property
    def donor_hash(self) -> str:
        """SHA-256 of the tensors that are mixed in."""
        return fingerprint(self.source, (entry.donor_key for entry in self.plan.entries))

    @property
    def live(self) -> LearnableMAM:
        """The learnable λ inside the target, after :meth:`apply` of a learnable merge."""
        if self._live is None:
            raise RuntimeError("MAM.apply() has not been called, or λ is fixed (learnable: False)")
        return self._live

    @property
    def is_merged(self) -> bool:
        """Whether a fixed merge stands in the target's weights."""
        return self._merge is not None

    @property
    def is_start(self) -> bool:
        """Whether it is where a training begins, and nothing after that: no λ is left in it."""
        return self.start == "donor" and not self.learnable

    def rebuild(self) -> None:
        """Derive a learnable merge again from the target's present weights; λ is kept."""
        former = self.live
        values = [lam.detach().clone() for lam in former.parameters()]
        self.take_back()
        self._live = None
        self.apply()
        for lam, kept in zip(self.live.parameters(), values, strict=True):
            lam.data = kept

    def apply(self) -> None:
        """Merge, or put the learnable λ in. A second call changes nothing, nor one that follows
        :meth:`adopt`."""
        if self.learnable:
            if self._live is None:
                self._live = LearnableMAM(
                    self.target, self.plan, self.source, self.granularity, self.constraint
                )
            self._live.insert()
            self.is_folded = False
        elif self._merge is None and not self._adopted:
            self._merge = Merge(self.target, self.plan, self.source)

    def take_back(self) -> None:
        """The target without MAM: its own projections, bit for bit."""
        self.is_folded = False
        if self._live is not None:
            self._live.remove()
        if self._merge is not None:
            self._merge.undo()
            self._merge = None

    def fold(self) -> None:
        """The merged weights in plain modules, as an inference has them; :meth:`apply` undoes it.

        A fixed merge is in the weights anyway.
        """
        self.apply()
        if self.learnable:
            self.live.fold()
            self.is_folded = True

    def adopt(self) -> None:
        """From now on the merged weights of a fixed merge are the target's own."""
        self._merge, self._adopted = None, True

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        """Within the block a state dict holds the target's own weights, and a learned λ.

        That is what a checkpoint keeps: folded or merged weights would be merged once more when it
        is loaded.
        """
        if self.is_folded:
            self.live.insert()
            try:
                yield
            finally:
                self.live.fold()
        else:
            with self._merge.lifted() if self._merge is not None else nullcontext():
                yield

    def settings(self) -> dict[str, Any]:
        """What λ mean, by the key that says it: λ that were learned with others are other λ."""
        ours = {"granularity": self.granularity, "constraint": self.constraint}
        return ours | self.plan.settings()

    def change(self, **options: Any) -> None:
        """Another λ, layers, control … for a fixed merge; what was merged is taken back first.

        Arguments
        ---------
        **options
            Any of ``lam``, ``layers``, ``projections``, ``layer_map``, ``bias``, ``donor_scale``,
            ``method``, ``align``, ``width``, ``rotate``, ``control``, ``control_seed``, ``donor``.
        """
        if self.learnable:
            raise RuntimeError("MAM.change() is for a fixed λ (learnable: False)")
        self.take_back()
        self._adopted = False
        before = self.control, self.rotate, self.control_seed
        for key, known in (("control", CONTROLS), ("rotate", ROTATIONS)):
            setattr(self, key, options.pop(key, getattr(self, key)))
            one_of(key, getattr(self, key), known)
        self.control_seed = options.pop("control_seed", self.control_seed)
        # An open donor is what it was, and so are the tensors that its control has made.
        same = not self._several and before == (self.control, self.rotate, self.control_seed)
        stale = ["plan", "donor_hash"]
        if "donor" in options:
            donor = options.pop("donor")
            same = same and isinstance(donor, Donor) and donor is self._donors[0]
            self._donors, self._several = as_list(donor)
            stale += ["_opened_donors"]
        self.options |= options
        for name in (*stale, *(() if same else ("donor", "_turned_donors", "source"))):
            self.__dict__.pop(name, None)

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        """Within the block, the target is as it is without MAM."""
        self.take_back()
        try:
            yield
        finally:
            self.apply()
