"""A model that carries λ is moved, cast, loaded, copied, saved, averaged, compiled, called."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from conftest import build_speech_model, save_bert
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch import nn
from torch.optim.swa_utils import AveragedModel

from speechbrain_mam import MAM, MAMError, find_attention
from speechbrain_mam.learning.learnable import keep_donor_out_of_ddp
from speechbrain_mam.learning.linear import _BUFFERS, MergedLinear
from speechbrain_mam.learning.module import MergedModule, own_parameter

WAV = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def transformer(**options):
    torch.manual_seed(1)
    sizes = {"num_layers": 3, "nhead": 2, "d_ffn": 32, "d_model": 16, "dropout": 0.0}
    return TransformerEncoder(**sizes, **options).eval()


def run(model, x=X, wav=WAV):
    return model(x)[0] if isinstance(model, TransformerEncoder) else model(wav).logits


def speech_model(family):
    """Without the weight norm of its positional convolution, which cannot be pickled."""
    model = build_speech_model(family)
    convolution = model.get_submodule(f"{family}.encoder.pos_conv_embed.conv")
    nn.utils.parametrize.remove_parametrizations(convolution, "weight")
    convolution._load_state_dict_pre_hooks.clear()
    return model


TARGETS = {
    "transformer": transformer,
    "hubert": lambda: speech_model("hubert"),
    "wavlm": lambda: speech_model("wavlm"),
    "by head": lambda: transformer(attention_type="RoPEMHA"),
}
CASES = {
    **{name: (name, {}) for name in TARGETS},
    **{f"{name}, head": (name, {"granularity": "head", "projections": "qkvo"}) for name in TARGETS},
    "transformer, projection": ("transformer", {"granularity": "projection"}),
    "wavlm, slerp": ("wavlm", {"method": "slerp"}),
    "transformer, multi_path": ("transformer", {"method": "multi_path"}),
    "hubert, multi_path": ("hubert", {"method": "multi_path"}),
    "hubert, sigmoid, model": ("hubert", {"constraint": "sigmoid", "granularity": "model"}),
    "hubert, two donors": ("hubert", {}),
}


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    root = tmp_path_factory.mktemp("donors")
    return [str(save_bert(root / str(seed), seed=seed)) for seed in (3, 4)]


def build(case, donors, lam=0.7):
    target, options = CASES[case]
    donor = donors if case.endswith("two donors") else donors[0]
    mam = MAM(TARGETS[target](), donor=donor, lam=lam, **options)
    mam.apply()
    return mam


@pytest.fixture(params=CASES)
def mam(request, donors):
    return build(request.param, donors)


def merged_modules(model):
    return [module for module in model.modules() if isinstance(module, MergedModule)]


def names(mam):
    """Of the merged parameters; a tensor of several projections has several entries."""
    return dict.fromkeys(entry.target for entry in mam.plan.entries)


def sharers(model):
    """For each merged module, the first that has the same λ."""
    modules = merged_modules(model)
    first = {id(m.lam): i for i, m in reversed(list(enumerate(modules)))}
    return [first[id(module.lam)] for module in modules]


def tensors_in(thing, path):
    if isinstance(thing, torch.Tensor):
        yield path
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from tensors_in(value, f"{path}.{key}")
    elif isinstance(thing, list | tuple | set):
        for i, value in enumerate(thing):
            yield from tensors_in(value, f"{path}.{i}")


def test_every_tensor_is_a_parameter_or_a_buffer(mam):
    """Any other would stay behind when the model moves to a device."""
    for module in merged_modules(mam.target):
        state = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers")}
        state.pop("_modules")
        assert not list(tensors_in(state, type(module).__name__))


@pytest.mark.slow
def test_everything_moves(mam):
    """To a device without memory, where tensors of a CPU would be refused."""
    mam.target.to("meta")
    x, wav = X.to("meta"), WAV.to("meta")
    if not hasattr(mam.target, "hubert"):  # whose positional convolution needs memory
        assert run(mam.target, x, wav).device.type == "meta"
    for module in merged_modules(mam.target):
        assert all(tensor.device.type == "meta" for tensor in module.merged() if tensor is not None)
        if isinstance(module, MergedLinear):
            assert module(X.to("meta")).device.type == "meta"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["live", "folded", "taken back"])
@pytest.mark.parametrize("semantics", ["set_data", "overwrite", "swap"])
def test_storages_move(mam, semantics, when):
    """λ stays shared, and what is taken out of the model does not stay behind."""
    model, before = mam.target, sharers(mam.target)
    untouched = {name: own_parameter(model, name).detach().clone() for name in names(mam)}
    live = run(model).detach()
    change = {"live": mam.live.insert, "folded": mam.live.fold, "taken back": mam.take_back}[when]
    change()
    future = torch.__future__
    future.set_overwrite_module_params_on_conversion(semantics == "overwrite")
    future.set_swap_module_params_on_conversion(semantics == "swap")
    try:
        model._apply(lambda tensor: tensor.detach().clone())
        if when != "live":  # or whoever put it in would give it the tensors from before
            mam.live.insert()
        assert torch.equal(run(model), live)
        assert sharers(model) == before
        assert {id(lam) for lam in mam.live.lams} == {id(m.lam) for m in merged_modules(model)}
        with torch.no_grad():
            for lam in mam.live.lams:
                lam.mul_(0.5)
            for name in untouched:
                own_parameter(model, name).mul_(2)
        assert not torch.allclose(run(model), live, atol=1e-3)
        run(model).square().sum().backward()
        assert all(lam.grad is not None for lam in mam.live.lams)
        model._apply(lambda tensor: tensor.detach().clone())
        assert all(lam.grad is not None for lam in mam.live.lams)
        mam.take_back()
    finally:
        future.set_overwrite_module_params_on_conversion(False)
        future.set_swap_module_params_on_conversion(False)
    for name, tensor in untouched.items():
        assert torch.equal(model.get_parameter(name), 2 * tensor)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["folded", "taken back"])
def test_what_is_outside_follows_the_model(mam, when):
    """Double stands for another device."""
    model = mam.target
    (mam.live.fold if when == "folded" else mam.take_back)()
    model.double()
    mam.live.insert()
    for module in merged_modules(model):
        tensors = [*module.parameters(), *module.buffers()]
        assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert run(model, X.double(), WAV.double()).dtype == torch.float64


def test_a_load_that_assigns(mam):
    """The loaded tensors are the target's own, also after λ is taken out."""
    model = mam.target
    loaded = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in names(mam):
        loaded[name] = torch.full_like(loaded[name], 0.125)
    lams = mam.live.lams
    model.load_state_dict(loaded, assign=True)
    assert all(one is other for one, other in zip(mam.live.lams, lams, strict=True))
    mam.take_back()
    for name in names(mam):
        assert torch.equal(model.get_parameter(name), loaded[name])


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_average(model):
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    return averaged.module


