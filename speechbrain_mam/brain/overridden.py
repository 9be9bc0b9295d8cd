"""A method that a subclass overrides, with something of the base class after or around it.

SpeechBrain's recipes write ``on_stage_end``, ``init_optimizers``, ``freeze_optimizers`` and
``fit_batch`` without ``super()``. In ``class MAMASR(MAMBrain, TheirASR)`` plain inheritance would
do, since MAMBrain's methods come first. In ``class ASR(MAMBrain, sb.Brain)``, the one line that the
diffs of ``examples/diffs`` change in a recipe, the recipe's methods come first and would hide
MAMBrain's: λ would be in no optimizer and in no log. LibriSpeech's CTC and IEMOCAP's recipe with
wav2vec 2.0 are such recipes (``tests/test_diffs.py`` looks), and so is this package's own
:class:`~speechbrain_mam.tasks.task.TaskBrain`. A recipe that averages checkpoints does so after
``super().on_evaluate_start()``, so that MAM's part has to end after the recipe's.

Example
-------
>>> class Base:
...     def __init_subclass__(cls):
...         cls.total = then("total")(cls.total)
...
...     def _mam_after_total(self, result, values):
...         return 2 * result
>>> class Theirs(Base):
...     def total(self, values):
...         return sum(values)
>>> Theirs().total([1, 2])
6
"""

from __future__ import annotations

import functools
from collections.abc import Callable

Wrapper = Callable[[Callable], Callable]


def then(name: str) -> Wrapper:
    """The method's result goes through ``_mam_after_<name>(result, *arguments)``."""

    def wrap(method: Callable) -> Callable:
        @functools.wraps(method)
        def wrapped(self, *args, **kwargs):
            result = method(self, *args, **kwargs)
            return getattr(self, f"_mam_after_{name}")(result, *args, **kwargs)

        return wrapped

    return wrap


def within(name: str) -> Wrapper:
    """The method runs in the context ``_mam_around_<name>(*arguments)``.

    It is entered once, by the outermost of the methods of this name that call each other. The set
    ``self._mam_inside`` holds the names of those that are running.
    """

    def wrap(method: Callable) -> Callable:
        @functools.wraps(method)
        def wrapped(self, *args, **kwargs):
            if name in self._mam_inside:
                return method(self, *args, **kwargs)
            self._mam_inside.add(name)
            try:
                with getattr(self, f"_mam_around_{name}")(*args, **kwargs):
                    return method(self, *args, **kwargs)
            finally:
                self._mam_inside.discard(name)

        return wrapped

    return wrap
