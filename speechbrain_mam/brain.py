"""MAMBrain: what a SpeechBrain ``Brain`` needs to train, log, checkpoint and fold λ.

A recipe adds MAM with a ``mam`` key in its YAML and this class in front of its own:

    class ASR(MAMBrain, sb.Brain): ...
"""

from __future__ import annotations

import csv
import functools
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TrainLogger

from speechbrain_mam.errors import MAMError
from speechbrain_mam.learnable import keep_donor_out_of_ddp
from speechbrain_mam.mam import MAM
from speechbrain_mam.plots import plot_lambdas, write_beside

logger = get_logger(__name__)


@register_checkpoint_hooks
class LambdaHistory:
    """λ at the end of each epoch, and which donor they belong to: MAM's part of a checkpoint.

    Arguments
    ---------
    mam : MAM
        A learnable merge that has been applied.
    """

    def __init__(self, mam: MAM):
        self.mam = mam
        self.rows: dict[int, dict[str, float]] = {0: mam.live.values()}

    def record(self, epoch: int) -> dict[str, float]:
        """Keep the present λ as those of ``epoch``."""
        self.rows[epoch] = self.mam.live.values()
        return self.rows[epoch]

    def write(self, folder: Path) -> None:
        """``lambdas.csv`` and ``lambdas.png`` (heat map: layer × epoch)."""

        def write_csv(part: Path) -> None:
            with part.open("w", newline="", encoding="utf-8") as stream:
                table = csv.writer(stream)
                table.writerow(["epoch", *self.rows[0]])
                table.writerows([epoch, *row.values()] for epoch, row in sorted(self.rows.items()))

        write_beside(folder / "lambdas.csv", write_csv)
        epochs = sorted(self.rows)
        plot_lambdas(epochs, [self.rows[epoch] for epoch in epochs], folder / "lambdas.png")

    @mark_as_saver
    def _save(self, path: str) -> None:
        content = {
            "donor": self.mam.plan.donor_name,
            "donor_hash": self.mam.donor_hash,
            "lambdas": self.rows,
        }
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    @mark_as_loader
    def _load(self, path: str, end_of_epoch: bool) -> None:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if content["donor_hash"] != self.mam.donor_hash:
            raise MAMError(
                f"the checkpoint {path} belongs to another donor: it was trained with "
                f"'{content['donor']}' (sha256 {content['donor_hash'][:12]}…), the key 'donor' "
                f"gives '{self.mam.plan.donor_name}' (sha256 {self.mam.donor_hash[:12]}…). Use "
                "that donor and the same layers and projections, or another output_folder"
            )
        self.rows = content["lambdas"]