@pytest.mark.slow
@pytest.mark.parametrize("how", [copy.deepcopy, by_pickle, by_save, by_average])
def test_copies(mam, how):
    """They compute the same, share λ as the original does, and nothing with the original."""
    model = mam.target
    if how is by_average and "multi_path" in mam.plan.method:
        model = model.train()
    expected, before = run(model).detach(), sharers(model)
    twin = how(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(run(twin), expected) and sharers(twin) == before
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in twin.parameters())
    twice = how(twin)
    assert torch.equal(run(twice), expected)
    with torch.no_grad():
        for module in merged_modules(twin):
            module.lam.mul_(0.5)
    assert not torch.allclose(run(twin), expected, atol=1e-4)
    assert torch.equal(run(model), expected) and torch.equal(run(twice), expected)
    run(twin).square().sum().backward()
    assert all(m.lam.grad is not None for m in merged_modules(twin))
    mam.live.fold()  # the original can still be folded and taken back
    torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-6)
    mam.take_back()
    assert not merged_modules(model)


def test_averages_are_of_lam_too(donors):
    mam = build("transformer", donors)
    averaged = AveragedModel(mam.target)
    for value in (0.2, 0.4):
        with torch.no_grad():
            for lam in mam.live.lams:
                lam.fill_(value)
        averaged.update_parameters(mam.target)
    for module in merged_modules(averaged.module):
        assert module.lam.item() == pytest.approx(0.3)


