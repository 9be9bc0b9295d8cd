"""Folders come whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from speechbrain_mam import atomic
from speechbrain_mam.atomic import (
    HOLDER,
    LOCK,
    check_output,
    hold_folder,
    new_folder,
    only_here,
)
from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.carry import carry_along


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with new_folder(out) as staging:
        (staging / "file").write_text("x")
        assert not out.exists() and staging.parent == out.parent
    assert everything(tmp_path) == {"a": None, "a/b": None, "a/b/file": b"x"}


@pytest.mark.parametrize("error", [OSError("disk full"), MAMError("bad"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "a" / "b" / "c") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "file").write_text("x")
        raise error
    assert everything(tmp_path) == {}


def test_a_failure_keeps_the_folder_that_would_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    before = everything(tmp_path)
    with pytest.raises(OSError), new_folder(tmp_path / "out", force=True) as staging:
        (staging / "new").write_text("new")
        raise OSError
    assert everything(tmp_path) == before


def test_the_old_folder_comes_back_if_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    before = everything(tmp_path)
    rename = Path.rename

    def fails(self: Path, to: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no"), new_folder(tmp_path / "out", force=True) as staging:
        (staging / "new").write_text("new")
    assert everything(tmp_path) == before


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with new_folder(tmp_path / "out", force=True) as staging:
        (staging / "new").write_text("new")
        assert (tmp_path / "out" / "old").exists()
    assert everything(tmp_path) == {"out": None, "out/new": b"new"}


def test_a_folder_that_someone_else_filled_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
    assert everything(tmp_path) == {"out": None, "out/theirs": b"x"}


def test_new_folders_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("models/target", "is the target's folder"),
        ("models/../models/donor", "is the donor's folder"),
        ("link", "is the target's folder"),
        ("models", "holds the target's folder"),
        ("models/target/merged", "lies inside the target's folder"),
        ("file", "is a file"),
    ],
)
def test_outputs_that_are_always_refused(
    tmp_path: Path, out: str, message: str, force: bool
) -> None:
    for role in ("target", "donor"):
        (tmp_path / "models" / role).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models" / "target")
    (tmp_path / "file").touch()
    sources = {role: tmp_path / "models" / role for role in ("target", "donor")}
    with pytest.raises(MAMError, match=message):
        check_output(tmp_path / out, force, **sources)


def test_force_spares_the_home_folder_and_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home" / "me", tmp_path / "disk" / "work"
    for folder in (home, work):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    for out in (home, home.parent, Path(), work.parent):
        with pytest.raises(MAMError, match="is not replaced"):
            check_output(out, force=True)


def test_an_existing_folder_needs_force_unless_it_is_empty(tmp_path: Path) -> None:
    assert check_output(tmp_path / "new", force=False) == tmp_path / "new"
    (tmp_path / "out").mkdir()
    assert check_output(tmp_path / "out", force=False) == tmp_path / "out"
    (tmp_path / "out" / "file").touch()
    with pytest.raises(MAMError, match="--force replaces it"):
        check_output(tmp_path / "out", force=False)
    assert check_output(tmp_path / "out", force=True) == tmp_path / "out"


def test_weights_and_hidden_files_are_not_carried_along(tmp_path: Path) -> None:
    carried = ["config.json", "vocab.json", "README.md", "language_model/5gram.bin", "spm.model"]
    left = [
        *("model.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors"),
        *("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
        *("pytorch_model-00001-of-00002.bin", "tf_model.h5", "flax_model.msgpack"),
        *("onnx/model.onnx", "optimizer.pt", "training_args.bin", ".git/HEAD", "odd.bin"),
    ]
    for name in carried + left:
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(name)
    (tmp_path / "out").mkdir()
    carry_along(tmp_path / "model", tmp_path / "out", weights={tmp_path / "model" / "odd.bin"})
    found = {name for name, content in everything(tmp_path / "out").items() if content is not None}
    assert found == set(carried)
    assert all((tmp_path / "out" / name).read_text() == name for name in carried)


@pytest.mark.parametrize("link", ["vocab.json", "assets/notes.txt"])
def test_a_link_that_leads_out_of_a_model_is_not_followed(tmp_path, link):
    """A folder from elsewhere must not bring a file of this machine into what is passed on."""
    secret, model, out = tmp_path / "secret", tmp_path / "model", tmp_path / "out"
    secret.write_text("mine")
    (model / link).parent.mkdir(parents=True)
    out.mkdir()
    (model / "config.json").write_text("{}")
    (model / link).symlink_to(secret)
    with pytest.raises(MAMError, match=f"'{model / link}' is a link that leads out of the model"):
        carry_along(model, out)
    assert not (out / link).exists()


def test_links_inside_of_a_model_and_of_the_hubs_cache_are_followed(tmp_path):
    blobs, model = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "1a"
    for folder in (blobs, model, tmp_path / "out"):
        folder.mkdir(parents=True)
    (blobs / "0f").write_text("{}")
    (model / "vocab.json").symlink_to(blobs / "0f")
    (model / "again.json").symlink_to("vocab.json")
    carry_along(model, tmp_path / "out")
    assert (tmp_path / "out" / "vocab.json").read_text() == "{}"
    assert not (tmp_path / "out" / "again.json").is_symlink()


def in_another_process(function) -> str:
    """What comes of it in a fork, that knows nothing of its parent's locks."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.close(read)
        try:
            # With its last reference a lock would be given up, for the parent too.
            kept = dict(atomic._mine)
            atomic._mine.clear()
            said = str(function())
            del kept
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as stream:
        return stream.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the other process is a fork")
class TestOneAtATime:
    def test_a_folder_that_another_process_writes(self, tmp_path):
        out = tmp_path / "out"
        with only_here(out):
            said = in_another_process(lambda: new_folder(out).__enter__())
        assert f"'{out}' is being written by another process" in said
        assert list(tmp_path.iterdir()) == []
        with new_folder(out) as folder:
            (folder / "file").touch()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_who_holds_a_run_s_folder_is_said(self, tmp_path):
        hold_folder(tmp_path)
        hold_folder(tmp_path)
        said = in_another_process(lambda: hold_folder(tmp_path))
        assert f"'{tmp_path}' is in use by process {os.getpid()} on " in said

    def test_a_lock_ends_with_its_process(self, tmp_path):
        assert in_another_process(lambda: hold_folder(tmp_path)) == "None"
        assert (tmp_path / LOCK).exists() and (tmp_path / HOLDER).exists()
        hold_folder(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_command_left_is_put_right(tmp_path, there):
    """Between the two renames of ``force`` the folder itself is gone: it comes back."""
    out, other = tmp_path / "out", tmp_path / ".output.0a1b2c3d.partial"
    (tmp_path / ".out.0a1b2c3d.partial").mkdir()
    (tmp_path / ".out.0a1b2c3d.old").mkdir()
    (tmp_path / ".out.0a1b2c3d.old" / "file").write_text("old")
    other.mkdir()  # another folder's
    if there:
        out.mkdir()
        (out / "file").write_text("new")
    with pytest.raises(MAMError, match="--force replaces it"):
        check_output(out, force=False)
    assert (out / "file").read_text() == ("new" if there else "old")
    assert sorted(tmp_path.iterdir()) == sorted([out, other])


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def without(self):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("speechbrain_mam.atomic.FileLock.acquire", without)
    hold_folder(tmp_path)
    assert "this file system has no locks" in caplog.text and (tmp_path / HOLDER).exists()
