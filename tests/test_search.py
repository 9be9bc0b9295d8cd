"""The sweep: bits, resume, choice, bad input."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import build_speech_model, save_bert
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_mam import MAM, Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.runs.zeroshot import read_search, search_of
from speechbrain_mam.search.contest import greedy
from speechbrain_mam.search.grid import Point, Scored, choose, parse_grid, parse_subsets, points_of
from speechbrain_mam.search.identity import batches_sha256, circumstances, settings_sha256
from speechbrain_mam.search.sweep import Sweep

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
        def run(self, points, against=()):
            rivals.append([scored.point.layers for scored in against])
            return [Scored(p, (good[p.layers],)) for p in points]

    rivals, untouched = [], Scored(Point(1.0, (), "d"), (10,))
    first = Point(0.9, (0, 1, 2), "d", "random", draw=2)
    tried = greedy(Fake(mam, Scorer(None), tmp_path), [2, 0, 1], first, untouched)
    # layer 0 made it worse and is not part of the third
    assert [s.point.layers for s in tried] == [(2,), (0, 2), (1, 2)]
    assert rivals == [[()], [(2,)], [(2,)]], "each races against the best so far"
    assert {(s.point.lam, s.point.control, s.point.draw) for s in tried} == {(0.9, "random", 2)}


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
KEYS |= {"random_draws": 1, "race": True}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lam_grid", [], "'lam_grid' is empty"),
        ("lam_grid", [-0.1], "λ = -0.1 is not a number"),
        ("layer_choices", ["0-7"], "names layer 3, but the target has"),
        ("layer_choices", [], "'layer_choices' is empty"),
        ("controls", ["nothing"], "key 'controls': 'nothing' is not one of"),
        ("donor_models", [], "'donor_models' is empty"),
        ("random_draws", 0, "key 'random_draws': expected a whole number from 1 on, got 0"),
        ("random_draws", 2.5, "key 'random_draws': expected a whole number from 1 on, got 2.5"),
        ("race", "no", "key 'race': expected True or False, got 'no'"),
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


CHANGES = {
    "control_seed": (dict(control_seed=8), {}, "random"),
    "donor": (dict(donor=1), {}, "none"),
    "donor of a control": (dict(donor=1), {}, "random"),
    "own control": (dict(control="random"), {}, "none"),
    "precision": ({}, {"precision": "bf16"}, "none"),
    "batches": ({}, {"batches": "b" * 64}, "none"),
    "device": ({}, {"device": "cuda"}, "none"),
    "version of torch": ({}, {"version of torch": "3"}, "none"),
    "version of transformers": ({}, {"version of transformers": "9"}, "none"),
    "version of speechbrain_mam": ({}, {"version of speechbrain_mam": "9"}, "none"),
    "projections": (dict(projections="qk"), {}, "none"),
    "layer_map": (dict(layer_map=[2, 1, 0]), {}, "none"),
    "bias": (dict(bias="keep"), {}, "none"),
    "donor_scale": (dict(donor_scale="match_norm"), {}, "none"),
    "method": (dict(method="slerp"), {}, "none"),
    "align": (dict(align="heads"), {}, "none"),
    "width": (dict(width="crop"), {}, "none"),
}
NOW = circumstances([], "cpu", "fp32")


@pytest.mark.slow
@pytest.mark.parametrize(("options", "others", "control"), CHANGES.values(), ids=CHANGES)
def test_a_kept_figure_is_never_that_of_something_else(
    options, others, control, bert_folder, tmp_path
):
    """A new name for its file, or a line that names what changed; and unchanged, it is kept."""
    folder, point = tmp_path / "donor", Point(0.5, (0, 1, 2), str(tmp_path / "donor"), control)
    save_bert(folder, seed=1)

    def sweep(control_seed=7, donor=0, circumstances=NOW, **options):
        if donor:
            save_bert(folder, seed=2)
        mam = MAM(model, str(folder), learnable=False, control_seed=control_seed, **options)
        scorer = Scorer(model)
        made = Sweep(mam, scorer, tmp_path / "s", "d", circumstances, progress=False)
        (found,) = made.run([point])
        return found.errors, scorer.calls

    model = build_speech_model().eval()
    first, calls = sweep()
    assert calls == 1 and sweep() == (first, 0), "the same again is read, not evaluated"
    try:
        found, calls = sweep(**options, circumstances=NOW | others)
    except MAMError as error:
        (name,) = [*others, *options][:1]
        assert f"holds the sweep of another {name}" in str(error)
        return
    assert calls == 1 and found != first
    assert not others


def test_the_untouched_model_hangs_on_no_donor(parts, bert_folder, tmp_path):
    _, mam, scorer = parts
    Sweep(mam, scorer, tmp_path, progress=False).run([Point(1.0, (), str(bert_folder))])
    other = MAM(mam.target, str(save_bert(tmp_path / "b", seed=9)), learnable=False, control_seed=3)
    Sweep(other, scorer, tmp_path, progress=False).run([Point(1.0, (), str(tmp_path / "b"))])
    assert scorer.calls == 1


def test_what_is_no_tensor_is_part_of_the_model(parts, tmp_path):
    model, mam, scorer = parts
    Sweep(mam, scorer, tmp_path, progress=False)
    model.hubert.encoder.layer_norm.eps = 0.1
    with pytest.raises(MAMError, match="another model's settings;"):
        Sweep(mam, scorer, tmp_path, progress=False)


@dataclass(frozen=True)
class Alphabet:
    labels: frozenset


def test_a_set_has_no_order(parts):
    """Each process has its own, and goes on with the sweep of another one."""
    model, _, _ = parts
    found = []
    for labels in ([0, 8], [8, 0], [0, 1]):
        model.alphabet = Alphabet(frozenset(labels))
        found.append(settings_sha256(model))
    assert repr(frozenset([0, 8])) != repr(frozenset([8, 0]))
    assert found[0] == found[1] != found[2]


def test_values_that_can_be_read_are_told(parts, tmp_path):
    _, mam, scorer = parts
    Sweep(mam, scorer, tmp_path, "", {"precision": "fp32"}, progress=False)
    message = r"another precision \('fp32', now 'bf16'\), device \('not noted', now 'cuda'\);"
    with pytest.raises(MAMError, match=message):
        Sweep(mam, scorer, tmp_path, "", {"precision": "bf16", "device": "cuda"}, progress=False)


def test_set_to_leaves_no_trace_of_the_last_point(parts, bert_folder, tmp_path):
    """A sweep that was read from its files and one that was evaluated end alike."""
    _, mam, scorer = parts
    name = str(bert_folder)
    sweep = Sweep(mam, scorer, tmp_path, progress=False)
    states = []
    for _ in range(2):
        for control in ("match_norm", "random"):
            sweep.run([Point(0.5, (1,), name, control)])
        sweep.set_to(Point(1.0, (), name))
        states.append((mam.control_name, mam.options["layers"], mam.options["donor_scale"]))
    assert states == [("none", "all", "none")] * 2 and scorer.calls == 2


def test_a_control_that_searches_keeps_its_own_control(bert_folder, tmp_path):
    model, name = build_speech_model().eval(), str(bert_folder)
    mam = MAM(model, name, learnable=False, control="random", control_seed=4)
    sweep = Sweep(mam, Scorer(model), tmp_path / "own", progress=False)
    (own,) = sweep.run([Point(0.5, (0,), name)])
    sweep.apply(own.point)
    assert mam.control_name == "random"
    mam.take_back()
    plain = MAM(model, name, learnable=False, control_seed=4)
    asked = Sweep(plain, Scorer(model), tmp_path / "plain", progress=False)
    found = asked.run([Point(0.5, (0,), name, "random"), Point(0.5, (0,), name)])
    assert own.errors == found[0].errors != found[1].errors
    assert read_search({**KEYS, "controls": ["random"], "control": "random"}, 3).controls == []


@pytest.mark.parametrize(
    ("donors", "message"),
    [(["a", "b", "a"], "'a' is named twice"), ([["a", "b"]], "is no name"), (None, "a list")],
)
def test_bad_donors(donors, message):
    with pytest.raises(MAMError, match=f"key 'donor_models': .*{message}"):
        read_search({**KEYS, "donor_models": donors}, 3)


def test_every_donor_is_looked_at_before_the_first_point(bert_folder, tmp_path):
    """One of another width, one that is not there: neither waits for its turn."""
    save_bert(tmp_path / "wide", hidden_size=32)
    mam = MAM(build_speech_model(), str(bert_folder), learnable=False)

    def asked(*names):
        hparams = {**KEYS, "donor_models": list(map(str, names))}
        return search_of(SimpleNamespace(mam=mam, hparams=SimpleNamespace(**hparams)))

    assert asked(bert_folder).donors == [str(bert_folder)]
    for other, message in ((tmp_path / "wide", "32"), (tmp_path / "none", "no such folder")):
        with pytest.raises(MAMError, match=f"key 'donor_models', '.*{message}") as found:
            asked(bert_folder, other)
        assert str(other) in str(found.value)
    assert not mam.is_merged and mam.donor.name == str(bert_folder)


@pytest.mark.parametrize("change", ["size", "order", "audio", "text"])
def test_batches_are_told_apart(change):
    def items(gain=1.0, text="one two"):
        return [{"id": f"u{i}", "sig": gain * torch.arange(i + 2.0), "wrd": text} for i in range(4)]

    def batches(items, size=2):
        return [PaddedBatch(items[i : i + size]) for i in range(0, 4, size)]

    before = batches_sha256(batches(items()))
    assert before == batches_sha256(batches(items()))
    other = {
        "size": batches(items(), 4),
        "order": batches(items()[::-1]),
        "audio": batches(items(gain=0.5)),
        "text": batches(items(text="one too")),
    }[change]
    assert before != batches_sha256(other)
