"""``export --push``: what reaches the Hub, who may see it, and that no message holds the token."""

import logging
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_stand_in import TOKEN, oid, served

from speechbrain_mam import export
from speechbrain_mam.cli import main

NAME = "somebody/hubert-mam"
FILES = {
    "hf/config.json": b"{}",
    "hf/README.md": b"---\nlicense: mit\n---\n# A model\n",
    "hf/model.safetensors": bytes(range(256)) * 8,
    "speechbrain/hyperparams.yaml": b"a: 1\n",
}
HF = {name.removeprefix("hf/"): content for name, content in FILES.items() if name[:2] == "hf"}


@pytest.fixture()
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with served() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture()
def push(tmp_path, capsys, monkeypatch, caplog):
    """``export --push`` of a run whose export is the files above: code, stdout, stderr."""

    def export_run(run, out, form, force):
        for name, content in FILES.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        return [out / "hf", out / "speechbrain"]

    monkeypatch.setattr(export, "export_run", export_run)

    def run(*options, name=NAME):
        with caplog.at_level(logging.DEBUG):
            out = str(tmp_path / "out")
            code = main(["export", str(tmp_path), "--out", out, "--push", name, *options])
        told = capsys.readouterr()
        assert TOKEN not in told.out + told.err + caplog.text
        assert code == 0 or (code == 2 and told.err.count("\n") == 1)
        return code, told.out, told.err

    return run


@pytest.mark.parametrize("lfs", [False, True])
def test_a_new_repository_is_private(hub, push, lfs):
    hub.lfs = lfs
    code, out, err = push()
    assert code == 0 and f"pushed to {hub.url}/{NAME} (private)" in out and err == ""
    assert hub.repos == {NAME: {"private": True, "files": HF}}
    assert hub.commits == 1  # all of it or nothing
    assert set(hub.objects) == ({oid(HF["model.safetensors"])} if lfs else set())


def test_public_where_it_is_asked_for(hub, push):
    assert "(public)" in push("--public")[1]
    assert hub.repos[NAME]["private"] is False


def test_what_is_there_is_replaced_with_force_alone(hub, push):
    hub.repos[NAME] = {"private": True, "files": {"old.bin": b"1", "config.json": b"2"}}
    code, _, err = push()
    assert code == 2 and f"'{NAME}' is there and holds 'config.json'; --force replaces it" in err
    assert hub.repos[NAME]["files"] == {"old.bin": b"1", "config.json": b"2"}
    assert push("--force")[0] == 0 and hub.repos[NAME] == {"private": True, "files": HF}


def test_an_empty_repository_is_taken(hub, push):
    hub.repos[NAME] = {"private": True, "files": {".gitattributes": b"", "README.md": b"new"}}
    assert push()[0] == 0
    assert hub.repos[NAME]["files"] == {".gitattributes": b"", **HF}


def test_a_public_repository_gets_nothing_unasked(hub, push):
    hub.repos[NAME] = {"private": False, "files": {}}
    assert "is public; --public uploads to it all the same" in push("--force")[2]
    assert hub.repos[NAME]["files"] == {} and hub.commits == 0
    assert push("--public")[0] == 0 and hub.repos[NAME]["files"] == HF


@pytest.mark.parametrize("part", ["/create", "/commit/main", "/preupload/main"])
def test_a_hub_that_fails(hub, push, part, tmp_path):
    """It says so in one line, even where the answer quotes the token; the folder is there."""
    hub.fails = part
    code, out, err = push()
    assert code == 2 and f"is written, but '{NAME}' on {hub.url} is not: " in err
    assert "written to" in out and "pushed" not in out
    assert (tmp_path / "out" / "hf" / "model.safetensors").exists()
    assert not hub.repos.get(NAME, {"files": {}})["files"]
    hub.fails = ""
    assert push()[0] == 0 and hub.repos[NAME]["files"] == HF


def test_a_token_that_is_refused(hub, push, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    code, out, err = push()
    assert code == 2 and "401" in err and "hf_another" not in out + err and not hub.repos


def test_no_hub_at_all(hub, push, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert f"'{NAME}' on http://127.0.0.1:9 is not: " in push()[2]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in push()[2]


@pytest.mark.parametrize("name", ["hubert", "a/b/c", "../b", "a/..", ".a/b", "a/b.git", "", "ä/b"])
def test_a_name_that_is_none(hub, push, name, tmp_path):
    code, out, err = push(name=name)
    assert code == 2 and "expected OWNER/NAME" in err and out == "" and hub.seen == []
    assert not Path(tmp_path / "out").exists()


def test_before_any_work(hub, push, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN is not set" in push()[2] and not (tmp_path / "out").exists()
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out"), "--public"]) == 2
    assert "--public goes with --push" in capsys.readouterr().err and hub.seen == []
