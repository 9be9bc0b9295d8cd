"""Utterances of one speaker are one piece of evidence: tests, intervals and what they promise."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from confidence_intervals import evaluate_with_conf_int
from scipy import stats

from speechbrain_mam.results.comparisons import compare, direction, verdict
from speechbrain_mam.results.counts import ErrorCounts, rate_interval
from speechbrain_mam.results.resampling import (
    Interval,
    bootstrap_intervals,
    sign_flip_intervals,
    sign_flip_p,
)
from speechbrain_mam.results.statistics import Comparison, paired_difference


def systems(change, clusters, words=10, base=5):
    """Two systems: ``base`` errors in each utterance, and as many more as ``change`` says."""
    change = np.asarray(change)
    ids, words = tuple(f"u{i}" for i in range(len(change))), np.full(len(change), words)
    one, other = np.full(len(change), base), base + change
    return tuple(ErrorCounts(ids, errors, words, tuple(clusters)) for errors in (one, other))


def by_hand(d):
    """p of all sign vectors, one by one."""
    far = abs(sum(d)) - 1e-12
    signs = list(itertools.product((-1, 1), repeat=len(d)))
    return sum(abs(np.dot(s, d)) >= far for s in signs) / len(signs)


@pytest.mark.parametrize("d", [(1, 1, 1, 1, 1, 1), (3, -1, 2, 0.5, -0.25), (2, -2, 0, 0, 1)])
def test_the_test_is_every_swap_within_clusters(d):
    assert sign_flip_p(np.array(d, dtype=float)) == by_hand(d)


def test_drawn_signs_agree_with_all_of_them_and_count_the_observed_one():
    d = np.random.default_rng(1).normal(0.5, 1, 13)
    assert sign_flip_p(d) == by_hand(d)  # 8,192 of at most 10,000
    assert sign_flip_p(d, 4999) == pytest.approx(by_hand(d), abs=0.02)
    assert sign_flip_p(np.ones(40), 999) == 0.001  # (0 + 1) / (999 + 1)


def test_few_clusters_have_no_ends_and_no_verdict():
    """Five speakers, all better, and many utterances: 2 of 32 sign vectors are as far from 0."""
    before, after = systems([-1] * 100, [f"p{i % 5}" for i in range(100)])
    found = paired_difference(before, after)
    assert found.n_clusters == 5 and found.p == 2 / 32 and found.method == "unbounded"
    assert found.interval == (-np.inf, np.inf) and direction(found) == "undecided"
    assert found.detectable == np.inf and not replace(found, margin=99.0).equivalent
    six = paired_difference(*systems([-1, -2] * 60, [f"p{i % 6}" for i in range(120)]))
    assert six.p == 2 / 64 and six.method == "sign flips" and direction(six) == "lower"
    alone = paired_difference(*systems([-1, -2], ["p", "p"]))
    assert alone.interval == (-np.inf, np.inf) and alone.p == 1


@pytest.mark.parametrize("clusters", [6, 9, 16])
def test_the_interval_of_few_clusters_is_what_the_test_does_not_reject(clusters):
    rng = np.random.default_rng(clusters)
    d, v = rng.normal(-0.4, 0.3, clusters), rng.uniform(0.5, 2, clusters)
    v /= v.sum()
    ((low, high),) = sign_flip_intervals(d, v)
    inside, outside = (low + 1e-6, high - 1e-6), (low - 1e-6, high + 1e-6)
    for delta in inside:
        assert sign_flip_p(d - delta * v) > 0.05
    for delta in outside:
        assert sign_flip_p(d - delta * v) <= 0.05
    (narrow,) = sign_flip_intervals(d, v, [0.9])
    assert low <= narrow.low < d.sum() < narrow.high <= high


def test_clusters_are_drawn_whole():
    """Twice the same utterances in each cluster are no more evidence than once."""
    rng = np.random.default_rng(3)
    change = rng.integers(-3, 3, 30)
    once = paired_difference(*systems(change, range_of(30)))
    twice = paired_difference(*systems(np.repeat(change, 2), np.repeat(range_of(30), 2)))
    assert (twice.interval, twice.p) == (once.interval, once.p)
    ignored = paired_difference(*systems(np.repeat(change, 2), range_of(60)))
    assert np.ptp(ignored.interval) < 0.8 * np.ptp(once.interval)
    rates = [
        np.ptp(rate_interval(systems(np.repeat(change, 2), clusters)[1]))
        for clusters in (np.repeat(range_of(30), 2), range_of(60))
    ]
    assert rates[1] < 0.8 * rates[0]


def range_of(n):
    return [f"p{i:03d}" for i in range(n)]


def test_the_bootstrap_is_scipys():
    rng = np.random.default_rng(4)
    words = rng.integers(3, 30, 80)
    errors = rng.binomial(words, 0.2)
    ours, method = bootstrap_intervals(errors, words, (0.95, 0.9))
    for level, found in zip((0.95, 0.9), ours, strict=True):
        theirs = stats.bootstrap(
            (errors, words),
            lambda e, w, axis=-1: e.sum(axis) / w.sum(axis),
            paired=True,
            vectorized=True,
            confidence_level=level,
            rng=np.random.default_rng(5),
        ).confidence_interval
        assert found == pytest.approx((theirs.low, theirs.high), abs=0.002)
    assert method == "BCa"


@pytest.mark.slow
@pytest.mark.parametrize(("clustered", "draws"), [(False, 500), (True, 120)])
def test_intervals_are_those_of_an_independent_package(clustered, draws):
    """PyPI's confidence-intervals (Ferrer), clusters as its conditions, by the percentile.

    It also draws within each cluster, which adds little where clusters are large. Five seconds.
    """
    one, other = by_speaker(np.random.default_rng(11), 1200, 24, 4, -1)
    ignored = tuple(ErrorCounts(c.ids, c.errors, c.words) for c in (one, other))
    center, theirs = evaluate_with_conf_int(
        np.stack([one.errors, other.errors, one.words], 1),
        lambda samples: 100 * (samples[:, 1] - samples[:, 0]).sum() / samples[:, 2].sum(),
        conditions=np.unique(one.clusters, return_inverse=True)[1] if clustered else None,
        num_bootstraps=draws,
    )
    found = paired_difference(*((one, other) if clustered else ignored))
    width, noise = np.ptp(found.interval), 0.2 if clustered else 0.1
    assert center == pytest.approx(found.difference)
    assert np.ptp(theirs) == pytest.approx(width, rel=noise)
    assert theirs == pytest.approx(found.interval, abs=noise * width)
    assert np.ptp(paired_difference(*ignored).interval) < 0.6 * np.ptp(theirs) or not clustered
    if not clustered:
        rate = evaluate_with_conf_int(
            np.stack([one.errors, one.words], 1),
            lambda samples: 100 * samples[:, 0].sum() / samples[:, 1].sum(),
            num_bootstraps=draws,
        )[1]
        assert rate == pytest.approx(rate_interval(ignored[0]), abs=0.3)


def test_a_rate_of_few_clusters_has_students_t():
    errors = np.array([2, 4, 3, 1, 5])
    counts = ErrorCounts(tuple("abcde"), errors, np.full(5, 10))
    t = stats.ttest_1samp(10.0 * errors, 0).confidence_interval(0.95)
    assert rate_interval(counts) == pytest.approx((t.low, t.high))
    none = ErrorCounts(tuple("ab"), np.array([0, 1]), np.array([10, 10]))
    assert rate_interval(none).low == 0  # t would go below
    one = ErrorCounts(tuple("ab"), np.array([0, 1]), np.array([10, 10]), ("p", "p"))
    assert rate_interval(one) == (-np.inf, np.inf)


def by_speaker(rng, clips, speakers, sd, effect=0.0, words=10):
    """A VCTK-like set: two systems, whose difference in points varies by speaker.

    ``sd`` is the s.d. of the speakers' differences in points, ``effect`` their mean. Both make the
    same errors but in some 8 % of the words.
    """
    who = np.arange(clips) % speakers
    gain = ((effect + sd * rng.standard_normal(speakers)) / 200)[who]
    before = rng.binomial(words, 0.25, clips)
    mended = rng.binomial(before, np.clip(0.04 - gain, 0, 0.25) / 0.25)
    spoilt = rng.binomial(words - before, np.clip(0.04 + gain, 0, 0.75) / 0.75)
    ids, w = tuple(map(str, range(clips))), np.full(clips, words)
    clusters = tuple(map(str, who))
    return tuple(
        ErrorCounts(ids, errors, w, clusters) for errors in (before, before - mended + spoilt)
    )


SETS = ((40, 4), (300, 10), (300, 30))


def false_verdicts(clips, speakers, sd, ignore=False, times=300):
    """The share of sets without a mean difference that get a verdict."""
    rng = np.random.default_rng((clips, speakers, int(sd)))
    found = 0
    for _ in range(times):
        before, after = by_speaker(rng, clips, speakers, sd)
        if ignore:
            before, after = (ErrorCounts(c.ids, c.errors, c.words) for c in (before, after))
        found += direction(paired_difference(before, after, 399)) in ("lower", "higher")
    return found / times


@pytest.mark.parametrize("sd", [0, 1, 2])
@pytest.mark.parametrize(("clips", "speakers"), SETS)
def test_false_verdicts_are_few(clips, speakers, sd):
    """At most 6 % of sets without a difference in the mean, whatever the speakers are like."""
    assert false_verdicts(clips, speakers, sd) <= 0.06


def test_false_verdicts_are_many_where_speakers_are_ignored():
    """Why clusters: the same simulation, utterances taken for independent."""
    assert false_verdicts(300, 10, 2, ignore=True, times=60) > 0.10
    assert false_verdicts(300, 10, 2, times=60) <= 0.10


@pytest.mark.slow
def test_the_effect_that_is_called_detectable_is_seen_in_80_percent():
    rng = np.random.default_rng(7)
    size = np.mean(
        [paired_difference(*by_speaker(rng, 600, 30, 1, 0), 99).detectable for _ in range(40)]
    )
    seen = np.mean(
        [
            direction(paired_difference(*by_speaker(rng, 600, 30, 1, -size), 399)) == "lower"
            for _ in range(300)
        ]
    )
    assert 0.72 <= seen <= 0.88


def test_detectable_by_hand():
    """Differences of −1 and +1 in 400 utterances of 10 words: s.e. 0.5 points, 2.8 of them."""
    found = paired_difference(*systems(np.tile([-1, 1], 200), range_of(400)))
    assert found.detectable == pytest.approx((1.966 + 0.843) * 0.5, abs=0.01)
    words, ids = np.full(60, 10), tuple(map(str, range(60)))
    rng = np.random.default_rng(8)
    runs = [
        {s: ErrorCounts(ids, rng.binomial(words, rate), words) for s in (1, 2, 3)}
        for rate in (0.3, 0.2)
    ]
    trained = compare(*runs)
    d = [
        float(100 * (runs[1][s].errors.sum() - runs[0][s].errors.sum()) / words.sum())
        for s in (1, 2, 3)
    ]
    t = stats.t.ppf([0.975, 0.8], 2).sum()
    assert trained.detectable_seeds == pytest.approx(t * np.std(d, ddof=1) / 3**0.5)
    assert trained.detectable == max(trained.detectable_seeds, trained.detectable_clusters)


def test_equivalence_needs_both_narrow_intervals_inside():
    inside = Comparison(
        *(30, 30, 0.0, Interval(-1.2, 1.1), "BCa", 0.9, 99, False),
        n_seeds=3,
        seeds=Interval(-1.5, 1.4),
        narrow=Interval(-0.9, 0.8),
        seeds_narrow=Interval(-0.9, 0.9),
        margin=1.0,
    )
    assert verdict(inside) == "within chance, equivalent (within ± 1 point)"
    assert verdict(replace(inside, margin=2.5)).endswith("equivalent (within ± 2.5 points)")
    for other in (
        {"narrow": Interval(-1.0, 0.8)},
        {"narrow": Interval(-0.9, 1.1)},
        {"seeds_narrow": Interval(-1.1, 0.9)},
        {"margin": None},
        {"margin": 0.5},
    ):
        assert verdict(replace(inside, **other)) == "within chance"
    one = replace(inside, n_seeds=1, seeds=None, seeds_narrow=None)
    assert verdict(one, trained=True).endswith("(within ± 1 point) (one seed)")


@pytest.mark.slow
def test_what_is_called_equivalent_is_so_in_some_95_percent():
    """Sets with a true difference of just the margin: some 5 % are called equivalent."""
    rng = np.random.default_rng(9)
    wrong = 0
    for _ in range(400):
        found = paired_difference(*by_speaker(rng, 900, 30, 0.5, 3.0), 399)
        wrong += replace(found, margin=3.0).equivalent
    assert 0.02 <= wrong / 400 <= 0.08


def draws(n, spread, merged=-30, size=200):
    """A random control in some draws, and a merge with ``merged`` errors more than 1,000."""
    rng = np.random.default_rng(10)
    ids, words = tuple(map(str, range(size))), np.full(size, 20)
    counts = np.full(size, 5)

    def moved(by):
        errors = counts.copy()
        picked = rng.choice(size, abs(by), replace=False)
        errors[picked] += np.sign(by)
        return ErrorCounts(ids, errors, words)

    shifts = np.linspace(-spread, spread, n).round().astype(int) if n > 1 else [0]
    return {i + 1: moved(int(s)) for i, s in enumerate(shifts)}, {None: moved(merged)}


def test_a_merge_is_compared_with_another_draw_and_not_with_the_mean_of_them():
    before, after = draws(10, 5)
    found = compare(before, after, draws=True)
    values = [float(100 * c.errors.sum() / c.words.sum()) for c in before.values()]
    merged = float(100 * after[None].errors.sum() / 4000)
    half = stats.t.ppf(0.975, 9) * np.std(values, ddof=1) * 1.1**0.5
    middle = merged - np.mean(values)
    assert found.seeds == pytest.approx((middle - half, middle + half))
    assert verdict(found) == "lower than the random draws"
    # The mean of draws that scatter is passed, another draw is not
    wide = compare(*draws(10, 60), draws=True)
    assert wide.interval.high < 0 < wide.seeds.high and verdict(wide) == "within chance"
    plain = compare(*draws(10, 60))
    assert plain.seeds.high < wide.seeds.high


def test_one_draw_gives_no_verdict():
    found = compare(*draws(1, 0), draws=True)
    assert found.p < 0.05 and found.interval.high < 0
    assert verdict(found) == direction(found) == "one draw: no verdict"
    gain = Comparison(30, 28, -2, Interval(-3, -1), "BCa", 0.001, 9999, False)
    said = verdict(gain, control=found)
    assert said == "lower, but not shown to be better than the random donor (one draw)"
    assert verdict(gain, drawn=True) == "lower (one draw)"
