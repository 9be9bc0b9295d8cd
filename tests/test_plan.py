"""The plan: what it refuses, and how it reads."""

import json

import pytest
from conftest import build_speech_model, save_bert

from speechbrain_mam import Donor, MAMError, find_attention, make_plan


def test_other_width_names_both_tensors_and_shapes(tmp_path):
    donor = Donor(save_bert(tmp_path, hidden_size=24))
    with pytest.raises(
        MAMError, match=r"q_proj\.weight' is \[16, 16\], donor .*\[24, 24\].*key 'donor'"
    ):
        make_plan(find_attention(build_speech_model()), donor.index)


def test_other_depth_and_heads_are_mapped_and_shown(tmp_path):
    donor = Donor(save_bert(tmp_path, num_hidden_layers=5, num_attention_heads=4))
    plan = make_plan(find_attention(build_speech_model()), donor.index, lam=0.9)
    assert plan.layer_map == (0, 2, 4)
    text = str(plan)
    assert "2 heads (donor: 4; rows are mixed by position)" in text
    assert "by the layer map" in text
    assert len([line for line in text.splitlines() if "_proj.weight" in line]) == 9
    assert len(json.loads(plan.to_json())["entries"]) == 18


def test_unknown_options_name_their_key(bert_folder):
    target, donor = find_attention(build_speech_model()), Donor(bert_folder).index
    for key, value in {"bias": "drop", "donor_scale": "unit", "layer_map": "x"}.items():
        with pytest.raises(MAMError, match=f"key '{key}'"):
            make_plan(target, donor, **{key: value})


def test_a_missing_bias_says_what_to_set(bert_folder):
    target, donor = find_attention(build_speech_model()), Donor(bert_folder).index
    tensors = {key: ref for key, ref in donor.tensors.items() if key[2] == "weight"}
    from dataclasses import replace

    bare = replace(donor, tensors=tensors)
    with pytest.raises(MAMError, match=r"the donor has no query bias in layer 0.*'bias: keep'"):
        make_plan(target, bare, bias="merge")
    assert len(make_plan(target, bare, bias="keep").entries) == 9


def test_a_plan_cannot_be_changed(bert_folder):
    plan = make_plan(find_attention(build_speech_model()), Donor(bert_folder).index)
    with pytest.raises(AttributeError):
        plan.bias = "keep"
