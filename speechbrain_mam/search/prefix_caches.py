"""Prefix caches of several layers, shared by all points of a search.

A point's prefix does not hang on its donor, its control or a draw: what lies below the first merged
layer is the target's own. So each layer's inputs are kept once for the whole search.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from torch import nn

from speechbrain_mam.search.prefix_cache import PrefixCache


class PrefixCaches:
    """A :class:`~speechbrain_mam.search.prefix_cache.PrefixCache` for each layer that is asked for.

    Together they take the memory that one may. Where it is full, what does not fit goes to the
    folder; without one, the cache that was used longest ago is emptied first, and what does not fit
    even then is computed again.

    Arguments
    ---------
    target : nn.Module
        Holds the encoder. Its own weights must be the same at the beginning of each point.
    limit_mb : float
        For all of them.
    folder : Path, optional
        Where inputs go that do not fit.

    Example
    -------
    >>> import torch
    >>> from speechbrain_mam.lobes.hubert_ctc import HubertCTC
    >>> model, wav = HubertCTC("speechbrain_mam/hubert-mini").eval(), torch.randn(1, 8000)
    >>> caches = PrefixCaches(model, limit_mb=100)
    >>> with torch.no_grad():
    ...     for first in (2, 3, 2):
    ...         with caches.around(first)(0):
    ...             found, _ = model(wav)
    >>> caches.size_mb > 0, caches.close(), caches.size_mb
    (True, None, 0)
    """

    def __init__(self, target: nn.Module, limit_mb: float, folder: Path | None = None):
        self.target, self.limit, self.folder = target, int(limit_mb * 2**20), folder
        self._caches: dict[int, PrefixCache] = {}
        self._open = ExitStack()

    @property
    def size_mb(self) -> float:
        """Memory that the kept inputs take."""
        return sum(cache.size_mb for cache in self._caches.values())

    def around(self, first: int) -> Callable[[int], AbstractContextManager]:
        """What stands around each batch of a point whose first merged layer is ``first``."""
        if not self.limit and self.folder is None:
            return lambda _: nullcontext()
        cache = self._caches.pop(first, None)
        if cache is None:
            cache = PrefixCache(self.target, first, 0, self.folder)
            self._open.enter_context(cache)
        self._caches[first] = cache  # the last one is the one that was used last
        cache.make_room = self._make_room
        return cache.batch

    def _make_room(self, size: int) -> bool:
        """Whether so many bytes may be kept; others are emptied for it."""
        *others, _ = self._caches
        for first in others if self.folder is None else ():
            if self._bytes() + size <= self.limit:
                break
            self._caches.pop(first).__exit__()
        return self._bytes() + size <= self.limit

    def _bytes(self) -> int:
        return sum(cache.size for cache in self._caches.values())

    def close(self) -> None:
        """Empty all of them; the files are gone then. They can be filled again."""
        self._open.close()
        self._open, self._caches = ExitStack(), {}
