"""What is no weight, or no number, is refused: any file format × type × way of merging."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import build_speech_model, save_bert, save_speech_model
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from test_ctranslate2_file import save_whisper, whisper
from test_vit_donors import save_onnx
from tiny_beats import save_beats
from torch import nn
from transformers import DebertaConfig, DebertaModel

from speechbrain_mam import Donor, LearnableMAM, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.architectures.tensor_checks import all_finite, check_plain
from speechbrain_mam.cli import main
from speechbrain_mam.donors.controls import CONTROLS, ControlDonor
from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.search.probe import probe

Change = Callable[[torch.Tensor], torch.Tensor]
QUERY = (1, "query", "weight")

TYPES = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "bool": torch.bool,
    "complex64": torch.complex64,
}
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def with_bad(value: float) -> Change:
    """One value of a tensor replaced."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


def bert_state(folder: Path, change: Change, name: str) -> dict[str, torch.Tensor]:
    save_bert(folder)
    state = load_file(folder / "model.safetensors")
    (found,) = [key for key in state if key.endswith(name)]
    state[found] = change(state[found])
    return state


BERT_QUERY = "layer.1.attention.self.query.weight"


def whole(folder: Path, change: Change) -> Path:
    save_file(bert_state(folder, change, BERT_QUERY), folder / "model.safetensors")
    return folder


def one_file(folder: Path, change: Change) -> Path:
    return whole(folder, change) / "model.safetensors"


