"""Where attention is found, and what is said when it is not."""

import pytest
import torch
from conftest import FAMILIES, build_speech_model

from speechbrain_mam import MAM, MAMError, find_attention, index_attention
from speechbrain_mam.architectures.index import PROJECTIONS
from speechbrain_mam.architectures.registry import ARCHITECTURES, architecture
from speechbrain_mam.brain.freezing import apply_merge
from speechbrain_mam.lobes.hubert_ctc import HubertCTC


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_bare_with_head_and_wrapped(family):
    with_head = build_speech_model(family)
    bare = with_head.base_model
    for target in (bare, with_head, torch.nn.ModuleList([with_head, torch.nn.Linear(2, 2)])):
        index = find_attention(target)
        assert (index.num_layers, index.heads, index.hidden_size) == (3, 2, 16)
        assert architecture(family) is index.architecture
        for ref in index.tensors.values():
            assert tuple(target.get_parameter(ref.name).shape) == ref.shape
        assert len(index.tensors) == 3 * 4 * 2


def test_speechbrains_own_lobe_is_a_target(hubert_folder, tmp_path, monkeypatch):
    from speechbrain.integrations.huggingface.hubert import HuBERT

    lobe = HuBERT(str(hubert_folder), save_path=str(tmp_path))
    assert find_attention(lobe).num_layers == 3
    assert find_attention(HubertCTC(hubert_folder)).prefix == "model.hubert."


def test_nothing_supported_is_an_error_that_names_what_was_seen():
    with pytest.raises(MAMError, match="Linear holds no supported encoder"):
        find_attention(torch.nn.Linear(2, 2))
    model = build_speech_model()
    model.config.model_type = model.base_model.config.model_type = "strange"
    with pytest.raises(MAMError, match="model types seen: strange"):
        find_attention(model)


@pytest.mark.parametrize("target", [(), None, "encoder", {"encoder": 1}, 3.0])
def test_a_target_that_is_no_module_is_an_error(target, bert_folder):
    """A YAML's ``target: !tuple``, or a name where ``!ref <name>`` was meant."""
    said = f"the target is a {type(target).__name__}, expected a torch.nn.Module"
    for wrong in (
        lambda: find_attention(target),
        lambda: MAM(target, str(bert_folder)).apply(),
        lambda: apply_merge(MAM(target, str(bert_folder))),
        lambda: MAM(target, str(bert_folder), learnable=False, lam=0.9).apply(),
    ):
        with pytest.raises(MAMError, match=said):
            wrong()


def test_two_encoders_are_an_error():
    with pytest.raises(MAMError, match="holds 2 supported encoders"):
        find_attention(torch.nn.ModuleList([build_speech_model(), build_speech_model()]))


def test_zero_matches_show_the_closest_names():
    shapes = {"encoder.layers.0.attn.q_proj.weight": (4, 4)}
    with pytest.raises(MAMError, match=r"closest are 'encoder\.layers\.0\.attn\.q_proj\.weight'"):
        index_attention(shapes, architecture("hubert"), heads=2)


def test_missing_layer_and_odd_shape_are_named():
    names = {f"encoder.layers.{i}.attention.{p}_proj.weight": (4, 4) for i in (0, 2) for p in "qkv"}
    with pytest.raises(MAMError, match="layer 1 of 3 has no query weight"):
        index_attention(names, architecture("hubert"), heads=2)
    names = {f"encoder.layers.0.attention.{p}_proj.weight": (4, 4) for p in "qk"}
    names["encoder.layers.0.attention.v_proj.weight"] = (4, 3)
    with pytest.raises(MAMError, match=r"v_proj\.weight' has shape \[4, 3\], expected \[4, 4\]"):
        index_attention(names, architecture("hubert"), heads=2)


def test_heads_must_divide_the_width():
    names = {f"encoder.layers.0.attention.{p}_proj.weight": (4, 4) for p in "qkv"}
    with pytest.raises(MAMError, match="3 attention heads do not divide the width 4"):
        index_attention(names, architecture("hubert"), heads=3)


def test_an_unknown_family_gets_a_hint():
    with pytest.raises(MAMError, match="did you mean 'hubert'"):
        architecture("huber")


def test_no_model_type_stands_in_two_rows():
    names = [name for row in ARCHITECTURES for name in row.model_types]
    for row in ARCHITECTURES:  # a class may, with other attention inside
        names += [(name, inside) for name in row.classes for inside in row.attention or ("",)]
    assert len(names) == len(set(names))


def test_every_row_can_be_recognised_and_names_every_projection():
    for row in ARCHITECTURES:
        assert row.model_types or row.classes, row.name
        assert set(row.projections) == set(PROJECTIONS), row.name
        fused = {p for held in (*row.fused.values(), *row.interleaved.values()) for p in held}
        assert not fused & set(row.names), row.name


def test_a_fused_tensor_is_one_reference_for_each_projection():
    shapes = {"blocks.0.attn.qkv.weight": (12, 4), "blocks.0.attn.qkv.bias": (12,)}
    index = index_attention(shapes, architecture("timm/vit"), heads=2)
    assert (index.hidden_size, index.has("output")) == (4, False)
    key = index.tensors[0, "key", "weight"]
    assert (key.shape, key.rows, str(key)) == ((4, 4), (4, 8), "blocks.0.attn.qkv.weight[4:8]")
    assert index.tensors[0, "value", "bias"].rows == (8, 12)
    with pytest.raises(MAMError, match=r"named like 'blocks\.0\.attn\.qkv\.weight'"):
        index_attention({"x": (4, 4)}, architecture("timm/vit"), heads=2)
    with pytest.raises(MAMError, match=r"like 'encoder\.layer\.0\.attention\.attention\.query\.w"):
        index_attention({"x": (4, 4)}, architecture("vit"), heads=2)


def test_a_class_is_recognised_without_being_imported():
    """By its full name, and that of any base: a stranger of the same short name is none."""
    row = next(row for row in ARCHITECTURES if row.classes)
    module, _, name = row.classes[0].rpartition(".")
    base = type(name, (torch.nn.Module,), {"__module__": module})
    encoder = type("Mine", (base,), {})()
    attention = torch.nn.ModuleDict({f"{p}_proj": torch.nn.Linear(4, 4) for p in "qkv"})
    layers = torch.nn.ModuleList([torch.nn.ModuleDict({"self_attn": attention})])
    encoder.encoder = torch.nn.ModuleDict({"layers": layers})
    encoder.cfg = type("Cfg", (), {"encoder_attention_heads": 2})()
    index = find_attention(torch.nn.ModuleList([encoder]))
    assert (index.architecture, index.heads, index.prefix) == (row, 2, "0.")
    stranger = type(name, (torch.nn.Module,), {"__module__": "elsewhere"})()
    with pytest.raises(MAMError, match=r"or is a speechbrain\.lobes\.models\.beats\.BEATs"):
        find_attention(stranger)
