"""Is a difference in error rate more than chance? Errors by utterance, compared by cluster.

Everything here is a pure function of per-utterance counts. Rates are in percent, differences in
percentage points (after − before: negative is better). What is drawn, or has its sign flipped, are
clusters: utterances of one speaker (chapter, recording) are one piece of evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

from speechbrain_mam.results.counts import ErrorCounts, check_same, error_rate
from speechbrain_mam.results.resampling import (
    FEWEST_BOUNDED,
    FEWEST_DRAWN,
    LEVEL,
    N_RESAMPLES,
    NARROW,
    UNBOUNDED,
    Interval,
    bootstrap_intervals,
    ratio_error,
    sign_flip_intervals,
    sign_flip_p,
    t_quantile,
)

MANY = 10**6
POWER = 0.8
"""Of the cases, in which an effect of the size ``detectable`` is seen."""


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
        95 % interval of the difference over clusters.
    method : str
        ``BCa``, ``percentile`` where BCa is undefined, ``sign flips`` of fewer than 20 clusters,
        ``unbounded`` of fewer than 6, or ``identical``.
    p : float
        Two-sided, of the sign-flip test over clusters.
    n_resamples : int
        How many draws.
    identical : bool
        Whether every utterance has the same errors in both.
    n_seeds : int
        How many pairs of seeds; 1 if neither system was run with several, 0 if they have none in
        common.
    seeds : Interval or None
        95 % t interval of the mean difference over seeds, from two pairs of seeds on; where
        ``n_draws`` is set, of the difference from another draw.
    n_clusters : int
        How many clusters there are.
    narrow, seeds_narrow : Interval
        The same as ``interval`` and ``seeds``, of 90 %.
    detectable_clusters : float or None
        The difference in points that would be seen in 80 % of such test sets; ``None`` where the
        systems are identical, infinite where no difference can be.
    needed_clusters : float or None
        Clusters with which a difference of one point would be seen so; of other differences, divide
        by their square.
    detectable_seeds : float or None
        The same of so many seeds (draws).
    n_draws : int
        Draws of a random control that ``before`` stands for; 0 where it is something else.
    p_holm : float or None
        p after Holm's correction for the comparisons of a report; of the primary one ``p``.
    margin : float or None
        Points within which two systems count as equivalent; fixed before the runs.
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
    n_clusters: int = 0
    narrow: Interval = UNBOUNDED
    seeds_narrow: Interval | None = None
    detectable_clusters: float | None = None
    needed_clusters: float | None = None
    detectable_seeds: float | None = None
    n_draws: int = 0
    p_holm: float | None = None
    margin: float | None = None

    @property
    def relative_change(self) -> float | None:
        """Percent of the rate before; ``None`` where that is 0."""
        return 100 * self.difference / self.before if self.before else None

    @property
    def p_corrected(self) -> float:
        """What a verdict goes by: Holm's p where a report has corrected it."""
        return self.p if self.p_holm is None else self.p_holm

    @property
    def detectable(self) -> float | None:
        """The smallest difference in points that is seen in 80 % of cases, or ``None``."""
        known = [d for d in (self.detectable_clusters, self.detectable_seeds) if d is not None]
        return max(known, default=None)

    @property
    def equivalent(self) -> bool:
        """Whether the 90 % interval, and that over seeds, lies within ± the margin.

        Two one-sided tests at 5 % (Schuirmann 1987).
        """
        if self.margin is None:
            return False
        intervals = [self.narrow, *([self.seeds_narrow] if self.seeds_narrow else [])]
        return all(-self.margin < low and high < self.margin for low, high in intervals)


def paired_difference(
    before: ErrorCounts, after: ErrorCounts, n_resamples: int = N_RESAMPLES
) -> Comparison:
    """The difference of two error rates: its interval, and whether it is chance.

    A cluster c contributes d_c = 100 · (E_after,c / W_after − E_before,c / W_before), E its errors
    and W all words; these add up to the difference. p is that of a sign-flip test over clusters.
    The interval is a BCa bootstrap that draws clusters, from 20 of them on; of fewer it holds the
    differences that the sign-flip test does not reject, and below 6 it has no ends.

    Arguments
    ---------
    before, after : ErrorCounts
        Of the same utterances in the same order, in the same clusters.
    n_resamples : int
        Draws.

    Returns
    -------
    Comparison
        Without anything about seeds.

    Raises
    ------
    MAMError
        If the utterances or their clusters differ.

    Example
    -------
    >>> import numpy as np
    >>> words, ids = np.full(50, 10), tuple(map(str, range(50)))
    >>> bad = ErrorCounts(ids, np.arange(50) % 5, words)
    >>> good = ErrorCounts(ids, np.arange(50) % 3, words)
    >>> comparison = paired_difference(bad, good)
    >>> round(comparison.difference, 1), comparison.interval.high < 0, comparison.p < 0.01
    (-10.2, True, True)
    >>> paired_difference(bad, bad).method
    'identical'
    """
    check_same(before, after)
    rates = error_rate(before), error_rate(after)
    words = float(before.words.sum()), float(after.words.sum())
    # Words scaled, since one of them may be pooled over seeds; one division, so that 0 is 0
    moved = after.errors * words[0] - before.errors * words[1]
    clusters = before.n_clusters
    if not moved.any():
        none = Interval(0.0, 0.0)  # BCa is undefined: no draw can differ
        return Comparison(
            *(*rates, 0.0, none, "identical", 1.0, n_resamples, True),
            n_clusters=clusters,
            narrow=none,
        )
    contributions = 100 * before.by_cluster(moved) / (words[0] * words[1])
    shares = before.by_cluster(before.words) / words[0]
    if clusters >= FEWEST_DRAWN:
        intervals, method = bootstrap_intervals(contributions, shares, (LEVEL, NARROW), n_resamples)
    else:
        intervals = sign_flip_intervals(contributions, shares, (LEVEL, NARROW), n_resamples)
        method = "sign flips" if clusters >= FEWEST_BOUNDED else "unbounded"
    error = ratio_error(contributions, shares)
    few = clusters < FEWEST_BOUNDED  # no effect is seen; what it would take can be guessed
    seen = seen_in_most(error, MANY if few else clusters)
    return Comparison(
        *rates,
        difference=rates[1] - rates[0],
        interval=intervals[0],
        method=method,
        p=sign_flip_p(contributions, n_resamples),
        n_resamples=n_resamples,
        identical=False,
        n_clusters=clusters,
        narrow=intervals[1],
        detectable_clusters=float("inf") if few else seen,
        needed_clusters=clusters * seen**2,
    )


def seen_in_most(error: float, number: int) -> float:
    """The effect that a two-sided test at 5 % sees in 80 % of cases: (t.975 + t.8) · s.e.

    Arguments
    ---------
    error : float
        Its standard error.
    number : int
        Of clusters or seeds: t has one degree of freedom less. Of many, t.975 + t.8 is 2.8.

    Example
    -------
    >>> round(seen_in_most(1.0, 10_000), 2), round(seen_in_most(1.0, 3), 2)
    (2.8, 5.36)
    """
    return error * (t_quantile((1 + LEVEL) / 2, number - 1) + t_quantile(POWER, number - 1))
