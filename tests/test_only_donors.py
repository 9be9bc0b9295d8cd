"""Donors whose query, key and value are stored otherwise: grouped, transposed, without a scale.

Attention is computed here once more, by the formula, from what the donor's file gives, and compared
with what the model gives to its output projection.
"""

import json
import math
import sys

import pytest
import torch
import transformers
from conftest import build_speech_model, save_bert, save_speech_model
from families import FAMILIES, WIDTH
from safetensors.torch import load_file, save_file
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from torch import Tensor, nn

from speechbrain_mam import MAM, Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.architectures.index import index_attention
from speechbrain_mam.architectures.registry import architecture, register_architecture
from speechbrain_mam.architectures.row import Architecture, named
from speechbrain_mam.cli import main
from speechbrain_mam.merging.arithmetic import linear
from speechbrain_mam.testing import Setting, check_target
from speechbrain_mam.testing.families import randomise
from speechbrain_mam.testing.targets import TARGETS

DECODERS = ("Llama", "Qwen2", "Qwen3", "Gemma", "Gemma 3", "GPT-2")
ENCODERS = ("T5's encoder", "M2M-100's and NLLB's encoder")
ONLY = [family for family in FAMILIES if family.row in (*DECODERS, *ENCODERS)]
SPEECH = [
    family
    for family in FAMILIES
    if family.row in ("wav2vec2-Conformer", "SEW", "Moonshine's encoder", "Parakeet")
    and family.options.get("position_embeddings_type") != "rotary"
]


def seen(model: nn.Module, path: str, output: str, run) -> tuple[nn.Module, dict]:
    """The attention at ``path``, what it got, and what it gave to its output projection."""
    attention, kept = model.get_submodule(path), {}

    def before(module, args, kwargs):
        kept.update(kwargs, x=args[0] if args else kwargs["hidden_states"])

    hooks = [
        attention.register_forward_pre_hook(before, with_kwargs=True),
        model.get_submodule(output).register_forward_pre_hook(
            lambda module, args: kept.update(mixed=args[0])
        ),
    ]
    run(model)
    for hook in hooks:
        hook.remove()
    return attention, kept


