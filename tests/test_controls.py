"""Controls: what they destroy, and what they must keep."""

import pytest
import torch
from conftest import build_speech_model

from speechbrain_mam import MAM, Donor, MAMError, find_attention, make_plan
from speechbrain_mam.donors.controls import CONTROLS, ControlDonor, controlled


@pytest.fixture()
def donor(bert_folder):
    return Donor(bert_folder)


def keys(donor):
    return [key for key in donor.index.tensors if key[1] != "output"]


def test_none_is_the_donor_itself(donor):
    plan = make_plan(find_attention(build_speech_model()), donor.index)
    assert controlled(donor, plan.donor_layers, "none") is donor


@pytest.mark.parametrize("control", ["random", "shuffled_layers", "permuted_rows", "no_donor"])
def test_every_tensor_differs_from_the_donors(donor, control):
    other = ControlDonor(donor, control, layers=3)
    for key in keys(donor):
        theirs, ours = donor.tensor(key), other.tensor(key)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert not torch.equal(ours, theirs), key
        assert torch.equal(other.tensor(key), ours), "the same tensor at every reading"


def test_random_has_the_donors_norms_and_nothing_else(donor):
    one, other = (ControlDonor(donor, "random", layers=3, seed=seed) for seed in (0, 1))
    for key in keys(donor):
        torch.testing.assert_close(one.tensor(key).norm(), donor.tensor(key).norm())
        assert not torch.equal(one.tensor(key), other.tensor(key))
    key = (0, "query", "weight")
    cosine = torch.cosine_similarity(one.tensor(key).flatten(), donor.tensor(key).flatten(), dim=0)
    assert abs(cosine) < 0.3


def test_shuffled_layers_leaves_no_layer_at_its_place(donor):
    other = ControlDonor(donor, "shuffled_layers", layers=3, seed=4)
    assert sorted(other.order) == [0, 1, 2]
    assert all(place != layer for place, layer in enumerate(other.order))
    key = (0, "key", "bias")
    assert torch.equal(other.tensor(key), donor.tensor((other.order[0], *key[1:])))
    with pytest.raises(MAMError, match="needs a donor of two layers"):
        ControlDonor(donor, "shuffled_layers", layers=1)


def test_permuted_rows_moves_weight_and_bias_together(donor):
    other = ControlDonor(donor, "permuted_rows", layers=3)
    weight, bias = (donor.tensor((1, "value", kind)) for kind in ("weight", "bias"))
    moved, moved_bias = (other.tensor((1, "value", kind)) for kind in ("weight", "bias"))
    order = [int((weight == row).all(1).nonzero()) for row in moved]
    assert sorted(order) == list(range(len(weight)))
    assert torch.equal(moved_bias, bias[order])


def test_no_donor_shrinks_the_target(donor):
    model = build_speech_model()
    name = "hubert.encoder.layers.1.attention.k_proj.weight"
    before = model.get_parameter(name).detach().clone()
    mam = MAM(model, donor, lam=0.8, learnable=False, control="no_donor")
    mam.apply()
    torch.testing.assert_close(model.get_parameter(name), 0.8 * before)
    assert "[control: no_donor]" in str(mam.plan)


def test_a_control_is_another_donor_for_a_checkpoint(donor):
    model, hashes = build_speech_model(), set()
    for control in CONTROLS:
        hashes.add(MAM(model, donor, control=control, learnable=False).donor_hash)
    hashes.add(MAM(model, donor, control="random", control_seed=1, learnable=False).donor_hash)
    assert len(hashes) == len(CONTROLS) + 1


def test_unknown_control(donor):
    with pytest.raises(MAMError, match="key 'control': 'rnd' is not one of none, random"):
        MAM(build_speech_model(), donor, control="rnd")


def test_learnable_with_a_control_merges_the_controls_tensors(donor):
    model = build_speech_model()
    mam = MAM(model, donor, lam=0.0, control="random", control_seed=3)
    mam.apply()
    mam.live.fold()
    expected = ControlDonor(donor, "random", 3, seed=3).tensor((2, "query", "weight"))
    name = "hubert.encoder.layers.2.attention.q_proj.weight"
    torch.testing.assert_close(model.get_parameter(name), expected)
