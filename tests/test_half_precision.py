"""λ and the donor are never narrower than float32, and a merge is cast once, live as zero-shot."""

import pytest
import torch
from conftest import build_speech_model, save_bert
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch import nn

from speechbrain_mam import MAM, Donor, LearnableMAM, Merge, MergedLinear, find_attention, make_plan
from speechbrain_mam.learning.learnable import CONSTRAINTS, GRANULARITIES
from speechbrain_mam.learning.linear import MergedLinearByWeight
from speechbrain_mam.learning.module import MergedModule, own_parameter
from speechbrain_mam.learning.other_layers import ManyDonorsLinear, MergedRows, MethodLinear
from speechbrain_mam.merging.arithmetic import linear
from speechbrain_mam.merging.prepare import own_part

DTYPES = {d: getattr(torch, d) for d in ("float32", "bfloat16", "float16", "float64")}
WAV = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))

EXACT = {"rtol": 0, "atol": 0}


def build_transformer(attention="regularMHA"):
    torch.manual_seed(1)
    sizes = {"num_layers": 3, "nhead": 2, "d_ffn": 32, "d_model": 16, "dropout": 0.0}
    encoder = TransformerEncoder(**sizes, attention_type=attention).eval()
    for name, parameter in encoder.named_parameters():  # fresh biases are zero and would hide one
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return encoder


# the class that is tried, and the target and the method that need it
CASES = {
    "MergedLinear": (MergedLinear, build_speech_model, "linear"),
    "MergedLinear, match_norm": (MergedLinear, build_speech_model, "norm_matched"),
    "ByWeight": (MergedLinearByWeight, lambda: build_speech_model("wavlm"), "linear"),
    "slerp": (MethodLinear, build_speech_model, "slerp"),
    "multi_path": (MethodLinear, lambda: build_speech_model("wavlm"), "multi_path"),
    "rows": (MergedRows, build_transformer, "linear"),
    "rows by head": (MergedRows, lambda: build_transformer("RoPEMHA"), "linear"),
    "rows, slerp": (MergedRows, build_transformer, "slerp"),
    "rows, multi_path": (MergedRows, build_transformer, "multi_path"),
}


def run(model, dtype):
    if isinstance(model, TransformerEncoder):
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        return model(x.to(dtype))[0]
    return model(WAV.to(dtype)).logits


def shares(mam):
    """λ as Python numbers, a list for each layer (or the model)."""
    found = [torch.sigmoid(x) if mam.constraint == "sigmoid" else x for x in mam.lams]
    return [x.detach().tolist() for x in found]


