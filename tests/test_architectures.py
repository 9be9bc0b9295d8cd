"""Every family of the table: what is found, live and on disk, is what the model computes with.

Each test builds a tiny random model; all together they take most of a minute.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers
from conftest import build_speech_model, save_speech_model
from families import (
    FAMILIES,
    HEADS,
    IMAGE,
    LAYERS,
    TEXT,
    TWO_TOWERS,
    WHISPER,
    WIDTH,
    Family,
    check_computation,
    part,
    randomise,
)
from safetensors.torch import load_file
from tiny_beats import clips, save_beats
from torch import nn

import speechbrain_mam
from speechbrain_mam import Donor, LearnableMAM, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.architectures.index import AttentionIndex, index_attention
from speechbrain_mam.architectures.names import Names, example_name
from speechbrain_mam.architectures.registry import (
    ARCHITECTURES,
    Architecture,
    architecture,
    register_architecture,
    supported_models,
)
from speechbrain_mam.cli import main
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.model_files.folder import ModelFolder
from speechbrain_mam.search.prefix_cache import PrefixCache

ROWS = {row.name: row for row in ARCHITECTURES}
TARGETS = [f for f in FAMILIES if "target" in ROWS[f.row].roles and f.tower is None]
ROTATED = ("Wav2Vec2BertModel", "ModernBertModel", "ModernBertForMaskedLM")


def built(family: Family) -> tuple[nn.Module, AttentionIndex]:
    """The model, or its tower, and where its attention is."""
    model = family.build()
    row = ROWS[family.row]
    if family.tower:
        model = model.get_submodule(row.towers[family.tower])
    if "target" in row.roles:
        return model, find_attention(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    layers = model.config.num_hidden_layers
    return model, index_attention(shapes, row, family.heads, repeats=layers)


# --- what is found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_live_and_on_disk_the_same_tensors_are_found(family, tmp_path):
    whole = family.build()
    whole.save_pretrained(tmp_path)
    model, live = built(family)
    donor = Donor(tmp_path, family.tower)
    for index in (live, donor.index):
        assert index.architecture is ROWS[family.row]
        found = (index.num_layers, index.heads, index.hidden_size, len(index.tensors))
        assert found == (family.layers, family.heads, WIDTH, family.tensors)
        biases = {p for _, p, kind in index.tensors if kind == "bias"}
        assert biases == set(family.biases.split())
    assert set(live.tensors) == set(donor.index.tensors)
    for key, ref in live.tensors.items():
        assert part(model, ref).shape == ref.shape
        assert torch.equal(donor.tensor(key), part(model, ref)), key


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_what_is_found_is_what_the_model_computes_with(family):
    model, index = built(family)
    if any(ref.part and not ref.part.writable for ref in index.tensors.values()):
        pytest.skip("what is repeated or transposed cannot be changed: see test_only_donors")
    check_computation(model, index, lambda: family.run(model), family.model not in ROTATED)


@pytest.mark.parametrize("bias", [False, True])
def test_the_fused_tensor_of_modernbert_is_in_order(bias, monkeypatch):
    """Rotary positions hide the order from the test above; what the kernel gets does not."""
    options = {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "attention_bias": bias}
    family = Family("ModernBERT", "ModernBertConfig", "ModernBertModel", options, "text")
    model, index = built(family)
    model.set_attn_implementation("sdpa")
    calls = []
    kernel = nn.functional.scaled_dot_product_attention

    def record(*arguments, **options):
        calls.append(arguments[:3])
        return kernel(*arguments, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record)
    with torch.no_grad():
        family.run(model)
        for layer in range(LAYERS):
            for j, projection in enumerate(("query", "key", "value")):
                tensor = part(model, index.tensors[layer, projection, "weight"])
                plain, before = calls[-LAYERS:], tensor.clone()
                tensor.zero_()
                family.run(model)
                tensor.copy_(before)
                pairs = zip(plain[layer], calls[-LAYERS:][layer], strict=True)
                assert [torch.equal(a, b) for a, b in pairs] == [k != j for k in range(3)]
                family.run(model)


def test_every_row_has_a_family_here_or_is_named():
    elsewhere = {
        "BEATs": "test_beats",
        "ViT (timm)": "test_vit_donors",
        "Whisper's encoder (CTranslate2)": "test_ctranslate2_file",
        "SpeechBrain's Transformer": "below",
        "SpeechBrain's Conformer": "below",
        "SpeechBrain's RelPosMHAXL": "test_head_by_head",
        "SpeechBrain's RoPEMHA": "test_head_by_head",
        "DeBERTa": "below",
    }
    assert {family.row for family in FAMILIES} | set(elsewhere) == set(ROWS)


def test_of_whisper_only_the_encoder_counts(tmp_path):
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER))
    for target in (model, model.model, model.model.encoder):
        index = find_attention(target)
        assert (index.num_layers, index.heads) == (LAYERS, HEADS)
        assert not any("decoder" in ref.name for ref in index.tensors.values())
    model.save_pretrained(tmp_path)
    names = [ref.name for ref in Donor(tmp_path).index.tensors.values()]
    assert names and all(name.startswith("model.encoder.layers.") for name in names)
    config = transformers.WhisperConfig(**WHISPER)
    with pytest.raises(
        MAMError, match=r"no Whisper's encoder self-attention in WhisperForCausalLM"
    ):
        find_attention(transformers.WhisperForCausalLM(config))


# --- towers


@pytest.mark.parametrize("family", TWO_TOWERS[::2], ids=lambda family: family.model)
def test_of_two_towers_one_is_chosen(family, tmp_path):
    model = family.build()
    model.save_pretrained(tmp_path)
    for unsure in (lambda: Donor(tmp_path), lambda: find_attention(model)):
        with pytest.raises(MAMError, match=r"has 2 towers, 'text' and 'vision': .*'…#text'"):
            unsure()
    keys = list(Donor(tmp_path, tower="text").index.tensors)
    texts = [Donor(tmp_path, tower="text"), Donor(f"{tmp_path}#text")]
    assert len({donor.fingerprint(keys) for donor in texts}) == 1
    assert {donor.name for donor in texts} == {f"{tmp_path}#text"}
    assert Donor(f"{tmp_path}#vision").fingerprint(keys) != texts[0].fingerprint(keys)
    with pytest.raises(MAMError, match=r"has no tower 'audio': it has 'text' and 'vision'"):
        Donor(tmp_path, tower="audio")
    with pytest.raises(MAMError, match=r"'tower' is 'text', the name says 'vision'"):
        Donor(f"{tmp_path}#vision", tower="text")


def test_towers_that_are_none(bert_folder, tmp_path):
    with pytest.raises(MAMError, match=r"\(BERT\) has no tower 'text': it has none by name"):
        Donor(f"{bert_folder}#text")
    marked = tmp_path / "my#text"  # a folder may be called so
    transformers.BertModel.from_pretrained(bert_folder).save_pretrained(marked)
    assert Donor(marked).index.num_layers == 3
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=IMAGE)
    transformers.CLIPForImageClassification(config).save_pretrained(tmp_path / "one")
    assert Donor(tmp_path / "one").index.prefix.endswith("vision_model.")


def test_heads_that_a_published_configuration_leaves_out(tmp_path):
    """SigLIP's tells nothing of its towers but what differs from the default."""
    wide = {**IMAGE, "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1}
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=TEXT, vision_config=wide)
    )
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["vision_config"] = {"model_type": "siglip_vision_model"}
    file.write_text(json.dumps(content))
    assert Donor(f"{tmp_path}#vision").index.heads == 12
    assert Donor(f"{tmp_path}#text").index.heads == HEADS


