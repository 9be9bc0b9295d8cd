"""The Brain that speech recognition and audio events share: statistics, tests, what a search asks.

A task adds what its model computes and what counts as an error.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import if_main_process

from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.brain.brain import MAMBrain
from speechbrain_mam.search.sweep import Around
from speechbrain_mam.tasks.finite import TrainLosses


class TaskBrain(MAMBrain, ABC):
    """A :class:`~speechbrain_mam.brain.brain.MAMBrain` with an error rate: it picks the checkpoint.

    A subclass defines :meth:`compute_forward` and :meth:`compute_objectives`, as of any Brain, and
    the abstract methods here.
    """

    metric: ClassVar[str]
    """The error rate in percent that decides: a key of :meth:`error_rates`, lower is better."""
    units: ClassVar[str]
    """What is evaluated, in words: utterances, clips."""
    stats_file: ClassVar[str]
    """What the text file with a test's errors is called: ``{stats_file}_{test}.txt``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.clusters: dict[str, str] = {}

    @abstractmethod
    def start_errors(self, details: bool) -> None:
        """Count errors from nothing; without ``details``, only what :meth:`error_counts` needs."""

    @abstractmethod
    def error_rates(self) -> dict[str, float]:
        """The error rates since :meth:`start_errors`, in percent, by name."""

    @abstractmethod
    def error_counts(self) -> dict[str, tuple[int, int]]:
        """Errors and reference units of each utterance or clip since :meth:`start_errors`."""

    @abstractmethod
    def error_details(self) -> dict[str, dict[str, Any]]:
        """What ``utterances_{test}.json`` says of each utterance or clip."""

    @abstractmethod
    def write_errors(self, stream: TextIO) -> None:
        """What ``{stats_file}_{test}.txt`` says."""

    def note_clusters(self, batch: PaddedBatch) -> None:
        """Remember which cluster each utterance or clip of a batch is of, if the data say so."""
        self.clusters |= dict(zip(batch.id, getattr(batch, "cluster", ()), strict=False))

    def transcripts(self) -> dict[str, str]:
        """Further files of a test by name, with ``{test}`` to be replaced; most tasks have none."""
        return {}

    def sweep_identity(self) -> dict[str, str]:
        """What decides an evaluation besides the merge's target and the data, by what it is."""
        return {}

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Name a batch whose loss is no number."""
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.train_losses.add(loss, batch.id)

    def anneal(self, epoch: int, stats: Mapping[str, float]) -> float:
        """Set the learning rate of the next epoch; returns that of the last one."""
        old_lr, new_lr = self.hparams.lr_annealing(stats["loss"])
        sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
        return old_lr

    def on_stage_start(self, stage, epoch=None):
        """Start new statistics."""
        if stage == sb.Stage.TRAIN:
            self.train_losses = TrainLosses()
        else:
            self.clusters = {}
            self.start_errors(details=True)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, anneal the learning rate, keep the best checkpoint; a test writes its errors."""
        if stage == sb.Stage.TRAIN:
            self.train_losses.check()
            self.train_stats = {"loss": stage_loss}
            return
        stats = {"loss": stage_loss, **self.error_rates()}
        if stage == sb.Stage.TEST:
            self._report_test(stats)
            return
        old_lr = self.anneal(epoch, stats)
        for train_logger in self._train_loggers():
            train_logger.log_stats({"epoch": epoch, "lr": old_lr}, self.train_stats, stats)
        if hasattr(self.hparams.epoch_counter, "update_metric"):
            self.hparams.epoch_counter.update_metric(stats[self.metric])
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={self.metric: stats[self.metric], "epoch": epoch},
                min_keys=[self.metric],
                num_to_keep=self.hparams.num_checkpoints,
            )

    def _train_loader_specifics(self, dataset, loader_kwargs):
        # Without it, nobody tells a batch sampler the epoch outside DDP, and a resumed training
        # would see the batches of the first epoch again.
        loader_kwargs = super()._train_loader_specifics(dataset, loader_kwargs)
        if self.train_sampler is None:
            self.train_sampler = loader_kwargs.get("batch_sampler")
        return loader_kwargs

    def _train_loggers(self) -> list[sb.utils.train_logger.TrainLogger]:
        values = vars(self.hparams).values()
        return [v for v in values if isinstance(v, sb.utils.train_logger.TrainLogger)]

    def _report_test(self, stats: dict[str, float]) -> None:
        """The files of a test, under the present test's name."""
        name = getattr(self, "test_name", "test")
        for train_logger in self._train_loggers():
            if isinstance(train_logger, sb.utils.train_logger.FileTrainLogger):
                train_logger.log_stats({"model": name}, test_stats=stats)
        self.test_results = getattr(self, "test_results", {}) | {name: stats}
        if not if_main_process():
            return
        folder = Path(self.hparams.output_folder)
        file_name = name.replace(" ", "_")
        with (folder / f"{self.stats_file}_{file_name}.txt").open("w", encoding="utf-8") as stream:
            self.write_errors(stream)
        for template, text in self.transcripts().items():
            write_text_beside(folder / template.format(test=file_name), text)
        details = self.error_details()
        for key, row in details.items():
            row |= {"cluster": self.clusters[key]} if key in self.clusters else {}
        content = {"stats": stats, "utterances": details}
        write_text_beside(folder / f"utterances_{file_name}.json", json.dumps(content, indent=1))

    def batches(self, dataset) -> list[PaddedBatch]:
        """A set as the fixed batches of a test, loaded once; under ``--debug`` the first few."""
        kwargs = dict(self.hparams.test_dataloader_opts)
        loader = self.make_dataloader(dataset, sb.Stage.TEST, **kwargs)
        return list(islice(loader, self.debug_batches if self.debug else None))

    def score(
        self, batches: Iterable[PaddedBatch], around: Around = lambda _: nullcontext()
    ) -> dict[str, tuple[int, int]]:
        """Errors and reference units of every utterance or clip, by the model as it is now.

        Arguments
        ---------
        batches : iterable of PaddedBatch
            What :meth:`batches` gave.
        around : callable
            Gives what is put around the pass of batch *i*.
        """
        self.modules.eval()
        self.start_errors(details=False)
        for i, batch in enumerate(map(kept, batches)):
            with torch.no_grad(), around(i):
                self.evaluate_batch(batch, sb.Stage.TEST)
        return self.error_counts()

    def losses(self, batches: Iterable[PaddedBatch]) -> Iterator[tuple[torch.Tensor, int]]:
        """For each batch its mean loss, with a graph, and its size, in evaluation mode."""
        self.modules.eval()
        self.start_errors(details=False)
        for batch in map(kept, batches):
            predictions = self.compute_forward(batch, sb.Stage.TEST)
            yield self.compute_objectives(predictions, batch, sb.Stage.TEST), len(batch)

    def evaluate_batch(self, batch, stage):
        """As of any Brain, within what :meth:`within_each_batch` puts around it."""
        around = getattr(self, "_around", None)
        with nullcontext() if around is None else around(tuple(batch.id)):
            return super().evaluate_batch(batch, stage)

    @contextmanager
    def within_each_batch(self, around: Callable[[Any], AbstractContextManager]) -> Iterator[None]:
        """Within the block every batch of a test stands in what its utterances' IDs give."""
        self._around = around
        try:
            yield
        finally:
            del self._around

    def test(self, test_set, name: str, untouched: bool = False) -> dict[str, float]:
        """Evaluate under a name; ``untouched``: the model as it is, without MAM or a checkpoint.

        Returns
        -------
        dict
            ``loss`` and the error rates (percent).
        """
        self.test_name = name
        kwargs = dict(self.hparams.test_dataloader_opts)
        if untouched:
            self.evaluate_untouched(test_set, test_loader_kwargs=kwargs)
        else:
            self.evaluate(test_set, min_key=self.metric, test_loader_kwargs=kwargs)
        return self.test_results[name]


def kept(batch: PaddedBatch) -> PaddedBatch:
    """A batch to work with, in the place of one that is kept.

    ``PaddedBatch.to`` moves a batch in place: a whole set would stay on the GPU, and be there still
    when the next pass runs elsewhere. The copy shares the tensors.

    Example
    -------
    >>> import torch
    >>> batch = PaddedBatch([{"id": "a", "sig": torch.zeros(2)}])
    >>> moved = kept(batch).to(torch.float64)
    >>> moved.sig.data.dtype, batch.sig.data.dtype
    (torch.float64, torch.float32)
    """
    return copy.copy(batch)
