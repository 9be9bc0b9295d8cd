"""The Hugging Face cache: what lies there counts only if it is a whole model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import save_bert
from huggingface_hub import constants
from test_ctranslate2_file import save_whisper, whisper
from transformers import BertModel

from speechbrain_mam import Donor, MAMError
from speechbrain_mam.model_files import find as sources
from speechbrain_mam.model_files.find import find_offline, resolve_model
from speechbrain_mam.model_files.folder import ModelFolder

NAME = "someone/some-bert"


class Cache:
    """A cache in the Hub's layout: blobs, snapshots of links to them, refs."""

    def __init__(self, root: Path):
        self.model = root / "models--someone--some-bert"

    def snapshot(self, commit: str, source: Path, files: str = "*", main: bool = True) -> Path:
        folder = self.model / "snapshots" / commit
        folder.mkdir(parents=True)
        (self.model / "blobs").mkdir(exist_ok=True)
        for file in source.glob(files):
            blob = self.model / "blobs" / f"{commit}-{file.name}"
            shutil.copyfile(file, blob)
            (folder / file.name).symlink_to(blob)
        if main:
            self.ref(commit)
        return folder

    def ref(self, commit: str) -> None:
        (self.model / "refs").mkdir(parents=True, exist_ok=True)
        (self.model / "refs" / "main").write_text(commit)


@pytest.fixture()
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return Cache(root)


@pytest.fixture()
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_whole_snapshot_is_the_model(cache: Cache, bert_folder: Path) -> None:
    folder = cache.snapshot("a" * 40, bert_folder)
    assert resolve_model(NAME) == folder == find_offline(NAME)
    assert Donor(NAME).fingerprint([(0, "key", "bias")]) == Donor(bert_folder).fingerprint(
        [(0, "key", "bias")]
    )


def test_what_nobody_asked_for_may_be_missing(cache: Cache, bert_folder: Path) -> None:
    """The Hub's client keeps a list of all of a repository's files beside the snapshot."""
    commit = "a" * 40
    folder = cache.snapshot(commit, bert_folder)
    entry = {"size": 3, "blob_id": "0"}
    names = [*(file.name for file in folder.iterdir()), "picture.png", "tf_model.h5"]
    (cache.model / "trees").mkdir()
    (cache.model / "trees" / f"{commit}.json").write_text(
        json.dumps({"format_version": 1, "files": dict.fromkeys(names, entry)})
    )
    assert resolve_model(NAME) == folder


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_the_link(folder: Path) -> None:
    (folder / "model.safetensors").resolve().unlink()


def cut_the_download(folder: Path) -> None:
    blob = (folder / "model.safetensors").resolve()
    blob.rename(f"{blob}.incomplete")


def drop_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("{")


PARTIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (drop_weights, "lacks the weights"),
    "no config.json": (drop_config, r"lacks config\.json"),
    "broken link": (break_the_link, "lacks the weights"),
    "cut download": (cut_the_download, "lacks the weights"),
    "no shard": (drop_a_shard, r"names the shard 'model-00001-of-00001.safetensors': no such file"),
    "broken config.json": (spoil_the_config, r"config\.json' is not valid JSON"),
}


@pytest.mark.parametrize("fault", PARTIAL)
def test_a_partial_snapshot_is_no_model(fault: str, cache: Cache, bert_folder: Path) -> None:
    folder = cache.snapshot("a" * 40, bert_folder)
    spoil, missing = PARTIAL[fault]
    spoil(folder)
    assert find_offline(NAME) is None
    for ask in (resolve_model, Donor):
        with pytest.raises(
            MAMError, match=rf"cache \('{folder}' .*{missing}.*nor on the Hub \(Off"
        ):
            ask(NAME)


@pytest.mark.parametrize("fault", PARTIAL)
def test_it_does_not_hide_the_hub(
    fault: str, cache: Cache, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PARTIAL[fault][0](cache.snapshot("a" * 40, bert_folder))
    asked, local = [], sources.snapshot_download

    def download(name: str, local_files_only: bool = False, **options: object) -> str:
        if local_files_only:
            return local(name, local_files_only=True, **options)
        asked.append(options["allow_patterns"])
        return str(bert_folder)

    siblings = [SimpleNamespace(rfilename=file.name) for file in bert_folder.iterdir()]
    monkeypatch.setattr(sources, "model_info", lambda name: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(sources, "snapshot_download", download)
    assert resolve_model(NAME) == bert_folder
    assert asked == [[*sources.TEXT_FILES, "*.safetensors"]]
    # and what the Hub gives is looked at too
    monkeypatch.setattr(sources, "snapshot_download", lambda name, **_: str(tmp_path))
    with pytest.raises(
        MAMError, match=rf"'{NAME}' on the Hub is not complete: it lacks config.json"
    ):
        resolve_model(NAME)


def test_it_does_not_hide_the_wheel(
    cache: Cache, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minilm = "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setattr(
        cache, "model", cache.model.with_name("models--sentence-transformers--all-MiniLM-L6-v2")
    )
    cache.snapshot("a" * 40, tokenizer)
    assert (resolve_model(minilm) / "model.safetensors").is_file()
    assert find_offline(minilm) == resolve_model(minilm)


@pytest.mark.parametrize("main", ["the tokenizer's", "missing", "none"])
def test_another_revision_is_named_and_not_taken(
    main: str, cache: Cache, bert_folder: Path, tokenizer: Path
) -> None:
    """transformers takes the main revision or none, and so does this."""
    whole = cache.snapshot("b" * 40, bert_folder, main=False)
    if main == "the tokenizer's":
        cache.snapshot("a" * 40, tokenizer)
    elif main == "missing":
        cache.ref("c" * 40)
    with pytest.raises(MAMError, match=rf"the revision in '{whole}' is whole: give that folder"):
        resolve_model(NAME)
    assert find_offline(NAME) is None
    assert resolve_model(whole) == whole


@pytest.mark.parametrize("form", ["shards", "bin"])
def test_other_forms_of_weights_are_whole_too(
    form: str, cache: Cache, bert_folder: Path, tmp_path: Path
) -> None:
    model = BertModel.from_pretrained(bert_folder)
    source = tmp_path / "source"
    model.save_pretrained(source, max_shard_size="5KB" if form == "shards" else "1GB")
    if form == "bin":
        (source / "model.safetensors").unlink()
        torch.save(model.state_dict(), source / "pytorch_model.bin")
    assert cache.snapshot("a" * 40, source) == resolve_model(NAME) == find_offline(NAME)


def test_a_file_that_only_a_donor_can_be(cache: Cache, tmp_path: Path) -> None:
    save_whisper(tmp_path / "whisper", whisper())
    folder = cache.snapshot("a" * 40, tmp_path / "whisper")
    assert Donor(NAME).folder.path == folder / "model.bin"
    with pytest.raises(MAMError, match=r"lacks the weights"):
        resolve_model(NAME)


def test_the_embedded_models_are_whole(tmp_path: Path) -> None:
    assert ModelFolder(resolve_model("speechbrain_mam/hubert-mini")).weights.note == ""
    assert save_bert(tmp_path / "bert") == resolve_model(tmp_path / "bert")