# --- DeBERTa, whose heads are interleaved


@pytest.fixture(scope="module")
def deberta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deberta")
    options = {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    model = Family("DeBERTa", "DebertaConfig", "DebertaModel", options, "text").build()
    model.save_pretrained(folder)
    return model, folder


def test_deberta_is_taken_apart_as_the_model_does_it(deberta):
    model, folder = deberta
    donor = Donor(folder)
    assert (donor.index.num_layers, donor.index.heads, donor.index.hidden_size) == (2, 2, 8)
    assert donor.index.scale == pytest.approx(3**-0.5)  # its scores have three terms
    assert len(donor.index.tensors) == 2 * (4 + 3)
    assert (0, "key", "bias") not in donor.index.tensors
    hidden = torch.randn(1, 5, WIDTH)
    for layer, block in enumerate(model.encoder.layer):
        own = block.attention.self
        with torch.no_grad():
            split = own.transpose_for_scores(own.in_proj(hidden)).chunk(3, dim=-1)
        for projection, theirs in zip(("query", "key", "value"), split, strict=True):
            ours = hidden @ donor.tensor((layer, projection, "weight")).T
            ours = ours.view(1, 5, HEADS, -1).transpose(1, 2)
            torch.testing.assert_close(ours, theirs.reshape(ours.shape))
        assert torch.equal(donor.tensor((layer, "query", "bias")), own.q_bias)
        assert torch.equal(donor.tensor((layer, "value", "bias")), own.v_bias)
        output = block.attention.output.dense
        assert torch.equal(donor.tensor((layer, "output", "weight")), output.weight)


def test_deberta_is_no_target(deberta, bert_folder, tmp_path, capsys):
    model, folder = deberta
    with pytest.raises(MAMError, match=r"DebertaModel is a DeBERTa, which can only be a donor, no"):
        find_attention(model)
    options = ["--lam", "0.9", "--out", str(tmp_path / "out")]
    assert main(["merge", str(folder), str(bert_folder), *options]) == 2
    assert "which can only be a donor, no target: biases of its query" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_deberta_with_odd_heads(deberta, tmp_path):
    _, folder = deberta
    config = json.loads((folder / "config.json").read_text()) | {"num_attention_heads": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(MAMError, match=r"has shape \[24, 8\], which 'num_attention_heads' \(5\)"):
        Donor(tmp_path)


@pytest.mark.parametrize("name", ["deberta", "albert", "clip", "modernbert"])
def test_donors_that_are_read_in_parts_merge_on_disk_as_live(name, deberta, tmp_path):
    """The command line reads a donor's file by itself, where that is possible."""
    donor = {
        "deberta": deberta[1],
        "albert": tmp_path / "ALBERT",
        "clip": tmp_path / "CLIP",
        "modernbert": tmp_path / "ModernBERT",
    }[name]
    if name != "deberta":
        family = next(f for f in (*TWO_TOWERS, *FAMILIES) if f.row == donor.name)
        family.build().save_pretrained(donor)
    chosen = f"{donor}#text" if name == "clip" else str(donor)
    target = save_speech_model(tmp_path / "target", hidden_size=WIDTH, intermediate_size=8)
    options = ["--lam", "0.25", "--bias", "where_both", "--out", str(tmp_path / "out")]
    assert main(["merge", str(target), chosen, *options]) == 0
    model = build_speech_model(hidden_size=WIDTH, intermediate_size=8)
    opened = Donor(chosen)
    plan = make_plan(find_attention(model), opened.index, lam=0.25, bias="where_both")
    Merge(model, plan, opened)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for entry in plan.entries:
        torch.testing.assert_close(merged[entry.target], model.get_parameter(entry.target).detach())


# --- SpeechBrain's own encoders


def speechbrain_encoder(kind: str, attention: str = "regularMHA") -> nn.Module:
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

    torch.manual_seed(4)
    model = TransformerASR(
        input_size=6,
        tgt_vocab=5,
        d_model=WIDTH,
        nhead=HEADS,
        num_encoder_layers=LAYERS,
        num_decoder_layers=3 if kind == "transformer" else 0,
        d_ffn=8,
        encoder_module=kind,
        attention_type=attention,
        normalize_before=True,
        kernel_size=3,
        csgu_linear_units=8,
        causal=False,
    ).eval()
    randomise(model)
    return model


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *((kind, "regularMHA") for kind in ("transformer", "conformer", "branchformer")),
        *((kind, "RelPosMHAXL") for kind in ("transformer", "conformer", "branchformer")),
        *((kind, "RoPEMHA") for kind in ("transformer", "conformer")),
    ],
)
def test_speechbrains_encoders(kind, attention, bert_donor):
    model = speechbrain_encoder(kind, attention)
    index = find_attention(model)  # and nothing of the decoder
    assert (index.num_layers, index.heads, index.hidden_size) == (LAYERS, HEADS, WIDTH)
    assert index.prefix == "encoder."
    if attention == "regularMHA":
        assert len(index.tensors) == LAYERS * 8
        key = index.tensors[1, "key", "bias"]
        assert (key.name.rpartition(".")[2], key.rows) == ("in_proj_bias", (8, 16))
    else:
        assert len(index.tensors) == LAYERS * 5  # no bias but the output's
    frames = torch.randn(1, 7, 6)
    check_computation(model, index, lambda: model.encode(frames))
    assert find_attention(model.encoder).num_layers == LAYERS
    learn_and_fold(model, index, bert_donor, lambda: model.encode(frames))


