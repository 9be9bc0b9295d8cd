"""Intervals and verdicts against known answers, and the coverage that they promise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from speechbrain_mam import MAMError
from speechbrain_mam.results.comparisons import (
    compare,
    direction,
    mean_and_sd,
    prediction_interval,
    seed_interval,
    verdict,
)
from speechbrain_mam.results.counts import ErrorCounts, error_rate, pool, rate_interval
from speechbrain_mam.results.resampling import Interval
from speechbrain_mam.results.statistics import Comparison, paired_difference


def counts(errors, words=None):
    errors = np.asarray(errors)
    words = np.full(len(errors), 10) if words is None else np.asarray(words)
    return ErrorCounts(tuple(f"u{i}" for i in range(len(errors))), errors, words)


def recognisers(rng, n=120, worse=0.0):
    """Two recognisers of one test set: the same hard utterances, each its own accidents."""
    words = rng.integers(3, 18, n)
    difficulty = rng.beta(1.2, 3.0, n)
    shared = rng.binomial(words, 0.7 * difficulty)
    one, other = (
        shared + rng.binomial(words - shared, 0.3 * difficulty + extra) for extra in (0.0, worse)
    )
    return counts(one, words), counts(other, words)


def test_a_rate_and_its_interval_by_hand():
    even = counts(np.tile([0, 2], 200))  # mean 1 of 10 words, sd 1: s.e. of the rate 0.5 points
    assert error_rate(even) == 10.0
    low, high = rate_interval(even)
    assert low == pytest.approx(10 - 1.96 * 0.5, abs=0.06)
    assert high == pytest.approx(10 + 1.96 * 0.5, abs=0.06)


def test_words_weigh_an_utterance():
    uneven = counts([1, 0], [1, 99])
    assert error_rate(uneven) == 1.0


def test_a_difference_with_a_known_interval():
    """Differences of −1 and +1 in equal parts, and of −1 alone in a tenth of the utterances."""
    rng = np.random.default_rng(1)
    before = np.full(400, 5)
    sign = rng.permutation(np.repeat([-1, 1], 200))
    none = paired_difference(counts(before), counts(before + sign))
    assert none.difference == 0 and none.p > 0.9
    assert none.interval == pytest.approx((-0.98, 0.98), abs=0.06)  # ± 1.96 · 10 % / √400
    tenth = paired_difference(counts(before), counts(before - (np.arange(400) % 10 == 0)))
    # The number of drawn utterances with a gain is binomial(400, 0.1)
    assert tenth.difference == pytest.approx(-1.0)
    low, high = (-q / 40 for q in stats.binom.ppf([0.975, 0.025], 400, 0.1))
    assert tenth.interval == pytest.approx((low, high), abs=0.06)
    assert tenth.method == "BCa" and direction(tenth) == "lower"
    assert tenth.p == 1 / 10_000  # no sign vector as far from 0: the smallest that there is


def test_the_p_value_is_that_of_a_z_test_where_that_holds():
    rng = np.random.default_rng(2)
    change = rng.normal(-0.1, 2.0, 1000).round()
    comparison = paired_difference(counts(np.full(1000, 9)), counts(9 + change))
    z = change.mean() / (change.std() / 1000**0.5)
    assert comparison.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)
    assert 0.001 < comparison.p < 0.3


def test_identical_systems_are_called_identical():
    one = counts([0, 1, 2, 3])
    same = paired_difference(one, counts([0, 1, 2, 3]))
    assert same.identical and same.method == "identical"
    assert same.interval == (0, 0) and same.p == 1.0
    assert verdict(same) == "identical"
    swapped = paired_difference(one, counts([1, 0, 2, 3]))  # the same rate, other errors
    assert swapped.difference == 0 and not swapped.identical
    assert direction(swapped) == "undecided"


def test_where_bca_is_undefined_the_percentile_takes_its_place():
    """Every utterance better by the same share: no resample differs from another."""
    constant = paired_difference(counts([5] * 20), counts([4] * 20))
    assert constant.method == "percentile"
    assert constant.interval == pytest.approx((-10, -10))
    assert direction(constant) == "lower"
    assert rate_interval(counts([0] * 20)) == (0, 0)


def test_resampling_reproduces():
    one, other = recognisers(np.random.default_rng(3))
    assert paired_difference(one, other) == paired_difference(one, other)


@pytest.mark.slow
def test_intervals_cover_zero_in_95_percent_of_sets_that_differ_by_chance():
    """1,000 simulated test sets of 120 utterances; about 4 seconds."""
    rng = np.random.default_rng(4)
    covered, rejected = 0, 0
    for _ in range(1000):
        comparison = paired_difference(*recognisers(rng), n_resamples=999)
        covered += comparison.interval.low <= 0 <= comparison.interval.high
        rejected += comparison.p < 0.05
    assert 930 <= covered <= 970, covered
    assert 20 <= rejected <= 60, rejected  # sums of whole errors tie, and ties count as no evidence


def test_a_true_difference_is_found():
    rng = np.random.default_rng(5)
    found = sum(
        direction(paired_difference(*recognisers(rng, worse=0.08), n_resamples=499)) == "higher"
        for _ in range(50)
    )
    assert found >= 45


error_lists = st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(1, 15)), min_size=2)


@settings(max_examples=60, deadline=None)
@given(error_lists)
def test_properties_of_a_comparison(rows):
    one, other, words = (np.array(column) for column in zip(*rows, strict=True))
    before, after = counts(one, words), counts(other, words)
    there = paired_difference(before, after, n_resamples=199)
    back = paired_difference(after, before, n_resamples=199)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p)
    assert there.interval.low <= there.interval.high
    assert 0 <= there.p <= 1
    assert there.identical == bool((one == other).all())
    # Three seeds with the same outcome are that outcome
    pooled = paired_difference(pool([before] * 3), after, n_resamples=199)
    assert pooled.difference == pytest.approx(there.difference)
    assert pooled.interval == pytest.approx(there.interval)


@settings(max_examples=40, deadline=None)
@given(error_lists, st.randoms())
def test_a_rate_does_not_depend_on_the_order(rows, random):
    shuffled = random.sample(rows, len(rows))
    rates = [error_rate(counts([r[0] for r in x], [r[2] for r in x])) for x in (rows, shuffled)]
    assert rates[0] == pytest.approx(rates[1])


def test_seeds_are_averaged_per_utterance_and_paired():
    rng = np.random.default_rng(6)
    words = rng.integers(5, 15, 60)
    before = {s: counts(rng.binomial(words, 0.3), words) for s in (1, 2, 3, 4)}
    after = {s: counts(rng.binomial(words, 0.2), words) for s in (4, 3, 2, 9)}
    comparison = compare(before, after)
    assert comparison.n_seeds == 3  # 1 and 9 have no partner
    common = (2, 3, 4)
    assert comparison.before == pytest.approx(np.mean([error_rate(before[s]) for s in common]))
    differences = [error_rate(after[s]) - error_rate(before[s]) for s in common]
    assert comparison.difference == pytest.approx(np.mean(differences))
    t = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert comparison.seeds == pytest.approx((t.low, t.high))
    untouched = {None: before[1]}
    assert compare(untouched, after).n_seeds == 4
    assert compare(after, untouched).difference == -compare(untouched, after).difference
    assert compare(untouched, {7: after[9]}).seeds is None


def test_mean_and_sd_of_one_value_has_no_sd():
    assert mean_and_sd([3.0]) == (3.0, None)
    assert mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert seed_interval([-1, -1, -1]) == (-1, -1)


def test_systems_that_swap_their_errors_over_seeds_are_not_identical():
    one, other = counts([0, 1, 2]), counts([1, 0, 2])
    comparison = compare({1: one, 2: other}, {1: other, 2: one})
    assert comparison.difference == 0 and not comparison.identical
    assert verdict(comparison, trained=True) == "within chance"


def comparison(low, high, seeds=None, n_seeds=1):
    middle = (low + high) / 2
    seeds = Interval(*seeds) if seeds else None
    interval, p = Interval(low, high), 0.01 if low > 0 or high < 0 else 0.3
    return Comparison(30, 30 + middle, middle, interval, "BCa", p, 99, False, n_seeds, seeds)


@pytest.mark.parametrize(
    ("interval", "seeds", "control", "said"),
    [
        ((-2, -1), None, None, "lower"),
        ((1, 2), None, None, "higher"),
        ((-1, 1), None, None, "within chance"),
        ((-2, 0), None, None, "within chance"),
        ((-2, -1), (-3, -1), None, "lower"),
        ((-2, -1), (-3, 1), None, "within chance"),
        ((-2, 1), (-3, -1), None, "within chance"),
        ((-2, -1), None, (-2, -1), "lower"),
        ((-2, -1), None, (-1, 1), "lower, but not shown to be better than the random donor"),
        ((-1, 1), None, (1, 2), "within chance, not shown to be better than the random donor"),
        ((-1, 1), None, (-2, -1), "within chance"),
    ],
)
def test_verdicts(interval, seeds, control, said):
    against = comparison(*control) if control else None
    n_seeds = 3 if seeds else 1
    assert verdict(comparison(*interval, seeds, n_seeds), control=against) == said


def test_where_interval_and_p_disagree_p_decides_against_the_claim_and_the_verdict_says_so():
    """Where few utterances differ, BCa's interval may exclude 0 and p not be below 0.05."""
    clear = comparison(-2, -1)
    assert direction(replace(clear, p=0.049)) == "lower"
    assert direction(replace(clear, p=0.051)) == "within chance"
    disagree = "within chance (p and interval disagree)"
    assert verdict(replace(clear, p=0.051)) == disagree
    assert verdict(replace(comparison(-2, 0.1), p=0.01)) == disagree
    corrected = replace(clear, p=0.02, p_holm=0.08)
    assert verdict(corrected) == "within chance after Holm's correction"
    assert verdict(replace(corrected, p_holm=0.04)) == "lower"
    # Over seeds it is within chance, whatever the correction
    assert verdict(replace(corrected, seeds=Interval(-3, 1), n_seeds=3)) == "within chance"


