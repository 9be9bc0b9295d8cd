"""CTC speech recognition: the Brain that the recipes share."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TextIO

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger
from torch import Tensor

from speechbrain_mam.ctc.beam_search import Searcher, read_decoding
from speechbrain_mam.results.decoding import GREEDY, TITLES
from speechbrain_mam.tasks.finite import check_loss, check_outputs
from speechbrain_mam.tasks.optimizers import TwoOptimizersBrain

logger = get_logger(__name__)

KEYS = [
    *("seed", "method", "output_folder", "save_folder", "data_folder", "test_untouched"),
    *("encoder", "modules", "epoch_counter", "number_of_epochs", "train_logger"),
    *("sorting", "dynamic_batching", "dynamic_batch_sampler", "error_rate_computer"),
    *("train_dataloader_opts", "valid_dataloader_opts", "test_dataloader_opts"),
]
"""What a recipe's YAML must have."""


class ASR(TwoOptimizersBrain):
    """HuBERT-CTC that is fine-tuned, merged, or both.

    ``modules`` holds one ``encoder`` (:class:`~speechbrain_mam.lobes.hubert_ctc.HubertCTC`), with
    its CTC head. Validation and searches decode greedily; tests as ``test_decoding`` says, with the
    figures of the simpler decoders beside its own.
    """

    metric, units, stats_file = "WER", "utterances", "wer"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.long: set[str] = set()
        self.decoding = read_decoding(vars(self.hparams))
        self._testing = False
        self._searchers: dict[tuple[str, int], Searcher] = {}

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
            check_outputs(log_probs, batch.id, lens)
            check_loss(loss, batch.id)
            self.note_clusters(batch)
            self._say_of_long_labels(batch, lens * log_probs.shape[1])
            for name, word_errors in self.wer_metrics.items():
                texts = self._texts(name, log_probs, lens)
                word_errors.append(
                    batch.id, [t.split() for t in texts], [w.split() for w in batch.wrd]
                )
                if name in self.cer_metrics:
                    self.cer_metrics[name].append(
                        batch.id, [list(t) for t in texts], [list(w) for w in batch.wrd]
                    )
        return loss

    def _texts(self, name: str, log_probs: Tensor, lens: Tensor) -> list[str]:
        """What a decoder makes of a batch."""
        labels = self.alphabet
        if name == GREEDY:
            best = sb.decoders.ctc_greedy_decode(log_probs, lens, labels.blank_index)
            return [labels.decode(indices) for indices in best]
        key = name, id(labels)  # the untouched model's are others than those of a new head
        if key not in self._searchers:
            self._searchers[key] = self.decoding.searcher(name, labels)
        return self._searchers[key](log_probs, lens * log_probs.shape[1])

    def _say_of_long_labels(self, batch, frames: Tensor) -> None:
        """Name, once each, the utterances whose label no path of frames can spell.

        Their loss is infinite, and SpeechBrain's ``ctc_loss`` counts it as 0.
        """
        tokens, token_lens = batch.tokens
        places = torch.arange(tokens.shape[1], device=tokens.device)
        valid = places < (token_lens * tokens.shape[1]).round()[:, None]
        repeats = (tokens[:, 1:] == tokens[:, :-1]) & valid[:, 1:]  # a blank must part them
        long = (valid.sum(1) + repeats.sum(1) > frames.round()).tolist()
        names = {n for n, too_long in zip(batch.id, long, strict=True) if too_long} - self.long
        self.long |= names
        if names:
            what = "with more labels than frames, counted with a loss of 0 (is the text another's?)"
            logger.warning("utterances %s: %s", what, ", ".join(sorted(names)))

    @property
    def alphabet(self):
        """The CTC head's alphabet."""
        return self.hparams.encoder.alphabet

    def test(self, test_set, name: str, untouched: bool = False) -> dict[str, float]:
        """As of any task; the untouched model has the head that it came with."""
        with self.hparams.encoder.pretrained_head() if untouched else nullcontext():
            return super().test(test_set, name, untouched)

    def on_stage_start(self, stage, epoch=None):
        """Start new statistics; those of a test are of all its decoders."""
        self._testing = stage == sb.Stage.TEST
        super().on_stage_start(stage, epoch)

    def start_errors(self, details: bool) -> None:
        """Word errors; with ``details`` also by character, half of a small model's evaluation."""
        names = self.decoding.names if details and self._testing else (GREEDY,)
        new = self.hparams.error_rate_computer
        self.wer_metrics: dict[str, Any] = {name: new() for name in names}
        self.cer_metrics: dict[str, Any] = {name: new() for name in names if details}

    @property
    def wer_metric(self) -> Any:
        """The word errors of the decoder that counts: the last one."""
        return list(self.wer_metrics.values())[-1]

    def error_rates(self) -> dict[str, float]:
        """``WER`` and ``CER`` in percent; those of simpler decoders as ``WER greedy`` and so on."""
        *others, main = self.wer_metrics
        rates = {}
        for name in (main, *others):
            suffix = "" if name == main else f" {TITLES[name]}"
            rates[f"WER{suffix}"] = self.wer_metrics[name].summarize("error_rate")
            rates[f"CER{suffix}"] = self.cer_metrics[name].summarize("error_rate")
        return rates

    def error_counts(self) -> dict[str, tuple[int, int]]:
        """Word errors and words of each utterance."""
        return {s["key"]: (s["num_edits"], s["num_ref_tokens"]) for s in self.wer_metric.scores}

    def error_details(self) -> dict[str, dict[str, Any]]:
        """Errors and texts of the last evaluated set, utterance by utterance.

        Returns
        -------
        dict
            For each utterance ID ``errors`` and ``words`` (word edits, reference words),
            ``char_errors`` and ``chars``, ``ref`` and ``hyp``. ``hyp`` is what the model wrote.
            Where a test has several decoders, ``decoders`` has ``errors``, ``char_errors`` and
            ``hyp`` of the simpler ones by their names.
        """
        *others, main = (self._details(name) for name in self.wer_metrics)
        for name, found in zip(self.wer_metrics, others, strict=False):
            for key, row in found.items():
                simpler = {field: row[field] for field in ("errors", "char_errors", "hyp")}
                main[key].setdefault("decoders", {})[name] = simpler
        return main

    def _details(self, name: str) -> dict[str, dict[str, Any]]:
        by_character = {score["key"]: score for score in self.cer_metrics[name].scores}
        return {
            score["key"]: {
                "errors": score["num_edits"],
                "words": score["num_ref_tokens"],
                "char_errors": by_character[score["key"]]["num_edits"],
                "chars": by_character[score["key"]]["num_ref_tokens"],
                "ref": " ".join(score["ref_tokens"]),
                "hyp": " ".join(score["hyp_tokens"]),
            }
            for score in self.wer_metrics[name].scores
        }

    def transcripts(self) -> dict[str, str]:
        """References and hypotheses as NIST's sclite reads them: ``text (cluster-utterance)``."""
        found = {"ref": "ref.trn", "hyp": "{test}.hyp.trn"}
        scores = self.wer_metric.scores
        ids = [f"({self.clusters.get(s['key'], s['key'])}-{s['key']})" for s in scores]
        return {
            name: "".join(
                f"{' '.join([*score[f'{side}_tokens'], at])}\n"
                for score, at in zip(scores, ids, strict=True)
            )
            for side, name in found.items()
        }

    def write_errors(self, stream: TextIO) -> None:
        """SpeechBrain's summary and alignments."""
        self.wer_metric.write_stats(stream)
