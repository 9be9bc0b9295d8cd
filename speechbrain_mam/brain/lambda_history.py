"""λ over the epochs: in a checkpoint, in ``lambdas.csv`` and ``lambdas.png``, in train loggers."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.train_logger import FileTrainLogger, TrainLogger

from speechbrain_mam.atomic import write_beside
from speechbrain_mam.brain.checkpoints import check_settings, describe
from speechbrain_mam.mam import MAM
from speechbrain_mam.report.lambda_map import plot_lambdas
from speechbrain_mam.text_files import read_yaml


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
        content = describe(self.mam) | {"lambdas": self.rows}
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    @mark_as_loader
    def _load(self, path: str, end_of_epoch: bool) -> None:
        content = read_yaml(Path(path))
        check_settings(content, self.mam, Path(path))
        self.rows = content["lambdas"]


class LambdaLog:
    """λ among a recipe's training statistics.

    A file gets a line of its own. Any other logger counts its calls as steps (TensorBoard), or
    refuses a step that is not the next one (W&B), so there λ go along with the recipe's next
    training statistics instead of a call of their own.

    Arguments
    ---------
    loggers : iterable
        The recipe's loggers; whatever is not a ``TrainLogger`` is passed over.
    """

    def __init__(self, loggers: Iterable[Any]):
        self.loggers = [item for item in loggers if isinstance(item, TrainLogger)]
        self._waiting: dict[TrainLogger, dict[str, float]] = {}
        for train_logger in self.loggers:
            if not isinstance(train_logger, FileTrainLogger):
                join = functools.partial(self._join, train_logger)
                train_logger.log_stats = join  # type: ignore[method-assign]

    def _join(self, train_logger, stats_meta, train_stats=None, *args, **kwargs):
        if train_stats is not None:
            train_stats = {**train_stats, **self._waiting.pop(train_logger, {})}
        return type(train_logger).log_stats(train_logger, stats_meta, train_stats, *args, **kwargs)

    def add(self, epoch: int, lambdas: dict[str, float]) -> None:
        """λ of an epoch, before the recipe logs that epoch."""
        stats = {f"lambda {name}": value for name, value in lambdas.items()}
        for train_logger in self.loggers:
            if isinstance(train_logger, FileTrainLogger):
                train_logger.log_stats({"epoch": epoch}, train_stats=stats)
                continue
            if missed := self._waiting.pop(train_logger, None):  # the recipe logs no training
                train_logger.log_stats({}, train_stats=missed)
            self._waiting[train_logger] = stats
