"""Learnable-MAM: gradients, granularities, state dicts, folding."""

import copy

import pytest
import torch
from conftest import FAMILIES, build_speech_model
from torch import nn

from speechbrain_mam import Donor, LearnableMAM, MAMError, MergedLinear, find_attention, make_plan
from speechbrain_mam.learning.learnable import GRANULARITIES, keep_donor_out_of_ddp
from speechbrain_mam.learning.module import MergedModule, mean

WAV = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))


def put_in(model, donor, granularity="layer", constraint="project", **options):
    plan = make_plan(find_attention(model), donor.index, **options)
    return LearnableMAM(model, plan, donor, granularity, constraint)


@pytest.mark.parametrize("shape", [(1,), (3,), (2,)], ids=["layer", "projection", "head"])
@pytest.mark.parametrize("with_bias", ["merge", "keep", "none"])
def test_gradients_agree_with_finite_differences(shape, with_bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, bias=with_bias != "none").double()
    donor_bias = torch.randn(4).double() if with_bias == "merge" else None
    lam = nn.Parameter(torch.rand(shape).double())
    layer = MergedLinear(
        linear, torch.randn(4, 6).double(), donor_bias, lam, index=1 if shape == (3,) else None
    )
    x = torch.randn(2, 3, 6, dtype=torch.double, requires_grad=True)
    inputs = [x, linear.weight, lam] + ([linear.bias] if linear.bias is not None else [])

    def forward(x, *_):
        return layer(x)

    assert torch.autograd.gradcheck(forward, inputs)