@pytest.mark.parametrize("kind", ["transformer", "conformer", "branchformer"])
def test_hypermixing_is_refused_as_what_it_is(kind):
    told = r"'encoder\.layers\.0\.\w+' is SpeechBrain's HyperMixing, .* without query, key and"
    with pytest.raises(MAMError, match=told):
        find_attention(speechbrain_encoder(kind, "hypermixing"))


# --- BEATs, from its own checkpoint


def test_beats_is_target_and_donor(tmp_path):
    file = save_beats(tmp_path / "beats.pt")
    model = BEATsEncoder(file).eval()
    live, donor = find_attention(model), Donor(file)
    assert donor.index.architecture is live.architecture is ROWS["BEATs"]
    assert set(live.tensors) == set(donor.index.tensors)
    for key, ref in live.tensors.items():
        assert torch.equal(donor.tensor(key), part(model, ref))
    assert donor.index.heads == live.heads == 2
    check_computation(model, live, lambda: model(clips()))
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(MAMError, match=r"other\.pt': expected a BEATs checkpoint"):
        Donor(tmp_path / "other.pt")


# --- what is done with what is found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_each_family_gives_its_attention_to_hubert(family, tmp_path):
    """λ = 0 is the donor's projections, bit for bit, in the target's scale of scores."""
    family.build().save_pretrained(tmp_path)
    donor = Donor(tmp_path, family.tower)
    model = build_speech_model(hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=2)
    plan = make_plan(find_attention(model), donor.index, lam=0, bias="where_both")
    assert len(plan.entries) == 2 * (3 + len({*family.biases.split()} - {"output"}))
    Merge(model, plan, donor)
    for entry in plan.entries:
        theirs = donor.tensor(entry.donor_key) * entry.donor_factor
        assert torch.equal(model.get_parameter(entry.target), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("family", TARGETS, ids=str)
def test_each_family_learns_is_folded_and_exported(family, bert_donor, tmp_path):
    model, index = built(family)
    learn_and_fold(model, index, bert_donor, lambda: family.run(model)[0])
    model.save_pretrained(tmp_path)
    exported = type(model).from_pretrained(tmp_path).eval()  # of transformers alone
    with torch.no_grad():
        outputs = (family.run(one)[0] for one in (exported, model.eval()))
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", TARGETS, ids=str)
def test_each_family_is_merged_on_disk_as_live(family, bert_donor, tmp_path):
    model, index = built(family)
    model.save_pretrained(tmp_path / "target")
    donor = str(bert_donor.folder.path)
    options = ["--lam", "0.7", "--bias", "where_both", "--out", str(tmp_path / "out")]
    assert main(["merge", str(tmp_path / "target"), donor, *options]) == 0
    plan = make_plan(index, bert_donor.index, lam=0.7, bias="where_both")
    Merge(model, plan, bert_donor)
    merged = dict(type(model).from_pretrained(tmp_path / "out").named_parameters())
    for entry in plan.entries:
        assert torch.equal(merged[entry.target], model.get_parameter(entry.target)), entry.target


def learn_and_fold(model: nn.Module, index: AttentionIndex, donor: Donor, run) -> None:
    """λ = 1 changes nothing; λ < 1 has gradients; folded, it is the same without λ."""
    names = set(model.state_dict())
    with torch.no_grad():
        plain = run()
    plan = make_plan(index, donor.index, lam=1.0, bias="where_both")
    with Merge(model, plan, donor), torch.no_grad():
        assert torch.equal(run(), plain)
    plan = make_plan(index, donor.index, lam=0.7, bias="where_both")
    live = LearnableMAM(model, plan, donor)
    output = run()
    output.square().sum().backward()
    for lam in live.parameters():
        assert lam.grad is not None and lam.grad.abs().sum() > 0
    live.fold()
    assert set(model.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(run(), output, rtol=1e-4, atol=1e-5)
        for entry in plan.entries:
            assert index.tensors[entry.layer, entry.projection, entry.kind].name == entry.target


@pytest.fixture(scope="module")
def bert_donor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert-8")
    next(f for f in FAMILIES if f.row == "BERT").build(seed=12).save_pretrained(folder)
    return Donor(folder)


@pytest.mark.parametrize("family", [f for f in TARGETS if ROWS[f.row].front], ids=str)
def test_what_comes_before_the_first_layer_can_be_kept(family):
    """The row's ``front`` is left out in the second pass, which gives the same bits.

    What else is computed before the second layer would show: convolutions and linear layers.
    """
    model, index = built(family)
    modules = dict(model.named_modules())
    front = [
        modules[path]
        for name in index.architecture.front
        if (path := index.prefix + name) in modules
    ]
    ran: list[str] = []
    for path, module in modules.items():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and module not in front:
            module.register_forward_hook(lambda *_, path=path: ran.append(path))
    with torch.no_grad(), PrefixCache(model, first=1) as cache:
        with cache.batch(0):
            plain = family.run(model)[0]
        for parameter in (p for module in front for p in module.parameters()):
            parameter.zero_()
        ran.clear()
        with cache.batch(0):
            assert torch.equal(family.run(model)[0], plain)
        assert "layers.1." in ran[0] or "layer.1." in ran[0], ran
        assert not torch.equal(family.run(model)[0], plain)


# --- layers that share their weights


def test_the_layers_of_albert(tmp_path):
    options = {**TEXT, "embedding_size": 4, "num_hidden_layers": 5, "num_hidden_groups": 2}
    family = Family("ALBERT", "AlbertConfig", "AlbertModel", options, "text")
    model = family.build()
    model.save_pretrained(tmp_path)
    index = Donor(tmp_path).index
    groups = [index.tensors[i, "key", "weight"].name.split(".")[2] for i in range(5)]
    assert groups == ["0", "0", "0", "1", "1"]  # int(i / 2.5), as the model itself does it
    with pytest.raises(MAMError, match="its layers share their weights, of which each can be merg"):
        find_attention(model)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(MAMError, match=r"the configuration has no 'num_hidden_layers'"):
        Donor(tmp_path)
    with pytest.raises(MAMError, match=r"'num_hidden_layers' is 0, expected a number from 1 on"):
        index_attention(ModelFolder(tmp_path).shapes, ROWS["ALBERT"], 2, repeats=0)


# --- what is said


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.name)
def test_zero_matches_name_what_was_expected_and_what_is_near(row):
    """The example in the message is a name that the row would find."""
    example = example_name(row)
    assert Names(row).match(example) is not None
    near = f"{example}s"
    shapes = {near: (8, 8), **{f"something.else.{i}": (8,) for i in range(20)}}
    with pytest.raises(MAMError) as raised:
        index_attention(shapes, row, HEADS, where="'it'")
    told = str(raised.value)
    assert f"no {row.name} self-attention in 'it': none of its 21 tensors" in told
    assert f"named like '{example}'; the closest are '{near}'" in told


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("huber", "hubert"), ("wavlm2", "wavlm"), ("deberta_v2", "deberta-v2"), ("clip_text", "clip")],
)
def test_near_names_of_an_unknown_model_type(wrong, right):
    with pytest.raises(MAMError, match="not in the table") as raised:
        architecture(wrong)
    assert f"'{right}" in str(raised.value).partition("did you mean ")[2]
    model = build_speech_model()
    model.config.model_type = model.base_model.config.model_type = wrong
    with pytest.raises(MAMError, match=rf"model types seen: {wrong}; did you mean .*'{right}"):
        find_attention(model)


