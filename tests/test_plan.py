"""The plan: what it refuses, and how it reads."""

import dataclasses
import json

import pytest
from conftest import build_speech_model, save_bert

from speechbrain_mam import Donor, MAMError, find_attention, make_plan
from speechbrain_mam.architectures.parts import Part
from speechbrain_mam.merging.plan import MergePlan, PlanEntry


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


PRINTED = """\
MAM plan: hubert (HuBERT, 2 layers) takes attention from bert (BERT, 1 layers), by the layer map
width 8 (donor: 16, cropped to its first rows and columns), 2 heads (donor: 4; rows are mixed by \
position); 2 weights and 1 biases
method: linear, align: none, bias: where_both, donor_scale: none
W = λ · W_target + (1 − λ) · W_donor
left as they are, only one side having them: 'a', 'b', 'c' and 2 biases more

layer  donor layer  projection  λ     shape  target tensor  donor tensor
0      0            query       0.5   8×8    q0             Q[0:8]
1      0            query       0.25  8×8    q1[8:16]       Q[0:8]"""


def test_a_plan_as_it_is_printed():
    def entry(layer, lam, kind="weight", **options):
        shape = (8, 8) if kind == "weight" else (8,)
        return PlanEntry(layer=layer, donor_layer=0, projection="query", kind=kind, lam=lam,
                         shape=shape, **options)  # fmt: skip

    entries = (
        entry(0, 0.5, target="q0", donor="Q", donor_part=Part(8, 0, 3)),
        entry(0, 0.5, "bias", target="b0", donor="B"),
        entry(1, 0.25, target="q1", target_part=Part(8, 1, 3), donor="Q", donor_part=Part(8, 0, 3)),
    )
    plan = MergePlan("hubert", "bert", "HuBERT", "BERT", 2, 1, 2, 4, 8, (0, 0), ("query",), (0, 1),
                     "where_both", "none", entries, donor_width=16,
                     kept_biases=("a", "b", "c", "d", "e"))  # fmt: skip
    assert str(plan) == PRINTED
    few = dataclasses.replace(plan, kept_biases=("a", "b", "c"), donor_heads=2, donor_width=8)
    assert "having them: 'a', 'b', 'c'\n" in str(few) and "cropped" not in str(few)
    assert "width 8, 2 heads; 2 weights" in str(few)
    assert "left as they are" not in str(dataclasses.replace(plan, kept_biases=()))
    assert "layer by layer" in str(dataclasses.replace(plan, donor_layers=2))
