"""The race: what it drops, what it never changes, and how often it drops the best."""

import json
import statistics
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_speech_model

from speechbrain_mam import MAM
from speechbrain_mam.search import race
from speechbrain_mam.search.grid import Point, choose, error_rate, points_of, sweep_content
from speechbrain_mam.search.race import LEAST, clearly_worse, race_of
from speechbrain_mam.search.sweep import Sweep

NAME = "hubert.encoder.layers.2.attention.q_proj.weight"
BATCHES = [SimpleNamespace(id=[f"u{i}{j}" for j in range(10)]) for i in range(10)]
GRID = [0.1, 0.3, 0.5, 0.7, 0.9]
SUBSETS = {"all": [0, 1, 2], "last:1": [2]}


class ByLambda:
    """Errors that follow from λ alone, which `no_donor` leaves in the weights; 0.7 is best."""

    def __init__(self, model, dies_after=None):
        self.model, self.own = model, model.get_parameter(NAME)[0, 0].item()
        self.seen, self.dies_after = [], dies_after

    def __call__(self, batches, around):
        lam = round(self.model.get_parameter(NAME)[0, 0].item() / self.own, 3)
        if self.dies_after is not None and len(self.seen) >= self.dies_after:
            raise KeyboardInterrupt
        found = {}
        for i, batch in enumerate(batches):
            with around(i):
                self.seen.append((lam, batch.id[0]))
            for name in batch.id:
                draw = np.random.default_rng(int(name[1:]) + int(1000 * lam))
                found[name] = int(draw.random() < 0.1 + 1.2 * abs(lam - 0.7)), 5
        return found


def sweep_of(folder, bert_folder, raced=True, **options):
    model = build_speech_model().eval()
    mam = MAM(model, str(bert_folder), learnable=False, control="no_donor")
    score = ByLambda(model, **options)

    def whole(around):
        return score(BATCHES, around)

    raced = race_of(BATCHES, score) if raced else None
    return Sweep(mam, whole, folder, cache_mb=0, progress=False, race=raced), score


def run(sweep, name):
    (untouched,) = sweep.run([Point(1.0, (), name)])
    return untouched, sweep.run(points_of(GRID, SUBSETS, [name]))


def figures(results):
    untouched, points = results
    return [(s.point, s.errors, s.parts) for s in (untouched, *points)]


def test_parts_are_dealt_from_all_over_the_set():
    parts = race_of(BATCHES, lambda batches, around: {}).parts
    first, second, rest = ([int(name[1]) for name in part.ids[::10]] for part in parts)
    assert (first, second, rest) == ([0, 4, 8], [2, 6], [1, 3, 5, 7, 9])
    assert [len(race_of(BATCHES[:n], None).parts) for n in (1, 2, 3, 9)] == [1, 2, 3, 3]


def test_each_batch_keeps_its_number():
    numbers = []

    def around(i):
        numbers.append(i)
        return nullcontext()

    def score(batches, around):
        for i, batch in enumerate(batches):
            with around(i):
                assert int(batch.id[0][1]) == numbers[-1]
        return {}

    for part in race_of(BATCHES, score).parts:
        part.score(around)
    assert sorted(numbers) == list(range(10)), "a prefix cache knows the batches by these"


def test_whoever_is_in_the_end_has_the_figures_of_a_search_without_a_race(bert_folder, tmp_path):
    name = str(bert_folder)
    raced, seen = sweep_of(tmp_path / "a", bert_folder)
    plain, seen_all = sweep_of(tmp_path / "b", bert_folder, raced=False)
    (untouched, points), (own, all_points) = run(raced, name), run(plain, name)
    assert (
        untouched == own
        and untouched.whole
        and (raced.ids, raced.units)
        == (
            plain.ids,
            plain.units,
        )
    )
    dropped = [scored for scored in points if not scored.whole]
    assert {scored.point.lam for scored in dropped} >= {0.1} and 0 < len(dropped) < len(points)
    assert {scored.parts for scored in dropped} <= {1, 2}
    for scored, other in zip(points, all_points, strict=True):
        assert scored.point == other.point
        if scored.whole:
            assert scored == other
    assert choose(points) == choose(all_points) and choose(points).point.lam == 0.7
    assert choose([*dropped, points[-1]]) == points[-1], "what was dropped is never chosen"
    assert len(seen.seen) < 0.9 * len(seen_all.seen) and len(set(seen.seen)) <= len(seen.seen)


def test_sweep_json_says_who_was_dropped_and_when(bert_folder, tmp_path):
    sweep, _ = sweep_of(tmp_path, bert_folder)
    untouched, points = run(sweep, str(bert_folder))
    content = sweep_content("valid", sweep.ids, sweep.units, "WER", untouched, points, 3)
    json.dumps(content)
    whole = [scored for scored in points if scored.whole]
    assert len(content["points"]) == 1 + len(whole)
    assert all(len(point["errors"]) == 100 for point in content["points"])
    for row, scored in zip(content["dropped"], [s for s in points if not s.whole], strict=True):
        assert row["lam"] == scored.point.lam and row["of_parts"] == 3
        assert row["utterances"] == len(scored.errors) == {1: 30, 2: 50}[row["after_part"]]
        assert row["WER"] == error_rate(scored, sweep.units) == 20 * np.mean(scored.errors)
        assert "errors" not in row


