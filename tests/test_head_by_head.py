"""SpeechBrain's attention that lies head by head: what is found is what it computes with.

Attention is computed here once more, by the formula, from the Q, K and V that the index finds.
"""

import copy
import json
import math

import pytest
import torch
from conftest import save_bert
from safetensors.torch import load_file, save_file
from speechbrain.lobes.models.transformer.Branchformer import BranchformerEncoder
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.nnet.attention import RelPosMHAXL, RoPEMHA
from torch import Tensor, nn
from transformers import PretrainedConfig

from speechbrain_mam import Donor, LearnableMAM, Merge, find_attention, make_plan
from speechbrain_mam.architectures.parts import Part, TensorRef
from speechbrain_mam.architectures.registry import ARCHITECTURES, register_architecture
from speechbrain_mam.architectures.row import QKV, Architecture
from speechbrain_mam.cli import main
from speechbrain_mam.merging.alignment import align_layer
from speechbrain_mam.testing.families import randomise

HEADS, WIDTH, FRAMES = 4, 16, 5
SIZE = WIDTH // HEADS
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, FRAMES, WIDTH, generator=GENERATOR)
POSITIONS = torch.randn(1, 2 * FRAMES - 1, WIDTH, generator=GENERATOR)
ENCODERS = {
    "transformer": (TransformerEncoder, {"d_ffn": 16, "normalize_before": True}),
    "conformer": (ConformerEncoder, {"d_ffn": 16, "kernel_size": 3}),
    "branchformer": (BranchformerEncoder, {"csgu_linear_units": 8, "kernel_size": 3}),
}
KINDS = [
    *(("RelPosMHAXL", encoder) for encoder in ENCODERS),
    *(("RoPEMHA", encoder) for encoder in ("transformer", "conformer")),
]


def build(attention="RelPosMHAXL", encoder="conformer"):
    torch.manual_seed(1)
    kind, options = ENCODERS[encoder]
    options = {"num_layers": 2, "nhead": HEADS, "d_model": WIDTH, "dropout": 0.0, **options}
    model = kind(attention_type=attention, **options).eval()
    randomise(model)
    return model


def run(model):
    relative = any(isinstance(module, RelPosMHAXL) for module in model.modules())
    return model(X, pos_embs=POSITIONS if relative else None)[0]


def heads(x: Tensor) -> Tensor:
    """[batch, frames, width] as [batch, heads, frames, width of a head]."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def projected(index, model, layer: int, projection: str, x: Tensor) -> Tensor:
    ref = index.tensors[layer, projection, "weight"]
    return heads(x @ ref.part.take(model.get_parameter(ref.name)).T)


def rotated(x: Tensor) -> Tensor:
    """Each pair of neighbours as a complex number, turned by m·10000^(−2i/d) at position m."""
    pairs = torch.view_as_complex(x.contiguous().unflatten(3, (-1, 2)))
    angles = torch.outer(torch.arange(x.shape[2]), 10000.0 ** -(torch.arange(0, SIZE, 2) / SIZE))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(3)


def mixed_by_hand(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What attention gives to its output projection; scores are divided by √width."""
    if isinstance(attention, RoPEMHA):
        scores = rotated(q) @ rotated(k).transpose(2, 3)
    else:
        u, w = (b.reshape(1, HEADS, 1, SIZE) for b in (attention.pos_bias_u, attention.pos_bias_v))
        positions = heads(attention.linear_pos(POSITIONS))
        scores = (q + u) @ k.transpose(2, 3)
        for i in range(FRAMES):
            for j in range(FRAMES):
                at = positions[:, :, FRAMES - 1 - i + j]
                scores[:, :, i, j] += ((q + w)[:, :, i] * at).sum(2)
    return ((scores / math.sqrt(WIDTH)).softmax(3) @ v).transpose(1, 2).flatten(2)


def seen(model, layer):
    """Attention of a layer, what it got, and what it gave to its output projection."""
    attention = [m for m in model.modules() if isinstance(m, (RelPosMHAXL, RoPEMHA))][layer]
    kept = {}
    hooks = [
        attention.register_forward_pre_hook(lambda m, args: kept.update(x=args[0])),
        attention.out_proj.register_forward_pre_hook(lambda m, args: kept.update(mixed=args[0])),
    ]
    run(model)
    for hook in hooks:
        hook.remove()
    return attention, kept["x"], kept["mixed"]


