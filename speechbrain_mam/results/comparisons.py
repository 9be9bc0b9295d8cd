"""Systems that were run with several seeds, compared; and what a comparison shows, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.counts import ErrorCounts, error_rate, pool
from speechbrain_mam.results.resampling import (
    LEVEL,
    N_RESAMPLES,
    NARROW,
    UNBOUNDED,
    Interval,
    t_quantile,
)
from speechbrain_mam.results.statistics import Comparison, paired_difference, seen_in_most

NO_BETTER = "not shown to be better than the random donor"
ONE_DRAW = "one draw: no verdict"
CHANCE = "within chance"
UNDECIDED = "undecided"
"""Of so few clusters that no interval is bounded: neither a claim nor the absence of one."""


def compare(
    before: Mapping[int | None, ErrorCounts],
    after: Mapping[int | None, ErrorCounts],
    n_resamples: int = N_RESAMPLES,
    draws: bool = False,
) -> Comparison:
    """:func:`paired_difference` of systems that were run with several seeds, paired by seed.

    The interval over clusters is that of the mean over seeds; :func:`seed_interval` adds what the
    choice of the seed alone does.

    Arguments
    ---------
    before, after : mapping of int to ErrorCounts
        By seed. The one key ``None`` stands for something without a seed (an untouched model, a
        merge with a fixed λ): it is compared with every seed of the other.
    n_resamples : int
        Draws of clusters.
    draws : bool
        Whether ``before`` holds draws of a random control, by their numbers. What is asked then is
        whether another draw would do as well: :func:`prediction_interval` takes the place of the
        interval over seeds.

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
    found = paired_difference(
        pool([b for b, _ in pairs] or [*before.values()]),
        pool([a for _, a in pairs] or [*after.values()]),
        n_resamples,
    )
    found = replace(found, n_seeds=len(pairs), n_draws=len(before) if draws else 0)
    if found.identical:  # in the sum over seeds; are they seed by seed?
        alike = bool(pairs) and all(np.array_equal(b.errors, a.errors) for b, a in pairs)
        found = replace(found, identical=alike, method="identical" if alike else "percentile")
    if len(pairs) < 2:
        return found
    differences = [error_rate(a) - error_rate(b) for b, a in pairs]
    interval = prediction_interval if draws else seed_interval
    sd = mean_and_sd(differences)[1] or 0.0
    number = len(pairs)
    error = sd * (1 + 1 / number) ** 0.5 if draws else sd / number**0.5
    return replace(
        found,
        seeds=interval(differences),
        seeds_narrow=interval(differences, NARROW),
        detectable_seeds=None if found.identical else seen_in_most(error, number),
    )


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
    half = t_quantile((1 + level) / 2, len(values) - 1) * sd / len(values) ** 0.5
    return Interval(mean - half, mean + half)


def prediction_interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Where the difference from one more draw would lie: mean ± t · s.d. · √(1 + 1/n).

    It holds 0 where another draw may well do what the merge did, and does not shrink to nothing
    with more draws, as an interval of their mean does.

    Example
    -------
    >>> low, high = prediction_interval([-1.0, -2.0, -3.0])
    >>> round(low, 2), round(high, 2)
    (-6.97, 2.97)
    """
    mean, sd = mean_and_sd(differences)
    if sd is None:
        raise MAMError("an interval over draws needs at least two draws")
    number = len(differences)
    half = t_quantile((1 + level) / 2, number - 1) * sd * (1 + 1 / number) ** 0.5
    return Interval(mean - half, mean + half)


def side(comparison: Comparison) -> str:
    """``lower`` or ``higher`` if all intervals say so, else ``within chance``; p has no part."""
    intervals = [comparison.interval, *([comparison.seeds] if comparison.seeds else [])]
    if all(interval.high < 0 for interval in intervals):
        return "lower"
    if all(interval.low > 0 for interval in intervals):
        return "higher"
    return CHANCE


def direction(comparison: Comparison) -> str:
    """``identical``, ``lower``, ``higher``, ``within chance``, ``undecided`` or :data:`ONE_DRAW`.

    Lower (higher) means that the whole interval over clusters is below (above) 0, that p, after
    Holm's correction where there is one, is below 0.05, and where there are several seeds (draws),
    that the whole interval over seeds is below (above) 0 too. One draw of a random control says
    nothing of another one, and too few clusters for an interval say nothing of another speaker.
    """
    if comparison.identical:
        return "identical"
    if comparison.n_draws == 1:
        return ONE_DRAW
    if comparison.interval == UNBOUNDED:
        return UNDECIDED
    return side(comparison) if comparison.p_corrected < 1 - LEVEL else CHANCE


def verdict(
    comparison: Comparison,
    trained: bool = False,
    control: Comparison | None = None,
    drawn: bool = False,
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
    drawn : bool
        Whether the system is a random control itself: one draw alone says little, too.

    Example
    -------
    >>> gain = Comparison(30, 28, -2, Interval(-3, -1), "BCa", 0.001, 9999, False)
    >>> chance = Comparison(28.1, 28, -0.1, Interval(-1, 1), "BCa", 0.8, 9999, False)
    >>> verdict(gain), verdict(chance), verdict(gain, trained=True)
    ('lower', 'within chance', 'lower (one seed)')
    >>> verdict(gain, control=chance)
    'lower, but not shown to be better than the random donor'
    >>> verdict(replace(gain, p_holm=0.06)), verdict(replace(gain, p=0.06))
    ("within chance after Holm's correction", 'within chance (p and interval disagree)')
    >>> verdict(replace(chance, narrow=Interval(-0.9, 0.8), margin=1.0))
    'within chance, equivalent (within ± 1 point)'
    >>> verdict(replace(gain, interval=UNBOUNDED))
    'undecided'
    """
    found = direction(comparison)
    text, few = found, ""
    if drawn and comparison.n_seeds < 2:
        few = " (one draw)"
    elif trained and comparison.n_seeds < 2:
        few = " (one seed)" if comparison.n_seeds else " (no seed in common)"
    if found in ("lower", "higher"):
        text += " than the random draws" if comparison.n_draws else few
    elif found == CHANCE:
        text += _why_not(comparison)
        if comparison.equivalent:
            points = f"{comparison.margin:g} point" + "s" * (comparison.margin != 1)
            text += f", equivalent (within ± {points}){few}"
    if control is not None and direction(control) != "lower":
        text += (", but" if found == "lower" else ",") + f" {NO_BETTER}"
        text += " (one draw)" if control.n_draws == 1 else ""
    return text


def _why_not(comparison: Comparison) -> str:
    """Where p and the intervals do not say the same, which of them decided."""
    low, high = comparison.interval
    if (comparison.p < 1 - LEVEL) != (low > 0 or high < 0):
        return " (p and interval disagree)"
    claimed = comparison.p < 1 - LEVEL and side(comparison) != CHANCE
    return " after Holm's correction" if claimed else ""
