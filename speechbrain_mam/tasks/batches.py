"""Batches that are kept and evaluated many times."""

from __future__ import annotations

import copy

from speechbrain.dataio.batch import PaddedBatch


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