@torch.no_grad()
@pytest.mark.parametrize(("attention", "encoder"), KINDS)
def test_attention_by_hand_is_the_modules(attention, encoder):
    model = build(attention, encoder)
    index = find_attention(model)
    assert index.architecture.name == f"SpeechBrain's {attention}"
    assert (index.num_layers, index.heads, index.hidden_size) == (2, HEADS, WIDTH)
    assert index.scale == pytest.approx(math.sqrt(SIZE) / math.sqrt(WIDTH))
    for layer in range(2):
        module, x, mixed = seen(model, layer)
        q, k, v = (projected(index, model, layer, p, x) for p in ("query", "key", "value"))
        torch.testing.assert_close(mixed_by_hand(module, q, k, v), mixed, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(mixed_by_hand(module, k, q, v), mixed, atol=1e-2)


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return Donor(save_bert(folder, num_hidden_layers=2, num_attention_heads=HEADS))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["RelPosMHAXL", "RoPEMHA"])
def test_at_0_the_scores_are_the_donors(attention, donor):
    """The target divides by √width, BERT by √(width of a head): the query carries the ratio."""
    model = build(attention)
    plan = make_plan(find_attention(model), donor.index, lam=0.0)
    assert "query is multiplied with 2: its scores have another scale" in str(plan)
    assert "in_proj_weight[1 of 3 in each of 4 heads]" in str(plan)
    assert "only one side having them: 'encoder.layer.0.attention.self.query.bias'" in str(plan)
    Merge(model, plan, donor)
    index = find_attention(model)
    for layer in range(2):
        ours = [projected(index, model, layer, p, X) for p in ("query", "key", "value")]
        names = ("query", "key", "value")
        theirs = [heads(X @ donor.tensor((layer, name, "weight")).T) for name in names]
        one, other = (q @ k.transpose(2, 3) for q, k, _ in (ours, theirs))
        torch.testing.assert_close(one / math.sqrt(WIDTH), other / math.sqrt(SIZE))
        torch.testing.assert_close(ours[2], theirs[2])


def test_a_merge_leaves_the_rest_alone_and_is_taken_back(donor):
    model = build()
    before = copy.deepcopy(model.state_dict())
    index = find_attention(model)
    merge = Merge(model, make_plan(index, donor.index, lam=0.6, projections="k"), donor)
    for name, tensor in model.state_dict().items():
        if not name.endswith("in_proj_weight"):
            assert torch.equal(tensor, before[name])
            continue
        layer = int(name.split(".")[1])
        rows = before[name].clone()
        for head in range(HEADS):  # rows of q, k and v of a head, then of the next
            at = slice((3 * head + 1) * SIZE, (3 * head + 2) * SIZE)
            theirs = donor.tensor((layer, "key", "weight"))[SIZE * head : SIZE * (head + 1)]
            rows[at] = 0.6 * rows[at] + 0.4 * theirs
        torch.testing.assert_close(tensor, rows)
    with merge.lifted():
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not torch.equal(model.layers[0].mha_layer.in_proj_weight, before[name])
    merge.undo()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("attention", ["RelPosMHAXL", "RoPEMHA"])
@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_learned_is_zero_shot_is_folded(granularity, attention, donor):
    model, reference = build(attention), build(attention)
    plan = make_plan(find_attention(model), donor.index, lam=0.6, projections="qkvo")
    Merge(reference, plan, donor)
    names = set(model.state_dict())
    mam = LearnableMAM(model, plan, donor, granularity)
    live = run(model)
    torch.testing.assert_close(live, run(reference), rtol=1e-5, atol=1e-5)
    live.square().sum().backward()
    assert all(lam.grad is not None and lam.grad.abs().min() > 0 for lam in mam.lams)
    mam.fold()
    assert set(model.state_dict()) == names
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name
    mam.insert()
    assert torch.equal(run(model), live)
    mam.remove()
    assert torch.equal(run(model), run(build(attention)))


def test_one_heads_lam_is_of_its_rows_alone(donor):
    model, plain = build(), build()
    mam = LearnableMAM(model, make_plan(find_attention(model), donor.index, lam=1.0), donor, "head")
    with torch.no_grad():
        mam.lams[1][2] = 0.5
    mam.fold()
    pairs = zip(model.layers, plain.layers, strict=True)
    changed = [m.mha_layer.in_proj_weight != p.mha_layer.in_proj_weight for m, p in pairs]
    rows = [weight.any(1).nonzero().flatten().tolist() for weight in changed]
    assert rows == [[], list(range(2 * 3 * SIZE, 3 * 3 * SIZE))]


def test_gradients_agree_with_plain_autograd(donor):
    model, plain = build(), build()  # whose softmax is in float32 whatever else is
    plan = make_plan(find_attention(model), donor.index, lam=0.7)
    mam = LearnableMAM(model, plan, donor)
    run(model).square().mean().backward()
    lams = [lam.detach().clone().requires_grad_() for lam in mam.lams]
    weights = {name: p.detach().clone().requires_grad_() for name, p in plain.named_parameters()}
    merged = dict(weights)
    for i, lam in enumerate(lams):
        theirs = torch.stack([donor.tensor((i, p, "weight")) for p in ("query", "key", "value")])
        theirs[0] *= math.sqrt(HEADS)
        rows = theirs.unflatten(1, (HEADS, SIZE)).transpose(0, 1).flatten(0, 2)
        name = f"layers.{i}.mha_layer.in_proj_weight"
        merged[name] = lam * weights[name] + (1 - lam) * rows
    output = torch.func.functional_call(plain, merged, (X,), {"pos_embs": POSITIONS})[0]
    output.square().mean().backward()
    for ours, exact in zip(mam.lams, lams, strict=True):
        torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-3, atol=1e-6)
    for name, parameter in model.named_parameters():
        if name in weights:
            torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-3, atol=1e-6)