def test_an_interrupted_race_ends_as_another(bert_folder, tmp_path):
    name = str(bert_folder)
    whole, calls = sweep_of(tmp_path / "whole", bert_folder)
    expected = figures(run(whole, name))
    for dies_after in (20, 50):
        folder = tmp_path / f"cut{dies_after}"
        cut, done = sweep_of(folder, bert_folder, dies_after=dies_after)
        with pytest.raises(KeyboardInterrupt):
            run(cut, name)
        again, rest = sweep_of(folder, bert_folder)
        assert figures(run(again, name)) == expected
        assert len(rest.seen) == len(calls.seen) - len(done.seen), "what is done is kept"


@pytest.mark.parametrize("first", [True, False])
def test_switched_in_the_same_folder(first, bert_folder, tmp_path):
    name = str(bert_folder)
    run(sweep_of(tmp_path / "s", bert_folder, raced=first)[0], name)
    found = figures(run(sweep_of(tmp_path / "s", bert_folder, raced=not first)[0], name))
    expected = figures(run(sweep_of(tmp_path / "t", bert_folder, raced=not first)[0], name))
    assert found == expected


def test_two_ranks_drop_the_same(bert_folder, tmp_path, monkeypatch):
    name = str(bert_folder)
    one, alone = sweep_of(tmp_path / "one", bert_folder)
    expected = figures(run(one, name))
    both = threading.Barrier(2)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: both.wait(30))
    sweeps = [sweep_of(tmp_path / "two", bert_folder) for _ in range(2)]
    found = {}

    def work(rank):
        sweep, _ = sweeps[rank]
        sweep.rank, sweep.ranks = rank, 2
        found[rank] = figures(run(sweep, name))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: expected, 1: expected}
    shares = [len(score.seen) for _, score in sweeps]
    assert sum(shares) == len(alone.seen) and min(shares) > 20, "each its share"


def test_few_utterances_decide_nothing():
    good, bad = [0] * (LEAST - 1), [3] * (LEAST - 1)
    assert clearly_worse([good, bad]) == set()
    assert clearly_worse([[*good, 0], [*bad, 3]]) == {1}
    assert clearly_worse([[*bad, 3]], leaders=[[*good, 0]]) == {0}
    assert clearly_worse([[0] * 30, [1] * 5 + [0] * 25]) == set(), "5 of 5: p = 0.013"
    assert clearly_worse([[0] * 30, [1] * 6 + [0] * 24]) == {1}, "6 of 6: p = 0.007"
    assert clearly_worse([[0] * 30, [1] * 16 + [-1] * 10 + [0] * 4]) == set()


def simulated(rng: np.random.Generator, utterances: int, points: int) -> tuple[np.ndarray, int]:
    """Errors ``[points, utterances]`` along a λ grid, neighbours alike, and the number of words.

    Moving away from the target mends some of its errors and makes new ones, how many of either
    differs from one model to the next.
    """
    words = rng.integers(1, 20, utterances)
    base = rng.binomial(words, rng.beta(0.7, 3, utterances))
    away = np.linspace(0.02, rng.uniform(0.1, 1), points)
    mended, harm = rng.uniform(0, 0.4) * away, 10 ** rng.uniform(-3, -0.5) * away**2
    there = np.arange(20) < base[:, None]
    shared = rng.random((utterances, 20))
    rows = []
    for k in range(points):
        own = rng.random((utterances, 20)) < 0.5  # half of what happens, neighbours share
        chance = np.where(own, rng.random((utterances, 20)), shared)
        gone = ((chance < mended[k]) & there).sum(1)
        rows.append(base - gone + rng.poisson(words * (harm[k] + 0.02 * mended[k])))
    return np.array(rows), int(words.sum())


def raced(errors: np.ndarray, rng: np.random.Generator) -> tuple[int, float]:
    """The errors of the race's choice, and which share of the evaluations it took."""
    points, n = errors.shape
    order, standing, cost, before = rng.permutation(n), list(range(points)), 0, 0
    for end in (n // 4, n // 2, n):
        cost += len(standing) * (end - before)
        before = end
        if end < n:
            worse = clearly_worse(errors[standing][:, order[:end]])
            standing = [point for i, point in enumerate(standing) if i not in worse]
    return int(errors[standing].sum(1).min()), cost / errors.size


def trials(utterances: int, number: int = 200) -> tuple[float, float]:
    """How often the choice is more than 0.1 points worse than the best, and the mean cost."""
    rng, lost, costs = np.random.default_rng(1), 0, []
    for _ in range(number):
        errors, words = simulated(rng, utterances, points=20)
        found, cost = raced(errors, rng)
        lost += 100 * (found - errors.sum(1).min()) / words > 0.1
        costs.append(cost)
    return lost / number, float(np.mean(costs))


@pytest.mark.parametrize(("utterances", "at_most"), [(90, 0.95), (250, 0.85)])
def test_the_best_is_kept_in_99_of_100_searches(utterances, at_most):
    lost, cost = trials(utterances)
    assert lost <= 0.01 and cost < at_most


def test_the_simulation_would_tell_a_rule_that_is_too_hasty(monkeypatch):
    monkeypatch.setattr(race, "_Z", statistics.NormalDist().inv_cdf(0.8))
    assert trials(90, 60)[0] > 0.03
