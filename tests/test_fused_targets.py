"""Targets that keep query, key and value in one tensor: SpeechBrain's own Transformer encoder."""

import copy

import pytest
import torch
from conftest import save_bert
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder

from speechbrain_mam import Donor, LearnableMAM, MAMError, Merge, find_attention, make_plan

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def build(layers=3):
    torch.manual_seed(1)
    encoder = TransformerEncoder(
        num_layers=layers, nhead=2, d_ffn=32, d_model=16, dropout=0.0, normalize_before=True
    ).eval()
    for name, parameter in encoder.named_parameters():  # fresh biases are zero and would hide one
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def run(encoder):
    return encoder(X)[0]


def merged_by_hand(donor, lam, projections="qkv", layers=range(3)):
    encoder = build()
    with torch.no_grad():
        for i in layers:
            attention = encoder.layers[i].self_att.att
            for j, projection in enumerate(("query", "key", "value")):
                if projection[0] in projections:
                    rows = slice(16 * j, 16 * (j + 1))
                    for tensor, kind in (
                        (attention.in_proj_weight, "weight"),
                        (attention.in_proj_bias, "bias"),
                    ):
                        theirs = donor.tensor((i, projection, kind))
                        tensor[rows] = lam * tensor[rows] + (1 - lam) * theirs
    return encoder


@pytest.mark.parametrize("projections", ["qkv", "kv", "q"])
def test_zero_shot_touches_the_rows_of_the_plan_alone(projections, bert_folder):
    donor, encoder = Donor(bert_folder), build()
    before = copy.deepcopy(encoder.state_dict())
    plan = make_plan(find_attention(encoder), donor.index, lam=0.6, projections=projections)
    assert "self_att.att.in_proj_weight[16:32]" in str(plan) or projections == "q"
    merge = Merge(encoder, plan, donor)
    expected = merged_by_hand(donor, 0.6, projections).state_dict()
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    rows = [16 * "qkv".index(p) for p in projections]
    weight = encoder.layers[1].self_att.att.in_proj_weight
    same = (weight == before["layers.1.self_att.att.in_proj_weight"]).all(1)
    assert [bool(same[start]) for start in (0, 16, 32)] == [
        start not in rows for start in (0, 16, 32)
    ]
    merge.undo()
    assert all(torch.equal(t, before[name]) for name, t in encoder.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "slerp", "multi_path"])
@pytest.mark.parametrize("granularity", ["model", "layer", "projection", "head"])
@pytest.mark.parametrize("projections", ["qkv", "kvo"])
def test_learned_equals_zero_shot_equals_folded(projections, granularity, method, bert_folder):
    if (method, granularity) == ("slerp", "head"):
        return  # one angle for a tensor: heads have no slerp of their own
    donor, encoder, reference = Donor(bert_folder), build(), build()
    options = {"lam": 0.6, "projections": projections, "method": method}
    plan = make_plan(find_attention(encoder), donor.index, **options)
    Merge(reference, plan, donor)
    mam = LearnableMAM(encoder, plan, donor, granularity)
    live = run(encoder)
    assert not torch.allclose(live, run(build()), atol=1e-3)
    torch.testing.assert_close(live, run(reference), rtol=0, atol=1e-5)
    assert encoder.layers[0].self_att.att.in_proj_weight.shape == (48, 16)
    live.square().sum().backward()
    assert all(lam.grad is not None and lam.grad.abs().min() > 0 for lam in mam.lams)
    mam.fold()
    assert set(encoder.state_dict()) == set(reference.state_dict())
    assert type(encoder.layers[0].self_att.att) is torch.nn.MultiheadAttention
    torch.testing.assert_close(run(encoder), live, rtol=0, atol=1e-6)
    mam.insert()
    assert torch.equal(run(encoder), live)
    mam.remove()
    assert torch.equal(run(encoder), run(build()))


def test_gradients_agree_with_plain_autograd(bert_folder):
    donor, encoder = Donor(bert_folder), build().double()
    plain = copy.deepcopy(encoder)
    plan = make_plan(find_attention(encoder), donor.index, lam=0.7)
    mam = LearnableMAM(encoder, plan, donor)
    run_double = X.double()
    encoder(run_double)[0].square().sum().backward()
    lams = [lam.detach().clone().requires_grad_() for lam in mam.lams]
    weights = {name: p.detach().clone().requires_grad_() for name, p in plain.named_parameters()}
    merged = dict(weights)
    for i, lam in enumerate(lams):
        for kind in ("weight", "bias"):
            name = f"layers.{i}.self_att.att.in_proj_{kind}"
            theirs = torch.cat([donor.tensor((i, p, kind)) for p in ("query", "key", "value")])
            merged[name] = lam * weights[name] + (1 - lam) * theirs.double()
    torch.func.functional_call(plain, merged, (run_double,))[0].square().sum().backward()
    for ours, exact in zip(mam.lams, lams, strict=True):
        torch.testing.assert_close(ours.grad.double(), exact.grad.double(), rtol=1e-4, atol=1e-7)
    for name, parameter in encoder.named_parameters():
        if name in weights:
            torch.testing.assert_close(parameter.grad, weights[name].grad)


def test_checkpoints_go_both_ways(bert_folder):
    donor, encoder, plain = Donor(bert_folder), build(), build()
    plan = make_plan(find_attention(encoder), donor.index, lam=0.8)
    mam = LearnableMAM(encoder, plan, donor)
    trained = {name: tensor + 1 for name, tensor in plain.state_dict().items()}
    encoder.load_state_dict(trained)
    assert set(mam.values().values()) == {0.8}
    with torch.no_grad():
        mam.lams[1].fill_(0.5)
    state = encoder.state_dict()
    assert set(state) - set(trained) == {f"layers.{i}.self_att.att.lam" for i in range(3)}
    other = build()
    again = LearnableMAM(other, plan, donor)
    other.load_state_dict(state)
    assert again.values() == mam.values()
    assert torch.equal(run(other), run(encoder))
    assert torch.equal(run(copy.deepcopy(encoder)), run(encoder))


def test_the_mode_goes_along(bert_folder):
    """In training mode the plain attention would drop what the merged one has learned to keep."""
    encoder, donor = build().train(), Donor(bert_folder)
    mam = LearnableMAM(encoder, make_plan(find_attention(encoder), donor.index), donor)
    encoder.eval()
    for change in (mam.fold, mam.remove, mam.insert):
        change()
        assert not any(module.training for module in encoder.modules())
    encoder.train()
    mam.remove()
    assert all(module.training for module in encoder.modules())


def test_lam_1_is_the_untouched_encoder(bert_folder):
    donor, encoder = Donor(bert_folder), build()
    LearnableMAM(encoder, make_plan(find_attention(encoder), donor.index, lam=1), donor)
    assert torch.equal(run(encoder), run(build()))


def test_several_donors_cannot_be_learned_in_one_tensor(bert_folder, tmp_path):
    from speechbrain_mam import MAM

    donors = [bert_folder, save_bert(tmp_path, seed=5)]
    zero_shot = build()
    MAM(zero_shot, donor=donors, lam=0.7, learnable=False).apply()
    assert not torch.allclose(run(zero_shot), run(build()), atol=1e-3)
    with pytest.raises(MAMError, match=r"'layers\.0\.self_att\.att' holds several projections"):
        MAM(build(), donor=donors, lam=0.7).apply()