def test_copies_checkpoints_and_pickles_of_it(donor, tmp_path):
    model = build()
    LearnableMAM(model, make_plan(find_attention(model), donor.index, lam=0.8), donor)
    assert isinstance(model.layers[0].mha_layer, RelPosMHAXL)
    assert not hasattr(model.layers[0].mha_layer, "in_proj_bias")
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(run(other), run(model))
    again = build()
    LearnableMAM(again, make_plan(find_attention(again), donor.index, lam=0.5), donor)
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again), run(model))


def test_heads_are_matched_by_what_they_hold(donor):
    """``align: heads`` sees the gathered rows: of a donor that is the target, shuffled."""
    model = build()
    index = find_attention(model)
    ours = {
        (p, "weight"): index.tensors[0, p, "weight"].part.take(
            model.layers[0].mha_layer.in_proj_weight.detach()
        )
        for p in ("query", "key", "value")
    }
    order = torch.tensor([2, 0, 3, 1])
    theirs = {key: w.unflatten(0, (HEADS, SIZE))[order].flatten(0, 1) for key, w in ours.items()}
    aligned = align_layer(ours, theirs, HEADS)
    assert all(torch.equal(aligned[key], ours[key]) for key in ours)
    plan = make_plan(index, donor.index, align="heads", lam=0.5)
    Merge(model, plan, donor)  # in which the same is done


class ByHead(nn.Module):
    """Of one's own: a linear layer that is called, with its biases head by head too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.config = PretrainedConfig(num_attention_heads=HEADS)
        self.config.model_type = "by-head"
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH)}) for _ in range(2)
        )


def test_a_row_of_ones_own_live_learned_and_on_disk(donor, tmp_path):
    row = Architecture(
        "By head", ("by-head",), r"blocks\.(?P<layer>\d+)", {}, interleaved={"qkv": QKV}
    )
    register_architecture(row)
    try:
        model, learned = ByHead(), ByHead()
        folder, out = tmp_path / "target", tmp_path / "out"
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        config = {"model_type": "by-head", "num_attention_heads": HEADS}
        (folder / "config.json").write_text(json.dumps(config))
        options = ["--lam", "0.3", "--out", str(out)]
        assert main(["merge", str(folder), str(donor.folder.path), *options]) == 0
        plan = make_plan(find_attention(model), donor.index, lam=0.3)
        assert len(plan.entries) == 2 * 6 and plan.entries[0].donor_factor == 1
        Merge(model, plan, donor)
        LearnableMAM(learned, plan, donor).fold()
    finally:
        ARCHITECTURES.remove(row)
    written = load_file(out / "model.safetensors")
    for name, plain in ByHead().state_dict().items():
        layer, kind = int(name.split(".")[1]), name.rpartition(".")[2]
        expected = plain.clone()
        for j, projection in enumerate(QKV):
            theirs = donor.tensor((layer, projection, kind))
            for head in range(HEADS):
                at = slice((3 * head + j) * SIZE, (3 * head + j + 1) * SIZE)
                expected[at] = 0.3 * plain[at] + 0.7 * theirs[SIZE * head : SIZE * (head + 1)]
        torch.testing.assert_close(written[name], expected)
        assert torch.equal(written[name], model.state_dict()[name])
        torch.testing.assert_close(learned.state_dict()[name], expected)


def test_parts_read_what_they_write():
    rows = torch.arange(24.0).reshape(12, 2)
    for part in (Part(4, 1, 3), Part(2, 2, 3, blocks=2), Part(4, blocks=3)):
        tensor = rows.clone()
        part.put(tensor, -part.take(tensor))
        assert torch.equal(part.take(tensor), -part.take(rows))
        assert int((tensor != rows).any(1).sum()) == len(part.take(rows))
    assert torch.equal(Part(1, 1, 2, transposed=True).take(rows), rows[:, 1:].T)
    assert torch.equal(Part(6, 1, 2, transposed=True).take(rows[:, 0]), rows[6:, 0])
    assert str(TensorRef("c", (3, 9), Part(3, 1, 3, transposed=True))) == "c[:, 3:6]ᵀ"
    assert str(TensorRef("c", (9, 9), Part(9, transposed=True))) == "cᵀ"
