"""Ratios of sums over clusters: their intervals, and whether a sum of contributions is chance.

A cluster is what is drawn: an utterance, or all utterances of a speaker, chapter or recording. Each
has a numerator and a denominator (errors and words, or a difference in points and its share of the
words); the statistic is the ratio of the sums. Draws have a fixed seed and serve every comparison
of as many clusters, so that the same runs give the same report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

N_RESAMPLES = 9999
LEVEL = 0.95
NARROW = 0.90
"""Of the interval that has to lie within a margin: two one-sided tests at 5 %."""
RESAMPLING_SEED = 1986
FEWEST_DRAWN = 20
"""Clusters from which on a bootstrap is used: of fewer its intervals are too narrow."""
FEWEST_BOUNDED = 6
"""Clusters from which on there is an interval: of five, 2 of 32 signs are already above 5 %."""
_BATCH = 2**18  # cells at once: 2 MB, which a cache holds
_KEPT = 2**27  # bytes of draws that stay in memory


class Interval(NamedTuple):
    """A confidence interval, in percent or in percentage points."""

    low: float
    high: float


UNBOUNDED = Interval(-np.inf, np.inf)


def sign_flip_p(contributions: np.ndarray, n_resamples: int = N_RESAMPLES) -> float:
    """Two-sided p of a sum, by a sign-flip (paired permutation) test.

    Where before and after are alike, a cluster's contribution could as well have the other sign:
    p is the share of the sign vectors whose sum is at least as far from 0 as the observed one. All
    2^n of them are tried where they are no more than ``n_resamples + 1`` (zeros do not count), else
    ``n_resamples`` are drawn: p = (count + 1) / (n_resamples + 1).

    Arguments
    ---------
    contributions : numpy.ndarray
        ``[C]``, one a cluster.
    n_resamples : int
        Sign vectors that are drawn.

    Example
    -------
    >>> sign_flip_p(np.array([1.0, 2.0, 3.0])), sign_flip_p(np.array([1.0, -1.0, 0.0]))
    (0.25, 1.0)
    """
    moved = contributions[contributions != 0]
    far = abs(contributions.sum()) - 1e-9 * np.abs(contributions).sum()
    if len(moved) < (n_resamples + 1).bit_length():  # 2^n is no more than that
        sums = _all_signs(len(moved)) @ moved
        return float(np.mean(np.abs(sums) >= far))
    sums = _sums("signs", contributions[:, None], n_resamples)[:, 0]
    return (int(np.sum(np.abs(sums) >= far)) + 1) / (n_resamples + 1)


def sign_flip_intervals(
    contributions: np.ndarray,
    shares: np.ndarray,
    levels: Sequence[float] = (LEVEL,),
    n_resamples: int = N_RESAMPLES,
) -> list[Interval]:
    """The differences δ that the test of :func:`sign_flip_p` does not reject.

    Under δ a cluster contributes ``d_c − δ · v_c``. A sign vector is as far from 0 as the observed
    one for the δ between the ratio Σd/Σv of the clusters that it flips and that of the others, so
    that the ends are order statistics of these ratios; nothing is searched.

    Arguments
    ---------
    contributions, shares : numpy.ndarray
        d and v, ``[C]``; the shares add up to 1.
    levels : sequence of float
        1 − α each.
    n_resamples : int
        Sign vectors that are drawn where 2^C are more.

    Returns
    -------
    list of Interval
        For each level; unbounded below :data:`FEWEST_BOUNDED` clusters.

    Example
    -------
    >>> d, v = np.array([-3.0, -1.0, -2.0, -2.5, -1.5, -2.0]) / 6, np.full(6, 1 / 6)
    >>> [(round(low, 2), round(high, 2)) for low, high in sign_flip_intervals(d, v)]
    [(-3.0, -1.0)]
    """
    clusters = len(contributions)
    if clusters < FEWEST_BOUNDED:
        return [UNBOUNDED] * len(levels)
    if clusters < (n_resamples + 1).bit_length():
        signs = _all_signs(clusters)
    else:  # the observed one is among them
        drawn = list(_batches("signs", clusters, n_resamples))
        signs = np.concatenate([np.ones((1, clusters), np.int8), *drawn])
    both = np.stack([contributions, shares], 1)
    ends = []
    for part in (signs < 0, signs > 0):
        sums = part.astype(float) @ both
        with np.errstate(divide="ignore", invalid="ignore"):
            ends.append(sums[:, 0] / sums[:, 1])
    lows, highs = np.minimum(*ends), np.maximum(*ends)
    whole = np.isnan(lows)  # all or none are flipped: as far from 0 for every δ
    lows, highs = np.sort(np.where(whole, -np.inf, lows)), np.sort(np.where(whole, np.inf, highs))
    found = []
    for level in levels:
        at = int((1 - level) * len(signs) + 1e-9)
        found.append(Interval(float(lows[at]), float(highs[-1 - at])))
    return found


def bootstrap_intervals(
    numerators: np.ndarray,
    denominators: np.ndarray,
    levels: Sequence[float] = (LEVEL,),
    n_resamples: int = N_RESAMPLES,
) -> tuple[list[Interval], str]:
    """BCa intervals of a ratio of sums, clusters drawn with replacement.

    Efron, "Better Bootstrap Confidence Intervals", 1987.

    Returns
    -------
    tuple
        An interval for each level, and ``BCa``, or ``percentile`` where BCa is undefined.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> words = rng.integers(5, 15, 100)
    >>> (interval,), method = bootstrap_intervals(rng.binomial(words, 0.2), words, n_resamples=999)
    >>> method, interval.low < 0.2 < interval.high
    ('BCa', True)
    """
    both = np.stack([numerators, denominators], 1).astype(float)
    sums = _sums("counts", both, n_resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = sums[:, 0] / sums[:, 1]
        one_out = (both[:, 0].sum() - both[:, 0]) / (both[:, 1].sum() - both[:, 1])
        found = both[:, 0].sum() / both[:, 1].sum()
        near = np.abs(drawn - found) <= 1e-9 * np.abs(drawn - found).max()
        bias = ndtri(np.mean(near / 2 + (~near & (drawn < found))))
        skew = one_out.mean() - one_out
        acceleration = (skew**3).sum() / (6 * (skew**2).sum() ** 1.5)
    if not np.isfinite(drawn).all():  # some draws have no word
        return [UNBOUNDED] * len(levels), "unbounded"
    intervals, method = [], "BCa"
    for level in levels:
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        moved = bias + ndtri(tails)
        at = ndtr(bias + moved / (1 - acceleration * moved))
        if not np.isfinite(at).all():
            at, method = tails, "percentile"
        low, high = np.quantile(drawn, at)
        intervals.append(Interval(float(low), float(high)))
    return intervals, method


def t_quantile(probability: float, freedom: int) -> float:
    """Student's t.

    Example
    -------
    >>> round(t_quantile(0.975, 9), 3)
    2.262
    """
    return float(stdtrit(freedom, probability))


def ratio_error(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Standard error of a ratio of sums over clusters, by its linearisation; of one, infinite.

    s.e. = √(C / (C − 1) · Σ (num_c − R · den_c)²) / Σ den

    Example
    -------
    >>> round(ratio_error(np.array([0.0, 2.0] * 200), np.full(400, 10.0)), 5)
    0.00501
    """
    clusters, total = len(numerators), denominators.sum()
    if clusters < 2:
        return float("inf")
    rest = numerators - numerators.sum() / total * denominators
    return float((clusters / (clusters - 1) * (rest**2).sum()) ** 0.5 / total)


