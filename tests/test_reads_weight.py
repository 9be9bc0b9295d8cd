"""Attention that reads its projections' weights: they are merged once a forward pass."""

import copy
import threading
from collections import Counter

import pytest
import torch
from conftest import build_speech_model
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from speechbrain_mam import Donor, LearnableMAM, find_attention, make_plan
from speechbrain_mam.architectures.parts import Part
from speechbrain_mam.learning.linear import MergedLinear, MergedLinearByWeight
from speechbrain_mam.learning.module import MergedModule
from speechbrain_mam.learning.once_a_forward import _PASSES, keep_merged_within
from speechbrain_mam.learning.other_layers import MergedRows, Piece, merge_rows
from speechbrain_mam.merging.methods import METHODS

WAV = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def transformer(layers=3):
    torch.manual_seed(1)
    return TransformerEncoder(num_layers=layers, nhead=2, d_ffn=32, d_model=16, dropout=0.0).eval()


TARGETS = {
    "transformer": (transformer, lambda model: model(X)[0]),
    "wavlm": (lambda: build_speech_model("wavlm"), lambda model: model(WAV).logits),
}


@pytest.fixture()
def merges(monkeypatch):
    """How often each merged module has merged."""
    count: Counter[int] = Counter()
    for kind in (MergedLinear, MergedRows):

        def counted(module, how, merged_by=kind._merged_by):
            count[id(module)] += 1
            return merged_by(module, how)

        monkeypatch.setattr(kind, "_merged_by", counted)
    yield count
    assert not _PASSES.open


@pytest.fixture(params=TARGETS)
def live(request, bert_folder):
    """A target that reads, with λ in it: the model, how it is run, its Learnable-MAM."""
    build, run = TARGETS[request.param]
    model, donor = build(), Donor(bert_folder)
    plan = make_plan(find_attention(model), donor.index, lam=0.7, projections="qkvo")
    return model, run, LearnableMAM(model, plan, donor)


def merged_modules(model):
    return [module for module in model.modules() if isinstance(module, MergedModule)]


def gradients(mam):
    return torch.cat([lam.grad for lam in mam.lams])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "inference"])
