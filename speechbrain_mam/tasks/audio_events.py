"""Classification of audio events: the Brain that the recipe trains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch import Tensor

from speechbrain_mam.atomic import write_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.read import add_tensor
from speechbrain_mam.tasks.clips import fit_linear_probe, layer_groups, mean_feature, mixup, roll
from speechbrain_mam.tasks.finite import check_outputs
from speechbrain_mam.tasks.task import TaskBrain

logger = get_logger(__name__)

KEYS = [
    *("seed", "method", "fold", "results_folder", "output_folder", "save_folder", "data_folder"),
    *("encoder", "classifier", "num_classes", "modules", "epoch_counter", "number_of_epochs"),
    *("lr", "lr_layer_decay", "max_grad_norm", "mixup", "roll", "label_smoothing", "train_logger"),
    "sorting",
    *("classification_stats", "train_dataloader_opts", "valid_dataloader_opts"),
    *("test_dataloader_opts", "lr_annealing", "valid_share", "download"),
]
"""What a recipe's YAML must have."""

CLASSIFIER_FILE = "linear_classifier.ckpt"
"""In the save folder: the linear classifier of an encoder's fixed features."""


class AudioEvents(TaskBrain):
    """BEATs and a linear classifier of its mean feature, fine-tuned, merged, or both.

    ``modules`` holds ``encoder`` (:class:`~speechbrain_mam.lobes.beats.BEATsEncoder`) and
    ``classifier`` (SpeechBrain's ``Linear``). ``class_names``, the classes in the order of their
    numbers, comes from the data: :func:`~speechbrain_mam.tasks.audio_events_data.class_names`.
    """

    metric, units, stats_file = "error", "clips", "classification"
    class_names: list[str]

    def compute_forward(self, batch, stage):
        """Log-probabilities ``[B, classes]``; in training also what the labels were mixed with."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        self.mixed = None
        if stage == sb.Stage.TRAIN:
            if getattr(self.hparams, "wav_augment", None) is not None:
                wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
            if self.hparams.roll:
                wavs = roll(wavs, wav_lens)
            if self.hparams.mixup > 0:
                wavs, wav_lens, self.mixed = mixup(wavs, wav_lens, self.hparams.mixup)
        features, lens = self.modules.encoder(wavs, wav_lens)
        logits = self.modules.classifier(mean_feature(features, lens))
        return F.log_softmax(logits.float(), dim=-1)

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy; outside training also the errors."""
        labels = batch.label
        if stage == sb.Stage.TRAIN:
            smoothing = self.hparams.label_smoothing
            # of log-probabilities the same as of logits
            loss = F.cross_entropy(predictions, labels, reduction="none", label_smoothing=smoothing)
            if self.mixed is not None:
                order, share = self.mixed
                other = F.cross_entropy(
                    predictions, labels[order], reduction="none", label_smoothing=smoothing
                )
                loss = share * loss + (1 - share) * other
            return loss.mean()
        check_outputs(predictions, batch.id)
        self.note_clusters(batch)
        heard = [self.class_names[i] for i in predictions.argmax(-1).tolist()]
        names = [self.class_names[i] for i in labels.tolist()]
        self.stats.append(batch.id, heard, names)
        self.folds |= dict(zip(batch.id, batch.fold, strict=True))
        return F.nll_loss(predictions, labels)

    def anneal(self, epoch: int, stats: Mapping[str, float]) -> float:
        """The scheduler goes by epochs; each group of parameters has its share of the rate."""
        old_lr, new_lr = self.hparams.lr_annealing(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = new_lr * group.get("lr_share", 1.0)
        return old_lr

    def init_optimizers(self):
        """AdamW or whatever ``opt_class`` is; ``lr_layer_decay`` below 1: less for lower layers."""
        decay = self.hparams.lr_layer_decay
        if not 0 < decay <= 1:
            raise MAMError(f"key 'lr_layer_decay': {decay!r} is not a number above 0, at most 1")
        if decay == 1:
            sb.Brain.init_optimizers(self)
            return
        groups = layer_groups(self.modules, decay)
        # SpeechBrain clips the gradient of an optimizer's first group only. So the first one is
        # empty, and all of them are clipped together right before the step.
        shares = [{"params": params, "lr_share": share} for share, params in groups.items()]
        self.optimizer = self.opt_class([{"params": [], "lr_share": 1.0}, *shares])
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr * group["lr_share"]
        self.optimizer.register_step_pre_hook(self._clip)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def _clip(self, optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)

    def start_errors(self, details: bool) -> None:
        """Count from nothing."""
        self.stats = self.hparams.classification_stats()
        self.folds: dict[str, int] = {}

    def error_rates(self) -> dict[str, float]:
        """``error`` and ``accuracy`` in percent."""
        wrong = [errors for errors, _ in self.error_counts().values()]
        error = 100 * sum(wrong) / max(1, len(wrong))
        return {"error": error, "accuracy": 100 - error}

    def error_counts(self) -> dict[str, tuple[int, int]]:
        """For each clip 1 or 0 errors, of 1."""
        found = zip(self.stats.ids, self.stats.predictions, self.stats.targets, strict=True)
        return {clip: (int(heard != name), 1) for clip, heard, name in found}

    def error_details(self) -> dict[str, dict[str, Any]]:
        """``errors`` (0 or 1), ``words`` (1), ``ref``, ``hyp`` and ``fold`` of each clip."""
        found = zip(self.stats.ids, self.stats.predictions, self.stats.targets, strict=True)
        return {
            clip: {
                "errors": int(heard != name),
                "words": 1,
                "ref": name,
                "hyp": heard,
                "fold": int(self.folds[clip]),
            }
            for clip, heard, name in found
        }

    def sweep_identity(self) -> dict[str, str]:
        """The classifier, which is no part of the encoder."""
        digest = hashlib.sha256()
        for tensor in self.modules.classifier.state_dict().values():
            add_tensor(digest, "", tensor)
        return {"classifier": digest.hexdigest()}

    def write_errors(self, stream: TextIO) -> None:
        """SpeechBrain's accuracy by class and its confusions."""
        self.stats.write_stats(stream)

    @torch.no_grad()
    def features(self, dataset: DynamicItemDataset) -> tuple[Tensor, Tensor]:
        """Mean features ``[N, D]`` and labels ``[N]`` of a set, by the encoder as it is now."""
        self.modules.eval()
        found, labels = [], []
        for batch in self.batches(dataset):
            batch = batch.to(self.device)
            with self.evaluation_ctx:
                features, lens = self.modules.encoder(*batch.sig)
            found.append(mean_feature(features, lens).float().cpu())
            check_outputs(found[-1], batch.id)
            labels.append(batch.label.cpu())
        return torch.cat(found), torch.cat(labels)

    def fit_classifier(self, train: DynamicItemDataset, valid: DynamicItemDataset) -> None:
        """Put the best linear classifier of the encoder's features in, the encoder as it is now.

        Fine-tuning from a random classifier first spoils the features (Kumar et al., "Fine-Tuning
        can Distort Pretrained Features", arXiv 2202.10054), and without one, an encoder that nobody
        trained could not be tested.
        """
        found = fit_linear_probe(
            *self.features(train), *self.features(valid), classes=len(self.class_names)
        )
        linear = self.modules.classifier.w
        with torch.no_grad():
            linear.weight.copy_(found.weight)
            linear.bias.copy_(found.bias)
        if if_main_process():
            # Without training no checkpoint holds it, and whoever exports the model needs it.
            write_beside(
                Path(self.hparams.save_folder) / CLASSIFIER_FILE,
                lambda part: torch.save(self.modules.classifier.state_dict(), part),
            )
        logger.info("Linear classifier on fixed features, L2 penalty %g", found.penalty)