@lru_cache(maxsize=16)
def _all_signs(clusters: int) -> np.ndarray:
    """Every sign vector, ``[2^C, C]``."""
    numbers = np.arange(2**clusters)[:, None] >> np.arange(clusters)
    return (1 - 2 * (numbers & 1)).astype(np.int8)


def _sums(kind: str, columns: np.ndarray, n_resamples: int) -> np.ndarray:
    """Of each draw the weighted sums of some columns ``[C, K]``, as ``[n_resamples, K]``."""
    parts = [batch.astype(float) @ columns for batch in _batches(kind, len(columns), n_resamples)]
    return np.concatenate(parts)


def _batches(kind: str, clusters: int, n_resamples: int) -> Iterable[np.ndarray]:
    small = clusters * n_resamples <= _KEPT
    return (_kept if small else _draw)(kind, clusters, n_resamples)


@lru_cache(maxsize=2)
def _kept(kind: str, clusters: int, n_resamples: int) -> tuple[np.ndarray, ...]:
    return tuple(_draw(kind, clusters, n_resamples))


def _draw(kind: str, clusters: int, n_resamples: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, or its sign, ``[batch, C]`` each."""
    rng = np.random.default_rng(RESAMPLING_SEED)
    at_once = max(1, _BATCH // clusters)
    for start in range(0, n_resamples, at_once):
        size = min(at_once, n_resamples - start)
        if kind == "signs":
            yield (2 * rng.integers(0, 2, (size, clusters), np.int8) - 1).astype(np.int8)
            continue
        picked = rng.integers(0, clusters, (size, clusters))
        picked += np.arange(size)[:, None] * clusters
        counts = np.bincount(picked.ravel(), minlength=size * clusters)
        yield counts.reshape(size, clusters).astype(np.uint8)
