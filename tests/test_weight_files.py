"""Which files are read of a folder that has several, and indices that do not fit their shards."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import save_bert, save_speech_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCTC, BertModel, DebertaConfig, DebertaModel

from speechbrain_mam import Donor, MAMError
from speechbrain_mam.cli import main
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.model_files.folder import ModelFolder
from speechbrain_mam.model_files.read import sha256_of
from speechbrain_mam.model_files.weight_files import what_is_missing

QUERY = "encoder.layer.0.attention.self.query.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def marked(folder: Path, value: float) -> dict[str, torch.Tensor]:
    """The model's tensors, each filled with one value."""
    state = load_file(folder / "original.safetensors")
    return {name: torch.full_like(tensor, value) for name, tensor in state.items()}


def write(folder: Path, kind: str, value: float) -> None:
    """One of the four forms in which weights are kept."""
    state = marked(folder, value)
    if kind == SINGLE:
        save_file(state, folder / SINGLE, metadata={"format": "pt"})
    elif kind == BIN:
        torch.save(state, folder / BIN)
    else:
        stem, _, end = kind.removesuffix(".index.json").partition(".")
        places = {}
        for i, names in enumerate((sorted(state)[::2], sorted(state)[1::2])):
            shard = f"{stem}-0000{i + 1}-of-00002.{end}"
            part = {name: state[name] for name in names}
            if end == "bin":
                torch.save(part, folder / shard)
            else:
                save_file(part, folder / shard, metadata={"format": "pt"})
            places |= dict.fromkeys(names, shard)
        content = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / kind).write_text(json.dumps(content))


@pytest.fixture()
def empty(tmp_path: Path) -> Path:
    """A BERT's folder without weights that are found."""
    folder = save_bert(tmp_path / "bert")
    (folder / SINGLE).rename(folder / "original.safetensors")
    return folder


KINDS = (SINGLE, INDEX, BIN, BIN_INDEX)


@pytest.mark.slow
@pytest.mark.parametrize("held", range(1, 16))
def test_the_order_is_transformers_own(held: int, empty: Path, caplog) -> None:
    kinds = [kind for i, kind in enumerate(KINDS) if held >> i & 1]
    for value, kind in enumerate(kinds, 1):
        write(empty, kind, value)
    theirs = BertModel.from_pretrained(empty).state_dict()[QUERY]
    with caplog.at_level(logging.WARNING, "speechbrain_mam"):
        donor, again = Donor(empty), Donor(empty)
    found = donor.tensor((0, "query", "weight"))
    assert torch.equal(found, theirs) and torch.equal(found, torch.ones_like(found))
    assert donor.folder.weight_files()[0].suffix == (
        ".bin" if kinds[0][0] == "p" else ".safetensors"
    )
    assert torch.equal(again.tensor((0, "query", "weight")), found)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("speechb")]
    both = [pair for pair in ((SINGLE, INDEX), (BIN, BIN_INDEX)) if pair[0] == kinds[0]]
    expected = [pair for pair in both if pair[1] in kinds]
    assert len(said) == len(expected)  # once, though the folder is opened twice
    for message, pair in zip(said, expected, strict=True):
        assert all(f"'{empty / name}'" in message for name in pair)
        assert "the former is read, as transformers does" in message


