"""check_target: a target in a Brain with a checkpointer, trained, moved, tested, resumed."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import Checkpointer
from torch import Tensor, nn

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.mam import MAM
from speechbrain_mam.merging.methods import METHODS
from speechbrain_mam.testing.formula import DonorTensors, merged_by_formula
from speechbrain_mam.testing.run import TestedBrain, of_model
from speechbrain_mam.testing.settings import Setting, pairwise
from speechbrain_mam.testing.settings import every_setting as all_settings

Run = Callable[[nn.Module], Any]
"""One forward pass of the model; what it returns holds a tensor."""
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Failure:
    """What did not hold, and in which way of merging."""

    setting: Setting
    what: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.what}"


def check_target(
    model: nn.Module,
    donor: str | Path | Donor | Sequence[str | Path | Donor],
    run: Run,
    settings: Iterable[Setting] | None = None,
) -> list[Failure]:
    """Whether a model can be merged, learned in, saved, moved and resumed, in many ways.

    For each setting a :class:`~speechbrain_mam.brain.brain.MAMBrain` trains two steps, is tested
    twice with a checkpoint saved at each test, is resumed and trained on, and is built anew and
    tested; storages are replaced in between, as a move to another device replaces them. Asked is
    that λ has a gradient and moves; that each test of the same weights has the same merge, that of
    the formula; that λ = 1 is the target's bits; that taking back is exact; that nothing outside of
    the plan changes; and that what was trainable still is, and what was frozen still is. Where the
    setting starts from the donor, that it begins there once, and is resumed as it was left.

    Arguments
    ---------
    model : nn.Module
        The target; it is copied and left as it is.
    donor : str, Path, Donor or list of them
        As wide as the target. Settings with more donors than are given are left out.
    run : callable
        ``run(model)`` makes one forward pass on some input, in the model's own precision.
    settings : iterable of Setting, optional
        :func:`~speechbrain_mam.testing.settings.pairwise` of
        :func:`~speechbrain_mam.testing.settings.every_setting` by default.

    Returns
    -------
    list of Failure
        Empty if all holds.

    Example
    -------
    >>> from speechbrain_mam.testing.families import FAMILIES
    >>> hubert, bert = FAMILIES[0], next(f for f in FAMILIES if f.row == "BERT")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bert.build().save_pretrained(folder)
    ...     check_target(hubert.build(), folder, hubert.run, [Setting()])
    []
    """
    donors = [donor] if isinstance(donor, str | Path | Donor) else list(donor)
    refs = find_attention(model).tensors.values()
    if any(ref.part is not None for ref in refs):  # fused: λ cannot be learned for several donors
        donors = donors[:1]
    wanted = pairwise(all_settings(len(donors))) if settings is None else settings
    failures = []
    for setting in wanted:
        if setting.donors > len(donors):
            continue
        with tempfile.TemporaryDirectory() as folder, _quiet():
            try:
                _Check(model, donors, run, setting, Path(folder)).run_all()
            except Exception as error:
                failures.append(Failure(setting, f"{type(error).__name__}: {error}"))
    return failures


class _Check:
    def __init__(
        self, model: nn.Module, donors: list, run: Run, setting: Setting, folder: Path
    ) -> None:
        self.plain = copy.deepcopy(model).to(getattr(torch, setting.dtype))
        if setting.frozen:
            self.plain.requires_grad_(False)
        self.run, self.setting, self.folder = run, setting, folder
        same = METHODS[setting.method].same_family
        self.donor: Any = donors[0] if setting.donors == 1 else donors[: setting.donors]
        if same:
            self.donor = of_model(self.plain)
        self.own = _weights(self.plain)
        self.trainable = {n for n, p in self.plain.named_parameters() if p.requires_grad}

    def run_all(self) -> None:
        if self.setting.start == "donor":
            self.started()
            return
        self.fixed()
        self.untouched_at_one()
        brain, theirs, saved = self.trained()
        self.resumed(brain, theirs, saved)

    def build(self, **options: Any) -> TestedBrain:
        """A Brain, the Checkpointer in the folder, storages replaced before and after merging."""
        setting, model = self.setting, copy.deepcopy(self.plain)
        _move(model)
        options = {"lam": 0.8, "bias": "where_both", "method": setting.method, **options}
        if options.get("learnable", True):  # of what is fixed there is none
            options |= {"granularity": setting.granularity, "constraint": setting.constraint}
        mam = MAM(model, self.donor, **options)
        hparams = {
            "mam": mam,
            "run": self.run,
            "mam_optimizer": lambda lams: torch.optim.Adam(lams, lr=0.01),
        }
        checkpointer = Checkpointer(self.folder, {"model": model})
        optimizer = None if setting.frozen else (lambda p: torch.optim.SGD(p, lr=0.01))
        brain = TestedBrain({"model": model}, optimizer, hparams, {"device": "cpu"}, checkpointer)
        _move(brain.modules)
        return brain

    def fixed(self) -> None:
        """A fixed merge is the formula's, another λ starts from the target, undo is exact."""
        brain = self.build(learnable=False)
        mam, model = brain.merge, brain.modules["model"]
        theirs = DonorTensors.of(mam, self.own)
        for lam in (0.8, 0.5):
            if lam != 0.8:
                mam.change(lam=lam)
                mam.apply()
                _move(model)
            self.same_merge(_weights(model), self.own, theirs, [torch.tensor([lam])], f"λ {lam}")
        mam.take_back()
        _equal(_weights(model), self.own, "taken back")

    def untouched_at_one(self) -> None:
        """λ = 1 is the target's bits, learned or not."""
        sigmoid = self.setting.constraint == "sigmoid"  # which has no logit for 1
        for learnable in (False,) if sigmoid else (False, True):
            brain = self.build(lam=1.0, learnable=learnable)
            brain.merge.fold()
            _equal(_weights(brain.modules["model"]), self.own, f"λ = 1, learnable {learnable}")

    def trained(self) -> tuple[TestedBrain, DonorTensors, list[Tensor]]:
        """Two steps, two tests; λ moves, and each test has the merge that the formula gives."""
        brain = self.build()
        theirs = DonorTensors.of(brain.merge, self.own)
        start = _copied(brain.merge.live.parameters())
        brain.fit(range(1), brain.data(2), brain.data(1), progressbar=False)
        assert brain.lam_had_gradient, "no gradient has reached λ"
        lams = _copied(brain.merge.live.parameters())
        assert all(not torch.equal(*pair) for pair in zip(start, lams, strict=True)), "λ is still"
        assert all(lam.dtype == torch.float32 for lam in lams), "λ is not float32"
        own = brain.own_weights()
        if self.setting.frozen:
            _equal(own, self.own, "frozen, after training")
        else:
            assert any(not torch.equal(own[n], self.own[n]) for n in own), "no weight has moved"
        theirs = theirs.trained_in(brain.modules["model"])
        for number in (1, 2):
            brain.test()
            self.same_merge(brain.seen, own, theirs, brain.merge.live.shares(), f"test {number}")
            _move(brain.modules)
        return brain, theirs, lams

    def resumed(self, former: TestedBrain, theirs: DonorTensors, lams: list[Tensor]) -> None:
        """A Brain that is built anew goes on where the former one was, and tests the same."""
        own = former.own_weights()
        brain = self.build()
        brain.fit(range(1, 2), brain.data(1), brain.data(1), progressbar=False)
        for one, other in zip(brain.recovered_lams, lams, strict=True):
            assert torch.equal(one, other), "another λ was recovered than was saved"
        _equal(brain.recovered_own, own, "recovered")
        brain.test()
        anew = self.build()
        anew.test()
        _equal(anew.seen, brain.seen, "built anew and tested")
        anew.merge.take_back()
        _equal(_weights(anew.modules["model"]), brain.own_weights(), "taken back after a test")
        still = {n for n, p in anew.modules["model"].named_parameters() if p.requires_grad}
        assert still == self.trainable, f"trainable is not what was: {still ^ self.trainable}"

    def started(self) -> None:
        """It begins as the formula has it at λ = 0, is trained, and is resumed as it was left."""
        options = {"start": "donor", "lam": None, "learnable": False}
        brain = self.build(**options)
        mam, model = brain.merge, brain.modules["model"]
        theirs, zero = DonorTensors.of(mam, self.own), [torch.zeros(1)]
        assert {entry.projection for entry in mam.plan.entries} >= {"value", "output"}
        self.same_merge(_weights(model), self.own, theirs, zero, "at the start")
        with mam.taken_back():
            _equal(_weights(model), self.own, "taken back")
        brain.fit(range(1), brain.data(2), brain.data(1), progressbar=False)
        _move(brain.modules)
        left = _weights(model)
        begun = merged_by_formula(theirs, self.own, zero, self.setting)
        assert any(not torch.equal(left[n], begun[n]) for n in begun), "no merged weight has moved"
        for number in (1, 2):
            brain.test()
            _equal(brain.seen, left, f"test {number}")
            _move(brain.modules)
        resumed = self.build(**options)
        resumed.fit(range(1, 2), brain.data(1), brain.data(1), progressbar=False)
        _equal(resumed.recovered_own, left, "recovered")
        resumed.test()
        anew = self.build(**options)
        anew.test()
        _equal(anew.seen, resumed.seen, "built anew and tested")
        still = {n for n, p in anew.modules["model"].named_parameters() if p.requires_grad}
        assert still == self.trainable, f"trainable is not what was: {still ^ self.trainable}"

    def same_merge(
        self,
        found: Weights,
        own: Weights,
        theirs: DonorTensors,
        lams: list[Tensor],
        when: str,
    ) -> None:
        expected = merged_by_formula(theirs, own, lams, self.setting)
        _equal(
            {n: t for n, t in found.items() if n not in theirs.targets}, own, when, theirs.targets
        )
        for name, tensor in expected.items():
            try:
                torch.testing.assert_close(found[name], tensor)
            except AssertionError as error:
                raise AssertionError(f"{when}, '{name}': {error}") from error


def _weights(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _copied(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _equal(found: Weights, expected: Weights, when: str, but: Iterable[str] = ()) -> None:
    names = set(expected) - set(but)
    assert set(found) == names, f"{when}: other tensors: {sorted(set(found) ^ names)[:3]}"
    for name in sorted(names):
        assert torch.equal(found[name], expected[name]), f"{when}: '{name}' has changed"


def _move(module: nn.Module) -> None:
    """What a move to another device does: every storage is another one."""
    module._apply(lambda tensor: tensor.clone())


@contextmanager
def _quiet():
    """A Brain tells of itself at every start."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
