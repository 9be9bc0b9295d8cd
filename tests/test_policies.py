"""Policies where target and donor do not fit each other exactly: width, biases, gradients of λ."""

import itertools

import pytest
import torch
from conftest import build_speech_model, save_bert
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from speechbrain_mam import Donor, LearnableMAM, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.merging.on_disk import merge_folders
from speechbrain_mam.model_files.folder import ModelFolder
from speechbrain_mam.options import parse_lam

WAV = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))


def without_key_bias(folder):
    """As Whisper's and BEiT's keys have none."""
    file = folder / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if not k.endswith("key.bias")}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_a_wider_donor_is_cropped_only_on_demand(tmp_path):
    donor = Donor(save_bert(tmp_path / "wide", hidden_size=24, num_attention_heads=3))
    model = build_speech_model()
    with pytest.raises(MAMError, match=r"widths differ.*'width: crop'"):
        make_plan(find_attention(model), donor.index)
    plan = make_plan(find_attention(model), donor.index, lam=0, width="crop")
    assert "width 16 (donor: 24, cropped to its first rows and columns)" in str(plan)
    with Merge(model, plan, donor):
        weight = model.hubert.encoder.layers[1].attention.k_proj.weight
        assert torch.equal(weight, donor.tensor((1, "key", "weight"))[:16, :16])
        bias = model.hubert.encoder.layers[1].attention.k_proj.bias
        assert torch.equal(bias, donor.tensor((1, "key", "bias"))[:16])
    build_speech_model().save_pretrained(tmp_path / "target")
    target = ModelFolder(tmp_path / "target")
    (tmp_path / "out").mkdir()
    on_disk = make_plan(target.attention(), donor.index, lam=0, width="crop")
    merge_folders(on_disk, target, ModelFolder(tmp_path / "wide"), tmp_path / "out")
    found = ModelFolder(tmp_path / "out").read("hubert.encoder.layers.1.attention.k_proj.weight")
    assert torch.equal(found, donor.tensor((1, "key", "weight"))[:16, :16])


def test_a_narrower_donor_cannot_be_cropped(tmp_path):
    donor = Donor(save_bert(tmp_path, hidden_size=8))
    with pytest.raises(MAMError, match=r"widths differ: .*\[8, 8\]; choose a donor of width 16"):
        make_plan(find_attention(build_speech_model()), donor.index, width="crop")


def test_a_missing_bias_is_left_where_both_must_have_it(tmp_path):
    donor, model = Donor(without_key_bias(save_bert(tmp_path))), build_speech_model()
    target = find_attention(model)
    with pytest.raises(MAMError, match=r"the donor has no key bias in layer 0.*'bias: where_both'"):
        make_plan(target, donor.index, bias="merge")
    plan = make_plan(target, donor.index, lam=0.5)
    assert plan == make_plan(target, donor.index, lam=0.5, bias="where_both")
    assert len(plan.entries) == 9 + 6
    assert "only one side having them: 'hubert.encoder.layers.0.attention.k_proj.bias'" in str(plan)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with Merge(model, plan, donor):
        merged = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        logits = model(WAV).logits
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed == {entry.target for entry in plan.entries}
    assert not any(name.endswith("k_proj.bias") for name in changed)
    LearnableMAM(model, plan, donor)
    torch.testing.assert_close(model(WAV).logits, logits, rtol=0, atol=1e-5)


@given(st.integers(3, 30), st.lists(st.floats(0, 1), min_size=2, max_size=3))
def test_a_short_list_is_a_gradient_over_the_layers(layers, anchors):
    found = list(parse_lam(anchors, range(layers), ["query"]).values())
    assert len(found) == layers
    assert found[0] == pytest.approx(anchors[0]) and found[-1] == pytest.approx(anchors[-1])
    if len(anchors) == 2:
        steps = [b - a for a, b in itertools.pairwise(found)]
        assert max(steps) - min(steps) < 1e-9
    assert min(anchors) - 1e-9 <= min(found) and max(found) <= max(anchors) + 1e-9


def test_gradients_of_lam_for_each_projection(bert_folder):
    plan = make_plan(
        find_attention(build_speech_model()),
        Donor(bert_folder).index,
        lam={"query": [0.8, 1.0], "key": 0.9, "value": [1, 0.5, 0.75]},
    )
    lams = [[plan.lam_of(layer, p) for layer in range(3)] for p in ("query", "key", "value")]
    assert lams == [[0.8, 0.9, 1.0], [0.9] * 3, [1, 0.5, 0.75]]
    with pytest.raises(MAMError, match="has 1 values for 3 chosen layers; expected one number"):
        parse_lam([0.9], range(3), ["query"])


def test_the_output_projection(bert_folder):
    model, donor = build_speech_model(), Donor(bert_folder)
    plan = make_plan(find_attention(model), donor.index, lam=0, projections="o")
    with Merge(model, plan, donor):
        weight = model.hubert.encoder.layers[2].attention.out_proj.weight
        assert torch.equal(weight, donor.tensor((2, "output", "weight")))
