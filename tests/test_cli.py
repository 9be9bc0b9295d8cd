"""``speechbrain-mam`` on tiny models in Hugging Face's layout."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_bert
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, HubertForCTC

import speechbrain_mam
from speechbrain_mam import MAM, Donor, Merge, find_attention, make_plan
from speechbrain_mam.cli import main
from speechbrain_mam.merging.arithmetic import linear
from speechbrain_mam.merging.tensor_file import TensorFile
from speechbrain_mam.model_files.folder import ModelFolder

WEIGHTS = "model.safetensors"


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def attention(layers: range | list[int] = range(3), letters: str = "qkv") -> set[str]:
    """The names of the tiny target's projections."""
    return {
        f"hubert.encoder.layers.{layer}.attention.{letter}_proj.{kind}"
        for layer in layers
        for letter in letters
        for kind in ("weight", "bias")
    }


def changed(one: Path, other: Path) -> set[str]:
    """The tensors whose bits differ; both folders must have the same ones."""
    a, b = load(one), load(other)
    assert list(a) == list(b)
    return {k for k in a if a[k].numpy().tobytes() != b[k].numpy().tobytes()}


def as_bin(folder: Path, **options: bool) -> None:
    """Replace the safetensors of a folder by a pickle."""
    state = load(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin", **options)


def in_shards(folder: Path) -> None:
    """Three shards, one of them without attention; their sizes are not left to transformers."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts: dict[int, dict[str, torch.Tensor]] = {1: {}, 2: {}, 3: {}}
    for name, tensor in tensors.items():
        layer = re.search(r"encoder\.layers\.(\d)\.", name)
        parts[1 if layer is None else 2 if layer[1] == "0" else 3][name] = tensor
    index = {"metadata": {}, "weight_map": {}}
    for number, part in parts.items():
        file = f"model-{number:05d}-of-00003.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(part, file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 2


@pytest.fixture()
def models(tmp_path: Path, hubert_folder: Path, bert_folder: Path) -> Path:
    """A folder with ``target`` and ``donor``, to be changed at will."""
    shutil.copytree(hubert_folder, tmp_path / "target")
    shutil.copytree(bert_folder, tmp_path / "donor")
    return tmp_path


@pytest.fixture()
def merge(models: Path) -> Callable[..., int]:
    """``merge TARGET DONOR --out DIR`` with further arguments."""

    def run(*arguments: object) -> int:
        folders = [str(models / name) for name in ("target", "donor", "out")]
        return main(["merge", *folders[:2], "--out", folders[2], *map(str, arguments)])

    return run


def test_only_the_byte_ranges_of_the_plan_change(
    models: Path, merge: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    sources = everything(models)
    assert merge("--lam", 0.9) == 0
    told = capsys.readouterr()
    assert "λ 0.9: 9 weights and 9 biases in 3 layers; written to" in told.out and not told.err
    assert {k: v for k, v in everything(models).items() if not k.startswith("out")} == sources

    before, after = (np.fromfile(models / n / WEIGHTS, np.uint8) for n in ("target", "out"))
    data = 8 + struct.unpack("<Q", before[:8].tobytes())[0]
    header = json.loads(before[8:data].tobytes())
    planned = np.zeros(len(before), bool)
    for name in attention():
        start, end = header[name]["data_offsets"]
        planned[data + start : data + end] = True
    assert planned.sum() == 4 * 9 * (16 * 16 + 16)
    assert np.array_equal(before[~planned], after[~planned])
    assert changed(models / "target", models / "out") == attention()


@pytest.mark.parametrize("lam", [0.3, 0.9])
def test_the_same_values_as_the_live_merge(
    models: Path, merge: Callable[..., int], lam: float
) -> None:
    assert merge("--lam", lam) == 0
    model = HubertForCTC.from_pretrained(models / "target")
    donor = Donor(models / "donor")
    merged, info = HubertForCTC.from_pretrained(models / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    Merge(model, make_plan(find_attention(model), donor.index, lam=lam), donor)
    for (name, live), stored in zip(model.named_parameters(), merged.parameters(), strict=True):
        torch.testing.assert_close(stored, live, rtol=0, atol=1e-7 if name in attention() else 0)


def test_everything_small_comes_along(models: Path, merge: Callable[..., int]) -> None:
    (models / "target" / "pytorch_model.bin").write_bytes(b"the unmerged weights")
    assert merge("--lam", 0.9) == 0
    source, out = everything(models / "target"), everything(models / "out")
    assert set(out) == (set(source) | {"mam_plan.json"}) - {"pytorch_model.bin"}
    assert {"config.json", "vocab.json", "preprocessor_config.json"} <= set(out)
    assert all(out[name] == source[name] for name in set(out) - {WEIGHTS, "mam_plan.json"})


def test_lam_1_is_the_same_file(models: Path, merge: Callable[..., int]) -> None:
    for scale in ("none", "match_norm"):
        assert merge("--lam", 1, "--donor-scale", scale, "--force") == 0
        assert (models / "out" / WEIGHTS).read_bytes() == (models / "target" / WEIGHTS).read_bytes()


def test_lam_0_is_the_donor(models: Path, merge: Callable[..., int]) -> None:
    assert merge("--lam", 0) == 0
    found, donor = load(models / "out"), load(models / "donor")
    for name in attention():
        theirs = name.replace("hubert.encoder.layers", "encoder.layer")
        for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
            theirs = theirs.replace(f"{letter}_proj", f"self.{word}")
        assert torch.equal(found[name], donor[theirs])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--layers", "last:1"], attention([2])),
        (["--layers", "0,2", "--projections", "qv"], attention([0, 2], "qv")),
        (["--projections", "key,value"], attention(letters="kv")),
        (["--bias", "keep"], {name for name in attention() if name.endswith("weight")}),
    ],
)
def test_a_part_of_the_attention(
    models: Path, merge: Callable[..., int], options: list[str], expected: set[str]
) -> None:
    assert merge("--lam", 0.5, *options) == 0
    assert changed(models / "target", models / "out") == expected


def test_lam_and_donor_layer_of_each_layer(models: Path, merge: Callable[..., int]) -> None:
    assert merge("--lam", "0.25,0.75", "--layers", "0,2", "--layer-map", "2,2,0") == 0
    target, donor, out = (load(models / name) for name in ("target", "donor", "out"))
    for layer, donor_layer, lam in ((0, 2, 0.25), (2, 0, 0.75)):
        ours = f"hubert.encoder.layers.{layer}.attention.k_proj.weight"
        theirs = f"encoder.layer.{donor_layer}.attention.self.key.weight"
        expected = linear(target[ours], donor[theirs], lam)
        torch.testing.assert_close(out[ours], expected, rtol=0, atol=1e-7)


def test_match_norm_keeps_the_targets_norms(models: Path, merge: Callable[..., int]) -> None:
    assert merge("--lam", 0, "--donor-scale", "match_norm") == 0
    target, out = load(models / "target"), load(models / "out")
    for name in attention():
        if name.endswith("weight"):
            torch.testing.assert_close(out[name].norm(), target[name].norm())
            assert not torch.equal(out[name], target[name])


@pytest.mark.parametrize("rotate", ["none", "random", "hadamard"])
@pytest.mark.parametrize("options", [{}, {"start": "donor"}, {"lam": 0.8, "align": "heads"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_donor_in_another_basis(
    models: Path, merge: Callable[..., int], rotate: str, options: dict, dtype: torch.dtype
) -> None:
    """On disk as in a live model, to the bit; ``mam_plan.json`` says which basis."""
    model = HubertForCTC.from_pretrained(models / "target").to(dtype)
    model.save_pretrained(models / "target")
    options = options or {"lam": 0.9}
    words = [word for k, v in options.items() for word in (f"--{k}", v)]
    seed = ["--control-seed", 3] * (rotate != "none")
    assert merge(*words, "--rotate", rotate, *seed) == 0
    choices = {"learnable": False, "rotate": rotate, "control_seed": 3}
    mam = MAM(model, models / "donor", **options, **choices)
    mam.apply()
    live, out, before = model.state_dict(), load(models / "out"), load(models / "target")
    touched = {name for name in out if not torch.equal(out[name], before[name])}
    assert touched == {e.target for e in mam.plan.entries}
    assert all(torch.equal(out[name], live[name]) for name in out)
    kept = json.loads((models / "out/mam_plan.json").read_text())
    assert kept["donor_sha256"] == mam.donor_hash
    turned = f" [rotate: {rotate}, seed 3]" if rotate != "none" else ""
    assert kept["donor_name"] == str(models / "donor") + turned
    told = (kept.get("rotate"), kept.get("control_seed"))
    assert told == ((rotate, 3) if turned else (None, None))


@pytest.mark.parametrize("verb", ["plan", "merge"])
@pytest.mark.parametrize(
    ("rotate", "said"),
    [
        ("randm", "key 'rotate': 'randm' is not one of none, random, hadamard"),
        ("hadamard", "no Hadamard matrix of the donor's width 28"),
    ],
)
def test_a_basis_that_there_is_not(
    models: Path, verb: str, rotate: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BertConfig(
        hidden_size=28, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32
    )
    BertModel(config).save_pretrained(models / "odd")
    out = ["--out", str(models / "out"), "--lam", "0.9"] if verb == "merge" else []
    names = [str(models / "target"), str(models / "odd"), "--width", "crop"]
    assert main([verb, *names, *out, "--rotate", rotate]) == 2
    assert said in capsys.readouterr().err and not (models / "out").exists()


def test_shards(models: Path, merge: Callable[..., int]) -> None:
    whole = load(models / "target")
    in_shards(models / "target")
    assert merge("--lam", 0.9, "--layers", "first:1") == 0
    source, out = everything(models / "target"), everything(models / "out")
    touched = {
        file.name
        for file in (models / "target").glob("*.safetensors")
        if attention([0]) & set(load_file(file))
    }
    assert set(out) == set(source) | {"mam_plan.json"}
    assert {k for k in source if source[k] != out[k]} == touched
    assert 0 < len(touched) < sum(name.endswith(".safetensors") for name in source)
    assert changed(models / "target", models / "out") == attention([0])
    found = HubertForCTC.from_pretrained(models / "out").state_dict()
    name = "hubert.encoder.layers.1.attention.q_proj.weight"
    assert torch.equal(found[name], whole[name])


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_a_target_that_is_only_a_bin(models: Path, merge: Callable[..., int], zipped: bool) -> None:
    assert merge("--lam", 0.9) == 0
    expected = load(models / "out")
    as_bin(models / "target", _use_new_zipfile_serialization=zipped)
    assert merge("--lam", 0.9, "--force") == 0
    found = load(models / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list((models / "out").glob("*.bin"))
    HubertForCTC.from_pretrained(models / "out", use_safetensors=True)
    with safe_open(models / "out" / WEIGHTS, "np") as stream:
        assert stream.metadata() == {"format": "pt"}


def test_tied_tensors_of_a_bin_are_written_apart(models: Path, merge: Callable[..., int]) -> None:
    state = load(models / "target")
    state["tied"] = state["lm_head.weight"]
    state["part"] = state["lm_head.weight"][:2]
    state["turned"] = state["lm_head.weight"].t()
    (models / "target" / WEIGHTS).unlink()
    torch.save(state, models / "target" / "pytorch_model.bin")
    assert merge("--lam", 0.9) == 0
    found = load(models / "out")
    assert all(torch.equal(found[name], state[name]) for name in state if name not in attention())


def test_a_donor_that_is_only_a_bin(models: Path, merge: Callable[..., int]) -> None:
    assert merge("--lam", 0.9) == 0
    expected = (models / "out" / WEIGHTS).read_bytes()
    as_bin(models / "donor")
    assert merge("--lam", 0.9, "--force") == 0
    assert (models / "out" / WEIGHTS).read_bytes() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(models: Path, merge: Callable[..., int], dtype: torch.dtype) -> None:
    HubertForCTC.from_pretrained(models / "target").to(dtype).save_pretrained(models / "target")
    assert merge("--lam", 0.9) == 0
    donor, plan = Donor(models / "donor"), json.loads((models / "out/mam_plan.json").read_text())
    target, out = load(models / "target"), load(models / "out")
    for entry in plan["entries"]:
        key = (entry["donor_layer"], entry["projection"], entry["kind"])
        expected = linear(target[entry["target"]], donor.tensor(key), 0.9)
        assert out[entry["target"]].dtype == dtype
        torch.testing.assert_close(out[entry["target"]], expected)
    assert HubertForCTC.from_pretrained(models / "out", dtype="auto").dtype == dtype


def break_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 40) + file.read_bytes()[8:])


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def pickled_code(folder: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return (print, ("code was run",))

    torch.save(load(folder) | {"x": Code()}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def old_pickled_code(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": print}, protocol=4))


def lose_a_shard(folder: Path) -> None:
    in_shards(folder)
    sorted(folder.glob("*.safetensors"))[1].unlink()


def shard_outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    index = {"weight_map": dict.fromkeys(load_file(folder.parent / WEIGHTS), f"../{WEIGHTS}")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def only_an_index(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / f"{WEIGHTS}.index.json").write_text("{}")


def as_integers(folder: Path) -> None:
    state = {name: tensor.to(torch.int8) for name, tensor in load(folder).items()}
    save_file(state, folder / WEIGHTS)


def edit_config(**values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return edit


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def narrow_donor(target: Path) -> None:
    shutil.rmtree(target.parent / "donor")
    save_bert(target.parent / "donor", hidden_size=8)


def two_encoders(folder: Path) -> None:
    state = load(folder)
    others = {f"second.{name}": tensor.clone() for name, tensor in state.items()}
    save_file(state | others, folder / WEIGHTS)


def two_architectures(folder: Path) -> None:
    """A HuBERT's and a BERT's tensors, under a config.json of a third."""
    save_bert(folder.parent / "other")
    save_file(load(folder) | load(folder.parent / "other"), folder / WEIGHTS)
    shutil.rmtree(folder.parent / "other")
    edit_config(model_type="whisper")(folder)


DAMAGE = {
    "two encoders": (two_encoders, "holds 2 HuBERT encoders ('hubert', 'second.hubert')"),
    "two architectures": (two_architectures, "self-attention in '"),
    "another's config": (edit_config(model_type="bert"), "no BERT self-attention in '"),
    "truncated": (lambda f: truncate(f / WEIGHTS), "model.safetensors' is not a whole safetensors"),
    "bad header": (lambda f: break_header(f / WEIGHTS), "is not a whole safetensors file"),
    "empty": (write(WEIGHTS, ""), "is not a whole safetensors file"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights: expected model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "target' has no config.json"),
    "no folder": (shutil.rmtree, "target': no such folder"),
    "config cut": (write("config.json", '{"model'), "config.json' is not valid JSON"),
    "config a list": (write("config.json", "[]"), "config.json': expected a JSON object"),
    "unknown type": (edit_config(model_type="huber"), "did you mean 'hubert'?"),
    "no heads": (
        edit_config(num_attention_heads=None),
        "expected a number as 'num_attention_heads'",
    ),
    "no map": (only_an_index, "has no 'weight_map'"),
    "code": (pickled_code, "holds pickled code and is not read"),
    "old code": (old_pickled_code, "holds pickled code and is not read"),
    "bin cut": (lambda f: (as_bin(f), truncate(f / "pytorch_model.bin")), "is not a whole PyTorch"),
    "lost shard": (lose_a_shard, "names the shard 'model-00002-of"),
    "shard outside": (shard_outside, "lies outside of the folder"),
    "integers": (as_integers, "is stored as int8, expected floating point"),
    "width": (narrow_donor, "widths differ: target 'hubert.encoder.layers.0.attention.q_proj.weig"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_models_get_one_line(
    models: Path,
    merge: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    damage: str,
) -> None:
    spoil, message = DAMAGE[damage]
    spoil(models / "target")
    before = everything(models)
    capsys.readouterr()
    recwarn.clear()
    assert merge("--lam", 0.9) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and not told.out
    assert not recwarn.list  # they would be further lines
    assert everything(models) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required: --lam (see 'speechbrain-mam merge --help')"),
        (["--lam", "1.5"], "--lam: λ = 1.5 is not a number in [0, 1]"),
        (["--lam", "-0.1"], "--lam: λ = -0.1 is not a number in [0, 1]"),
        (["--lam", "nan"], "--lam: λ = nan is not a number in [0, 1]"),
        (["--lam", "high"], "--lam: 'high' is neither a number nor numbers with commas"),
        (["--lam", "0.9,"], "--lam: '0.9,' is neither"),
        (["--lam", "0.9,0.8,0.7,0.6"], "--lam: has 4 values for 3 chosen layers"),
        (["--lam", "1", "--layers", "3"], "--layers: '3' names layer 3, but the target has layers"),
        (["--lam", "1", "--layers", "x"], "--layers: cannot read 'x' in 'x'"),
        (["--lam", "1", "--projections", "qx"], "--projections: 'x' is not one of"),
        (["--lam", "1", "--projections", "query,kay"], "--projections: 'kay' is not one of"),
        (["--lam", "1", "--layer-map", "middle"], "--layer-map: 'middle' is not one of uniform"),
        (["--lam", "1", "--layer-map", "0,1"], "--layer-map: expected 3 donor layers"),
        (["--lam", "1", "--bias", "drop"], "--bias: 'drop' is not one of where_both, merge, keep"),
        (["--lam", "1", "--donor-scale", "2"], "--donor-scale: '2' is not one of none, match"),
        (["--lam", "1", "--method", "mean"], "--method: 'mean' is not one of linear"),
        (["--lam", "1", "--align", "tails"], "--align: 'tails' is not one of none, heads"),
        (["--lam", "1", "--width", "pad"], "--width: 'pad' is not one of error, crop"),
        (["--lam", "1", "--layer", "2"], "unrecognized arguments: --layer 2"),
    ],
)
def test_bad_choices_get_one_line(
    models: Path,
    merge: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    before = everything(models)
    assert merge(*options) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and not told.out
    assert everything(models) == before


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["merg"], ["plan"], ["plan", "a/b/c", "d"], ["export"], ["export", "run"]),
        *(["sweep", "a", "b"], ["sweep", "a", "b", "--manifest", "c"], ["doctor", "now"]),
    ],
)
def test_wrong_usage_gets_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("speechbrain-mam: error: ")
    assert told.err.count("\n") == 1 and not told.out


def test_nothing_is_overwritten_without_force(
    models: Path, merge: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "out").mkdir()
    assert merge("--lam", 0.9) == 0  # an empty folder holds nothing that could be lost
    (models / "out" / "notes.txt").write_text("mine")
    before = everything(models)
    capsys.readouterr()
    assert merge("--lam", 0.5) == 2
    assert "exists and is not empty; --force replaces it" in capsys.readouterr().err
    assert everything(models) == before
    assert merge("--lam", 0.5, "--force") == 0
    assert not (models / "out" / "notes.txt").exists()
    assert sorted(path.name for path in models.iterdir()) == ["donor", "out", "target"]


@pytest.mark.parametrize("out", ["target", "donor", "target/merged", "."])
def test_sources_are_never_written_to(
    models: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    before = everything(models)
    arguments = [str(models / name) for name in ("target", "donor")]
    out = str(models / out)
    assert main(["merge", *arguments, "--lam", "0.9", "--out", out, "--force"]) == 2
    assert "choose another one" in capsys.readouterr().err
    assert everything(models) == before


def test_a_place_that_cannot_be_written(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "file").touch()
    before = everything(models)
    arguments = ["merge", str(models / "target"), str(models / "donor"), "--lam", "0.9", "--out"]
    for out in ("file/out", "file/deeper/out"):
        assert main([*arguments, str(models / out)]) == 2
        told = capsys.readouterr()
        assert told.err.count("\n") == 1 and str(models / "file") in told.err
        assert everything(models) == before


def test_no_permission(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = models / "locked"
    locked.mkdir()
    make = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        """As in a folder of mode 0o500; root, who runs many a CI, may write there all the same."""
        if locked in self.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    arguments = ["merge", str(models / "target"), str(models / "donor"), "--lam", "0.9", "--out"]
    assert main([*arguments, str(locked / "out")]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "Permission denied: '" in told.err
    assert not list(locked.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(
    models: Path,
    merge: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    force: bool,
) -> None:
    if force:
        assert merge("--lam", 0.5) == 0
    before = everything(models)
    capsys.readouterr()
    full = OSError(errno.ENOSPC, "No space left on device", "x")
    for failure, code, line in (
        (full, 2, "No space left on device: 'x'"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is left behind"),
    ):
        steps = iter([None, None, None, failure])

        def write(*_: object, steps: Iterator[BaseException | None] = steps) -> None:
            if step := next(steps):
                raise step

        monkeypatch.setattr(TensorFile, "write", write)
        assert merge("--lam", 0.9, *["--force"] * force) == code
        assert capsys.readouterr().err == f"speechbrain-mam: error: {line}\n"
        assert not list(steps) and everything(models) == before


def test_plan_as_text_and_json(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(models)
    folders = [str(models / "target"), str(models / "donor")]
    options = ["--lam", "0.8", "--layers", "1-2", "--projections", "v", "--bias", "keep"]
    target, donor = (ModelFolder(Path(folder)).attention() for folder in folders)
    choices = {"layers": "1-2", "projections": "v", "bias": "keep"}
    names = dict(zip(("target_name", "donor_name"), folders, strict=True))
    plan = make_plan(target, donor, 0.8, **choices, **names)
    assert main(["plan", *folders, *options]) == 0
    assert capsys.readouterr().out == f"{plan}\n"
    assert main(["plan", *folders, *options, "--json"]) == 0
    assert capsys.readouterr().out == f"{plan.to_json()}\n"
    assert everything(models) == before


VERBS = ("plan", "merge", "probe", "sweep", "export", "report", "decode", "doctor")


@pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS)])
def test_help_has_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    own = " ".join(["speechbrain-mam", *arguments])
    assert f"examples:\n  {own}" in told
    assert arguments or all(re.search(rf"^ +{verb} ", told, flags=re.M) for verb in VERBS)


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.slow
def test_as_a_module_on_an_ascii_terminal(models: Path) -> None:
    ended = process(
        *("-m", "speechbrain_mam", "plan", str(models / "target"), str(models / "donor")),
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert ended.returncode == 0 and not ended.stderr
    assert "W = ? ? W_target" in ended.stdout
    assert speechbrain_mam.__version__ in process("-m", "speechbrain_mam", "--version").stdout


def test_a_closed_pipe_is_no_error(models: Path) -> None:
    code = (
        "import os, sys; from speechbrain_mam.cli import main; r, w = os.pipe(); os.close(r); "
        "os.dup2(w, 1); sys.exit(main(sys.argv[1:]))"
    )
    ended = process("-c", code, "plan", str(models / "target"), str(models / "donor"))
    assert ended.returncode == 0 and not ended.stderr


def test_a_merge_needs_neither_torch_nor_speechbrain(models: Path) -> None:
    code = (
        "import sys; from speechbrain_mam.cli import main; main(sys.argv[1:]); "
        "print({'torch', 'speechbrain', 'transformers'} & set(sys.modules))"
    )
    folders = [str(models / name) for name in ("target", "donor")]
    ended = process("-c", code, "merge", *folders, "--lam", "0.9", "--out", str(models / "out"))
    assert ended.stdout.endswith("set()\n"), ended.stdout + ended.stderr


def test_shards_of_the_donor(models: Path, merge: Callable[..., int]) -> None:
    assert merge("--lam", 0.9) == 0
    expected = (models / "out" / WEIGHTS).read_bytes()
    tensors = load(models / "donor")
    names = sorted(tensors)
    index = {"weight_map": {}}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, models / "donor" / file)
        index["weight_map"] |= dict.fromkeys(part, file)
    (models / "donor" / WEIGHTS).unlink()
    (models / "donor" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert merge("--lam", 0.9, "--force") == 0
    assert (models / "out" / WEIGHTS).read_bytes() == expected


def test_probe(tmp_path, corpus, hubert_folder, bert_folder, capsys) -> None:
    manifest = tmp_path / "valid.csv"
    rows = [
        f"u{i},0.6,$data_root/wavs/XX001-{i:04d}.wav,{words}"
        for i, words in enumerate(("A CAT", "THE DOG", "WE GO"))
    ]
    manifest.write_text("\n".join(["ID,duration,wav,wrd", *rows]) + "\n")
    command = ["probe", hubert_folder, bert_folder, "--manifest", manifest, "--batch-size", 2]
    command += ["--layers", "last:2"]
    assert main(list(map(str, command))) == 2
    assert "$data_root: give its folder, --data-folder" in capsys.readouterr().err
    out = tmp_path / "probe"
    command += ["--data-folder", corpus, "--out", out]
    assert main(list(map(str, command))) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Negative: moving towards the donor lowers the loss." and len(shown) == 4
    content = json.loads((out / "probe.json").read_text())
    assert [row["layer"] for row in content["layers"]] == [1, 2] and content["utterances"] == 3
    assert (out / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert main(list(map(str, command))) == 2
    assert "--force replaces it" in capsys.readouterr().err
    command[command.index(manifest)] = tmp_path / "none.csv"
    assert main([*map(str, command), "--force"]) == 2
    assert "none.csv': no such file" in capsys.readouterr().err


@pytest.fixture()
def manifest(tmp_path: Path, corpus: Path) -> Path:
    """Three utterances of the noise corpus."""
    file = tmp_path / "valid.csv"
    rows = [
        f"u{i},0.6,{corpus}/wavs/XX001-{i:04d}.wav,{words}"
        for i, words in enumerate(("A CAT", "THE DOG", "WE GO"))
    ]
    file.write_text("\n".join(["ID,duration,wav,wrd", *rows]) + "\n")
    return file


@pytest.mark.slow
def test_sweep(
    tmp_path: Path,
    manifest: Path,
    hubert_folder: Path,
    bert_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "sweep"
    command = ["sweep", str(hubert_folder), str(bert_folder), "--manifest", str(manifest)]
    command += ["--grid", "0.2,0.9,1", "--batch-size", "2", "--out", str(out)]
    command += ["--layers", "all", "last:1", "--controls", "no_donor"]
    assert main(command) == 0
    told = capsys.readouterr()
    shown = told.out.splitlines()
    assert shown[0] == "3 utterances, 6 words" and not told.err
    marked = [line for line in shown if line.endswith(" *")]
    assert len(shown) >= 2 + 1 + 4 + 4 + 1 and len(marked) == 2
    assert ["control no_donor" in line for line in marked] == [False, True]
    assert "* the best merge and each control's, of equal ones the gentlest" in shown
    content = json.loads((out / "sweep.json").read_text())
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    tried = [(p["lam"], p["subset"], p["control"]) for p in content["points"]]
    # A control that had only the donor's layers would have had less of a chance
    every = [(lam, subset) for subset in ("all", "last:1") for lam in (0.2, 0.9)]
    assert tried == [
        (1.0, "all", "none"),
        *((*point, control) for control in ("none", "no_donor") for point in every),
    ]
    # Each point is the merged folder's own score
    for point in content["points"][1:5]:
        merged = tmp_path / "merged"
        merge = ["merge", str(hubert_folder), str(bert_folder), "--lam", str(point["lam"])]
        assert main([*merge, "--layers", point["subset"], "--out", str(merged), "--force"]) == 0
        alone = ["sweep", str(merged), str(bert_folder), "--manifest", str(manifest)]
        capsys.readouterr()
        assert main([*alone, "--grid", "0.5", "--json"]) == 0
        untouched = json.loads(capsys.readouterr().out)["points"][0]
        assert untouched["lam"] == 1 and untouched["errors"] == point["errors"]
    assert main(command) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize("verb", ["probe", "sweep"])
def test_precision(
    verb: str,
    tmp_path: Path,
    manifest: Path,
    hubert_folder: Path,
    bert_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The forward pass is in the precision that is asked for, on the device that is asked for."""
    found = {}
    for precision in ("fp32", "bf16"):
        seen = []
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, args, output, seen=seen: (
                seen.append(output.dtype) if isinstance(module, torch.nn.Linear) else None
            )
        )
        command = [verb, str(hubert_folder), str(bert_folder), "--manifest", str(manifest)]
        command += ["--grid", "0.5"] if verb == "sweep" else []
        assert main([*command, "--device", "cpu", "--precision", precision]) == 0
        hook.remove()
        found[precision] = set(seen)
    assert found["fp32"] == {torch.float32} and torch.bfloat16 in found["bf16"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "2"], "--grid: λ = 2.0 is not a number in [0, 1]"),
        (["--grid", "1"], "--grid is empty"),
        (["--grid", "0.9,x"], "--grid: '0.9,x' is neither"),
        (["--grid", "0.9", "--layers", "3"], "layer 3, but the target has layers 0 to 2"),
        (["--grid", "0.9", "--controls", "rand"], "--controls: 'rand' is not one of none, random"),
        (["--grid", "0.9", "--batch-size", "0"], "--batch-size 0: expected a number above 0"),
        (["--grid", "0.9", "--manifest", "none.csv"], "--manifest 'none.csv': no such file"),
        (["--grid", "0.9", "--device", "cuda:77"], "--device: 'cuda:77' is not on this machine"),
        (["--grid", "0.9", "--precision", "int8"], "--precision: 'int8' is not one of fp32"),
        (
            ["--grid", "0.9", "--device", "cpu", "--precision", "fp16"],
            "--precision: fp16 on a CPU is not supported",
        ),
    ],
)
def test_a_bad_sweep_gets_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    manifest: Path,
    hubert_folder: Path,
    bert_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "sweep"
    command = ["sweep", str(hubert_folder), str(bert_folder), "--out", str(out)]
    assert main([*command, "--manifest", str(manifest), *options]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and not told.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,duration,wav,wrd\n", "has no utterance"),
        ("ID,duration,wav\nu0,0.6,x.wav\n", "has no column wrd; expected ID, duration, wav, wrd"),
    ],
)
def test_a_manifest_that_is_none(
    text: str,
    message: str,
    manifest: Path,
    hubert_folder: Path,
    bert_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest.write_text(text)
    command = ["sweep", str(hubert_folder), str(bert_folder), "--manifest", str(manifest)]
    assert main([*command, "--grid", "0.9"]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1, told.err


def test_a_gradient_of_lambda(models: Path, merge: Callable[..., int]) -> None:
    assert merge("--lam", "0,1") == 0
    plan = json.loads((models / "out" / "mam_plan.json").read_text())
    assert {(e["layer"], e["lam"]) for e in plan["entries"]} == {(0, 0.0), (1, 0.5), (2, 1.0)}


DONOR_DAMAGE = {
    "two encoders": (two_encoders, "holds 2 BERT encoders"),
    "another's config": (edit_config(model_type="hubert"), "no HuBERT self-attention in '"),
    "cut short": (lambda f: truncate(f / WEIGHTS), "is not a whole safetensors file"),
    "no config": (lambda f: (f / "config.json").unlink(), "donor' has no config.json"),
    "code": (pickled_code, "Convert it where you trust it: load the model with transformers and"),
    "old code": (old_pickled_code, "which writes safetensors"),
}


def test_of_two_architectures_the_one_of_the_config_is_merged(
    models: Path, merge: Callable[..., int]
) -> None:
    others = {f"text.{name}": tensor for name, tensor in load(models / "donor").items()}
    save_file(load(models / "target") | others, models / "target" / WEIGHTS)
    assert merge("--lam", 0.9) == 0
    assert changed(models / "target", models / "out") == attention()


@pytest.mark.parametrize("damage", DONOR_DAMAGE)
def test_a_bad_donor_gets_one_line(
    models: Path, merge: Callable[..., int], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    spoil, message = DONOR_DAMAGE[damage]
    spoil(models / "donor")
    before = everything(models)
    assert merge("--lam", 0.9) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and not told.out
    assert everything(models) == before


def test_a_lost_shard_of_the_donor(
    models: Path, merge: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load(models / "donor")
    save_file(tensors, models / "donor" / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    index["weight_map"][max(tensors)] = "model-00002-of-00002.safetensors"
    (models / "donor" / WEIGHTS).unlink()
    (models / "donor" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert merge("--lam", 0.9) == 2
    told = capsys.readouterr()
    assert "names the shard 'model-00002-of-00002.safetensors': no such file" in told.err
    assert told.err.count("\n") == 1 and not (models / "out").exists()


def test_a_full_disk_leaves_nothing(
    models: Path, merge: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """As large as the disk's last bytes: the system itself refuses the write."""
    before = everything(models)
    size = (models / "target" / WEIGHTS).stat().st_size // 2
    code = (
        "import resource, signal, sys; from speechbrain_mam.cli import main; "
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); sys.exit(main(sys.argv[1:]))"
    )
    folders = [str(models / name) for name in ("target", "donor")]
    ended = process("-c", code, "merge", *folders, "--lam", "0.9", "--out", str(models / "out"))
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert "File too large" in ended.stderr and everything(models) == before
