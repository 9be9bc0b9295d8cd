"""Attention that reads its projections' weights reads each several times; they are merged once.

``torch.nn.MultiheadAttention`` looks at its weights six to eight times a forward pass, WavLM's
attention three times. Within one forward pass of the module that reads them, the merged tensors
are kept, and dropped at its end, whatever ends it. A pass has tensors of its own, so λ may change
between passes, autograd's graph of a pass is its own, and activation checkpointing's second pass
merges again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Result = TypeVar("Result")


class _Pass(NamedTuple):
    """A forward pass of ``reader`` that has begun, the modules it reads, and what was merged."""

    reader: nn.Module
    modules: dict[int, nn.Module]
    results: dict[tuple[int, ...], Any]


class _Passes(threading.local):
    """The passes that a thread is in, the innermost last (``DataParallel`` has several threads)."""

    def __init__(self) -> None:
        self.open: list[_Pass] = []


_PASSES = _Passes()


def keep_merged_within(readers: Iterable[nn.Module]) -> list[RemovableHandle]:
    """Have what is read of ``readers`` and their parts merged once in a forward pass of a reader.

    The hooks are plain functions and know nothing of the modules: copies of a model have them, and
    it can be pickled.

    Returns
    -------
    list of RemovableHandle
        Take the hooks off again.
    """
    handles = []
    for reader in readers:
        handles.append(reader.register_forward_pre_hook(_begin, prepend=True))
        handles.append(reader.register_forward_hook(_end, always_call=True))
    return handles


def once_a_forward(module: nn.Module, merge: Callable[[], Result]) -> Result:
    """``merge()``, or what it gave before in the forward pass that ``module`` is read in."""
    if torch.compiler.is_compiling():  # which finds by itself what is computed twice
        return merge()
    for current in reversed(_PASSES.open):
        if id(module) in current.modules:
            # What was merged without a graph is of no use with one. An interrupt (Ctrl-C) may leave
            # a pass open: what an optimizer has stepped since is merged again.
            modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
            parameters = module.parameters(recurse=False)
            steps = (0 if tensor.is_inference() else tensor._version for tensor in parameters)
            key = (id(module), *modes, *steps)
            if key not in current.results:
                current.results[key] = merge()
            result: Result = current.results[key]
            return result
    return merge()


def _begin(reader: nn.Module, arguments: Any) -> None:
    if not torch.compiler.is_compiling():
        modules = {id(module): module for module in (reader, *reader.children())}
        _PASSES.open.append(_Pass(reader, modules, {}))


def _end(reader: nn.Module, arguments: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for i in reversed(range(len(_PASSES.open))):
        if _PASSES.open[i].reader is reader:
            # those above it were interrupted where no hook is called
            del _PASSES.open[i:]
            return
