"""The head of a recogniser with an optimizer of its own, and an encoder that waits for it.

Names are those of SpeechBrain's recipes: ``model_opt_class`` is the head's, ``wav2vec_opt_class``
the encoder's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import speechbrain as sb

from speechbrain_mam.errors import MAMError
from speechbrain_mam.tasks.task import TaskBrain

ENCODER, HEAD = "wav2vec_optimizer", "model_optimizer"


class TwoOptimizersBrain(TaskBrain):
    """A ``TaskBrain`` whose CTC head may be trained apart from its encoder.

    There are two optimizers where the YAML has one of ``lr_head``, ``model_opt_class`` and
    ``wav2vec_opt_class``, or ``freeze_steps`` above 0; otherwise there is one, as of any Brain.
    Within the first ``freeze_steps`` optimizer steps the head alone is trained: neither the
    encoder's weights nor λ move.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.freeze_steps = int(self._option("freeze_steps") or 0)
        self.apart = self.freeze_steps > 0 or any(
            self._option(key) is not None
            for key in ("lr_head", "model_opt_class", "wav2vec_opt_class")
        )
        if self.apart and self.opt_class is not None:
            self.head_annealing = self._head_annealing()
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable("scheduler_model", self.head_annealing)

    def _option(self, key: str) -> Any:
        return getattr(self.hparams, key, None)

    def _head_annealing(self) -> Any:
        own = self._option("lr_annealing_model")
        if own is not None:
            return own
        annealing = copy.deepcopy(self.hparams.lr_annealing)
        if self._option("lr_head") is not None:
            if not hasattr(annealing, "hyperparam_value"):
                raise MAMError(
                    "key 'lr_head': lr_annealing is a "
                    f"{type(annealing).__name__}, which does not tell its learning rate; give the "
                    "head's own as 'lr_annealing_model'"
                )
            annealing.hyperparam_value = self._option("lr_head")
        return annealing

    def init_optimizers(self):
        """One optimizer, or the encoder's and the head's."""
        if not self.apart:
            return super().init_optimizers()
        head = list(self.hparams.encoder.model.lm_head.parameters())
        of_head = {id(parameter) for parameter in head}
        encoder = [p for p in self.modules.parameters() if id(p) not in of_head]
        make_head = self._option("model_opt_class") or self.opt_class
        if self._option("lr_head") is not None:
            make_head = functools.partial(make_head, lr=self._option("lr_head"))
        self.wav2vec_optimizer = (self._option("wav2vec_opt_class") or self.opt_class)(encoder)
        self.model_optimizer = make_head(head)
        self.optimizers_dict = {ENCODER: self.wav2vec_optimizer, HEAD: self.model_optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("wav2vec_opt", self.wav2vec_optimizer)
            self.checkpointer.add_recoverable("modelopt", self.model_optimizer)
        return None

    @property
    def lam_rests(self) -> bool:  # type: ignore[override]
        """Whether encoder and λ wait for the head."""
        return self.optimizer_step < self.freeze_steps

    def freeze_optimizers(self, optimizers):
        """Those that are stepped now."""
        valid = super().freeze_optimizers(optimizers)
        if not self.lam_rests:
            return valid
        return {name: o for name, o in valid.items() if name not in (ENCODER, "mam_optimizer")}

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """What waits does not gather gradients meanwhile."""
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        # The counter has moved already: the last step of the waiting counts as one
        if should_step and 0 < self.optimizer_step <= self.freeze_steps:
            for name, optimizer in self.optimizers_dict.items():
                if name != HEAD:
                    optimizer.zero_grad(set_to_none=True)

    def anneal(self, epoch: int, stats: Mapping[str, float]) -> float:
        """Both learning rates; returns the encoder's of the last epoch."""
        if not self.apart:
            return super().anneal(epoch, stats)
        own = self._option("lr_annealing_wav2vec") or self.hparams.lr_annealing
        old, new = own(stats["loss"])
        sb.nnet.schedulers.update_learning_rate(self.wav2vec_optimizer, new)
        _, head = self.head_annealing(stats["loss"])
        sb.nnet.schedulers.update_learning_rate(self.model_optimizer, head)
        return float(old)