def sharded(folder: Path, change: Change) -> Path:
    state = bert_state(folder, change, BERT_QUERY)
    (folder / "model.safetensors").unlink()
    names, places = sorted(state), {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / shard)
        places |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pickled(folder: Path, change: Change) -> Path:
    torch.save(bert_state(folder, change, BERT_QUERY), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def interleaved(folder: Path, change: Change) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = DebertaConfig(vocab_size=32, intermediate_size=32, **sizes)
    DebertaModel(config).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.attention.self.in_proj.weight"
    state[name] = change(state[name])
    save_file(state, folder / "model.safetensors")
    return folder


def beats(folder: Path, change: Change) -> Path:
    folder.mkdir()
    file = save_beats(folder / "tiny.pt")
    content = torch.load(file)
    name = "encoder.layers.1.self_attn.q_proj.weight"
    content["model"][name] = change(content["model"][name])
    torch.save(content, file)
    return file


def exported(folder: Path, change: Change) -> Path:
    folder.mkdir()
    save_onnx(folder / "vit.onnx")
    model = onnx.load(folder / "vit.onnx")
    (stored,) = [one for one in model.graph.initializer if one.name == "onnx::MatMul_10"]
    tensor = change(torch.from_numpy(numpy_helper.to_array(stored).copy()))
    kinds = {"float8_e4m3fn": "FLOAT8E4M3FN", "float8_e5m2": "FLOAT8E5M2", "bfloat16": "BFLOAT16"}
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind in kinds:  # which NumPy does not have
        stored.data_type = onnx.TensorProto.DataType.Value(kinds[kind])
        stored.raw_data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    else:
        stored.CopyFrom(numpy_helper.from_array(tensor.numpy(), stored.name))
    onnx.save(model, folder / "vit.onnx")
    return folder / "vit.onnx"


FORMATS = {
    "safetensors": whole,
    "one file": one_file,
    "sharded": sharded,
    "bin": pickled,
    "interleaved": interleaved,
    "BEATs": beats,
    "ONNX": exported,
}
# What files call a type, where it is not what PyTorch does
SPELLED = {("ONNX", "float8_e4m3fn"): "float8e4m3fn", ("ONNX", "float8_e5m2"): "float8e5m2"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_a_donor_of_another_type_is_refused(form: str, kind: str, tmp_path: Path) -> None:
    path = FORMATS[form](tmp_path / "donor", lambda tensor: tensor.to(TYPES[kind]))
    spelled = SPELLED.get((form, kind), kind)
    with pytest.raises(
        MAMError, match=rf"{path.name}.*is stored as {spelled}, expected floating po"
    ):
        Donor(path)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", FORMATS)
def test_a_donor_that_is_not_finite_is_refused(form: str, bad: str, tmp_path: Path) -> None:
    donor = Donor(FORMATS[form](tmp_path / "donor", with_bad(BAD[bad])))
    with pytest.raises(MAMError, match=rf"{donor.folder.path.name}.*1 of \d+ values of '.*' are N"):
        [donor.tensor((1, projection, "weight")) for projection in ("query", "key", "value")]
    with pytest.raises(MAMError, match="are NaN or infinite"):
        donor.fingerprint(donor.index.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMATS)
def test_every_floating_point_type_is_read(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    exact = Donor(FORMATS[form](tmp_path / "exact", lambda tensor: tensor)).tensor(QUERY)
    found = Donor(FORMATS[form](tmp_path / "donor", lambda tensor: tensor.to(dtype))).tensor(QUERY)
    assert torch.equal(found.float(), exact.to(dtype).float())
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("bad", BAD)
def test_a_ctranslate2_file_that_is_not_finite(bad: str, tmp_path: Path) -> None:
    model = whisper()
    with torch.no_grad():
        model.model.encoder.layers[1].self_attn.q_proj.weight[0, 0] = BAD[bad]
    save_whisper(tmp_path, model, "float16")
    with pytest.raises(MAMError, match=r"model\.bin': 1 of 192 values of 'encoder.*' are NaN"):
        Donor(tmp_path).tensor(QUERY)


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("weight_scale", np.zeros(24, "<f4"), "has values that are not above 0"),
        ("weight_scale", np.full(24, np.nan, "<f4"), "are NaN or infinite"),
        ("weight_scale", np.ones(7, "<f4"), "int8 with a scale of another scheme"),
        ("weight_scale", np.ones((24, 2), "<f4"), "int8 with a scale of another scheme"),
        ("weight_zero", np.ones(24, "<f4"), "int8 with a scale of another scheme"),
        ("weight", np.ones((24, 8), "<i4"), "int32 without a scale"),
    ],
)
def test_integers_are_only_brought_back_by_a_scale_that_is_known(
    name: str, scale: np.ndarray, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechbrain_mam.model_files import ctranslate2_file

    save_whisper(tmp_path, whisper(), "int8")
    spec, variables = ctranslate2_file.read_model(tmp_path / "model.bin")
    variables[f"encoder/layer_1/self_attention/linear_0/{name}"] = scale
    monkeypatch.setattr(ctranslate2_file, "read_model", lambda path: (spec, variables))
    with pytest.raises(MAMError, match=message):
        Donor(tmp_path).tensor(QUERY)


# --- by every way of merging


class Changed:
    """A donor of a user's own, with one tensor changed."""

    def __init__(self, donor: Donor, change: Change, key: tuple[int, str, str] = QUERY):
        self.donor, self.change, self.key = donor, change, key
        self.name, self.index = donor.name, donor.index

    def tensor(self, key: tuple[int, str, str]) -> torch.Tensor:
        tensor = self.donor.tensor(key)
        return self.change(tensor) if key == self.key else tensor


def run_probe(model: nn.Module, plan, donor) -> None:
    losses = ((model(torch.randn(1, 4000)).logits.square().mean(), 1) for _ in range(1))
    probe(model, plan, donor, losses)


WAYS: dict[str, tuple[Callable, dict]] = {
    "merge": (Merge, {}),
    "learnable": (LearnableMAM, {}),
    "probe": (run_probe, {}),
    **{
        f"{name} {key} {option}": (way, {key: option})
        for name, way in (("merge", Merge), ("learnable", LearnableMAM))
        for key, option in (
            *(("method", m) for m in ("slerp", "multi_path", "norm_matched")),
            *(("align", a) for a in ("heads", "rotation")),
        )
    },
}
BROKEN: dict[str, tuple[Change, str]] = {
    "int8": (lambda tensor: tensor.to(torch.int8), "is stored as int8, expected floating point"),
    "nan": (with_bad(BAD["nan"]), "are NaN or infinite"),
    "inf": (with_bad(BAD["inf"]), "are NaN or infinite"),
}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in after.items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


FOR_ONE = ("learnable method slerp", "learnable method multi_path")


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize(
    ("way", "several"),
    [
        (way, several)
        for way in WAYS
        for several in (False, True)
        if not several or way not in FOR_ONE
    ],
)
def test_no_way_of_merging_takes_a_broken_donor(
    way: str, several: bool, fault: str, bert_folder: Path
) -> None:
    apply, options = WAYS[way]
    model, donor = build_speech_model(), Donor(bert_folder)
    change, message = BROKEN[fault]
    source = Changed(donor, change)
    if several:
        source = DonorMix([donor, source], find_attention(model))
    plan = make_plan(find_attention(model), donor.index, lam=0.9, **options)
    before = snapshot(model)
    with pytest.raises(MAMError, match=message):
        apply(model, plan, source)
    check_unchanged(model, before)


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("control", [name for name in CONTROLS if name != "none"])
def test_no_control_of_a_broken_donor(control: str, fault: str, tmp_path: Path) -> None:
    change, message = BROKEN[fault]
    model = build_speech_model()
    with pytest.raises(MAMError, match=message):
        donor = Donor(whole(tmp_path / "donor", change))
        plan = make_plan(find_attention(model), donor.index, lam=0.9)
        Merge(model, plan, ControlDonor(donor, control, donor.index.num_layers))


class Quantised(torch.Tensor):
    """As torchao's: says that it is float32, and holds integers."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError


def codes(tensor: torch.Tensor) -> torch.Tensor:
    return Quantised(tensor.to(torch.int8))


def change_target(change: Change, part: str = "q_proj") -> nn.Module:
    model = build_speech_model()
    module = model.get_submodule(f"hubert.encoder.layers.1.attention.{part}")
    module.weight = nn.Parameter(change(module.weight.detach()), requires_grad=False)
    return model


@pytest.mark.parametrize("kind", [*TYPES, "Quantised"])
def test_a_target_of_another_type_is_refused(kind: str, bert_folder: Path) -> None:
    donor = Donor(bert_folder)
    plan = make_plan(find_attention(build_speech_model()), donor.index, lam=0.9)
    change = codes if kind == "Quantised" else lambda tensor: tensor.to(TYPES[kind])
    for do in (find_attention, *(lambda m, w=w: w(m, plan, donor) for w in (Merge, LearnableMAM))):
        model = change_target(change)
        with pytest.raises(
            MAMError, match=rf"layers\.1\..*q_proj.weight' is stored as {kind}, exp"
        ):
            do(model)


@pytest.mark.parametrize("kind", ["int8", "Quantised"])
def test_an_output_projection_of_another_type(kind: str, bert_folder: Path) -> None:
    """It is in the way only where it is merged."""
    donor = Donor(bert_folder)
    change = codes if kind == "Quantised" else lambda tensor: tensor.to(torch.int8)
    model = change_target(change, "out_proj")
    Merge(model, make_plan(find_attention(model), donor.index, lam=0.9), donor).undo()
    plan = make_plan(find_attention(model), donor.index, lam=0.9, projections="qkvo")
    with pytest.raises(MAMError, match=rf"out_proj.weight' is stored as {kind}"):
        Merge(model, plan, donor)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("way", WAYS)
def test_a_target_that_is_not_finite_is_refused(way: str, bad: str, bert_folder: Path) -> None:
    apply, options = WAYS[way]
    model, donor = change_target(with_bad(BAD[bad])), Donor(bert_folder)
    plan = make_plan(find_attention(model), donor.index, lam=0.9, **options)
    before = snapshot(model)
    with pytest.raises(
        MAMError, match=r"1 of 256 values of '.*1\.attention\.q_proj\.weight' are N"
    ):
        apply(model, plan, donor)
    check_unchanged(model, before)


@pytest.mark.parametrize("way", ["merge", "fold"])
def test_a_merge_that_leaves_the_range_of_half_precision(way: str, bert_folder: Path) -> None:
    model, donor = build_speech_model().half(), Donor(bert_folder)
    plan = make_plan(find_attention(model), donor.index, lam=0.5)
    large = Changed(donor, lambda tensor: tensor * 1e6)
    mam = LearnableMAM(model, plan, large) if way == "fold" else None
    before = snapshot(model)
    with pytest.raises(MAMError, match=r"1\.attention.q_proj.weight' would hold .* in float16"):
        Merge(model, plan, large) if mam is None else mam.fold()
    check_unchanged(model, before)
    if mam is not None:
        assert all(value == 0.5 for value in mam.values().values())


# --- on disk


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--method", "slerp"], ["--align", "heads"]])
@pytest.mark.parametrize("broken", ["target", "donor"])
@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_on_disk_too(
    form: str, fault: str, broken: str, options: list[str], tmp_path: Path, capsys
) -> None:
    change, message = BROKEN[fault]
    folders = {"target": save_speech_model(tmp_path / "target"), "donor": tmp_path / "donor"}
    save_bert(folders["donor"])
    file = folders[broken] / "model.safetensors"
    state = load_file(file)
    (name,) = [
        n for n in state if "1.attention." in n and n.endswith(("q_proj.weight", "query.weight"))
    ]
    state[name] = change(state[name])
    if form == "bin":
        file.unlink()
        file = file.with_name("pytorch_model.bin")
        torch.save(state, file)
    else:
        save_file(state, file)
    out = tmp_path / "out"
    capsys.readouterr()
    command = ["merge", str(folders["target"]), str(folders["donor"]), "--lam", "0.9", *options]
    assert main([*command, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert f"'{file}'" in said and f"'{name}'" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["donor", "target"]


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn", "bool"])
@pytest.mark.parametrize(
    "name", ["lm_head.weight", "hubert.encoder.layers.0.attention.k_proj.bias"]
)
def test_a_speech_model_of_another_type_is_not_loaded(kind: str, name: str, tmp_path: Path) -> None:
    file = save_speech_model(tmp_path / "target") / "model.safetensors"
    state = load_file(file)
    save_file(state | {name: state[name].to(TYPES[kind])}, file)
    with pytest.raises(MAMError, match=rf"'{name}' is stored as {kind}, expected floating point"):
        HubertCTC(tmp_path / "target")


def test_a_beats_of_another_type_is_not_loaded(tmp_path: Path) -> None:
    file = beats(tmp_path / "beats", lambda tensor: tensor.to(torch.int8))
    with pytest.raises(
        MAMError, match=r"1\.self_attn\.q_proj\.weight' is stored as int8, expected"
    ):
        BEATsEncoder(file)


# --- the checks themselves


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = torch.full((3, 5), largest, dtype=dtype)
    assert all_finite(values) and all_finite(-values) and all_finite(values[:0])
    for bad in BAD.values():
        assert not all_finite(with_bad(bad)(values))
        if dtype != torch.bfloat16:
            assert not all_finite(with_bad(bad)(values).numpy())


def test_a_model_without_values_is_planned_and_not_merged(bert_folder: Path) -> None:
    donor = Donor(bert_folder)
    model = build_speech_model().to("meta")
    plan = make_plan(find_attention(model), donor.index, lam=0.9)
    with pytest.raises(
        MAMError, match=r"q_proj.weight' has no values \(device 'meta'\): load the w"
    ):
        Merge(model, plan, donor)


def test_subclasses_without_another_storage_pass() -> None:
    class Named(torch.Tensor):
        pass

    for tensor in (nn.Parameter(torch.ones(2)), torch.ones(2).as_subclass(Named)):
        check_plain(tensor, "weight", "the model")


@pytest.mark.parametrize("apply", [Merge, LearnableMAM])
def test_a_bias_that_its_weights_scale_makes_infinite(apply: Callable, bert_folder: Path) -> None:
    class Tiny(Changed):
        def tensor(self, key: tuple[int, str, str]) -> torch.Tensor:
            return self.donor.tensor(key) * (1e-35 if key[2] == "weight" else 1e10)

    model, donor = build_speech_model(), Donor(bert_folder)
    plan = make_plan(find_attention(model), donor.index, lam=0.9, donor_scale="match_norm")
    with pytest.raises(
        MAMError, match=r"'encoder.layer.0.attention.self.query.bias' would hold val"
    ):
        apply(model, plan, Tiny(donor, with_bad(0.0)))