@pytest.mark.parametrize("kind", [SINGLE, INDEX])
def test_the_configuration_may_name_the_file(kind: str, empty: Path) -> None:
    write(empty, SINGLE, 1)
    write(empty, INDEX, 2)
    config = json.loads((empty / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps(config | {"transformers_weights": kind}))
    theirs = BertModel.from_pretrained(empty).state_dict()[QUERY]
    assert torch.equal(Donor(empty).tensor((0, "query", "weight")), theirs)
    assert theirs.flatten()[0] == KINDS.index(kind) + 1


def test_a_stale_index_does_not_come_along(tmp_path: Path, capsys) -> None:
    target, donor = save_speech_model(tmp_path / "target"), save_bert(tmp_path / "donor")
    old = tmp_path / "old"
    AutoModelForCTC.from_pretrained(target).save_pretrained(old, max_shard_size="20KB")
    for file in old.glob("model*"):
        shutil.copyfile(file, target / file.name)
    assert (target / INDEX).is_file()
    encoder = HubertCTC(target)
    assert encoder.files_sha256() == sha256_of(target / SINGLE)
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["merge", str(target), str(donor), "--lam", "0.5", "--out", str(out)]) == 0
    assert (
        f"note: '{target / SINGLE}' and '{target / INDEX}' are both there"
        in capsys.readouterr().err
    )
    assert [file.name for file in out.glob("model*")] == [SINGLE]
    name = "hubert.encoder.layers.0.attention.q_proj.weight"
    merged = load_file(out / SINGLE)[name]
    whole = encoder.model.get_parameter(name)
    theirs = Donor(donor).tensor((0, "query", "weight"))
    assert torch.equal(merged, theirs.lerp(whole.detach(), 0.5))
    assert torch.equal(HubertCTC(out).model.get_parameter(name), merged)


def test_an_index_that_is_followed_comes_along(tmp_path: Path) -> None:
    whole, donor = save_speech_model(tmp_path / "whole"), save_bert(tmp_path / "donor")
    target = tmp_path / "target"
    shutil.copytree(whole, target, ignore=shutil.ignore_patterns("model*"))
    AutoModelForCTC.from_pretrained(whole).save_pretrained(target, max_shard_size="20KB")
    merged = []
    for source in (whole, target):
        out = tmp_path / f"out of {source.name}"
        assert main(["merge", str(source), str(donor), "--lam", "0.5", "--out", str(out)]) == 0
        merged.append(AutoModelForCTC.from_pretrained(out).state_dict())
    assert (tmp_path / "out of target" / INDEX).is_file()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


# --- what does not fit


def edit_index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return edit


def repeat_a_tensor(folder: Path) -> None:
    first, second = sorted(folder.glob("model-*.safetensors"))
    state = load_file(second)
    name = min(load_file(first))
    save_file(state | {name: load_file(first)[name]}, second)


def cut_a_shard(folder: Path) -> None:
    shard = max(folder.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])


