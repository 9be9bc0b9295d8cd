"""Every row of the table as a target: trained, moved, saved, tested twice, resumed."""

import copy

import pytest
import torch
from torch import nn

from speechbrain_mam.mam import MAM
from speechbrain_mam.merging.apply import Merge
from speechbrain_mam.merging.prepare import write_part
from speechbrain_mam.testing import Setting, check_target, every_setting, pairwise
from speechbrain_mam.testing.targets import TARGETS, save_donors

SETTINGS = pairwise(every_setting())
WHOLE = {"HuBERT", "WavLM", "SpeechBrain's Transformer"}
"""Called, read, fused: these go through all of the settings, the others share them out."""
FEW = {"wav2vec2-Conformer", "SEW", "Moonshine's encoder", "Parakeet", "Parakeet's encoder"}
"""Called as HuBERT's are: one setting each."""


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    return save_donors(tmp_path_factory.mktemp("donors"))


def cases():
    for number, target in enumerate(TARGETS):
        step = len(SETTINGS) if target.row in FEW else 6
        share = SETTINGS if target.row in WHOLE else SETTINGS[number % step :: step]
        for at, setting in enumerate(share):
            quick = target.row in WHOLE and at == 0
            marks = () if quick else pytest.mark.nightly if at else pytest.mark.slow
            yield pytest.param(target, setting, id=f"{target.name}: {setting}", marks=marks)


@pytest.mark.parametrize(("target", "setting"), cases())
def test_target(target, setting, donors):
    try:
        model = target.build()
    except LookupError as error:
        pytest.skip(str(error))
    before = copy.deepcopy(model.state_dict())
    assert [str(failure) for failure in check_target(model, donors, target.run, [setting])] == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_settings_hold_every_pair():
    values = {name: {getattr(s, name) for s in every_setting()} for name in vars(Setting())}
    for one in values:
        for other in values:
            pairs = {(getattr(s, one), getattr(s, other)) for s in every_setting()}
            assert pairs == {(getattr(s, one), getattr(s, other)) for s in SETTINGS}


def find(what, donors, monkeypatch, **setting):
    hubert = TARGETS[0]
    failures = check_target(hubert.build(), donors, hubert.run, [Setting(**setting)])
    assert len(failures) == 1 and what in str(failures[0]), [str(f) for f in failures]


def test_finds_views_of_former_storages(donors, monkeypatch):
    """As a merge kept them that was made before the move to a device."""
    kept = {}
    apply = MAM.apply

    def keep(self):
        apply(self)
        if self._merge is not None:
            kept[id(self._merge)] = [(e, ours, o.clone()) for e, ours, o in self._merge._present()]

    def undo(self):
        for entry, ours, original in kept.get(id(self), []):
            write_part(entry, ours, original)
        self._originals = []

    monkeypatch.setattr(MAM, "apply", keep)
    monkeypatch.setattr(Merge, "undo", undo)
    find("λ 0.5", donors, monkeypatch)


def test_finds_folded_weights_in_a_checkpoint(donors, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(MAM, "own_weights", lambda self: nullcontext())
    find("λ", donors, monkeypatch)


def test_finds_an_encoder_that_no_gradient_leaves(donors):
    hubert = TARGETS[0]

    def run(model):
        with torch.no_grad():
            hubert.run(model)
        return next(p for n, p in model.named_parameters() if n.endswith("lm_head.weight")) * 1.0

    (failure,) = check_target(hubert.build(), donors, run, [Setting()])
    assert "no gradient has reached λ" in str(failure)


def test_a_module_that_is_no_target_fails_in_each_setting(donors):
    failures = check_target(
        TARGETS[0].build(), "no/such/donor", TARGETS[0].run, [Setting(), Setting("slerp")]
    )
    assert len(failures) == 2 and "no/such/donor" in str(failures[0])
    assert isinstance(TARGETS[0].build(), nn.Module)


def test_finds_a_start_that_is_made_once_more(donors, monkeypatch):
    """A merge that is never the target's own would be done again with what was recovered."""
    monkeypatch.setattr(MAM, "adopt", lambda self: None)
    find("test 1: ", donors, monkeypatch, start="donor")
