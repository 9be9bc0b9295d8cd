"""Is a difference in error rate more than chance? Intervals by bootstrap over utterances.

Everything here is a pure function of per-utterance counts. Rates are in percent, differences in
percentage points (after − before: negative is better). Resampling has a fixed seed, so that the
same runs give the same report.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from speechbrain_mam.errors import MAMError

N_RESAMPLES = 9999
LEVEL = 0.95
RESAMPLING_SEED = 1986
_BATCH = 500  # resamples at once: 16 MB for 1,000 utterances


class Interval(NamedTuple):
    """A confidence interval, in percent or in percentage points."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ErrorCounts:
    """What one system got wrong, utterance by utterance.

    Arguments
    ---------
    ids : tuple of str
        Utterance IDs.
    errors, words : numpy.ndarray
        Edits and reference words (or characters) per utterance ``[N]``.
    """

    ids: tuple[str, ...]
    errors: np.ndarray
    words: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.errors) == len(self.words):
            raise MAMError(
                f"{len(self.ids)} utterances, but {len(self.errors)} error counts and "
                f"{len(self.words)} word counts"
            )
        if np.sum(self.words) <= 0:
            raise MAMError("no reference word in any utterance: an error rate needs some")


@dataclass(frozen=True)
class Comparison:
    """One system (after) against another (before) on the same utterances.

    Arguments
    ---------
    before, after : float
        Error rates in percent, the mean over ``n_seeds``.
    difference : float
        ``after − before``, percentage points.
    interval : Interval
        95 % interval of the difference over utterances.
    method : str
        ``BCa``, ``percentile`` where BCa is undefined, or ``identical``.
    p : float
        Two-sided, from the bootstrap distribution; 0 means less than 1/``n_resamples``.
    n_resamples : int
        How many.
    identical : bool
        Whether every utterance has the same errors in both.
    n_seeds : int
        How many pairs of seeds; 1 if neither system was run with several, 0 if they have none in
        common.
    seeds : Interval or None
        95 % t interval of the mean difference over seeds, from two pairs of seeds on.
    """

    before: float
    after: float
    difference: float
    interval: Interval
    method: str
    p: float
    n_resamples: int
    identical: bool
    n_seeds: int = 1
    seeds: Interval | None = None

    @property
    def relative_change(self) -> float | None:
        """Percent of the rate before; ``None`` where that is 0."""
        return 100 * self.difference / self.before if self.before else None


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
        _check_same(several[0], counts)
    return ErrorCounts(
        several[0].ids,
        np.sum([counts.errors for counts in several], axis=0),
        np.sum([counts.words for counts in several], axis=0),
    )


def rate_interval(counts: ErrorCounts, n_resamples: int = N_RESAMPLES) -> Interval:
    """95 % bootstrap interval (BCa) of one system's error rate over utterances.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> words = rng.integers(5, 15, 100)
    >>> counts = ErrorCounts(tuple(map(str, range(100))), rng.binomial(words, 0.2), words)
    >>> low, high = rate_interval(counts, n_resamples=999)
    >>> low < error_rate(counts) < high
    True
    """

    def rate(errors, words, axis=-1):
        return 100 * errors.sum(axis) / words.sum(axis)

    return _bootstrap((counts.errors, counts.words), rate, n_resamples)[0]


def paired_bootstrap(
    before: ErrorCounts, after: ErrorCounts, n_resamples: int = N_RESAMPLES
) -> Comparison:
    """The difference of two error rates: utterances are drawn with replacement, for both alike.

    Arguments
    ---------
    before, after : ErrorCounts
        Of the same utterances in the same order.
    n_resamples : int
        Bootstrap resamples.

    Returns
    -------
    Comparison
        Without anything about seeds.

    Raises
    ------
    MAMError
        If the utterances differ, or there is only one.

    Example
    -------
    >>> words = np.full(50, 10)
    >>> ids = tuple(map(str, range(50)))
    >>> bad = ErrorCounts(ids, np.arange(50) % 5, words)
    >>> good = ErrorCounts(ids, np.arange(50) % 3, words)
    >>> comparison = paired_bootstrap(bad, good)
    >>> round(comparison.difference, 1), comparison.interval.high < 0, comparison.p < 0.01
    (-10.2, True, True)
    >>> paired_bootstrap(bad, bad).method
    'identical'
    """
    _check_same(before, after)
    rates = error_rate(before), error_rate(after)
    # Scaled by words, since one of them may be pooled over seeds.
    if np.array_equal(before.errors * after.words, after.errors * before.words):
        none = Interval(0.0, 0.0)  # BCa is undefined: no resample can differ
        return Comparison(*rates, 0.0, none, "identical", 1.0, n_resamples, identical=True)

    def change(errors, words, errors_after, words_after, axis=-1):
        return 100 * (
            errors_after.sum(axis) / words_after.sum(axis) - errors.sum(axis) / words.sum(axis)
        )

    samples = (before.errors, before.words, after.errors, after.words)
    interval, drawn, method = _bootstrap(samples, change, n_resamples)
    tail = min(float(np.mean(drawn <= 0)), float(np.mean(drawn >= 0)))
    return Comparison(
        *rates,
        difference=rates[1] - rates[0],
        interval=interval,
        method=method,
        p=min(1.0, 2 * tail),
        n_resamples=n_resamples,
        identical=False,
    )


def _check_same(one: ErrorCounts, other: ErrorCounts) -> None:
    if one.ids != other.ids:
        odd = next(iter(set(one.ids) ^ set(other.ids)), "their order")
        raise MAMError(f"only the same utterances can be compared; what differs: {odd}")


def _bootstrap(samples, statistic, n_resamples: int) -> tuple[Interval, np.ndarray, str]:
    if len(samples[0]) < 2:
        raise MAMError("one utterance has no interval: a bootstrap needs at least two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where BCa is undefined, the percentile takes its place
        result = stats.bootstrap(
            tuple(np.asarray(sample, dtype=float) for sample in samples),
            statistic,
            n_resamples=n_resamples,
            batch=_BATCH,
            vectorized=True,
            paired=True,
            confidence_level=LEVEL,
            method="BCa",
            rng=np.random.default_rng(RESAMPLING_SEED),
        )
    drawn = result.bootstrap_distribution
    bounds, method = result.confidence_interval, "BCa"
    if not np.isfinite([bounds.low, bounds.high]).all():
        tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        low, high = np.quantile(drawn, tails)
        return Interval(float(low), float(high)), drawn, "percentile"
    return Interval(float(bounds.low), float(bounds.high)), drawn, method