FAULTS = {
    "number": (edit_index(lambda m: m.update({QUERY: 3})), rf"for '{QUERY}', found 3"),
    "list": (edit_index(lambda m: m.update({QUERY: ["x"]})), rf"for '{QUERY}', found \['x'\]"),
    "null": (edit_index(lambda m: m.update({QUERY: None})), rf"for '{QUERY}', found None"),
    "no shard": (
        edit_index(lambda m: m.update({QUERY: "gone.safetensors"})),
        "'gone.safetensors': no",
    ),
    "empty name": (edit_index(lambda m: m.update({QUERY: ""})), "names the shard '': no such file"),
    "outside": (
        edit_index(lambda m: m.update({QUERY: "../x.safetensors"})),
        "outside of the folder",
    ),
    "absolute": (
        edit_index(lambda m: m.update({QUERY: "/x.safetensors"})),
        "outside of the folder",
    ),
    "no such tensor": (
        edit_index(lambda m: m.update({"no.such": m[QUERY]})),
        "says that 'no.such' is in 'model-0000._of".replace("_", "-"),
    ),
    "wrong shard": (
        edit_index(
            lambda m: m.update({QUERY: next(s for s in sorted(set(m.values())) if s != m[QUERY])})
        ),
        f"says that '{QUERY}' is in",
    ),
    "emptied": (edit_index(lambda m: m.clear()), "has no 'weight_map'"),
    "twice": (repeat_a_tensor, "is in two files of"),
    "cut": (cut_a_shard, r"model-00002-of-00002\.safetensors' is not a whole safetensors file"),
    "a list": (lambda f: (f / INDEX).write_text("[]"), "expected a JSON object, found list"),
    "no JSON": (lambda f: (f / INDEX).write_text("{"), "is not valid JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_index_that_does_not_fit_is_named(fault: str, empty: Path, capsys) -> None:
    write(empty, INDEX, 1)
    Donor(empty)
    spoil, message = FAULTS[fault]
    spoil(empty)
    with pytest.raises(MAMError, match=message):
        Donor(empty)
    capsys.readouterr()
    assert main(["plan", "speechbrain_mam/hubert-mini", str(empty)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("value", [3, "weights.bin", "../x.safetensors", "gone.safetensors"])
def test_a_configuration_that_names_no_file(value: object, empty: Path) -> None:
    write(empty, SINGLE, 1)
    config = json.loads((empty / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps(config | {"transformers_weights": value}))
    with pytest.raises(MAMError, match=rf"config\.json.*{value}"):
        Donor(empty)


SHAPES = {
    "no axis": torch.tensor(1.0),
    "one axis": torch.ones(256),
    "empty": torch.ones(0, 0),
    "no rows": torch.ones(0, 16),
    "flat": torch.ones(16, 8),
    "three axes": torch.ones(16, 16, 1),
    "wide": torch.ones(32, 32),
}


@pytest.mark.parametrize(
    "which", ["all", QUERY, QUERY.replace("0", "1"), QUERY.replace("weight", "bias")]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tensor_of_another_shape_is_named(shape: str, which: str, empty: Path) -> None:
    state = load_file(empty / "original.safetensors")
    names = (
        [n for n in state if ".self." in n and n.endswith("weight")] if which == "all" else [which]
    )
    save_file(state | {name: SHAPES[shape].clone() for name in names}, empty / SINGLE)
    with pytest.raises(
        MAMError, match=r"'encoder\.layer\.[01]\.attention\.self\.\w+\.\w+' (has|is) "
    ):
        Donor(empty)


def test_a_configuration_of_another_width_is_named(empty: Path) -> None:
    write(empty, SINGLE, 1)
    config = json.loads((empty / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(MAMError, match=r"'hidden_size' 32, but '.*query.weight' is 16 wide"):
        Donor(empty)


def test_a_file_that_is_written_anew_is_read_anew(empty: Path) -> None:
    for value in (1, 2):
        write(empty, BIN, value)
        assert (Donor(empty).tensor((0, "query", "weight")) == value).all()
    write(empty, SINGLE, 3)
    before = sha256_of(empty / SINGLE)
    write(empty, SINGLE, 4)
    assert sha256_of(empty / SINGLE) != before


@pytest.mark.parametrize("content", [[1], {"weight": [1.0]}, {3: torch.ones(1)}, 7])
def test_a_checkpoint_that_is_no_state_dict(content: object, empty: Path) -> None:
    torch.save(content, empty / BIN)
    with pytest.raises(MAMError, match=r"pytorch_model\.bin' is no state dict \(name → tensor\)"):
        Donor(empty)
    torch.save({"weight": torch.eye(3).to_sparse()}, empty / BIN)
    with pytest.raises(
        MAMError, match=r"'weight' is stored as torch\.sparse_coo, expected a dense"
    ):
        Donor(empty)


def test_what_is_missing(empty: Path) -> None:
    assert what_is_missing(empty) == "the weights"
    (empty / INDEX).write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert "gone.safetensors" in what_is_missing(empty)
    write(empty, SINGLE, 1)
    assert what_is_missing(empty) == "" and ModelFolder(empty).weight_files() == [empty / SINGLE]


@pytest.mark.parametrize("shape", [(), (0,), (7, 16), (0, 16)])
def test_interleaved_tensors_of_odd_shapes(shape: tuple[int, ...], tmp_path: Path) -> None:
    config = DebertaConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
    )
    DebertaModel(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / SINGLE)
    name = "encoder.layer.0.attention.self.in_proj.weight"
    save_file(state | {name: torch.ones(shape)}, tmp_path / SINGLE)
    with pytest.raises(MAMError, match=r"layer\.0\.attention\.self\.in_proj\S*' has shape \["):
        Donor(tmp_path)
