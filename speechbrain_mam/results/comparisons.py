"""Systems that were run with several seeds, compared; and what a comparison shows, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.statistics import (
    LEVEL,
    N_RESAMPLES,
    Comparison,
    ErrorCounts,
    Interval,
    error_rate,
    paired_bootstrap,
    pool,
)

NO_BETTER = "no better than the random donor"


def compare(
    before: Mapping[int | None, ErrorCounts],
    after: Mapping[int | None, ErrorCounts],
    n_resamples: int = N_RESAMPLES,
) -> Comparison:
    """:func:`paired_bootstrap` of systems that were run with several seeds, paired by seed.

    The interval over utterances is that of the mean over seeds; :func:`seed_interval` adds what
    the choice of the seed alone does.

    Arguments
    ---------
    before, after : mapping of int to ErrorCounts
        By seed. The one key ``None`` stands for something without a seed (an untouched model, a
        merge with a fixed λ): it is compared with every seed of the other.
    n_resamples : int
        Bootstrap resamples.

    Returns
    -------
    Comparison
        Of the seeds that both have. Where they have none in common, ``n_seeds`` is 0, and all
        seeds of the one are compared with all of the other.

    Example
    -------
    >>> ids, words = ("a", "b", "c"), np.array([10, 10, 10])
    >>> untouched = {None: ErrorCounts(ids, np.array([3, 4, 5]), words)}
    >>> trained = {
    ...     seed: ErrorCounts(ids, np.array([2, 3, 3 + seed]), words) for seed in (1, 2, 3)
    ... }
    >>> comparison = compare(untouched, trained)
    >>> comparison.n_seeds, round(comparison.difference, 2), comparison.seeds.low < -10
    (3, -6.67, True)
    """
    pairs = [(before[b], after[a]) for b, a in pair_seeds(before, after)]
    pooled = paired_bootstrap(
        pool([b for b, _ in pairs] or [*before.values()]),
        pool([a for _, a in pairs] or [*after.values()]),
        n_resamples,
    )
    seeds = None
    if len(pairs) > 1:
        seeds = seed_interval([error_rate(a) - error_rate(b) for b, a in pairs])
    values = vars(pooled) | {"n_seeds": len(pairs), "seeds": seeds}
    if pooled.identical:  # in the sum over seeds; are they seed by seed?
        alike = (np.array_equal(b.errors, a.errors) for b, a in pairs)
        values["identical"] = bool(pairs) and all(alike)
        values["method"] = "identical" if values["identical"] else "percentile"
    return Comparison(**values)


def pair_seeds(
    before: Iterable[int | None], after: Iterable[int | None]
) -> list[tuple[int | None, int | None]]:
    """Which seed of one system is compared with which of another; ``None`` goes with every one.

    Example
    -------
    >>> pair_seeds([1, 2, 3], [2, 3, 4]), pair_seeds([None], [1, 2])
    ([(2, 2), (3, 3)], [(None, 1), (None, 2)])
    """
    before, after = list(before), list(after)
    if None in before:
        return [(None, seed) for seed in after]
    if None in after:
        return [(seed, None) for seed in before]
    return [(seed, seed) for seed in after if seed in before]


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (``None`` for one value).

    Example
    -------
    >>> mean_and_sd([30.0, 31.0, 32.0])
    (31.0, 1.0)
    """
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def seed_interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of differences that are paired by seed.

    Example
    -------
    >>> low, high = seed_interval([-1.0, -2.0, -3.0])
    >>> round(low, 2), round(high, 2)
    (-4.48, 0.48)
    """
    interval = t_interval(differences, level)
    if interval is None:
        raise MAMError("an interval over seeds needs at least two seeds")
    return interval


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t interval of a mean; ``None`` for one value."""
    mean, sd = mean_and_sd(values)
    if sd is None:
        return None
    half = (
        float(np.asarray(stats.t.ppf((1 + level) / 2, len(values) - 1))) * sd / len(values) ** 0.5
    )
    return Interval(mean - half, mean + half)


def direction(comparison: Comparison) -> str:
    """``identical``, ``lower``, ``higher`` or ``within chance``, by a fixed rule.

    Lower (higher) means that the whole interval over utterances is below (above) 0, that p is
    below 0.05 (of few utterances the two may disagree), and where there are several seeds, that the
    whole interval over seeds is below (above) 0 too.
    """
    if comparison.identical:
        return "identical"
    if comparison.p >= 1 - LEVEL:
        return "within chance"
    intervals = [comparison.interval, *([comparison.seeds] if comparison.seeds else [])]
    if all(interval.high < 0 for interval in intervals):
        return "lower"
    if all(interval.low > 0 for interval in intervals):
        return "higher"
    return "within chance"


def verdict(
    comparison: Comparison, trained: bool = False, control: Comparison | None = None
) -> str:
    """What a comparison shows, in words.

    Arguments
    ---------
    comparison : Comparison
        Of the system with what it started from.
    trained : bool
        Whether it was trained: one seed alone then says little, and the verdict says so.
    control : Comparison, optional
        Of the same system (after) with its own random-donor control (before).

    Example
    -------
    >>> gain = Comparison(30, 28, -2, Interval(-3, -1), "BCa", 0.001, 9999, False)
    >>> chance = Comparison(28.1, 28, -0.1, Interval(-1, 1), "BCa", 0.8, 9999, False)
    >>> verdict(gain), verdict(chance), verdict(gain, trained=True)
    ('lower', 'within chance', 'lower (one seed)')
    >>> verdict(gain, control=chance)
    'lower, but no better than the random donor'
    """
    found = direction(comparison)
    text = found
    if trained and comparison.n_seeds < 2 and found in ("lower", "higher"):
        text += " (one seed)" if comparison.n_seeds else " (no seed in common)"
    if control is not None and direction(control) != "lower":
        text += (", but" if found == "lower" else ",") + f" {NO_BETTER}"
    return text
