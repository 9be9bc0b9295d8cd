"""Caches that all points of a search share: same bits, computed once, within the memory."""

from contextlib import nullcontext

import pytest
import torch
from conftest import build_speech_model
from test_search import WAVS, Scorer

from speechbrain_mam import MAM
from speechbrain_mam.search.grid import Point, points_of
from speechbrain_mam.search.prefix_caches import PrefixCaches
from speechbrain_mam.search.sweep import Sweep

SUBSETS = {"all": [0, 1, 2], "last:1": [2], "1": [1]}


def counted(module):
    """Each pass of a module; a replayed one is none."""
    calls, forward = [], type(module).forward

    def count(self, *args, **kwargs):
        if self is module:
            calls.append(1)
        return forward(self, *args, **kwargs)

    return calls, count


def contest(sweep, name):
    """Runs of two controls and three draws, greedy's single points among them."""
    found = sweep.run([Point(1.0, (), name)])
    for control, draw in (("none", 1), ("random", 1), ("random", 2), ("no_donor", 1)):
        found += sweep.run(points_of([0.4, 0.8], SUBSETS, [name], control, draw))
        found += sweep.run([Point(0.6, (1, 2), name, control, "greedy", draw)])
    return [(scored.point, scored.errors) for scored in found]


@pytest.mark.parametrize("cache", ["none", "small", "large", "folder"])
def test_same_bits_and_each_layer_once(cache, bert_folder, tmp_path, monkeypatch):
    model = build_speech_model().eval()
    name = str(bert_folder)
    mam = MAM(model, name, learnable=False)
    alone = Sweep(mam, Scorer(model), tmp_path / "alone", cache_mb=0, progress=False)
    expected = contest(alone, name)
    calls, count = counted(model.hubert.feature_extractor)
    monkeypatch.setattr(type(model.hubert.feature_extractor), "forward", count)
    options = {
        "none": {"cache_mb": 0},
        "small": {"cache_mb": 0.01},
        "large": {"cache_mb": 100},
        "folder": {"cache_mb": 0, "cache_folder": tmp_path / "disk"},
    }
    mam = MAM(model, name, learnable=False)
    sweep = Sweep(mam, Scorer(model), tmp_path / "s", progress=False, **options[cache])
    assert contest(sweep, name) == expected
    everything = len(expected) * len(WAVS)
    if cache in ("large", "folder"):
        assert len(calls) == 3 * len(WAVS), "first merged layers 0, 1 and 2, for all four"
    else:
        assert 3 * len(WAVS) < len(calls) <= everything
        assert (len(calls) == everything) == (cache == "none")
    if cache == "folder":
        assert len(list((tmp_path / "disk").rglob("*.safetensors"))) == 3 * len(WAVS)
    sweep.caches.close()
    assert sweep.caches.size_mb == 0 and not list((tmp_path / "disk").rglob("*.safetensors"))
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_the_one_used_longest_ago_gives_way():
    model, wav = build_speech_model().eval(), WAVS[0]

    def use(caches, first):
        with caches.around(first)(0):
            model(wav)

    probe = PrefixCaches(model, 100)
    use(probe, 1)
    size = probe.size_mb
    caches = PrefixCaches(model, 2.5 * size)
    for first in (0, 1, 0, 2):
        use(caches, first)
    assert sorted(caches._caches) == [0, 2] and caches.size_mb <= 2.5 * size
    use(caches, 0)
    assert caches._caches[2].size_mb > 0, "nothing new, and nobody gives way"
    little = PrefixCaches(model, 0.5 * size)
    for first in (0, 1):
        use(little, first)
        assert little.size_mb == 0, "what does not fit is computed again"


def test_none_asked_for():
    caches = PrefixCaches(torch.nn.Identity(), 0)
    assert isinstance(caches.around(3)(0), nullcontext)
