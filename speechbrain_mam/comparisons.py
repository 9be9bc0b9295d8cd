"""Systems that were run with several seeds, compared; and what a comparison shows, in words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy import stats

from speechbrain_mam.errors import MAMError
from speechbrain_mam.statistics import (
    LEVEL,
    N_RESAMPLES,
    Comparison,
    ErrorCounts,
    Interval,
    error_rate,
    paired_bootstrap,
    pool,
)


def compare(
    before: Mapping[Hashable, ErrorCounts],
    after: Mapping[Hashable, ErrorCounts],
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
        Of the seeds that both have.

    Raises
    ------
    MAMError
        If both have seeds, and none in common.

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
    if None in before:
        pairs = [(before[None], counts) for counts in after.values()]
    elif None in after:
        pairs = [(counts, after[None]) for counts in before.values()]
    else:
        pairs = [(before[seed], after[seed]) for seed in after if seed in before]
    if not pairs:
        raise MAMError(
            f"no seed in common: {', '.join(map(str, before))} against "
            f"{', '.join(map(str, after))}; run both with the same seeds"
        )
    pooled = paired_bootstrap(pool([b for b, _ in pairs]), pool([a for _, a in pairs]), n_resamples)
    seeds = None
    if len(pairs) > 1:
        seeds = seed_interval([error_rate(a) - error_rate(b) for b, a in pairs])
    values = vars(pooled) | {"n_seeds": len(pairs), "seeds": seeds}
    if pooled.identical:  # in the sum over seeds; are they seed by seed?
        values["identical"] = all(np.array_equal(b.errors, a.errors) for b, a in pairs)
        values["method"] = "identical" if values["identical"] else "percentile"
    return Comparison(**values)


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
    mean, sd = mean_and_sd(differences)
    if sd is None:
        raise MAMError("an interval over seeds needs at least two seeds")
    half = (
        float(np.asarray(stats.t.ppf((1 + level) / 2, len(differences) - 1)))
        * sd
        / len(differences) ** 0.5
    )
    return Interval(mean - half, mean + half)


def direction(comparison: Comparison) -> str:
    """``identical``, ``lower``, ``higher`` or ``within chance``, by a fixed rule.

    Lower (higher) means that the whole interval over utterances is below (above) 0 and, where
    there are several seeds, the whole interval over seeds too.
    """
    if comparison.identical:
        return "identical"
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
    one_seed = trained and comparison.n_seeds == 1 and found in ("lower", "higher")
    text = f"{found} (one seed)" if one_seed else found
    if control is not None and direction(control) != "lower":
        text += (", but" if found == "lower" else ",") + " no better than the random donor"
    return text
