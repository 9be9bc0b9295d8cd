"""MAMBrain: what a SpeechBrain ``Brain`` needs to train, log, checkpoint and fold λ.

A recipe adds MAM with a ``mam`` key in its YAML and this class in front of its own:

    class ASR(MAMBrain, sb.Brain): ...
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_broadcast, if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.brain.checkpoints import guard
from speechbrain_mam.brain.freezing import (
    apply_merge,
    check_in_place,
    merge_again_after_loading,
    open_to_gradients,
)
from speechbrain_mam.brain.interruption import DurableBrain
from speechbrain_mam.brain.lambda_history import LambdaHistory, LambdaLog
from speechbrain_mam.brain.overridden import then, within
from speechbrain_mam.brain.start import begin_training, note_start, while_recovering
from speechbrain_mam.brain.their_optimizers import TheirOptimizers
from speechbrain_mam.errors import MAMError
from speechbrain_mam.learning.learnable import LearnableMAM, keep_donor_out_of_ddp
from speechbrain_mam.learning.recomputation import use_nonreentrant_checkpointing
from speechbrain_mam.mam import MAM

logger = get_logger(__name__)

WRAPPERS = {
    "init_optimizers": then("init_optimizers"),
    "freeze_optimizers": then("freeze_optimizers"),
    "fit_batch": within("fit_batch"),
    "on_stage_end": within("on_stage_end"),
    "on_evaluate_start": within("on_evaluate_start"),
}


class MAMBrain(DurableBrain):
    """A ``Brain`` that merges before training and folds before evaluation.

    Put it in front of any Brain: ``class ASR(MAMBrain, sb.Brain)``, or ``class MAMASR(MAMBrain,
    TheirASR)``. It works with whatever ``init_optimizers``, ``freeze_optimizers``, ``fit_batch``,
    ``optimizers_step``, ``on_stage_end`` and ``on_evaluate_start`` a recipe defines: MAM's part
    runs around them. Without a ``mam`` in ``hparams`` it is the plain Brain.

    A target that the recipe freezes (``freeze: True``) stays as it is, and λ is learned alone.

    It reads these hyperparameters:

    mam : MAM or None
        The merge.
    mam_optimizer : callable
        Makes λ's own optimizer from a list of parameters; needed for a learnable merge.
    output_folder : str
        Where ``merge_plan.txt``, ``lambdas.csv`` and ``lambdas.png`` go.
    exact_resume : bool
        Seed every training step from (seed, step, rank), so that an interrupted and resumed
        training draws the same random numbers as an uninterrupted one. Needs ``seed``.

    Raises
    ------
    MAMError
        Before any step: if the merge does not fit, ``mam_optimizer`` is missing, or a merged
        projection has been replaced, by an adapter for example.
    """

    lam_rests = False  # a subclass may let λ wait, as for a new head

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name, wrapper in WRAPPERS.items():
            if name in cls.__dict__:
                setattr(cls, name, wrapper(cls.__dict__[name]))

    def __init__(
        self, modules=None, opt_class=None, hparams=None, run_opts=None, checkpointer=None
    ):
        hparams = hparams or {}
        self.mam: MAM | None = hparams.get("mam")
        self.history: LambdaHistory | None = None
        self._mam_inside: set[str] = set()  # methods that are running
        self._mam_stepped: set[str] = set()  # whose optimizers a batch has stepped
        self._mam_started = self._mam_learned = False
        if self.mam is not None:
            apply_merge(self.mam)
            self._check_in_modules(modules)
            if self.mam.learnable:
                if hparams.get("mam_optimizer") is None:
                    raise MAMError(
                        "a learnable MAM needs the key 'mam_optimizer', e.g. "
                        "'mam_optimizer: !name:torch.optim.Adam' with 'lr: 0.01'"
                    )
                self.history = LambdaHistory(self.mam)
                self._mam_log = LambdaLog(hparams.values())
            merge_again_after_loading(self.mam, lambda: self._mam_started)
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self._share_debug_folder()
        if self.mam is not None and self.checkpointer is not None:
            guard(self.checkpointer, self.mam)
            if self.history is not None:
                self.checkpointer.add_recoverable("mam", self.history)
        note_start(self.checkpointer, self.mam)
        self.write_plan()

    def _share_debug_folder(self) -> None:
        """Under ``--debug`` each rank would look for checkpoints in a folder of its own, and wait
        for the others for ever where they find some."""
        if self.debug and self.distributed_launch and hasattr(self.checkpointer, "tempdir"):
            folder = ddp_broadcast(str(self.checkpointer.checkpoints_dir), src=0)
            self.checkpointer.checkpoints_dir = Path(folder)

    def write_plan(self) -> None:
        """What is merged, as ``merge_plan.txt``."""
        if self.mam is None or self._folder is None or not if_main_process():
            return
        write_text_beside(self._folder / "merge_plan.txt", f"{self.mam.plan}\n")

    @property
    def _folder(self) -> Path | None:
        folder = getattr(self.hparams, "output_folder", None)
        return Path(folder) if folder and Path(folder).is_dir() else None

    @property
    def _lams(self) -> LearnableMAM:
        assert self.mam is not None
        return self.mam.live

    def _check_in_modules(self, modules) -> None:
        """λ must be inside ``modules``: elsewhere it would train, and ranks silently diverge."""
        assert self.mam is not None
        held = {id(p) for module in (modules or {}).values() for p in module.parameters()}
        # Not get_parameter: of a module that is read, it would give the merged tensor
        target = dict(self.mam.target.named_parameters())
        if id(target[self.mam.plan.entries[0].target]) not in held:
            raise MAMError("the 'target' of your MAM is not part of the Brain's 'modules'")

    def init_optimizers(self):
        """The Brain's optimizers, and λ's own."""
        self._mam_after_init_optimizers(super().init_optimizers())

    def _mam_after_init_optimizers(self, result):
        if self.history is None:
            return result
        theirs = self.optimizers_dict
        if theirs is None:  # then sb.Brain steps `optimizer`: only while there is no dictionary
            theirs = {} if self.opt_class is None else {"optimizer": self.optimizer}
        self.mam_optimizer = self.hparams.mam_optimizer(self._lams.parameters())
        self.mam_optimizer.register_step_post_hook(self._mam_after_step)
        self._mam_theirs = TheirOptimizers(self.mam_optimizer, self._mam_stepped)
        self._mam_take_lam_out(theirs)
        self.optimizers_dict = {**theirs, "mam_optimizer": self.mam_optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("mam_optimizer", self.mam_optimizer)
        return result

    def _mam_take_lam_out(self, theirs: dict[str, Any]) -> None:
        """Also from optimizers that a recipe keeps elsewhere, or makes while it trains."""
        self._mam_theirs.take_lam_out((*theirs.values(), *vars(self).values()))

    def _mam_after_step(self, *_) -> None:
        """λ is put back into [0, 1] after each of its steps, whoever makes it."""
        self._mam_stepped.add("lam")
        self._mam_learned |= any(lam.grad is not None for lam in self._lams.parameters())
        self._lams.project_()

    def freeze_optimizers(self, optimizers):
        """λ is stepped even while a recipe freezes other optimizers."""
        return self._mam_after_freeze_optimizers(super().freeze_optimizers(optimizers), optimizers)

    def _mam_after_freeze_optimizers(self, valid, optimizers):
        if self.history is None:
            return valid
        self._mam_take_lam_out(optimizers)
        if self.lam_rests:
            return valid
        # One of a frozen target has no gradient, which a GradScaler takes for a mistake.
        valid = {
            name: optimizer
            for name, optimizer in valid.items()
            if any(p.requires_grad for group in optimizer.param_groups for p in group["params"])
        }
        return {**valid, "mam_optimizer": optimizers["mam_optimizer"]}

    @within("fit_batch")
    def fit_batch(self, batch):
        """One batch; where a recipe steps its own optimizers only, λ is stepped with them."""
        return super().fit_batch(batch)

    @contextmanager
    def _mam_around_fit_batch(self, batch) -> Iterator[None]:
        self._mam_stepped.clear()
        yield
        if self.history is None or self.lam_rests or self._mam_stepped != {"theirs"}:
            return
        lams = self._lams.parameters()
        if any(lam.grad is not None for lam in lams):
            self.scaler.unscale_(self.mam_optimizer)
            torch.nn.utils.clip_grad_norm_(lams, self.max_grad_norm)
            self.scaler.step(self.mam_optimizer)
            self.mam_optimizer.zero_grad(set_to_none=True)

    def _wrap_distributed(self):
        for module in self.modules.values():
            keep_donor_out_of_ddp(module)
        super()._wrap_distributed()

    def on_fit_start(self):
        """λ in the target, or the donor's attention where the training starts from it."""
        if self.mam is not None:
            begin_training(self.mam)
            if self.mam.learnable:
                self._mam_insert()
                open_to_gradients(self.mam, self.modules)
                use_nonreentrant_checkpointing(self.mam.target)
        self._mam_started = True
        super().on_fit_start()

    def _mam_insert(self) -> None:
        """λ in the target, where an evaluation may have folded it."""
        assert self.mam is not None
        if self.mam.is_folded:
            self.mam.apply()
        check_in_place(self.mam)

    def on_fit_batch_start(self, batch, should_step):
        """Seed the step where ``exact_resume`` asks for it."""
        super().on_fit_batch_start(batch, should_step)
        if getattr(self.hparams, "exact_resume", False):
            rank = self.rank if self.distributed_launch else 0
            entropy = [self.hparams.seed, self.optimizer_step, self.step, rank]
            seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)

    @within("on_stage_end")
    def on_stage_end(self, stage, stage_loss, epoch=None):
        """The Brain's statistics; those of a training epoch hold λ."""
        super().on_stage_end(stage, stage_loss, epoch)

    @contextmanager
    def _mam_around_on_stage_end(self, stage, stage_loss, epoch=None) -> Iterator[None]:
        if self.history is not None and stage == sb.Stage.TRAIN:
            if not self._mam_learned:
                logger.warning(
                    "λ has not moved: no gradient has reached it up to epoch %s. Does the recipe "
                    "run the target under torch.no_grad(), or detach its output?",
                    epoch,
                )
            self._mam_log.add(epoch, self.history.record(epoch))
            if self._folder is not None and if_main_process():
                self.history.write(self._folder)
        yield

    @within("on_evaluate_start")
    def on_evaluate_start(self, max_key=None, min_key=None):
        """Recover the best checkpoint *without* MAM's result in the way, then merge for good."""
        super().on_evaluate_start(max_key, min_key)

    @contextmanager
    def _mam_around_on_evaluate_start(self, max_key=None, min_key=None) -> Iterator[None]:
        """What is recovered, or averaged, are the target's own weights.

        They would overwrite merged ones. So a learned merge is recovered live and then folded, and
        a fixed one is taken back, recovered, applied.
        """
        self._mam_started = True
        if self.history is not None:
            self._mam_insert()
            yield
            assert self.mam is not None
            self.mam.fold()
        else:
            with while_recovering(self.mam):
                yield

    def evaluate_untouched(self, test_set, **kwargs: Any) -> float:
        """``evaluate`` the model as it is now without MAM, and without recovering a checkpoint.

        Before training, this is the untouched target.
        """
        self.on_evaluate_start = lambda max_key=None, min_key=None: None  # type: ignore
        try:
            with self.mam.taken_back() if self.mam is not None else nullcontext():
                return self.evaluate(test_set, **kwargs)
        finally:
            del self.on_evaluate_start