def by_hand(attention: nn.Module, kept: dict, donor: Donor, layer: int, causal: bool) -> Tensor:
    index, x = donor.index, kept["x"]
    width = index.hidden_size // index.heads

    def project(projection: str) -> Tensor:
        y = x @ donor.tensor((layer, projection, "weight")).T
        if (layer, projection, "bias") in index.tensors:
            y = y + donor.tensor((layer, projection, "bias"))
        return y.unflatten(2, (index.heads, width)).transpose(1, 2)

    q, k, v = (project(projection) for projection in ("query", "key", "value"))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    if (turns := kept.get("position_embeddings")) is not None and isinstance(turns, tuple):
        q, k = sys.modules[type(attention).__module__].apply_rotary_pos_emb(q, k, *turns)
    scores = relative(attention, kept, q, k)
    scores = scores * index.scale / math.sqrt(width)
    if getattr(attention, "has_relative_attention_bias", False):
        scores = scores + attention.compute_bias(x.shape[1], x.shape[1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)


def relative(attention: nn.Module, kept: dict, q: Tensor, k: Tensor) -> Tensor:
    """q·k, and what Transformer-XL adds for positions: (q + u)·k + (q + v)·p, p of distance."""
    u = getattr(attention, "pos_bias_u", getattr(attention, "bias_u", None))
    if u is None:
        return q @ k.transpose(2, 3)
    v = attention.pos_bias_v if hasattr(attention, "pos_bias_v") else attention.bias_v
    if hasattr(attention, "linear_pos"):
        p = attention.linear_pos(kept["relative_position_embeddings"])
    else:
        p = attention.relative_k_proj(kept["position_embeddings"])
    p = p.unflatten(2, u.shape).transpose(1, 2)
    frames = q.shape[2]
    scores = (q + u[:, None]) @ k.transpose(2, 3)
    for i in range(frames):
        for j in range(frames):
            scores[:, :, i, j] += ((q + v[:, None])[:, :, i] * p[:, :, frames - 1 - i + j]).sum(2)
    return scores


@torch.no_grad()
@pytest.mark.parametrize(
    "family", [*ONLY, *(pytest.param(f, marks=pytest.mark.slow) for f in SPEECH)], ids=str
)
def test_attention_by_hand_is_the_models(family, tmp_path):
    model = family.build()
    model.save_pretrained(tmp_path)
    donor = Donor(tmp_path)
    for layer in range(family.layers):
        query, output = (donor.index.tensors[layer, p, "weight"].name for p in ("query", "output"))
        prefix = "" if query in dict(model.named_parameters()) else f"{model.base_model_prefix}."
        path, output = ((prefix + name).removesuffix(".weight") for name in (query, output))
        if family.row.startswith("T5") and layer and family.model != "UMT5EncoderModel":
            continue  # which has the first layer's bias of positions
        found = seen(model, path.rpartition(".")[0], output, family.run)
        mixed = by_hand(*found, donor, layer, causal=family.row in DECODERS)
        torch.testing.assert_close(mixed, found[1]["mixed"], rtol=1e-4, atol=1e-5)


# --- grouped queries


def save(folder, name: str, **options):
    family = next(family for family in ONLY if family.model == name)
    build = getattr(transformers, family.config)(**{**family.options, **options})
    torch.manual_seed(3)
    model = getattr(transformers, name)(build)
    randomise(model)
    model.save_pretrained(folder)
    return folder


def test_heads_are_repeated_in_turn_and_the_plan_says_so(tmp_path):
    donor = Donor(save(tmp_path, "Qwen2ForCausalLM"))
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.{}_proj.{}"
    for projection in ("key", "value"):
        for kind in ("weight", "bias"):
            found = donor.tensor((1, projection, kind))
            theirs = stored[name.format(projection[0], kind)]
            twice = [theirs[2 * head : 2 * head + 2] for head in (0, 0, 1, 1)]
            assert torch.equal(found, torch.cat(twice))
    plan = make_plan(find_attention(build_speech_model(hidden_size=WIDTH)), donor.index)
    told = str(plan)
    assert "the donor has 2 heads of key and value, each of which is repeated for 2 heads" in told
    assert "k_proj.weight[each of 2 heads 2 times]" in told
    assert "q_proj.weight\n" in told + "\n" and "scores have another scale" not in told
    entry = json.loads(plan.to_json())["entries"][2]
    assert entry["donor_part"]["repeats"] == 2 and entry["donor_rows"] is None


def test_as_many_heads_of_key_as_of_query_are_as_they_are(tmp_path):
    donor = Donor(save(tmp_path, "LlamaForCausalLM", num_key_value_heads=4))
    assert all(ref.part is None for ref in donor.index.tensors.values())


@pytest.mark.parametrize("value", [0, -1, "x", [2], float("inf")])
def test_a_scale_that_is_none_is_refused(value, tmp_path):
    save(tmp_path, "Gemma2Model")
    file = tmp_path / "config.json"
    change = {"query_pre_attn_scalar": value}
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(MAMError, match=r"expected a number above 0 as 'query_pre_attn_scalar'"):
        Donor(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_key_value_heads": ["x"]}, r"k_proj\.weight' .* says there are \['x'\]"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight' .* says there are 4"),
        ({"num_attention_heads": 8}, r"says there are 2"),
        ({"num_attention_heads": 3}, r"3 attention heads do not divide the width 8"),
    ],
)
def test_a_configuration_of_other_heads_is_refused(change, told, tmp_path):
    save(tmp_path, "LlamaForCausalLM")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(MAMError, match=told):
        Donor(tmp_path)


def test_heads_that_are_wider_than_the_model_are_refused(tmp_path):
    """As Qwen3-0.6B and most of Gemma 3 have them."""
    save(tmp_path, "Qwen3Model", head_dim=4)
    with pytest.raises(MAMError, match=r"shape \[16, 8\], expected a square matrix: only heads th"):
        Donor(tmp_path)


