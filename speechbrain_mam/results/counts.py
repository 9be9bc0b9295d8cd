"""What one system got wrong, utterance by utterance, in clusters; its error rate and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.resampling import (
    FEWEST_DRAWN,
    LEVEL,
    N_RESAMPLES,
    UNBOUNDED,
    Interval,
    bootstrap_intervals,
    ratio_error,
    t_quantile,
)


@dataclass(frozen=True, eq=False)
class ErrorCounts:
    """What one system got wrong, utterance by utterance.

    Arguments
    ---------
    ids : tuple of str
        Utterance IDs.
    errors, words : numpy.ndarray
        Edits and reference words (or characters) per utterance ``[N]``.
    clusters : tuple of str
        Of each utterance what it shares with others: its speaker, its recording. Empty: each is its
        own cluster.
    """

    ids: tuple[str, ...]
    errors: np.ndarray
    words: np.ndarray
    clusters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.errors) == len(self.words):
            raise MAMError(
                f"{len(self.ids)} utterances, but {len(self.errors)} error counts and "
                f"{len(self.words)} word counts"
            )
        if not self.clusters:
            object.__setattr__(self, "clusters", self.ids)
        if len(self.clusters) != len(self.ids):
            raise MAMError(f"{len(self.ids)} utterances, but {len(self.clusters)} clusters")
        if np.sum(self.words) <= 0:
            raise MAMError("no reference word in any utterance: an error rate needs some")

    @cached_property
    def _codes(self) -> np.ndarray:
        return np.unique(np.array(self.clusters), return_inverse=True)[1]

    @property
    def n_clusters(self) -> int:
        """How many clusters."""
        return len(set(self.clusters))

    def by_cluster(self, values: np.ndarray) -> np.ndarray:
        """Sums of values ``[N]`` over the utterances of each cluster ``[C]``.

        Example
        -------
        >>> zeros = np.zeros(3, int)
        >>> counts = ErrorCounts(("a", "b", "c"), zeros, zeros + 1, ("p1", "p2", "p1"))
        >>> counts.by_cluster(np.array([1, 2, 3])).tolist()
        [4.0, 2.0]
        """
        return np.bincount(self._codes, weights=values)


def error_rate(counts: ErrorCounts) -> float:
    """Errors over reference words, percent.

    Example
    -------
    >>> error_rate(ErrorCounts(("a", "b"), np.array([1, 2]), np.array([10, 5])))
    20.0
    """
    return float(100 * counts.errors.sum() / counts.words.sum())


def pool(several: Sequence[ErrorCounts]) -> ErrorCounts:
    """Errors and words summed per utterance: the rate of the result is the mean over seeds.

    Example
    -------
    >>> runs = [ErrorCounts(("a",), np.array([e]), np.array([10])) for e in (1, 2)]
    >>> error_rate(pool(runs))
    15.0
    """
    for counts in several[1:]:
        check_same(several[0], counts)
    return ErrorCounts(
        several[0].ids,
        np.sum([counts.errors for counts in several], axis=0),
        np.sum([counts.words for counts in several], axis=0),
        several[0].clusters,
    )


def rate_interval(counts: ErrorCounts, n_resamples: int = N_RESAMPLES) -> Interval:
    """95 % interval of one system's error rate over clusters.

    A BCa bootstrap from 20 clusters on. Of fewer, Student's t of the ratio: rate ± t · s.e., by its
    linearisation, with C − 1 degrees of freedom, and no lower than 0. Of one, unbounded.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> words = rng.integers(5, 15, 100)
    >>> counts = ErrorCounts(tuple(map(str, range(100))), rng.binomial(words, 0.2), words)
    >>> low, high = rate_interval(counts, n_resamples=999)
    >>> low < error_rate(counts) < high
    True
    """
    errors, words = counts.by_cluster(100.0 * counts.errors), counts.by_cluster(counts.words)
    if len(errors) >= FEWEST_DRAWN:
        return bootstrap_intervals(errors, words, (LEVEL,), n_resamples)[0][0]
    if len(errors) < 2:
        return UNBOUNDED
    half = t_quantile((1 + LEVEL) / 2, len(errors) - 1) * ratio_error(errors, words)
    return Interval(max(0.0, error_rate(counts) - half), error_rate(counts) + half)


def check_same(one: ErrorCounts, other: ErrorCounts) -> None:
    """Two systems must have been tested on the same utterances, in the same clusters.

    Raises
    ------
    MAMError
        Names an utterance that differs.
    """
    if one.ids != other.ids:
        odd = next(iter(set(one.ids) ^ set(other.ids)), "their order")
        raise MAMError(f"only the same utterances can be compared; what differs: {odd}")
    if one.clusters != other.clusters:
        pairs = zip(one.ids, one.clusters, other.clusters, strict=True)
        odd = next(name for name, a, b in pairs if a != b)
        raise MAMError(f"only utterances of the same clusters can be compared; not so: {odd}")