def expected_tensors(model, mam, donor, dtype):
    """What a zero-shot merge would write with these λ, head by head where heads have their own."""
    plan, values = mam.plan, shares(mam)
    for entry in plan.entries:
        lams = values[0 if mam.granularity == "model" else plan.layers.index(entry.layer)]
        if mam.granularity == "projection":
            lams = [lams[plan.projections.index(entry.projection)]]
        ours = own_part(entry, own_parameter(model, entry.target).detach())
        assert ours.dtype == dtype
        theirs = donor.tensor(entry.donor_key) * entry.donor_factor
        if plan.donor_scale == "match_norm":
            weight = (entry.layer, entry.projection, "weight")
            (like,) = (e for e in plan.entries if (e.layer, e.projection, e.kind) == weight)
            own, its = own_parameter(model, like.target).detach(), donor.tensor(like.donor_key)
            theirs = theirs * (own.double().norm() / its.double().norm()).item()
        whole = [linear(ours, theirs, lam, plan.method) for lam in lams]
        size = len(ours) // len(lams)
        yield entry, torch.cat([w[i * size : (i + 1) * size] for i, w in enumerate(whole)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("case", CASES)
def test_a_folded_lam_is_a_zero_shot_lam(case, granularity, constraint, dtype, bert_folder):
    """Bit for bit, and so is what the live model computes with.

    Where heads of a tensor have λ of their own, slerp's are float32 and a number is a double.
    """
    kind, build, method = CASES[case]
    rounds = (method, granularity) == ("slerp", "head")
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-7} if rounds else EXACT
    donor, model = Donor(bert_folder), build().to(dtype)
    plan = make_plan(find_attention(model), donor.index, lam=0.95, method=method)
    mam = LearnableMAM(model, plan, donor, granularity, constraint)
    assert all(lam.dtype == torch.promote_types(dtype, torch.float32) for lam in mam.lams)
    with torch.no_grad():
        for i, lam in enumerate(mam.lams):  # 0.999 is 1 in bfloat16
            lam.add_(torch.linspace(0.03, 0.049, lam.numel(), dtype=lam.dtype) - 0.001 * i)
    assert any(isinstance(module, kind) for module in model.modules())
    expected = list(expected_tensors(model, mam, donor, dtype))
    merged = {
        f"{path}.{name}": tensor.detach()
        for path, module in model.named_modules()
        if isinstance(module, MergedModule)
        for name, tensor in zip(
            getattr(module, "names", ("weight", "bias")), module.merged(), strict=False
        )
    }
    live = run(model, dtype)
    assert live.dtype == dtype
    mam.fold()
    for entry, tensor in expected:
        folded = own_part(entry, own_parameter(model, entry.target).detach())
        torch.testing.assert_close(folded, tensor, **tolerance)
        torch.testing.assert_close(own_part(entry, merged[entry.target]), folded, **EXACT)
    torch.testing.assert_close(run(model, dtype), live, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("method", ["linear", "slerp", "multi_path"])
@pytest.mark.parametrize("lam", [1, 0, 0.95, 0.999])
def test_folded_equals_merge(lam, method, dtype, bert_folder):
    """Where λ starts, the ends included: −0 stays −0. Learned λ are float32, also the start."""
    lam = torch.tensor(lam, dtype=torch.promote_types(dtype, torch.float32)).item()
    donor, reference, model = Donor(bert_folder), build_speech_model(), build_speech_model()
    for part in (reference, model):
        with torch.no_grad():
            for layer in part.hubert.encoder.layers:
                layer.attention.q_proj.weight[0] = -0.0
        part.to(dtype)
    plan = make_plan(find_attention(model), donor.index, lam=lam, method=method)
    Merge(reference, plan, donor)
    LearnableMAM(model, plan, donor).fold()
    for entry in plan.entries:
        ours, zero_shot = (m.get_parameter(entry.target).detach() for m in (model, reference))
        assert torch.equal(ours, zero_shot), entry.target
        assert torch.equal(ours.signbit(), zero_shot.signbit()), entry.target


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_several_donors_in_half_precision(family, constraint, dtype, tmp_path):
    """Cast once, under autocast too, which would sum the donors in half precision."""
    folders = [str(save_bert(tmp_path / str(seed), seed=seed)) for seed in (3, 4)]
    model = build_speech_model(family).to(DTYPES[dtype])
    mam = MAM(model, donor=folders, lam=0.999, donor_shares=[0.25, 0.75], constraint=constraint)
    mam.apply()
    attention = model.get_submodule(f"{family}.encoder.layers.0.attention")
    assert isinstance(attention.q_proj, ManyDonorsLinear)
    lam = attention.q_proj.lams().detach()
    key = (0, "query", "weight")
    theirs = [Donor(folder).tensor(key) for folder in folders]
    own = attention.q_proj.own("weight").detach()
    wide = lam[0] * own.float() + lam[1] * theirs[0] + lam[2] * theirs[1]
    assert lam.dtype == torch.float32 and not torch.equal(wide.to(own.dtype), own)
    tolerance = {"rtol": torch.finfo(own.dtype).eps, "atol": 1e-6}  # the last bit at most
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(attention.q_proj.weight, wide.to(own.dtype), **tolerance)
    mam.live.fold()
    torch.testing.assert_close(
        model.get_submodule(f"{family}.encoder.layers.0.attention").q_proj.weight,
        nn.Parameter(wide.to(own.dtype)),
        **tolerance,
    )


def test_autocast_does_not_touch_the_merge_of_several_donors(tmp_path):
    folders = [str(save_bert(tmp_path / str(seed), seed=seed)) for seed in (3, 4)]
    model = build_speech_model()
    MAM(model, donor=folders, lam=0.9).apply()
    projection = model.hubert.encoder.layers[0].attention.q_proj
    expected = projection.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(projection.weight, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_a_cast_of_the_model_leaves_lam_and_the_donor_wide(case, dtype, bert_folder):
    _, build, method = CASES[case]
    model, donor = build(), Donor(bert_folder)
    mam = LearnableMAM(
        model, make_plan(find_attention(model), donor.index, lam=0.999, method=method), donor
    )
    lams = list(mam.lams)
    before = [
        (m.lam.detach().clone(), m.donor_weight.detach().clone())
        for m in model.modules()
        if isinstance(m, MergedModule)
    ]
    run(model, torch.float32).square().sum().backward()  # gradients are cast along with a model
    model.to(DTYPES[dtype])
    merged = [m for m in model.modules() if isinstance(m, MergedModule)]
    for module, (lam, theirs) in zip(merged, before, strict=True):
        assert module.lam.dtype == module.lam.grad.dtype == torch.float32
        assert torch.equal(module.lam, lam) and torch.equal(module.donor_weight, theirs)
        assert all(module.own(n).dtype == DTYPES[dtype] for n in getattr(module, "names", ["bias"]))
    assert all(now is then for now, then in zip(mam.lams, lams, strict=True))
    run(model, DTYPES[dtype]).float().square().sum().backward()
    model.double()
    assert all(m.lam.dtype == m.donor_weight.dtype == torch.float64 for m in merged)
    model.half()
    assert all(m.lam.dtype == m.donor_weight.dtype == torch.float32 for m in merged)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1,), (2,)], ids=["layer", "head"])