@pytest.mark.slow
def test_a_saved_model_is_loaded_by_another_process(donors, tmp_path):
    model = build("transformer", donors).target
    torch.save((model, run(model).detach(), X), tmp_path / "model.pt")
    code = (
        "import sys, torch; model, expected, x = torch.load(sys.argv[1], weights_only=False); "
        "assert torch.equal(model(x)[0], expected); print(type(model.layers[0].self_att.att))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "MultiheadAttention" in done.stdout, done.stderr


def test_a_copy_of_all_of_mam(mam):
    twin = copy.deepcopy(mam)
    expected = run(mam.target).detach()
    twin.live.fold()
    torch.testing.assert_close(run(twin.target), expected, rtol=0, atol=1e-6)
    assert merged_modules(mam.target) and not merged_modules(twin.target)
    twin.live.insert()
    assert torch.equal(run(twin.target), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_after_inference(mam, mode):
    """Buffers that were made in inference mode cannot be written to in another."""
    _BUFFERS.kept.clear()
    with mode():
        expected = run(mam.target).clone()
    output = run(mam.target)
    torch.testing.assert_close(output, expected)  # PyTorch has a faster way without gradients
    output.square().sum().backward()
    assert all(lam.grad is not None for lam in mam.live.lams)
    with mode():
        run(mam.target)


def test_kept_buffers_are_plain_tensors():
    """A tensor of a tracer, or of another class, is not written to nor kept."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    _BUFFERS.kept.clear()
    with FakeTensorMode():
        layer = MergedLinear(
            nn.Linear(7, 7), torch.zeros(7, 7), None, nn.Parameter(torch.tensor([0.5]))
        )
        layer(torch.zeros(2, 7)).sum().backward()
    assert not _BUFFERS.kept


def replicate(module):
    """What torch.nn.DataParallel makes of a model for each device, without the devices."""
    replica = module._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicate(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            parameter_copy = parameter.view_as(parameter)
            setattr(replica, name, parameter_copy)
            replica._former_parameters[name] = parameter_copy
    for name, buffer in module._buffers.items():
        replica._buffers[name] = buffer
    return replica


def test_replicas_of_data_parallel(mam):
    if not isinstance(mam.target, TransformerEncoder):
        replicas = [replicate(module) for module in merged_modules(mam.target)]
        plain = merged_modules(mam.target)
        for one, other in zip(replicas, plain, strict=True):
            assert torch.equal(one(X), other(X))
            one(X).sum().backward()
            assert other.lam.grad is not None
            if isinstance(type(other).__dict__.get("weight"), property):
                assert torch.equal(one.weight, other.weight)
        return
    replica = replicate(mam.target)
    assert torch.equal(run(replica), run(mam.target))
    run(replica).square().sum().backward()
    assert all(lam.grad is not None for lam in mam.live.lams)


def test_a_merged_tensor_is_not_set(donors):
    attention = build("transformer", donors).target.layers[0].self_att.att
    with pytest.raises(AttributeError, match="set the target's own parameter"):
        object.__setattr__(attention, "in_proj_weight", torch.zeros(48, 16))


def test_functional_call_and_gradients_of_functions(mam):
    """With parameters from outside, and by torch.func's own differentiation."""
    model, held = mam.target, dict(mam.target.named_parameters())
    run(model).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in held.items() if name.endswith(".lam")}
    given = {name: p.detach() for name, p in held.items()}
    lams = {name: given.pop(name) for name in expected}

    def loss(lams):
        inputs = X if isinstance(model, TransformerEncoder) else WAV
        output = torch.func.functional_call(model, {**given, **lams}, (inputs,))
        output = output[0] if isinstance(model, TransformerEncoder) else output.logits
        return output.square().sum()

    found = torch.func.grad(loss)(lams)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_own_parameter(mam):
    model = mam.target
    held = dict(model.named_parameters())
    for ref in find_attention(model).tensors.values():
        assert own_parameter(model, ref.name) is held[ref.name]
    for wrong in ("no.such.module", "nothing", mam.plan.entries[0].target + "s"):
        with pytest.raises(MAMError, match=f"has no parameter '{wrong}'"):
            own_parameter(model, wrong)


def test_ddp_ignores_every_donor_tensor(mam):
    keep_donor_out_of_ddp(mam.target)
    held = {n for n, _ in mam.target.named_buffers() if ".donor_" in n}
    assert set(mam.target._ddp_params_and_buffers_to_ignore) == held
    assert held or mam.plan.method == "multi_path"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["hubert", "by head"])
def test_compiled(case, donors):
    mam = build(case, donors)
    model = mam.target
    run(model).square().sum().backward()
    expected = [lam.grad for lam in mam.live.lams]
    for lam in mam.live.lams:
        lam.grad = None
    torch._dynamo.reset()
    try:
        model.compile(backend="aot_eager")
        run(model).square().sum().backward()
    finally:
        torch._dynamo.reset()
    for lam, gradient in zip(mam.live.lams, expected, strict=True):
        torch.testing.assert_close(lam.grad, gradient, rtol=1e-3, atol=1e-5)
