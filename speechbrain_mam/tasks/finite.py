"""Losses and outputs that are no numbers: named, instead of left out of a mean.

SpeechBrain's ``Brain.update_average`` passes over a batch whose loss is not finite, so that a model
that gives nothing but NaN has the mean loss 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from speechbrain.utils.logger import get_logger
from torch import Tensor

from speechbrain_mam.errors import MAMError

logger = get_logger(__name__)


def check_outputs(outputs: Tensor, ids: Sequence[str], lens: Tensor | None = None) -> None:
    """Every valid output of every utterance must be a number.

    Arguments
    ---------
    outputs : Tensor
        ``[B, labels]`` or ``[B, frames, labels]``.
    ids : sequence of str
        The utterances or clips.
    lens : Tensor, optional
        ``[B]``, relative: how many of the frames are valid.

    Raises
    ------
    MAMError
        Names the utterances or clips.

    Example
    -------
    >>> check_outputs(torch.tensor([[0.0], [torch.nan]]), ["a", "b"])
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: the model gives NaN or infinite values for b (of the batch a,
    b): its weights, or the donor's that were merged into them, are damaged, or eval_precision is
    too narrow for them
    """
    finite = outputs.detach().isfinite().flatten(2 if outputs.dim() > 2 else 1).all(-1)
    if outputs.dim() > 2:
        if lens is not None:
            frames = torch.arange(outputs.shape[1], device=outputs.device)
            finite |= frames >= (lens * outputs.shape[1]).round()[:, None]
        finite = finite.all(-1)
    if bool(finite.all()):
        return
    bad = [name for name, good in zip(ids, finite.tolist(), strict=True) if not good]
    raise MAMError(
        f"the model gives NaN or infinite values for {', '.join(bad)} (of the batch "
        f"{', '.join(ids)}): its weights, or the donor's that were merged into them, are damaged, "
        "or eval_precision is too narrow for them"
    )


def check_loss(loss: Tensor, ids: Sequence[str]) -> None:
    """The loss of an evaluated batch must be a number.

    Raises
    ------
    MAMError
        Names the utterances or clips.
    """
    if not bool(loss.detach().isfinite()):
        raise MAMError(f"the loss of the batch {', '.join(ids)} is {loss.item()}")


class TrainLosses:
    """What a training epoch's mean loss is of.

    Example
    -------
    >>> losses = TrainLosses()
    >>> losses.add(torch.tensor(1.0), ["a", "b"])
    >>> losses.check()
    >>> losses.finite, losses.left_out
    (0, 0)
    """

    def __init__(self) -> None:
        self.finite = self.left_out = 0

    def add(self, loss: Tensor, ids: Sequence[str]) -> None:
        """Count a batch; one without a finite loss is said, and SpeechBrain's patience goes on."""
        if bool(loss.detach().isfinite()):
            self.finite += 1
            return
        self.left_out += 1
        logger.warning(
            "the training loss of the batch %s is %s: it is left out of the mean",
            ", ".join(ids),
            loss.item(),
        )

    def check(self) -> None:
        """At the end of an epoch.

        Raises
        ------
        MAMError
            If no batch had a finite loss.
        """
        finite, left_out, self.finite, self.left_out = self.finite, self.left_out, 0, 0
        if left_out and not finite:
            raise MAMError(
                f"no batch of the epoch has a finite training loss ({left_out} have none): look at "
                "the recordings that the log names, lower the learning rate, or choose fp32"
            )
