"""The sweep: bits, resume, choice, bad input."""

import json
from contextlib import nullcontext

import pytest
import torch
from conftest import build_speech_model

from speechbrain_mam import MAM, Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.points import Point, Scored, choose, parse_grid, parse_subsets, points_of
from speechbrain_mam.search import Sweep, greedy
from speechbrain_mam.zeroshot import read_search

WAVS = [torch.randn(2, 3200, generator=torch.Generator().manual_seed(i)) for i in range(3)]


class Scorer:
    """'Errors' are a hash of the logits' bits: any difference shows."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    @torch.no_grad()
    def __call__(self, around):
        self.calls += 1
        found = {}
        for i, wav in enumerate(WAVS):
            with around(i):
                logits = self.model(wav).logits
            for j, row in enumerate(logits):
                found[f"u{i}{j}"] = (hash(row.numpy().tobytes()) % 10**6, 7)
        return found


@pytest.fixture()
def parts(bert_folder):
    model = build_speech_model().eval()
    return model, MAM(model, str(bert_folder), learnable=False), Scorer(model)


def from_scratch(model, donor, point):
    if point.lam == 1:
        return Scorer(model)(lambda _: nullcontext())
    index = find_attention(model)
    plan = make_plan(index, donor.index, lam=point.lam, layers=list(point.layers))
    with Merge(model, plan, donor):
        return Scorer(model)(lambda _: nullcontext())


@pytest.mark.parametrize("cache_mb", [0, 0.001, 100])
def test_bit_identical_to_each_point_alone(parts, bert_folder, tmp_path, cache_mb):
    model, mam, scorer = parts
    name, before = str(bert_folder), {k: v.clone() for k, v in model.state_dict().items()}
    subsets = parse_subsets(["all", "last:1", [1, 2]], 3)
    points = [Point(1.0, (), name), *points_of([0.5, 0.9], subsets, [name])]
    sweep = Sweep(mam, scorer, tmp_path / "sweep", cache_mb=cache_mb, progress=False)
    results = sweep.run(points)
    assert len(results) == 7 and len({r.errors for r in results}) == 7
    donor = Donor(bert_folder)
    for scored in results:
        expected = from_scratch(model, donor, scored.point)
        assert scored.errors == tuple(errors for errors, _ in expected.values()), scored.point
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sweep.ids == [f"u{i}{j}" for i in range(3) for j in range(2)]
    assert sweep.units == [7] * 6


def test_an_interrupted_sweep_goes_on_from_what_is_done(parts, bert_folder, tmp_path):
    model, mam, scorer = parts
    points = points_of([0.2, 0.4, 0.6, 0.8], {"all": [0, 1, 2]}, [str(bert_folder)])
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def dying(around):
        if scorer.calls == 2:
            raise KeyboardInterrupt
        return scorer(around)

    with pytest.raises(KeyboardInterrupt):
        Sweep(mam, dying, tmp_path / "sweep", progress=False).run(points)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    results = Sweep(mam, scorer, tmp_path / "sweep", progress=False).run(points)
    assert scorer.calls == 4
    again = Sweep(mam, Scorer(model), tmp_path / "other", progress=False).run(points)
    assert [r.errors for r in results] == [r.errors for r in again]


def test_a_folder_of_another_sweep_is_refused(parts, bert_folder, tmp_path):
    model, mam, scorer = parts
    Sweep(mam, scorer, tmp_path, data_id="a", progress=False)
    with pytest.raises(MAMError, match="another data;"):
        Sweep(mam, scorer, tmp_path, data_id="b", progress=False)
    with torch.no_grad():
        model.lm_head.bias.add_(1)
    with pytest.raises(MAMError, match="another model;"):
        Sweep(mam, scorer, tmp_path, data_id="a", progress=False)
    file = tmp_path / "identity.json"
    assert json.loads(file.read_text())["projections"] == "qkv"


def test_controls_are_points_of_their_own(parts, bert_folder, tmp_path):
    _, mam, scorer = parts
    name = str(bert_folder)
    points = [
        point
        for control in ("none", "random", "shuffled_layers", "permuted_rows", "match_norm")
        for point in points_of([0.7], {"all": [0, 1, 2]}, [name], control)
    ]
    results = Sweep(mam, scorer, tmp_path, progress=False).run(points)
    assert len({r.errors for r in results}) == 5
    assert mam.control_name == "match_norm"


def test_choose_prefers_the_gentler_of_equals():
    def scored(errors, lam, layers):
        return Scored(Point(lam, layers, "d"), (errors, 0))

    results = [
        scored(3, 0.5, (0,)),
        scored(2, 0.8, (0, 1)),
        scored(2, 0.9, (0, 1)),
        scored(2, 0.9, (0,)),
        scored(2, 0.7, (0,)),
    ]
    assert choose(results) is results[3]


def test_greedy_keeps_only_what_helps(parts, tmp_path):
    _, mam, _ = parts
    good = {(): 10, (2,): 8, (0, 2): 9, (1, 2): 6}

    class Fake(Sweep):
        def run(self, points):
            return [Scored(p, (good[p.layers],)) for p in points]

    tried = greedy(Fake(mam, Scorer(None), tmp_path), [2, 0, 1], 0.9, "d")
    # layer 0 made it worse and is not part of the third
    assert [s.point.layers for s in tried] == [(2,), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "'lam_grid' is empty"),
        ([1], "'lam_grid' is empty"),
        ([0.5, 1.2], r"λ = 1.2 is not a number in \[0, 1\]"),
        ([0.5, "a"], r"λ = 'a' is not a number"),
        ([True], "λ = True"),
    ],
)
def test_bad_grids(grid, message):
    with pytest.raises(MAMError, match=message):
        parse_grid(grid)


KEYS = {"lam_grid": [0.9], "layer_choices": ["all"], "controls": [], "donor_models": ["bert"]}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lam_grid", [], "'lam_grid' is empty"),
        ("lam_grid", [-0.1], "λ = -0.1 is not a number"),
        ("layer_choices", ["0-7"], "names layer 3, but the target has"),
        ("layer_choices", [], "'layer_choices' is empty"),
        ("controls", ["nothing"], "key 'controls': 'nothing' is not one of"),
        ("donor_models", [], "'donor_models' is empty"),
    ],
)
def test_bad_search_keys(key, value, message):
    assert read_search(KEYS, 3).subsets == {"all": (0, 1, 2)}
    with pytest.raises(MAMError, match=message):
        read_search({**KEYS, key: value}, 3)


def test_bad_subsets_and_controls():
    with pytest.raises(MAMError, match="layer_choices"):
        parse_subsets([], 3)
    with pytest.raises(MAMError, match="layer"):
        parse_subsets(["last:9"], 3)
    with pytest.raises(MAMError, match="layer"):
        parse_subsets([[]], 3)
    with pytest.raises(MAMError, match="key 'controls': 'rnd' is not one of"):
        points_of([0.5], {"all": [0]}, ["d"], "rnd")
