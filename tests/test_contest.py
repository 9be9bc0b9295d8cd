"""Controls get the chance that the donor gets."""

import pytest
import torch
from conftest import build_speech_model, save_bert
from test_search import Scorer

from speechbrain_mam import MAM
from speechbrain_mam.donors.controls import ControlDonor
from speechbrain_mam.search.contest import Wanted, contest
from speechbrain_mam.search.grid import Point, Scored, choose, sweep_content
from speechbrain_mam.search.probe import probe, ranking_of
from speechbrain_mam.search.sweep import Sweep

WANTED = Wanted([0.5, 0.9], {"all": (0, 1, 2), "last:1": (2,)}, True, ["d"], ["random"], 3, False)
UNTOUCHED = Scored(Point(1.0, (), "d"), (100,))


class Made(Sweep):
    """Errors by formula; each donor or control has a λ, and a layer, that suits it."""

    def __init__(self, best):
        self.best, self.asked = best, []

    def run(self, points, against=()):
        points = list(points)
        self.asked += points
        found = []
        for p in points:
            lam, layer = self.best[p.control, p.draw]
            errors = int(100 * abs(p.lam - lam)) + 3 * len(p.layers) - 20 * (layer in p.layers)
            found.append(Scored(p, (90 + errors,)))
        return found


def test_each_searches_by_itself():
    best = {("none", 1): (0.9, 1), ("random", 1): (0.5, 2), ("random", 2): (0.5, 0)}
    sweep = Made(best)
    tried, chosen = {}, set()
    for control, draw in best:
        sweep.asked = []
        line = contest(sweep, WANTED, UNTOUCHED, lambda: [2, 0, 1], control, draw)
        assert {(s.point.control, s.point.draw) for s in line} == {(control, draw)}
        assert len({s.point.key for s in line}) == len(line), "each merge once"
        found = choose(line).point
        lam, layer = best[control, draw]
        assert found.lam == lam and layer in found.layers, "its own λ and layers"
        chosen.add((found.lam, found.layers))
        swept = {s.point.lam for s in line if s.point.layers == found.layers}
        assert swept == {0.5, 0.9}, "the best subset at every λ"
        # grid × subsets, then greedy layer by layer
        tried[control, draw] = [(p.lam, p.layers) for p in sweep.asked[:4]]
        assert [p.subset for p in sweep.asked[4:7]] == ["greedy"] * 3
    assert len(chosen) == 3
    assert len({tuple(points) for points in tried.values()}) == 1, "the same points for all"


def test_without_greedy_no_ranking_is_asked_for():
    def never():
        raise AssertionError

    plain = Wanted([0.9], {"all": (0, 1, 2)}, False, ["d"], [])
    (only,) = contest(Made({("none", 1): (0.9, 0)}), plain, UNTOUCHED, never)
    assert only.point == Point(0.9, (0, 1, 2), "d")


def test_contestants_and_what_was_chosen_for_them():
    wanted = Wanted([0.9], {}, False, ["d"], ["match_norm", "random"], 3)
    assert wanted.contestants() == [("match_norm", 1), *(("random", i) for i in (1, 2, 3))]
    points = [
        Scored(Point(lam, (0,), "d", control, draw=draw), (errors,))
        for control, draw, lam, errors in (
            ("none", 1, 0.9, 5), ("none", 1, 0.8, 6), ("random", 1, 0.9, 7),
            ("random", 1, 0.8, 4), ("random", 2, 0.8, 2), ("random", 2, 0.7, 3),
        )
    ]  # fmt: skip
    content = sweep_content("valid", ["u"], [10], "WER", UNTOUCHED, points)
    assert content["chosen"]["lam"] == 0.9, "a control that is better is not the donor"
    chosen = {name: point["lam"] for name, point in content["chosen_controls"].items()}
    assert chosen == {"random": 0.8, "random 2": 0.8}
    assert [p["draw"] for p in content["points"]] == [1, 1, 1, 1, 1, 2, 2]


def test_each_draw_has_a_seed_and_a_file(bert_folder, tmp_path):
    name, model = str(bert_folder), build_speech_model().eval()
    mam = MAM(model, name, learnable=False, control_seed=7)
    scorer = Scorer(model)
    sweep = Sweep(mam, scorer, tmp_path, progress=False)
    draws = [Point(0.5, (0, 1, 2), name, "random", draw=draw) for draw in (1, 2, 3)]
    found = sweep.run(draws)
    assert len({scored.errors for scored in found}) == 3 == scorer.calls
    assert len({sweep._file(point) for point in draws}) == 3
    key = (1, "value", "weight")
    for i, point in enumerate(draws):
        sweep.set_to(point)
        expected = ControlDonor(mam.donor, "random", 3, seed=7 + i).tensor(key)
        assert torch.equal(mam.source.tensor(key), expected)
        assert f"[control: random, seed {7 + i}]" in str(mam.plan)
    sweep.set_to(Point(0.5, (0,), name))
    assert mam.control_seed == 7 and mam.control_name == "none", "no trace of the draws"
    # another first seed is another draw
    other = Sweep(
        MAM(model, name, learnable=False, control_seed=8), scorer, tmp_path, progress=False
    )
    again = other.run(draws[:1])
    assert again[0].errors == found[1].errors


@pytest.mark.parametrize("projections", ["qkv", "v"])
def test_a_controls_ranking_without_a_pass_of_its_own(projections, bert_folder, tmp_path):
    model = build_speech_model().eval()
    other = str(save_bert(tmp_path / "other", seed=9))
    wav = torch.randn(2, 3200, generator=torch.Generator().manual_seed(3))

    def losses():
        for scale, size in ((1, 1), (2, 3)):
            yield (model(scale * wav).logits.square() * scale).mean(), size

    kept: dict[str, torch.Tensor] = {}
    orders = []
    for i, (donor, control) in enumerate(
        ((str(bert_folder), "none"), (str(bert_folder), "random"), (other, "none"))
    ):
        mam = MAM(model, donor, 1.0, learnable=False, control=control, projections=projections)
        mam_parts = model, mam.plan, mam.source
        own = probe(*mam_parts, losses(), kept if i == 0 else None).ranking()
        assert ranking_of(*mam_parts, kept) == own
        orders.append(tuple(own))
    assert len(set(orders)) > 1, "they do not all rank alike"