def _then(method: Callable, name: str) -> Callable:
    """``method``, followed by what MAM does after it."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        return getattr(self, f"_mam_after_{name}")(method(self, *args, **kwargs), *args, **kwargs)

    return wrapped


class MAMBrain(sb.Brain):
    """A ``Brain`` that merges before training and folds before evaluation.

    Put it in front of any Brain: ``class ASR(MAMBrain, sb.Brain)``, or ``class MAMASR(MAMBrain,
    TheirASR)``. It works with whatever ``init_optimizers``, ``freeze_optimizers`` and
    ``on_stage_end`` a recipe defines: MAM's part runs right after them. Without a ``mam`` in
    ``hparams`` it is the plain Brain.

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
        Before any step: if the merge does not fit, or ``mam_optimizer`` is missing.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in ("init_optimizers", "freeze_optimizers", "on_stage_end"):
            if name in cls.__dict__:
                setattr(cls, name, _then(cls.__dict__[name], name))

    def __init__(
        self, modules=None, opt_class=None, hparams=None, run_opts=None, checkpointer=None
    ):
        hparams = hparams or {}
        self.mam: MAM | None = hparams.get("mam")
        self.history: LambdaHistory | None = None
        self._untouched = False
        if self.mam is not None:
            self.mam.apply()
            self._check_in_modules(modules)
            if self.mam.learnable:
                if hparams.get("mam_optimizer") is None:
                    raise MAMError(
                        "a learnable MAM needs the key 'mam_optimizer', e.g. "
                        "'mam_optimizer: !name:torch.optim.Adam' with 'lr: 0.01'"
                    )
                self.history = LambdaHistory(self.mam)
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        if self.history is not None and self.checkpointer is not None:
            self.checkpointer.add_recoverable("mam", self.history)
        self.write_plan()

    def write_plan(self) -> None:
        """What is merged, as ``merge_plan.txt``."""
        if self.mam is None or self._folder is None or not if_main_process():
            return
        text = f"{self.mam.plan}\n"
        write_beside(
            self._folder / "merge_plan.txt",
            lambda part: part.write_text(text, encoding="utf-8"),
        )

    @property
    def _folder(self) -> Path | None:
        folder = getattr(self.hparams, "output_folder", None)
        return Path(folder) if folder and Path(folder).is_dir() else None

    def _check_in_modules(self, modules) -> None:
        """λ must be inside ``modules``: elsewhere it would train, and ranks silently diverge."""
        assert self.mam is not None
        held = {id(p) for module in (modules or {}).values() for p in module.parameters()}
        name = self.mam.plan.entries[0].target
        if id(self.mam.target.get_parameter(name)) not in held:
            raise MAMError("the 'target' of your MAM is not part of the Brain's 'modules'")

    def init_optimizers(self):
        """The Brain's optimizers, and λ's own."""
        super().init_optimizers()
        self._mam_after_init_optimizers(None)

    def _mam_after_init_optimizers(self, result):
        if self.history is None:
            return result
        lams = self.mam.live.parameters()
        ours = {id(lam) for lam in lams}
        for optimizer in (self.optimizers_dict or {}).values():
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in ours]
        self.mam_optimizer = self.hparams.mam_optimizer(lams)
        self.optimizers_dict = {**(self.optimizers_dict or {}), "mam_optimizer": self.mam_optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("mam_optimizer", self.mam_optimizer)
        return result

    def freeze_optimizers(self, optimizers):
        """λ is stepped even while a recipe freezes other optimizers."""
        return self._mam_after_freeze_optimizers(super().freeze_optimizers(optimizers), optimizers)

    def _mam_after_freeze_optimizers(self, valid, optimizers):
        if self.history is None:
            return valid
        return {**valid, "mam_optimizer": optimizers["mam_optimizer"]}

    def optimizers_step(self):
        """One step, after which λ is put back into [0, 1]."""
        super().optimizers_step()
        if self.history is not None:
            self.mam.live.project_()

    def _wrap_distributed(self):
        for module in self.modules.values():
            keep_donor_out_of_ddp(module)
        super()._wrap_distributed()

    def on_fit_start(self):
        """Refuse to train a merge that is fixed: its undoing would lose what was learned."""
        if self.mam is not None and not self.mam.learnable:
            raise MAMError(
                "fit() with a fixed λ: a zero-shot merge trains nothing; set 'learnable: True'"
            )
        super().on_fit_start()

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

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """The Brain's statistics; after a training epoch, λ's."""
        super().on_stage_end(stage, stage_loss, epoch)
        self._mam_after_on_stage_end(None, stage, stage_loss, epoch)

    def _mam_after_on_stage_end(self, result, stage, stage_loss, epoch=None):
        if self.history is None or stage != sb.Stage.TRAIN:
            return result
        lambdas = self.history.record(epoch)
        stats = {f"lambda {name}": value for name, value in lambdas.items()}
        for train_logger in vars(self.hparams).values():
            if isinstance(train_logger, TrainLogger):
                train_logger.log_stats({"epoch": epoch}, train_stats=stats)
        if self._folder is not None and if_main_process():
            self.history.write(self._folder)
        return result

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Recover the best checkpoint *without* MAM's result in the way, then merge for good.

        ``Brain.evaluate`` recovers a checkpoint, which would overwrite merged weights. So a learned
        merge is recovered live and then folded, and a fixed one is taken back, recovered, applied.
        """
        if self._untouched:
            return
        if self.history is not None:
            self.mam.live.insert()
            super().on_evaluate_start(max_key, min_key)
            self.mam.live.fold()
        elif self.mam is not None:
            with self.mam.taken_back():
                super().on_evaluate_start(max_key, min_key)
        else:
            super().on_evaluate_start(max_key, min_key)

    def evaluate_untouched(self, test_set, **kwargs: Any) -> float:
        """``evaluate`` the model as it is now without MAM, and without recovering a checkpoint.

        Before training, this is the untouched target.
        """
        self._untouched = True
        try:
            with self.mam.taken_back() if self.mam is not None else nullcontext():
                return self.evaluate(test_set, **kwargs)
        finally:
            self._untouched = False
