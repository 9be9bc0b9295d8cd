"""λ per head: rows of query, key and value, columns of the output projection."""

import pytest
import torch
from conftest import build_speech_model
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch import nn

from speechbrain_mam import Donor, LearnableMAM, Merge, MergedLinear, find_attention, make_plan
from speechbrain_mam.learning.linear import MergedLinearByWeight
from speechbrain_mam.learning.module import own_parameter

HEADS, WIDTH = 2, 16
WAV = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


def transformer():
    torch.manual_seed(1)
    encoder = TransformerEncoder(
        num_layers=3, nhead=HEADS, d_ffn=32, d_model=WIDTH, dropout=0.0
    ).eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return encoder


TARGETS = {
    "hubert": build_speech_model,
    "wavlm": lambda: build_speech_model("wavlm"),
    "transformer": transformer,
}


def run(model):
    double = next(model.parameters()).double().dtype == next(model.parameters()).dtype
    inputs = X if isinstance(model, TransformerEncoder) else WAV
    output = model(inputs.double() if double else inputs)
    return output[0] if isinstance(model, TransformerEncoder) else output.logits


def by_hand(own, theirs, lam, projection, kind):
    """The formula: λ_h for the rows that are head h's, or for its columns; the bias of W_O."""
    if projection != "output":
        share = lam.repeat_interleave(WIDTH // HEADS)
        share = share[:, None] if kind == "weight" else share
    elif kind == "weight":
        share = lam.repeat_interleave(WIDTH // HEADS)[None, :]
    else:
        share = lam.mean()
    return share * own + (1 - share) * theirs


def merged_by_hand(model, plan, donor, lams):
    """All merged parameters by name, from ``model``'s own."""
    merged = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for entry in plan.entries:
        rows = slice(None) if entry.target_rows is None else slice(*entry.target_rows)
        own = own_parameter(model, entry.target).detach().double()[rows]
        theirs = donor.tensor(entry.donor_key).double()
        lam = lams[plan.layers.index(entry.layer)]
        value = merged[entry.target].clone()
        value[rows] = by_hand(own, theirs, lam, entry.projection, entry.kind)
        merged[entry.target] = value
    return merged


@pytest.mark.parametrize("constraint", ["project", "sigmoid", "none"])
@pytest.mark.parametrize("target", TARGETS)
def test_live_folded_and_gradient_are_the_formula(target, constraint, bert_folder):
    donor, model, plain = Donor(bert_folder), TARGETS[target]().double(), TARGETS[target]().double()
    plan = make_plan(find_attention(model), donor.index, lam=0.8, projections="qkvo")
    mam = LearnableMAM(model, plan, donor, "head", constraint)
    with torch.no_grad():
        for i, lam in enumerate(mam.lams):
            lam.add_(torch.tensor([0.1, -0.3 - 0.05 * i]))
    live = run(model)
    live.square().mean().backward()

    raw = [lam.detach().double().requires_grad_() for lam in mam.lams]
    lams = [torch.sigmoid(lam) for lam in raw] if constraint == "sigmoid" else raw
    merged = merged_by_hand(plain, plan, donor, lams)
    inputs = (X if target == "transformer" else WAV).double()
    output = torch.func.functional_call(plain, merged, (inputs,))
    output = output[0] if target == "transformer" else output.logits
    output.square().mean().backward()
    torch.testing.assert_close(live, output)
    for lam, exact in zip(mam.lams, raw, strict=True):
        assert exact.grad.abs().min() > 0
        torch.testing.assert_close(lam.grad, exact.grad)

    mam.fold()
    for entry in plan.entries:
        folded = own_parameter(model, entry.target)
        torch.testing.assert_close(folded.detach(), merged[entry.target].detach())
    torch.testing.assert_close(run(model), live)


@pytest.mark.parametrize("target", TARGETS)
def test_equal_lam_are_one_lam(target, bert_folder):
    """Heads that start at one λ are a zero-shot merge, to the bit: W_O's bias too."""
    donor, model, reference = Donor(bert_folder), TARGETS[target](), TARGETS[target]()
    plan = make_plan(find_attention(model), donor.index, lam=0.93, projections="qkvo")
    Merge(reference, plan, donor)
    LearnableMAM(model, plan, donor, "head").fold()
    for entry in plan.entries:
        ours, theirs = (m.get_parameter(entry.target) for m in (model, reference))
        assert torch.equal(ours, theirs), entry.target


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_that_keeps_its_own_keeps_it_whole(target, bert_folder):
    """λ = 1 of one head: its rows of Q, K, V and its columns of W_O are the target's bits."""
    donor, model, plain = Donor(bert_folder), TARGETS[target](), TARGETS[target]()
    plan = make_plan(find_attention(model), donor.index, lam=0.5, projections="qkvo")
    mam = LearnableMAM(model, plan, donor, "head")
    with torch.no_grad():
        for lam in mam.lams:
            lam[1] = 1
    mam.fold()
    first, second = slice(0, 8), slice(8, 16)
    for entry in plan.entries:
        rows = slice(None) if entry.target_rows is None else slice(*entry.target_rows)
        ours, own = (m.get_parameter(entry.target).detach()[rows] for m in (model, plain))
        if entry.projection == "output" and entry.kind == "weight":
            ours, own = ours.t(), own.t()
        if (entry.projection, entry.kind) != ("output", "bias"):
            assert torch.equal(ours[second], own[second]), entry.target
        assert not torch.isclose(ours[first], own[first]).all(), entry.target


@pytest.mark.parametrize("kind", [MergedLinear, MergedLinearByWeight])
@pytest.mark.parametrize("bias", ["merge", "keep", "none"])
@pytest.mark.parametrize("columns", [False, True])
def test_gradients_agree_with_finite_differences(kind, bias, columns):
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, bias=bias != "none").double()
    donor_bias = torch.randn(4).double() if bias == "merge" else None
    lam = nn.Parameter(torch.rand(2).double())
    layer = kind(linear, torch.randn(4, 6).double(), donor_bias, lam, heads_in_columns=columns)
    x = torch.randn(2, 3, 6, dtype=torch.double, requires_grad=True)
    inputs = [x, linear.weight, lam] + ([linear.bias] if linear.bias is not None else [])
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), inputs)