def test_multihead_attention_of_width_1024(mode, batch_first, merges, bert_folder):
    """Query, key and value are one tensor, the output projection another: one merge each."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(1024, 16, batch_first=batch_first)

    lam = nn.Parameter(torch.tensor([0.9]))
    merged = merge_rows(
        plain, [Piece(Part(1024, place=i, of=3), slice(None), True) for i in range(3)],
        torch.randn(3072, 1024), torch.randn(3072), lam, METHODS["linear"], False, True,
    )  # fmt: skip
    merged.out_proj = MergedLinearByWeight(
        plain.out_proj, torch.randn(1024, 1024), torch.randn(1024), lam
    )
    keep_merged_within([merged])
    merged.train(mode == "train")
    x = torch.randn(2, 3, 1024)
    context = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(mode)
    with context() if context else torch.enable_grad():
        output = merged(x, x, x)[0]
        assert sorted(merges.values()) == [1, 1]
        merged(x, x, x)
    assert sorted(merges.values()) == [2, 2]
    # the same without keeping
    expected = nn.MultiheadAttention(1024, 16, batch_first=batch_first).train(mode == "train")
    with torch.no_grad():
        for name, tensor in zip(merged.names, merged.merged(), strict=True):
            expected._parameters[name].copy_(tensor)
        for name, tensor in zip(("weight", "bias"), merged.out_proj.merged(), strict=True):
            expected.out_proj._parameters[name].copy_(tensor)
    with context() if context else torch.enable_grad():
        torch.testing.assert_close(output, expected(x, x, x)[0])


def test_attention_of_wavlm(merges):
    """Each of the four projections is merged once, though weights and biases are read singly."""
    torch.manual_seed(0)
    attention = WavLMAttention(embed_dim=1024, num_heads=16)
    lam = nn.Parameter(torch.tensor([0.9]))

    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        linear = attention.get_submodule(name)
        merged = MergedLinearByWeight(linear, torch.randn(1024, 1024), torch.randn(1024), lam)
        setattr(attention, name, merged)
    keep_merged_within([attention])
    attention(torch.randn(1, 4, 1024))
    assert sorted(merges.values()) == [1] * 4


def test_a_model_merges_each_projection_once(live, merges):
    model, run, _ = live
    run(model).square().sum().backward()
    assert set(merges) == {id(module) for module in merged_modules(model)}
    assert set(merges.values()) == {1}
    run(model)
    assert set(merges.values()) == {2}


@pytest.mark.parametrize("method", ["slerp", "multi_path"])
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
@pytest.mark.parametrize("gradients", [False, True])
def test_other_methods_merge_once_too(gradients, family, method, merges, bert_folder):
    """Called or read."""
    donor, model = Donor(bert_folder), build_speech_model(family)
    plan = make_plan(find_attention(model), donor.index, lam=0.7, method=method)
    LearnableMAM(model, plan, donor)
    with torch.set_grad_enabled(gradients):
        model(WAV)
    assert list(merges.values()) == [1] * 9


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_merged_tensor_requires_a_gradient_as_a_parameter_does(mode, live):
    """PyTorch chooses a product by that. What is frozen stays so."""
    model, run, _ = live
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with mode():
        for module in merged_modules(model):
            for name in getattr(module, "names", ("weight", "bias")):
                assert getattr(module, name).requires_grad and not module.own(name).requires_grad
        assert not run(model).requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_kept_changes_no_figure(live):
    model, run, mam = live
    output = run(model)
    output.square().sum().backward()
    kept = gradients(mam)
    for handle in mam._hooks:
        handle.remove()
    for lam in mam.lams:
        lam.grad = None
    assert torch.equal(run(model), output)
    run(model).square().sum().backward()
    torch.testing.assert_close(gradients(mam), kept)


def test_activation_checkpointing_merges_twice(live, merges):
    model, run, mam = live
    run(model).square().sum().backward()
    expected = gradients(mam)
    for lam in mam.lams:
        lam.grad = None
    merges.clear()
    if hasattr(model, "gradient_checkpointing_enable"):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        for layer in model.layers:
            layer.forward = lambda *a, forward=layer.forward, **k: checkpoint(
                forward, *a, use_reentrant=False, **k
            )
    run(model).square().sum().backward()
    assert set(merges.values()) == {2}
    torch.testing.assert_close(gradients(mam), expected)


def test_lam_may_change_between_passes(live):
    model, run, mam = live
    first = run(model)
    with torch.no_grad():
        for lam in mam.lams:
            lam.fill_(0.2)
    assert not torch.allclose(run(model), first, atol=1e-3)
    optimizer = torch.optim.SGD(mam.parameters(), lr=0.1)
    for _ in range(2):  # a graph that has been walked is of no use to the next pass
        run(model).square().sum().backward()
        optimizer.step()


def test_modes_within_a_pass(merges):
    """What was merged without a graph is not given to who needs one."""
    lam = nn.Parameter(torch.tensor([0.5]))

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = MergedLinearByWeight(nn.Linear(4, 4), torch.randn(4, 4), None, lam)

        def forward(self, depth):
            with torch.no_grad():
                without = self.p.weight
            with_graph = self.p.weight
            assert self.p.weight is with_graph and torch.equal(without, with_graph)
            if depth:
                assert self(depth - 1) is not with_graph
            assert self.p.weight is with_graph
            return with_graph

    reader = Reader()
    keep_merged_within([reader])
    assert reader(1).requires_grad
    assert set(merges.values()) == {4}  # two modes, two passes
    assert reader.p.weight is not reader.p.weight  # outside of a pass nothing is kept


def test_a_pass_that_fails_leaves_nothing(live, merges):
    model, run, _ = live
    broken = merged_modules(model)[-1]
    shape = broken.donor_weight.shape
    broken.donor_weight = broken.donor_weight[:3]
    with pytest.raises(RuntimeError):
        run(model)
    assert not _PASSES.open
    broken.donor_weight = torch.zeros(shape)
    run(model)


def test_an_interrupt_leaves_nothing_stale(live):
    model, run, mam = live
    reader = mam._sites[-1].reader
    forward = reader.forward

    def interrupted(*args, **kwargs):
        forward(*args, **kwargs)
        raise KeyboardInterrupt

    reader.forward = interrupted
    name = "in_proj_weight" if hasattr(reader, "in_proj_weight") else "q_proj.weight"

    def read():
        path, _, leaf = name.rpartition(".")
        return getattr(reader.get_submodule(path), leaf).detach().clone()

    before = read()
    with pytest.raises(KeyboardInterrupt):
        run(model)
    del reader.forward
    try:
        with torch.no_grad():
            for lam in mam.lams:
                lam.fill_(0.1)
        assert not torch.equal(read(), before)
        run(model)
    finally:
        _PASSES.open.clear()


def test_threads_keep_to_themselves(live, merges):
    """Two threads in one module at once: each merges for itself, and has a graph of its own."""
    model, run, mam = live
    expected = run(model).detach()
    merges.clear()
    reader, inside, results = mam._sites[0].reader, threading.Barrier(2, timeout=20), []

    def wait(*_):
        inside.wait()

    reader.register_forward_pre_hook(wait)

    def work():
        results.append(run(model).detach())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and all(torch.equal(result, expected) for result in results)
    assert set(merges.values()) == {2}


def test_copies_keep_too(live, merges):
    model, run, _ = live
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin), run(model))
    assert set(merges.values()) == {1} and len(merges) == 2 * len(merged_modules(model))


def test_hooks_go_with_lam(live):
    model, run, mam = live

    def hooks():
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called)
            for m in model.modules()
        )

    with_lam = hooks()
    assert with_lam == 3 * 3
    mam.insert()
    assert hooks() == with_lam
    for change in (mam.fold, mam.remove):
        change()
        assert hooks() == 0
        mam.insert()
        assert hooks() == with_lam
        run(model)


@pytest.mark.slow
def test_a_compiler_does_it_by_itself(live):
    model, run, mam = live
    expected = run(model)
    expected.square().sum().backward()
    exact = gradients(mam)
    for lam in mam.lams:
        lam.grad = None
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, backend="aot_eager")
        output = run(compiled)
        output.square().sum().backward()
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(gradients(mam), exact, rtol=1e-3, atol=1e-5)
        assert not _PASSES.open
    finally:
        torch._dynamo.reset()