def test_shapes_alone_tell_the_heads_of_key():
    shapes = {
        f"layers.0.self_attn.{p}_proj.weight": (n, 8) for p, n in zip("qkv", (8, 2, 2), strict=True)
    }
    row = architecture("llama")
    ref = index_attention(shapes, row, 4).tensors[0, "value", "weight"]
    assert (ref.part.blocks, ref.part.repeats) == (1, 4)
    shapes["layers.0.self_attn.k_proj.weight"] = (3, 8)
    with pytest.raises(MAMError, match=r"shape \[3, 8\], expected heads of 2 rows"):
        index_attention(shapes, row, 4)


@pytest.mark.parametrize("field", [{"kv_heads": "n"}, {"transposed": True}])
def test_such_rows_are_donors_alone(field):
    names = named("q", "k", "v", "o")
    with pytest.raises(MAMError, match=r"'roles' must be \('donor',\)"):
        register_architecture(Architecture("X", ("x",), r"(?P<layer>\d+)", names, **field))


def test_what_is_not_carried_over_is_said(tmp_path):
    for name, said in (("Qwen3Model", True), ("LlamaForCausalLM", False)):
        donor = Donor(save(tmp_path / name, name))
        plan = make_plan(find_attention(build_speech_model(hidden_size=WIDTH)), donor.index)
        assert ("not merged: the norms that the donor has on its queries" in str(plan)) is said


# --- the scale of scores


def test_gemma_says_its_scale_itself(tmp_path):
    """1/√8 where a head is 2 wide: half of the usual."""
    donor = Donor(save(tmp_path, "Gemma2Model"))
    assert donor.index.scale == 0.5
    plan = make_plan(find_attention(build_speech_model(hidden_size=WIDTH)), donor.index)
    assert {(e.projection, e.donor_factor) for e in plan.entries} == {
        ("query", 0.5), ("key", 1.0), ("value", 1.0)
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("terms", ["c2p|p2c", ["p2c"], None])
def test_deberta_divides_by_its_terms_too(terms, tmp_path):
    """Without anything of positions to add, q·k alone tells what it is divided by."""
    count = 1 if terms is None else 3 if "c2p" in terms else 2
    family = next(family for family in FAMILIES if family.row == "DeBERTa v2/v3")
    options = {"relative_attention": True, "position_buckets": 4, "share_att_key": True}
    config = transformers.DebertaV2Config(**family.options, **options, pos_att_type=terms)
    model = transformers.DebertaV2Model(config).eval()
    randomise(model)
    model.encoder.rel_embeddings.weight.zero_()
    for layer in model.encoder.layer:
        layer.attention.self.query_proj.bias.zero_()
        layer.attention.self.key_proj.bias.zero_()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"  # as it is published
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pos_att_type": terms}))
    donor = Donor(tmp_path)
    assert donor.index.scale == find_attention(model).scale == pytest.approx(count**-0.5)
    kept = []
    layer = model.encoder.layer[0].attention
    layer.self.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    layer.output.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    family.run(model)
    mixed = by_hand(layer.self, {"x": kept[0]}, donor, 0, causal=False)
    torch.testing.assert_close(mixed, kept[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}]
)
def test_gpt2_of_another_scale_is_refused(change, tmp_path):
    save(tmp_path, "GPT2LMHeadModel", **change)
    with pytest.raises(MAMError, match=rf"config\.json says '{next(iter(change))}' is"):
        Donor(tmp_path)


def as_t5(bert, folder):
    """BERT's attention written as T5 writes it, with 1/√d in the query."""
    save(folder, "T5ForConditionalGeneration")
    file = folder / "model.safetensors"
    state = load_file(file)
    for layer in range(2):
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
            weight = bert.tensor((layer, theirs, "weight"))
            name = f"encoder.block.{layer}.layer.0.SelfAttention.{ours}.weight"
            state[name] = weight / 2 if ours == "q" else weight.clone()
    save_file(state, file, metadata={"format": "pt"})
    return Donor(folder)


