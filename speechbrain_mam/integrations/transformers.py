"""Learnable-MAM for transformers' ``Trainer``, whatever it trains: wav2vec2 with CTC, Whisper, …

    trainer = Trainer(model=model, args=arguments, train_dataset=train, eval_dataset=valid)
    MAMCallback(donor="google-bert/bert-base-uncased", lr=2e-3).attach(trainer)
    trainer.train()
    trainer.save_model("merged")  # plain layers, λ folded in

Why :meth:`MAMCallback.attach`, and not ``callbacks=[…]``: a callback is told when things happen,
but not asked. The optimizer's groups must hold λ before a checkpoint is loaded into them, a file of
weights must be written from the folded model, and a logger has its figures before a callback does.
So methods of that one trainer are wrapped; the class is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.errors import MAMError
from speechbrain_mam.integrations.trainer_files import load_own, save_own
from speechbrain_mam.learning.learnable import keep_donor_out_of_ddp
from speechbrain_mam.learning.recomputation import use_nonreentrant_checkpointing
from speechbrain_mam.mam import MAM


class MAMCallback(TrainerCallback):
    """λ is learned by a ``Trainer``, with the model or alone.

    - λ are a parameter group of the Trainer's optimizer, with ``lr`` and without weight decay, and
      follow its schedule. ``max_grad_norm`` clips their gradients together with all others.
    - After each step λ are put back into [0, 1].
    - The training's log has λ as ``lam/layer_0`` and so on, and so have ``trainer_state.json`` and
      whatever ``report_to`` names.
    - Only while it trains a step does the model hold λ. For an evaluation, in a file of weights and
      after ``train()`` it has plain layers with the merged weights.
    - A checkpoint is such a merged model too, which ``from_pretrained`` loads. Beside it,
      ``mam.safetensors`` holds λ and the target's own projections: with it a resumed training, and
      ``load_best_model_at_end``, go on to the bit.

    Arguments
    ---------
    donor : str, Path, Donor or list of them
        Hub name, local folder, or an open donor.
    lr : float
        λ's learning rate.
    target : nn.Module, optional
        What is merged, the Trainer's model or a part of it; the model by default.
    **options
        Of :class:`~speechbrain_mam.mam.MAM`: ``lam``, ``granularity``, ``layers``, ``bias``, …

    Example
    -------
    >>> callback = MAMCallback(donor="speechbrain_mam/hubert-mini", lr=1e-3, layers="last:2")
    >>> callback.on_train_begin(None, None, None)
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: MAMCallback: call attach(trainer) before the training
    """

    def __init__(
        self,
        donor: str | Path | Donor | list[Any],
        lr: float = 2e-3,
        target: nn.Module | None = None,
        **options: Any,
    ):
        if "learnable" in options:
            raise MAMError(
                "key 'learnable': a Trainer learns λ; for a fixed one use MAM before the training"
            )
        if not lr > 0:
            raise MAMError(f"key 'lr': expected a number above 0 for λ, found {lr!r}")
        self.lr = lr
        self._arguments = {"donor": donor, **options}
        self._target = target
        self._mam: MAM | None = None
        self._model: nn.Module | None = None

    @property
    def mam(self) -> MAM:
        """The merge, once it is attached."""
        if self._mam is None:
            raise MAMError("MAMCallback: call attach(trainer) before the training")
        return self._mam

    def attach(self, trainer: Any) -> MAMCallback:
        """Merge a trainer's model, and let the trainer learn λ. To be called once, before training.

        Weights that are loaded into the model after it would not be merged.

        Arguments
        ---------
        trainer : transformers.Trainer
            Or one of a subclass; with a model, not a ``model_init``.

        Returns
        -------
        MAMCallback
            Itself; ``callback.mam.live.values()`` are λ.

        Raises
        ------
        MAMError
            If the merge does not fit the model, or the trainer is one of those that this does not
            go with.
        """
        for has, what in (
            (trainer.model_init is not None, "a model_init: give it a model"),
            (trainer.is_deepspeed_enabled, "DeepSpeed, which replaces the model's parameters"),
            (trainer.is_fsdp_enabled, "FSDP, which replaces the model's parameters"),
            (trainer.lr_scheduler is not None, "a scheduler that was made before λ: leave it out"),
            (self._mam is not None, "a MAMCallback that is attached already"),
        ):
            if has:
                raise MAMError(f"MAMCallback does not go with {what}")
        self._model = model = trainer.model
        target = model if self._target is None else self._target
        if not any(module is target for module in model.modules()):
            raise MAMError("MAMCallback: 'target' is not a part of the trainer's model")
        mam = MAM(target, **self._arguments)
        mam.fold()
        self._mam = mam
        # First of all: those that upload the model when the training ends find it folded.
        trainer.callback_handler.callbacks.insert(0, self)
        for name, around in (
            ("train", self._train),
            ("create_optimizer", self._create_optimizer),
            ("evaluation_loop", self._with_plain_layers),
            ("save_model", self._save_model),
            ("_load_from_checkpoint", self._load),
            ("_load_best_model", self._load_best),
            ("log", self._log),
        ):
            method = getattr(trainer, name)
            setattr(
                trainer, name, functools.wraps(method)(functools.partial(around, trainer, method))
            )
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """That it was attached, to the model that is trained; and what λ needs of the latter."""
        if self.mam.is_folded or kwargs.get("model", self._model) is not self._model:
            raise MAMError("MAMCallback: another model is trained than that of attach(trainer)")
        use_nonreentrant_checkpointing(self.mam.target)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """λ back into [0, 1]."""
        self.mam.live.project_()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Plain layers for whoever comes after the training."""
        self.mam.fold()

    def _train(self, trainer: Any, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.mam.apply()
        keep_donor_out_of_ddp(trainer.model)
        try:
            return train(*args, **kwargs)
        finally:
            self.mam.fold()

    def _create_optimizer(
        self, trainer: Any, create: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        optimizer = create(*args, **kwargs)
        lams = self.mam.live.parameters()
        ours = {id(lam) for lam in lams}
        if any({id(p) for p in group["params"]} == ours for group in optimizer.param_groups):
            return optimizer  # of a former train()
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ours]
        optimizer.add_param_group({"params": lams, "lr": self.lr, "weight_decay": 0.0})
        return optimizer

    def _with_plain_layers(
        self, trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        with _folded(self.mam):
            return method(*args, **kwargs)

    def _save_model(
        self,
        trainer: Any,
        save: Callable[..., Any],
        output_dir: str | None = None,
        _internal_call: bool = False,
    ) -> None:
        with _folded(self.mam):
            save(output_dir, _internal_call=_internal_call)
        if _internal_call and trainer.args.should_save:  # a checkpoint, not the user's
            with _inserted(self.mam):
                save_own(self.mam, Path(output_dir or trainer.args.output_dir))

    def _load(
        self,
        trainer: Any,
        load: Callable[..., Any],
        resume_from_checkpoint: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        with _folded(self.mam):  # what it loads are merged weights
            load(resume_from_checkpoint, *args, **kwargs)
        with _inserted(self.mam):
            load_own(self.mam, Path(resume_from_checkpoint))

    def _load_best(self, trainer: Any, load: Callable[..., Any]) -> None:
        with _folded(self.mam):
            load()
        with _inserted(self.mam):
            load_own(self.mam, Path(trainer.state.best_model_checkpoint))

    def _log(
        self,
        trainer: Any,
        log: Callable[..., Any],
        logs: dict[str, float],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:  # of a step; an evaluation and the end have others
            values = self.mam.live.values()
            logs |= {f"lam/{name.replace(' ', '_')}": value for name, value in values.items()}
        log(logs, *args, **kwargs)


@contextmanager
def _folded(mam: MAM) -> Iterator[None]:
    """Plain layers within the block."""
    was_folded = mam.is_folded
    if not was_folded:
        mam.fold()
    try:
        yield
    finally:
        if not was_folded:
            mam.apply()


@contextmanager
def _inserted(mam: MAM) -> Iterator[None]:
    """λ in the model within the block."""
    was_folded = mam.is_folded
    mam.apply()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_folded:
            mam.fold()
