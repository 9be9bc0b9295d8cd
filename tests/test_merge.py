"""Zero-shot merging: what it changes, what it leaves, and the way back."""

import pytest
import torch
from conftest import FAMILIES, build_speech_model
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_mam import Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.merging.arithmetic import first_step, linear
from speechbrain_mam.merging.methods import METHODS


@pytest.fixture()
def model():
    return build_speech_model()


def plan_for(model, donor, **options):
    return make_plan(find_attention(model), donor.index, **options)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@given(st.floats(0, 1), st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
def test_linear_is_the_formula(lam, target, donor):
    merged = linear(torch.tensor([target]), torch.tensor([donor]), lam)
    exact = lam * target + (1 - lam) * donor
    assert merged.item() == pytest.approx(exact, rel=1e-5, abs=1e-3)


def test_the_ends_keep_every_bit():
    target = torch.tensor([-0.0, 1.0, 65504.0], dtype=torch.float16)
    donor = torch.tensor([-5.0, -0.0, 3.0])
    assert linear(target, donor, 1).view(torch.int16).equal(target.view(torch.int16))
    assert linear(target, donor, 0).view(torch.int16).equal(donor.half().view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_wide_and_cast_once(dtype):
    torch.manual_seed(0)
    target, donor = torch.randn(64, 64).to(dtype), torch.randn(64, 64)
    exact = (0.9 * target.double() + 0.1 * donor.double()).to(dtype)
    assert (linear(target, donor, 0.9) != exact).float().mean() < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_plan_is_touched_and_undone_bit_for_bit(family, bert_folder):
    model, donor = build_speech_model(family), Donor(bert_folder)
    before = snapshot(model)
    plan = plan_for(model, donor, lam=0.7, layers=[0, 2], projections="qv")
    merge = Merge(model, plan, donor)
    touched = {entry.target for entry in plan.entries}
    assert len(touched) == 2 * 2 * 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in touched), name
    entry = plan.entries[0]
    exact = 0.7 * before[entry.target] + 0.3 * donor.tensor(entry.donor_key)
    torch.testing.assert_close(model.state_dict()[entry.target], exact)
    merge.undo()
    merge.undo()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_lam_0_is_the_donor_and_lam_1_the_target(model, bert_folder):
    donor, before = Donor(bert_folder), snapshot(model)
    with Merge(model, plan_for(model, donor, lam=0), donor):
        attention = model.hubert.encoder.layers[1].attention
        assert torch.equal(attention.k_proj.weight, donor.tensor((1, "key", "weight")))
        assert torch.equal(attention.k_proj.bias, donor.tensor((1, "key", "bias")))
        assert torch.equal(
            attention.out_proj.weight, before["hubert.encoder.layers.1.attention.out_proj.weight"]
        )
    wav = torch.randn(2, 8000)
    untouched = model(wav).logits
    with Merge(model, plan_for(model, donor, lam=1), donor):
        assert torch.equal(model(wav).logits, untouched)


def test_a_merge_that_fails_on_its_way_leaves_the_target(model, bert_folder):
    donor, before = Donor(bert_folder), snapshot(model)

    class ZeroInLayer2:
        def tensor(self, key):
            return donor.tensor(key) * (key[0] != 2)

    plan = plan_for(model, donor, donor_scale="match_norm")
    with pytest.raises(MAMError, match=r"layer\.2\.attention\.self\.query\.weight' is all zeros"):
        Merge(model, plan, ZeroInLayer2())
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(model).items())


def test_bias_keep_and_match_norm(model, bert_folder):
    donor, before = Donor(bert_folder), snapshot(model)
    plan = plan_for(model, donor, lam=0, bias="keep", donor_scale="match_norm")
    assert {entry.kind for entry in plan.entries} == {"weight"}
    with Merge(model, plan, donor):
        name = "hubert.encoder.layers.0.attention.q_proj"
        now = model.state_dict()
        assert torch.equal(now[f"{name}.bias"], before[f"{name}.bias"])
        assert now[f"{name}.weight"].norm().item() == pytest.approx(
            before[f"{name}.weight"].norm().item(), rel=1e-5
        )
    plan = plan_for(model, donor, lam=0, donor_scale="match_norm")
    with Merge(model, plan, donor):
        weight, bias = model.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.bias")
        factor = bias / donor.tensor((0, "query", "bias"))
        torch.testing.assert_close(factor, factor[0].expand_as(factor))
        torch.testing.assert_close(weight, factor[0] * donor.tensor((0, "query", "weight")))


def test_a_plan_of_another_model_changes_nothing(model, bert_folder):
    donor = Donor(bert_folder)
    plan = plan_for(model, donor, lam=0.5)
    other = build_speech_model(num_hidden_layers=2)
    before = snapshot(other)
    with pytest.raises(MAMError, match=r"layers\.2\.attention\.q_proj\.weight'.*no such parameter"):
        Merge(other, plan, donor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_the_first_step_is_the_derivative_of_the_merge(method):
    torch.manual_seed(0)
    target, donor = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    small = 1e-6
    moved = linear(target, donor, 1 - small, method)
    torch.testing.assert_close(
        first_step(target, donor, method), (moved - target) / small, rtol=1e-4, atol=1e-4
    )


def test_the_method_is_linear_unless_another_is_asked_for():
    target, donor = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    assert linear(target, donor, 0.5).equal(linear(target, donor, 0.5, "linear"))
    assert first_step(target, donor).equal(donor - target)


def renamed(model):
    """The first layer's query under another name, as an adapter that wraps it leaves it."""
    attention = find_attention(model)
    path = attention.tensors[0, "query", "weight"].name.rpartition(".")[0]
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    wrapped = torch.nn.Module()
    wrapped.base = getattr(holder, name)
    setattr(holder, name, wrapped)
    return wrapped


def test_a_projection_that_got_another_name_is_taken_back(model, bert_folder):
    donor = Donor(bert_folder)
    before = snapshot(model)
    merge = Merge(model, plan_for(model, donor, lam=0.5), donor)
    wrapped = renamed(model)
    merge.undo()
    after = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert wrapped.base.weight.shape


def test_a_projection_that_was_replaced_cannot_be_taken_back(model, bert_folder):
    donor = Donor(bert_folder)
    merge = Merge(model, plan_for(model, donor, lam=0.5), donor)
    renamed(model).base = torch.nn.Linear(1, 1)
    with pytest.raises(MAMError, match="was merged, and is no longer in HubertForCTC"):
        merge.undo()