@pytest.mark.parametrize("attention", ["HuBERT", "RelPosMHAXL"])
@pytest.mark.parametrize("options", [{}, {"align": "heads"}, {"donor_scale": "match_norm"}])
def test_a_merge_does_not_hang_on_where_the_donor_has_its_scale(options, attention, tmp_path):
    """One attention, written with 1/√d (d = 4) and, as T5 has it, without: one merge."""
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
    bert = Donor(save_bert(tmp_path / "bert", **sizes, intermediate_size=8))
    merged = []
    for donor in (bert, as_t5(bert, tmp_path / "t5")):
        torch.manual_seed(0)
        if attention == "HuBERT":
            target = build_speech_model(**sizes, intermediate_size=8)
        else:
            target = ConformerEncoder(num_layers=2, d_model=WIDTH, d_ffn=8, nhead=2, kernel_size=3)
        plan = make_plan(find_attention(target), donor.index, 0.3, bias="keep", **options)
        Merge(target, plan, donor)
        merged.append({e.target: target.get_parameter(e.target).detach() for e in plan.entries})
    for name, tensor in merged[0].items():
        torch.testing.assert_close(merged[1][name], tensor)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("learnable", [False, True])
def test_several_donors_of_several_scales_are_brought_to_one(learnable, order, tmp_path):
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
    bert = Donor(save_bert(tmp_path / "bert", **sizes, intermediate_size=8))
    both = (bert, as_t5(bert, tmp_path / "t5"))
    merged = []
    for donor in (bert, [both[i] for i in order]):
        model = build_speech_model(**sizes, intermediate_size=8)
        mam = MAM(model, donor=donor, lam=0.3, learnable=learnable, bias="keep")
        mam.apply()
        mam.fold()
        merged.append({name: p.detach() for name, p in model.named_parameters()})
    for name, tensor in merged[0].items():
        torch.testing.assert_close(merged[1][name], tensor)


def test_t5s_query_starts_smaller_than_its_key_by_the_scale():
    """The evidence that what T5's scores lack is in its query: its own initial values."""
    torch.manual_seed(0)
    options = {"vocab_size": 8, "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 8}
    model = transformers.T5EncoderModel(transformers.T5Config(**options, num_layers=1))
    attention = model.encoder.block[0].layer[0].SelfAttention
    ratio = attention.k.weight.detach().std() / attention.q.weight.detach().std()
    assert float(ratio) == pytest.approx(math.sqrt(16), rel=0.05)


# --- files and whole runs


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "GPT2LMHeadModel", "MT5EncoderModel"])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_on_disk_as_live(dtype, name, tmp_path, capsys):
    folder = save(tmp_path / "donor", name)
    file = folder / "model.safetensors"
    state = {key: t.to(getattr(torch, dtype)) for key, t in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    sizes = {"hidden_size": WIDTH, "intermediate_size": 8}
    target = save_speech_model(tmp_path / "target", **sizes)
    options = ["--lam", "0.25", "--bias", "where_both", "--out", str(tmp_path / "out")]
    assert main(["merge", str(target), str(folder), *options]) == 0
    model, donor = build_speech_model(**sizes), Donor(folder)
    plan = make_plan(find_attention(model), donor.index, lam=0.25, bias="where_both")
    before = {e.target: model.get_parameter(e.target).detach().clone() for e in plan.entries}
    Merge(model, plan, donor)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for entry in plan.entries:
        assert torch.equal(merged[entry.target], model.get_parameter(entry.target))
        theirs = donor.tensor(entry.donor_key) * entry.donor_factor
        assert torch.equal(merged[entry.target], linear(before[entry.target], theirs, 0.25))
    content = json.loads((tmp_path / "out" / "mam_plan.json").read_text())
    keys = [entry.donor_key for entry in plan.entries]
    assert content["donor_sha256"] == donor.fingerprint(keys)


@pytest.mark.slow
@pytest.mark.parametrize("family", ONLY, ids=str)
def test_each_is_a_donor_in_a_whole_run(family, tmp_path):
    """Trained, moved, saved, tested twice and resumed, in a Conformer that has another scale."""
    target = next(t for t in TARGETS if t.name == "SpeechBrain's Conformer, RoPEMHA")
    family.build().save_pretrained(tmp_path)
    setting = Setting(granularity="head", dtype="bfloat16")
    failures = check_target(target.build(), str(tmp_path), target.run, [setting])
    assert [str(failure) for failure in failures] == []
