"""A target that starts from a donor's attention, then trained as any other: what a Brain does.

The merge is in the weights until training or a test begins, so that weights which a pretrainer
loads meanwhile are the target's own, and begin there too. From then on it is part of them: a
checkpoint has what was trained, is loaded as it is, and says which donor it began with.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_mam.brain.checkpoints import describe
from speechbrain_mam.errors import MAMError
from speechbrain_mam.mam import MAM


@register_checkpoint_hooks
class StartNote:
    """Which donor a training has begun with: MAM's part of a checkpoint without λ.

    :func:`~speechbrain_mam.brain.checkpoints.guard` compares it before anything is loaded.

    Arguments
    ---------
    mam : MAM
        With ``start: donor`` and a fixed λ.
    """

    def __init__(self, mam: MAM):
        self.mam = mam

    @mark_as_saver
    def _save(self, path: str) -> None:
        text = yaml.safe_dump(describe(self.mam), sort_keys=False)
        Path(path).write_text(text, encoding="utf-8")

    @mark_as_loader
    def _load(self, path: str, end_of_epoch: bool) -> None:
        """There is nothing in it that the training needs."""


def note_start(checkpointer: Checkpointer | None, mam: MAM | None) -> None:
    """Have the start of a training noted in its checkpoints."""
    if checkpointer is not None and mam is not None and mam.is_start:
        checkpointer.add_recoverable("mam", StartNote(mam))


def begin_training(mam: MAM) -> None:
    """Before a training's first step, or before it is resumed.

    Raises
    ------
    MAMError
        If the merge is a fixed one of a trained target: its undoing would lose what was learned.
    """
    if mam.is_start:
        mam.adopt()
    elif not mam.learnable:
        raise MAMError(
            "fit() with a fixed λ: a zero-shot merge trains nothing; set 'learnable: True', or "
            "'start: donor' where the merged layers are not trained yet"
        )


def while_recovering(mam: MAM | None) -> AbstractContextManager[Any]:
    """Around the recovery of a checkpoint before a test, where λ is not learned.

    A fixed merge is taken back, and done again with what was recovered. One that a training has
    begun with is in what is recovered; without a checkpoint, it is tested as it is.
    """
    if mam is not None and mam.is_start:
        mam.adopt()
        return nullcontext()
    return nullcontext() if mam is None else mam.taken_back()