@pytest.mark.parametrize("columns", [False, True])
def test_gradients_in_half_precision(columns, shape, dtype):
    """Against plain autograd over the same tensors; λ's gradient is float32 and not rounded."""
    torch.manual_seed(0)
    plain = nn.Linear(16, 16).to(DTYPES[dtype])
    donor_weight, donor_bias = torch.randn(16, 16), torch.randn(16)
    lam = nn.Parameter(torch.tensor([0.999, 0.9])[: shape[0]])
    layer = MergedLinear(plain, donor_weight, donor_bias, lam, heads_in_columns=columns)
    x = torch.randn(3, 5, 16, dtype=DTYPES[dtype], requires_grad=True)
    upstream = torch.randn(3, 5, 16).to(x.dtype)
    layer(x).backward(upstream)
    ours = [t.grad for t in (x, plain.weight, plain.bias, lam)]
    for t in (x, plain.weight, plain.bias, lam):
        t.grad = None
    torch.nn.functional.linear(x, *layer.merged()).backward(upstream)
    exact = [t.grad for t in (x, plain.weight, plain.bias, lam)]
    assert [t.dtype for t in ours] == [*(x.dtype,) * 3, torch.float32]
    assert torch.equal(ours[0], exact[0])  # the merged weight of backward is forward's, to the bit
    for one, other in zip(ours[1:], exact[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=1e-3)
    # what λ is given by hand, in float32, from the gradient of the merged tensors
    weight, bias = (t.detach().requires_grad_() for t in layer.merged())
    torch.nn.functional.linear(x.detach(), weight, bias).backward(upstream)
    along = weight.grad.float() * (plain.weight.detach().float() - donor_weight)
    along_bias = bias.grad.float() * (plain.bias.detach().float() - donor_bias)
    if shape == (1,):
        expected = (along.sum() + along_bias.sum()).reshape(1)
    elif columns:
        expected = along.sum(0).reshape(2, 8).sum(1) + along_bias.sum() / 2
    else:
        expected = (along.sum(1) + along_bias).reshape(2, 8).sum(1)
    torch.testing.assert_close(ours[3], expected, rtol=1e-4, atol=1e-4)