def test_one_seed_of_something_trained_is_said():
    assert verdict(comparison(-2, -1), trained=True) == "lower (one seed)"
    assert verdict(comparison(-1, 1), trained=True) == "within chance"


def test_seeds_without_a_pair_are_compared_all_with_all_and_said():
    words = np.full(50, 10)
    before = {1: counts(np.arange(50) % 5, words), 2: counts(np.arange(50) % 4, words)}
    unpaired = compare(before, {3: counts(np.arange(50) % 2, words)})
    assert unpaired.n_seeds == 0 and unpaired.seeds is None
    assert unpaired.before == pytest.approx(np.mean([error_rate(c) for c in before.values()]))
    assert verdict(unpaired, trained=True) == "lower (no seed in common)"
    same = compare({1: before[1]}, {2: before[1]})
    assert direction(same) == "within chance"  # nothing says that it is the same training


def test_bad_input():
    with pytest.raises(MAMError, match="what differs: u2"):
        paired_difference(counts([1, 2]), counts([1, 2, 3]))
    with pytest.raises(MAMError, match="no reference word"):
        counts([1, 2], [0, 0])
    with pytest.raises(MAMError, match="2 utterances, but 2 error counts and 1"):
        ErrorCounts(("a", "b"), np.array([1, 2]), np.array([1]))
    with pytest.raises(MAMError, match="3 utterances, but 2 clusters"):
        ErrorCounts(("a", "b", "c"), np.array([1, 2, 3]), np.array([1, 1, 1]), ("p", "q"))
    with pytest.raises(MAMError, match="same clusters can be compared; not so: b"):
        paired_difference(
            *(
                ErrorCounts(("a", "b"), np.array([1, 2]), np.array([3, 3]), clusters)
                for clusters in (("p", "p"), ("p", "q"))
            )
        )
    with pytest.raises(MAMError, match="at least two seeds"):
        seed_interval([1.0])
    with pytest.raises(MAMError, match="at least two draws"):
        prediction_interval([1.0])
