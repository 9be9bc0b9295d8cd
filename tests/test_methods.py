"""The registry of merge methods: their formulas, their one promise, and each of them in a model."""

import numpy as np
import pytest
import torch
from conftest import build_speech_model, save_bert, save_speech_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from speechbrain_mam import Donor, LearnableMAM, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.merging.arithmetic import linear as merge_tensors
from speechbrain_mam.merging.methods import METHODS, merge_method
from speechbrain_mam.merging.on_disk import merge_folders
from speechbrain_mam.model_files.folder import ModelFolder

WAV = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
FOREIGN = [name for name, row in METHODS.items() if not row.same_family]


def two(seed=0, shape=(6, 6)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) for _ in range(2))


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 99))
def test_lam_1_is_the_target(name, seed):
    target, donor = two(seed)
    for lam in (1.0, torch.ones(1), torch.ones(6, 1)):
        merged = METHODS[name].function(target, donor, lam)
        torch.testing.assert_close(merged, target)
    half = target.half()
    assert merge_tensors(half, donor, 1, name).view(torch.int16).equal(half.view(torch.int16))


@given(st.integers(0, 99), st.floats(0, 1))
def test_slerp_against_numpy(seed, lam):
    target, donor = two(seed)
    t, d = target.double().numpy().ravel(), donor.double().numpy().ravel()
    angle = np.arccos(t @ d / np.linalg.norm(t) / np.linalg.norm(d))
    expected = (np.sin(lam * angle) * t + np.sin((1 - lam) * angle) * d) / np.sin(angle)
    merged = METHODS["slerp"].function(target, donor, lam).numpy().ravel()
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)


def test_slerp_keeps_the_length_where_linear_shrinks_it():
    target, donor = (x / x.norm() for x in two())
    assert METHODS["slerp"].function(target, donor, 0.5).norm().item() == pytest.approx(1, abs=1e-5)
    assert METHODS["linear"].function(target, donor, 0.5).norm() < 0.9


@pytest.mark.parametrize("factor", [0.0, 1.0, 2.0, -1.0, -3.0])
def test_slerp_without_an_angle_is_linear(factor):
    target, _ = two()
    donor = factor * target
    for lam in (0.0, 0.3, torch.tensor([0.3])):
        merged = METHODS["slerp"].function(target, donor, lam)
        torch.testing.assert_close(merged, METHODS["linear"].function(target, donor, lam))


def test_multi_path_adds():
    target, donor = two()
    merged = METHODS["multi_path"].function(target, donor, 0.9)
    torch.testing.assert_close(merged, target + 0.1 * donor)


def test_norm_matched_is_match_norm(bert_folder):
    donor = Donor(bert_folder)
    states = []
    for options in ({"method": "norm_matched"}, {"donor_scale": "match_norm"}):
        model = build_speech_model()
        plan = make_plan(find_attention(model), donor.index, lam=0.7, **options)
        assert plan.donor_scale == "match_norm"
        Merge(model, plan, donor)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pretrained_is_a_way_back(tmp_path):
    """λ between a fine-tuned model and the one it started from, and no other donor."""
    folder = save_speech_model(tmp_path / "start")
    model, donor = build_speech_model(), Donor(folder)
    name = "hubert.encoder.layers.1.attention.q_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).add_(1.0)
    start = donor.tensor((1, "query", "weight"))
    plan = make_plan(find_attention(model), donor.index, lam=0.25, method="pretrained")
    Merge(model, plan, donor)
    torch.testing.assert_close(model.get_parameter(name).detach(), start + 0.25)
    other = Donor(save_bert(tmp_path / "bert"))
    with pytest.raises(
        MAMError, match=r"key 'method'.*architecture differs: HuBERT and BERT.*slerp"
    ):
        make_plan(find_attention(model), other.index, method="pretrained")
    deeper = Donor(save_speech_model(tmp_path / "deeper", num_hidden_layers=4))
    with pytest.raises(MAMError, match=r"number of layers differs: 3 and 4"):
        make_plan(find_attention(model), deeper.index, method="pretrained")


def test_unknown_and_doubled_names(bert_folder):
    target, donor = find_attention(build_speech_model()), Donor(bert_folder).index
    with pytest.raises(MAMError, match=r"key 'method': 'ties' is not one of linear, .*slerp"):
        make_plan(target, donor, method="ties")
    with pytest.raises(MAMError, match="a merge method 'slerp' exists"):
        merge_method("slerp")(lambda target, donor, lam: target)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
@pytest.mark.parametrize("granularity", ["model", "projection", "head"])
@pytest.mark.parametrize("method", FOREIGN)
def test_live_equals_zero_shot_equals_folded(family, granularity, method, bert_folder):
    if method == "slerp" and granularity == "head":
        return  # its angle is that of the whole tensor, and its shares of a head are tested above
    donor, model = Donor(bert_folder), build_speech_model(family)
    reference = build_speech_model(family)
    plan = make_plan(find_attention(model), donor.index, lam=0.6, method=method)
    Merge(reference, plan, donor)
    mam = LearnableMAM(model, plan, donor, granularity)
    live = model(WAV).logits
    assert not torch.allclose(live, build_speech_model(family)(WAV).logits, atol=1e-3)
    torch.testing.assert_close(live, reference(WAV).logits, rtol=0, atol=1e-5)
    live.square().sum().backward()
    assert all(lam.grad is not None and lam.grad.abs().min() > 0 for lam in mam.lams)
    mam.fold()
    assert set(model.state_dict()) == set(reference.state_dict())
    torch.testing.assert_close(model(WAV).logits, live, rtol=0, atol=1e-6)


def test_a_second_path_trains_its_donor_and_starts_from_nothing(bert_folder):
    donor, model = Donor(bert_folder), build_speech_model()
    untouched = model(WAV).logits
    plan = make_plan(find_attention(model), donor.index, lam=1.0, method="multi_path")
    mam = LearnableMAM(model, plan, donor)
    torch.testing.assert_close(model(WAV).logits, untouched)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(4):  # at λ = 1 the donor has no gradient yet, but λ has
        optimizer.zero_grad()
        model(WAV).logits.square().mean().backward()
        optimizer.step()
        mam.project_()
    values = list(mam.values().values())
    assert min(values) < 1
    layer = values.index(min(values))
    name = f"hubert.encoder.layers.{layer}.attention.q_proj.donor_weight"
    trained = model.get_parameter(name).detach().clone()
    assert not torch.equal(trained, donor.tensor((layer, "query", "weight")))
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    again = build_speech_model()
    other = LearnableMAM(again, plan, donor)
    again.load_state_dict(state)
    assert torch.equal(again.get_parameter(name), trained)
    assert other.values() == mam.values()
    again.load_state_dict(build_speech_model().state_dict())  # a plain checkpoint has no donor
    assert torch.equal(again.get_parameter(name), trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("method", FOREIGN)
def test_files_are_merged_as_live_models_are(method, dtype, tmp_path, bert_folder):
    model = build_speech_model().to(dtype)
    model.save_pretrained(tmp_path / "target")
    target, donor = ModelFolder(tmp_path / "target"), ModelFolder(bert_folder)
    plan = make_plan(target.attention(), donor.attention(), lam=0.8, method=method, layers=[0, 2])
    (tmp_path / "out").mkdir()
    merge_folders(plan, target, donor, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    Merge(model, plan, Donor(bert_folder))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=1e-6 if dtype != torch.float16 else 1e-3
        )
    touched = {entry.target for entry in plan.entries}
    assert all(torch.equal(found[n], target.read(n)) != (n in touched) for n in target.files)