@pytest.mark.parametrize("contiguous", [True, False])
def test_the_output_may_be_changed_in_place(contiguous):
    """As BEATs does with its queries; autograd refuses that on a view."""
    torch.manual_seed(0)
    linear, lam = nn.Linear(6, 4), nn.Parameter(torch.tensor([0.7]))
    layer = MergedLinear(linear, torch.randn(4, 6), torch.randn(4), lam)
    x = torch.randn(3, 2, 6) if contiguous else torch.randn(2, 3, 6).transpose(0, 1)
    (3 * layer(x)).square().sum().backward()
    expected, lam.grad = lam.grad, None
    changed = layer(x)
    changed *= 3
    changed.square().sum().backward()
    torch.testing.assert_close(lam.grad, expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("constraint", ["project", "sigmoid"])
def test_gradients_in_a_model_agree_with_plain_autograd(granularity, constraint, bert_folder):
    """Against the same computation by functional_call over a merged state dict, in double."""
    donor, model = Donor(bert_folder), build_speech_model().double()
    plain = copy.deepcopy(model)
    mam = put_in(model, donor, granularity, constraint, lam=0.8)
    torch.nn.utils.vector_to_parameters(
        torch.cat([lam.detach() + 0.1 * torch.rand_like(lam) for lam in mam.lams]), mam.lams
    )
    model(WAV.double()).logits.square().sum().backward()

    lams = [lam.detach().clone().requires_grad_() for lam in mam.lams]
    weights = {name: p.detach().clone().requires_grad_() for name, p in plain.named_parameters()}
    merged = dict(weights)
    for entry in mam.plan.entries:
        lam = lams[0 if granularity == "model" else mam.plan.layers.index(entry.layer)]
        share = torch.sigmoid(lam) if constraint == "sigmoid" else lam
        if granularity == "projection":
            share = share[mam.plan.projections.index(entry.projection)]
        if granularity == "head":
            share = share.repeat_interleave(8)
            share = share[:, None] if entry.kind == "weight" else share
        theirs = donor.tensor(entry.donor_key).double()
        merged[entry.target] = share * weights[entry.target] + (1 - share) * theirs
    logits = torch.func.functional_call(plain, merged, (WAV.double(),)).logits
    logits.square().sum().backward()
    for ours, exact in zip(mam.lams, lams, strict=True):
        assert exact.grad.abs().min() > 0
        torch.testing.assert_close(ours.grad.double(), exact.grad.double(), rtol=1e-4, atol=1e-7)
    for name, parameter in model.named_parameters():
        if name in weights and weights[name].grad is not None:
            torch.testing.assert_close(parameter.grad, weights[name].grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_lam_1_changes_no_bit_of_the_output(family, bert_folder):
    model = build_speech_model(family)
    untouched = model(WAV).logits
    put_in(model, Donor(bert_folder), lam=1)
    assert torch.equal(model(WAV).logits, untouched)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_live_equals_zero_shot_equals_folded(family, granularity, bert_folder):
    from speechbrain_mam import Merge

    donor, model = Donor(bert_folder), build_speech_model(family)
    reference = build_speech_model(family)
    Merge(reference, make_plan(find_attention(reference), donor.index, lam=0.3), donor)
    mam = put_in(model, donor, granularity, lam=0.3)
    live = model(WAV).logits
    assert not torch.allclose(live, build_speech_model(family)(WAV).logits, atol=1e-3)
    torch.testing.assert_close(live, reference(WAV).logits, rtol=0, atol=1e-5)
    mam.fold()
    assert not any(isinstance(module, MergedLinear) for module in model.modules())
    assert set(model.state_dict()) == set(reference.state_dict())
    torch.testing.assert_close(model(WAV).logits, live, rtol=0, atol=1e-6)
    mam.insert()
    assert torch.equal(model(WAV).logits, live)


def test_wavlm_reads_the_merged_weight(bert_folder):
    """Its attention never calls its projections: a forward hook alone would merge nothing."""
    model = build_speech_model("wavlm")
    mam = put_in(model, Donor(bert_folder), lam=0.5)
    model(WAV).logits.sum().backward()
    assert all(lam.grad is not None and lam.grad.abs() > 0 for lam in mam.lams)


def test_checkpoints_go_both_ways(bert_folder):
    donor, plain = Donor(bert_folder), build_speech_model()
    trained = {name: tensor + 1 for name, tensor in plain.state_dict().items()}
    model = build_speech_model()
    mam = put_in(model, donor, lam=0.8)
    model.load_state_dict(trained, strict=True)  # plain → merged: λ stays as it was
    assert mam.values()["layer 0"] == pytest.approx(0.8)
    assert torch.equal(model.hubert.encoder.layers[0].attention.q_proj._parameters["weight"],
                       trained["hubert.encoder.layers.0.attention.q_proj.weight"])  # fmt: skip

    with torch.no_grad():
        mam.lams[1].fill_(0.25)
    saved = model.state_dict()
    extra = set(saved) - set(trained)
    assert len(extra) == 3 and all(name.endswith(".lam") for name in extra)
    again = build_speech_model()
    other = put_in(again, donor, lam=1)
    again.load_state_dict(saved, strict=True)  # merged → merged: λ too
    assert other.values() == mam.values()
    assert torch.equal(again(WAV).logits, model(WAV).logits)

    mam.remove()  # merged → plain, without the donor's part
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain(WAV).logits, model(WAV).logits)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*\.lam"):
        plain.load_state_dict(saved, strict=True)  # not silently without λ


def test_lam_of_another_granularity_does_not_load(bert_folder):
    donor, model, other = Donor(bert_folder), build_speech_model(), build_speech_model()
    put_in(model, donor)
    put_in(other, donor, "projection")
    with pytest.raises(RuntimeError, match=r"lam: shape \[3\], expected \[1\]"):
        model.load_state_dict(other.state_dict())


def test_projection_keeps_lam_in_the_unit_interval(bert_folder):
    mam = put_in(build_speech_model(), Donor(bert_folder))
    with torch.no_grad():
        mam.lams[0].fill_(1.7)
        mam.lams[1].fill_(-0.2)
    mam.project_()
    assert list(mam.values().values()) == [1.0, 0.0, pytest.approx(0.95)]


def test_lam_at_the_border_still_has_a_gradient(bert_folder):
    model = build_speech_model()
    mam = put_in(model, Donor(bert_folder), lam=1)
    model(WAV).logits.square().sum().backward()
    assert all(lam.grad.abs() > 0 for lam in mam.lams)


def test_names_and_numbers_of_lam(bert_folder):
    donor = Donor(bert_folder)
    names = {g: list(put_in(build_speech_model(), donor, g).values()) for g in GRANULARITIES}
    assert names["model"] == ["model"]
    assert names["layer"] == ["layer 0", "layer 1", "layer 2"]
    assert names["projection"][:2] == ["layer 0 query", "layer 0 key"]
    assert names["head"][:3] == ["layer 0 head 0", "layer 0 head 1", "layer 1 head 0"]


def test_nothing_but_the_input_is_kept_for_backward(bert_folder):
    """The merged weight must be recomputed: kept, it would cost a weight's memory a projection."""

    def kept(model):
        persistent = {
            t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())
        }
        seen = {}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in persistent:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model(WAV).logits.sum()
        output.backward()
        return len(seen), sum(seen.values())

    model = build_speech_model().train()
    plain = kept(model)
    put_in(model, Donor(bert_folder))
    assert kept(model) == plain


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(bert_folder, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = build_speech_model().train()
        mam = put_in(model, Donor(bert_folder))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(WAV.clone()).logits.square().sum().backward()
        gradients.append(torch.cat([lam.grad for lam in mam.lams]))
    torch.testing.assert_close(*gradients)


def test_bf16_autocast_computes_what_a_plain_layer_would(bert_folder):
    model = build_speech_model()
    mam = put_in(model, Donor(bert_folder), lam=0.6)
    x = torch.randn(2, 5, 16)
    layer = model.hubert.encoder.layers[0].attention.q_proj
    weight, bias = (t.detach() for t in layer.merged())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, plain = layer(x), torch.nn.functional.linear(x, weight, bias)
    assert ours.dtype == plain.dtype == torch.bfloat16
    assert torch.equal(ours, plain)
    ours.float().square().sum().backward()
    assert layer.weight.grad.dtype == mam.lams[0].grad.dtype == torch.float32


def test_refusals(bert_folder):
    donor, model = Donor(bert_folder), build_speech_model()
    with pytest.raises(MAMError, match="key 'granularity': 'row'"):
        put_in(model, donor, "row")
    with pytest.raises(MAMError, match="key 'constraint': 'clip'"):
        put_in(model, donor, constraint="clip")
    with pytest.raises(MAMError, match="'constraint: sigmoid' needs λ strictly between"):
        put_in(model, donor, constraint="sigmoid", lam=1)
    with pytest.raises(MAMError, match="'granularity: model' has one λ there"):
        put_in(model, donor, "model", lam=[0.9, 0.8, 0.7])
    with pytest.raises(MAMError, match="'granularity: layer' has one λ there"):
        put_in(model, donor, lam={"query": 0.9, "key": 0.8, "value": 0.7})
    put_in(model, donor)
    with pytest.raises(MAMError, match="carries a Learnable-MAM already"):
        put_in(model, donor)


def test_a_wrapped_projection_is_named(bert_folder):
    model = build_speech_model()
    attention = model.hubert.encoder.layers[0].attention
    attention.q_proj = type("Wrapped", (nn.Linear,), {})(16, 16)
    with pytest.raises(MAMError, match=r"attention\.q_proj' is a Wrapped, expected a plain"):
        put_in(model, Donor(bert_folder))


def test_ddp_does_not_broadcast_the_donor(bert_folder):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    model = nn.ModuleDict({"encoder": build_speech_model()})
    model.register_buffer("other", torch.zeros(1))
    put_in(model, Donor(bert_folder))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain = len(DistributedDataParallel(model).modules_buffers)
        keep_donor_out_of_ddp(model)
        ours = DistributedDataParallel(model).modules_buffers
    finally:
        dist.destroy_process_group()
    assert plain == 1 + 3 * 3 * 2
    assert [id(buffer) for buffer in ours] == [id(model.other)]


def test_a_deep_copy_is_independent(bert_folder):
    model = build_speech_model()
    put_in(model, Donor(bert_folder))
    twin = copy.deepcopy(model)
    layers = [m.hubert.encoder.layers[0].attention for m in (model, twin)]
    assert layers[1].q_proj.lam is layers[1].k_proj.lam
    assert layers[0].q_proj.lam is not layers[1].q_proj.lam


def test_the_mean_of_equal_lams_is_their_own():
    """Twelve times 0.95 sum up to something else in float32."""
    found = mean(torch.full((12,), 0.95))
    assert found.shape == (1,) and found.dtype == torch.float32
    assert found.item() == torch.tensor(0.95).item()
    assert mean(torch.tensor([0.5, 1.0], dtype=torch.float16)).dtype == torch.float16


def test_what_others_keep_out_of_ddp_stays_out(bert_folder):
    model, donor = build_speech_model(), Donor(bert_folder)
    LearnableMAM(model, make_plan(find_attention(model), donor.index, lam=0.9), donor)
    model._ddp_params_and_buffers_to_ignore = ["theirs"]
    keep_donor_out_of_ddp(model)
    names = model._ddp_params_and_buffers_to_ignore
    buffers = {name for name, _ in model.named_buffers()}
    ours = {name for name in buffers if name.rpartition(".")[2].startswith("donor")}
    assert "theirs" in names and ours and ours <= set(names) <= buffers | {"theirs"}
    # of a merged module itself there is no path before its buffers' names
    query = next(m for m in model.modules() if isinstance(m, MergedModule))
    keep_donor_out_of_ddp(query)
    own = {name for name, _ in query.named_buffers()}
    assert set(query._ddp_params_and_buffers_to_ignore) <= own and own


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_a_state_that_does_not_fit_is_told_as_of_any_module(fault, bert_folder):
    model, donor = build_speech_model(), Donor(bert_folder)
    name = find_attention(model).tensors[0, "query", "weight"].name
    LearnableMAM(model, make_plan(find_attention(model), donor.index, lam=0.9), donor)
    state = model.state_dict()
    (found,) = [key for key in state if key == name]
    if fault == "missing":
        del state[found]
    elif fault == "unexpected":
        state[name.replace("weight", "other")] = torch.zeros(1)
    else:
        state[found] = torch.zeros(1, 1)
    said = {"missing": "Missing key", "unexpected": "Unexpected key", "shape": "size mismatch"}
    with pytest.raises(RuntimeError, match=said[fault]):
        model.load_state_dict(state)
    told = model.load_state_dict(state, strict=False) if fault != "shape" else None
    assert told is None or name in told.missing_keys or told.unexpected_keys