# --- a row of one's own


MINE = Architecture(
    "Mine",
    ("mine",),
    r"blocks\.(?P<layer>\d+)\.attn",
    {"query": ("q",), "key": ("k",), "value": ("v",)},
)


@pytest.fixture()
def registered():
    yield register_architecture(MINE)
    ARCHITECTURES.remove(MINE)


def test_a_registered_family_is_found_live_and_on_disk(registered, tmp_path):
    from safetensors.torch import save_file

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4, bias=False) for _ in range(3))

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = transformers.PretrainedConfig(num_attention_heads=2)
            self.config.model_type = "mine"
            self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention()}) for _ in range(2))

    model = Mine()
    index = find_attention(nn.ModuleList([model]))
    assert (index.architecture, index.num_layers, index.heads) == (MINE, 2, 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"model_type": "mine", "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    donor = Donor(tmp_path)
    assert torch.equal(donor.tensor((1, "value", "weight")), model.blocks[1]["attn"].v.weight)
    assert supported_models()[-1].family == "Mine"
    assert speechbrain_mam.ARCHITECTURES is ARCHITECTURES


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "HuBERT"}, "the name 'HuBERT' is taken by the row 'HuBERT'"),
        ({"model_types": ("x", "bert")}, "the model_type 'bert' is taken by the row 'BERT'"),
        ({"classes": ROWS["BEATs"].classes}, r"the class '.*\.BEATs' is taken by the row 'BEATs'"),
        ({"layer": "blocks.(?P<layer"}, "'layer' is no regular expression"),
        ({"layer": r"blocks\.\d+"}, "'layer' must hold the group"),
        ({"repeats": "num_layers"}, "'repeats' and .* go together"),
        ({"names": {"query": ("q",), "value": ("v",)}}, "nor 'fused' tells where key is"),
        ({"model_types": ()}, "nothing to recognise it by"),
        ({"roles": ("giver",)}, r"'roles' are \('giver',\), expected some of"),
    ],
)
def test_rows_that_are_refused(change, told):
    before = list(ARCHITECTURES)
    with pytest.raises(MAMError, match=told):
        register_architecture(dataclasses.replace(MINE, **change))
    assert before == ARCHITECTURES


def test_the_table_for_readers():
    table = {row.family: row for row in supported_models()}
    assert len(table) == len(ARCHITECTURES)
    assert table["HuBERT"].roles == ("target", "donor") and not table["HuBERT"].fused
    assert table["ALBERT"].roles == ("donor",)
    assert table["ModernBERT"].fused and table["SpeechBrain's Transformer"].roles == ("target",)
    assert table["SigLIP"].towers == ("text", "vision")
