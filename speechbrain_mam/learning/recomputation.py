"""Activation checkpointing that λ gets its gradient through."""

from __future__ import annotations

import functools
import logging

from torch import nn

logger = logging.getLogger(__name__)


def use_nonreentrant_checkpointing(target: nn.Module) -> bool:
    """Switch a transformers model to the non-re-entrant activation checkpointing.

    The re-entrant one gives no gradient to λ where a layer's input needs none (a frozen target),
    and marks a λ that several layers share as ready several times, which DDP refuses. It is the
    default of transformers 4. The other one has neither limit and computes the same.

    Arguments
    ---------
    target : nn.Module
        The model; whether it checkpoints at all is left as it is.

    Returns
    -------
    bool
        Whether anything was switched.

    Example
    -------
    >>> from torch.utils.checkpoint import checkpoint
    >>> layer = nn.Linear(2, 2)
    >>> layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=True)
    >>> use_nonreentrant_checkpointing(nn.Sequential(layer))
    True
    >>> layer._gradient_checkpointing_func.keywords
    {'use_reentrant': False}
    """
    switched = False
    for module in target.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if not isinstance(function, functools.partial):
            continue
        if function.keywords.get("use_reentrant", False):
            options = function.keywords | {"use_reentrant": False}
            again = functools.partial(function.func, *function.args, **options)
            module._gradient_checkpointing_func = again  # type: ignore[assignment]
            switched = True
    if switched:
        logger.info(
            "%s: activation checkpointing is non-re-entrant now, as λ needs", type(target).__name__
        )
    return switched
