"""CTC speech recognition: the Brain that the recipes share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_mam.brain import MAMBrain
from speechbrain_mam.plots import write_beside
from speechbrain_mam.search import Around

logger = get_logger(__name__)

KEYS = [
    *("seed", "method", "output_folder", "save_folder", "data_folder", "test_untouched"),
    *("encoder", "modules", "epoch_counter", "number_of_epochs", "train_logger"),
    *("sorting", "dynamic_batching", "dynamic_batch_sampler", "error_rate_computer"),
    *("train_dataloader_opts", "valid_dataloader_opts", "test_dataloader_opts"),
]
"""What a recipe's YAML must have."""


class ASR(MAMBrain):
    """HuBERT-CTC that is fine-tuned, merged, or both.

    ``modules`` holds one ``encoder`` (:class:`~speechbrain_mam.lobes.hubert_ctc.HubertCTC`), with
    its CTC head. The decoding is greedy, without a language model.
    """

    def compute_forward(self, batch, stage):
        """Log-probabilities ``[B, frames, labels]`` and relative lengths ``[B]``."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        if stage == sb.Stage.TRAIN and getattr(self.hparams, "wav_augment", None) is not None:
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        return self.modules.encoder(wavs, wav_lens)

    def compute_objectives(self, predictions, batch, stage):
        """CTC loss; outside training also the error rates."""
        log_probs, lens = predictions
        tokens, token_lens = batch.tokens
        if stage == sb.Stage.TRAIN and getattr(self.hparams, "wav_augment", None) is not None:
            tokens, token_lens = self.hparams.wav_augment.replicate_multiple_labels(
                tokens, token_lens
            )
        loss = sb.nnet.losses.ctc_loss(
            log_probs, tokens, lens, token_lens, blank_index=self.alphabet.blank_index
        )
        if stage != sb.Stage.TRAIN:
            best = sb.decoders.ctc_greedy_decode(log_probs, lens, self.alphabet.blank_index)
            texts = [self.alphabet.decode(indices) for indices in best]
            self.wer_metric.append(
                batch.id, [t.split() for t in texts], [w.split() for w in batch.wrd]
            )
            if self.cer_metric is not None:
                self.cer_metric.append(
                    batch.id, [list(t) for t in texts], [list(w) for w in batch.wrd]
                )
        return loss

    @property
    def alphabet(self):
        """The CTC head's alphabet."""
        return self.hparams.encoder.alphabet

    def on_stage_start(self, stage, epoch=None):
        """Start new statistics."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()
            self.cer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, anneal the learning rate, keep the best checkpoint; a test writes its errors."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        stats = {
            "loss": stage_loss,
            "WER": self.wer_metric.summarize("error_rate"),
            "CER": self.cer_metric.summarize("error_rate"),
        }
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(stats["loss"])
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            for train_logger in self._train_loggers():
                train_logger.log_stats({"epoch": epoch, "lr": old_lr}, self.train_stats, stats)
            if hasattr(self.hparams.epoch_counter, "update_metric"):
                self.hparams.epoch_counter.update_metric(stats["WER"])
            if self.checkpointer is not None:
                self.checkpointer.save_and_keep_only(
                    meta={"WER": stats["WER"], "epoch": epoch},
                    min_keys=["WER"],
                    num_to_keep=self.hparams.num_checkpoints,
                )
        else:
            self._report_test(stats)

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
        """``wer_{name}.txt`` and ``utterances_{name}.json``, under the present test's name."""
        name = getattr(self, "test_name", "test")
        for train_logger in self._train_loggers():
            if isinstance(train_logger, sb.utils.train_logger.FileTrainLogger):
                train_logger.log_stats({"model": name}, test_stats=stats)
        self.test_results = getattr(self, "test_results", {}) | {name: stats}
        if not if_main_process():
            return
        folder = Path(self.hparams.output_folder)
        file_name = name.replace(" ", "_")
        with (folder / f"wer_{file_name}.txt").open("w", encoding="utf-8") as stream:
            self.wer_metric.write_stats(stream)
        content = {"stats": stats, "utterances": self.utterance_scores()}
        write_beside(
            folder / f"utterances_{file_name}.json",
            lambda part: part.write_text(json.dumps(content, indent=1), encoding="utf-8"),
        )

    def batches(self, dataset) -> list[PaddedBatch]:
        """A set as the fixed batches of a test, loaded once; under ``--debug`` the first few."""
        kwargs = dict(self.hparams.test_dataloader_opts)
        loader = self.make_dataloader(dataset, sb.Stage.TEST, **kwargs)
        return list(islice(loader, self.debug_batches if self.debug else None))

    def score(
        self, batches: Iterable[PaddedBatch], around: Around = lambda _: nullcontext()
    ) -> dict[str, tuple[int, int]]:
        """Word errors and words of every utterance, by the model as it is now.

        Arguments
        ---------
        batches : iterable of PaddedBatch
            What :meth:`batches` gave.
        around : callable
            Gives what is put around the pass of batch *i*.
        """
        self.modules.eval()
        self.on_stage_start(sb.Stage.TEST)
        self.cer_metric = None  # half of the time of a small model's evaluation
        for i, batch in enumerate(batches):
            with torch.no_grad(), around(i):
                self.evaluate_batch(batch, sb.Stage.TEST)
        return {s["key"]: (s["num_edits"], s["num_ref_tokens"]) for s in self.wer_metric.scores}

    def losses(self, batches: Iterable[PaddedBatch]) -> Iterator[tuple[torch.Tensor, int]]:
        """For each batch its mean loss, with a graph, and its size, in evaluation mode."""
        self.modules.eval()
        self.on_stage_start(sb.Stage.TEST)
        self.cer_metric = None
        for batch in batches:
            predictions = self.compute_forward(batch, sb.Stage.TEST)
            yield self.compute_objectives(predictions, batch, sb.Stage.TEST), len(batch)

    def utterance_scores(self) -> dict[str, dict[str, Any]]:
        """Errors and texts of the last evaluated set, utterance by utterance.

        Returns
        -------
        dict
            For each utterance ID ``errors`` and ``words`` (word edits, reference words),
            ``char_errors`` and ``chars``, ``ref`` and ``hyp``. ``hyp`` is what the model wrote.
        """
        by_character = {score["key"]: score for score in self.cer_metric.scores}
        return {
            score["key"]: {
                "errors": score["num_edits"],
                "words": score["num_ref_tokens"],
                "char_errors": by_character[score["key"]]["num_edits"],
                "chars": by_character[score["key"]]["num_ref_tokens"],
                "ref": " ".join(score["ref_tokens"]),
                "hyp": " ".join(score["hyp_tokens"]),
            }
            for score in self.wer_metric.scores
        }

    def test(self, test_set, name: str, untouched: bool = False) -> dict[str, float]:
        """Evaluate under a name; ``untouched``: the model as it is, without MAM or a checkpoint.

        Returns
        -------
        dict
            ``loss``, ``WER`` and ``CER`` (percent).
        """
        self.test_name = name
        kwargs = dict(self.hparams.test_dataloader_opts)
        if untouched:
            self.evaluate_untouched(test_set, test_loader_kwargs=kwargs)
        else:
            self.evaluate(test_set, min_key="WER", test_loader_kwargs=kwargs)
        return self.test_results[name]
