"""Each command is killed, or finds the disk full, at each of its writes; then it is run again.

> pytest -m faults                      # every point of every command

Afterwards every file has the bits of an undisturbed run, and nothing half written is left.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import pytest
from conftest import made_once
from processes import run_python

from faults.programs import HARM, PROGRAMS, Models, leftovers, tree

HALVES = {"open", "save", "save_file"}
"""Writes after which half a file can be there; an append adds a line."""


DISTURBED = [name for name in PROGRAMS if name not in ("vctk", "events merged")]
"""Each kind of write once: the two others write what those before them do."""


def halved(kind: str, path: str) -> bool:
    """Whether half of it is another state than that before its renaming."""
    return kind in HALVES and not path.endswith(".part")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    return Models(made_once(tmp_path_factory, "faults", lambda folder: Models(folder).make()))


class Trial:
    """One command, undisturbed once; then disturbed at some point, and run again."""

    def __init__(self, name: str, models: Models, scratch):
        self.program, self.models, self.scratch = PROGRAMS[name], models, scratch
        self.base = scratch / "base" / "f"
        self.program.prepare(models, self.base)
        undisturbed = self.place("undisturbed")
        self.points = self.program.points(models, undisturbed)
        self.expected = tree(undisturbed)
        assert not leftovers(undisturbed)
        assert len(self.expected) > 0

    def place(self, name: str):
        """A copy of what was there before the command, at a place of its own.

        The place's name has one length: some files hold it.
        """
        folder = self.scratch / name / "f"
        shutil.copytree(self.base, folder, symlinks=True)
        for file in folder.rglob("*"):
            if file.is_file() and file.suffix in (".yaml", ".json", ".csv", ".txt"):
                file.write_bytes(
                    file.read_bytes().replace(str(self.base).encode(), str(folder).encode())
                )
        return folder

    def again(self, folder) -> str:
        """What is wrong after the same command has been run again, or nothing."""
        done = self.program.run(self.models, folder)
        there = "exists and is not empty; --force" in done.stdout  # killed when all was done
        if done.returncode and not there:
            return f"exit {done.returncode}: {done.stdout[-600:]}"
        if left := leftovers(folder):
            return f"left: {left}"
        found = tree(folder)
        return ", ".join(
            sorted(k for k in {*found, *self.expected} if found.get(k) != self.expected.get(k))
        )


def summed(record_property, name: str, tried: int, faults: dict) -> None:
    record_property("points", tried)
    text = "\n".join(f"{point}: {what}" for point, what in faults.items())
    assert not faults, f"{name}: {len(faults)} of {tried} points\n{text}"


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "half"])
@pytest.mark.parametrize("name", DISTURBED)
def test_killed_at_each_write(name, how, models, tmp_path, record_property):
    trial = Trial(name, models, tmp_path)
    points = [point for point in trial.points if how == "kill" or halved(*point[1:])]
    faults = {}
    for number, kind, path in points:
        folder = trial.place(f"at{number:04d}")
        done = trial.program.run(models, folder, do=how, at=number)
        if done.returncode != -signal.SIGKILL:  # nothing was written after it
            assert how == "half", done.stdout[-2000:]
            continue
        if wrong := trial.again(folder):
            faults[number, kind, path] = wrong
        print(f"{name}: {how} at {kind} {path}: {wrong or 'as if undisturbed'}", flush=True)
        shutil.rmtree(folder.parent)
    summed(record_property, name, len(points), faults)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "readonly"])
@pytest.mark.parametrize("name", DISTURBED)
def test_a_disk_that_takes_no_more(name, how, models, tmp_path, record_property):
    """One line that names what could not be written, exit 2; with room, the command goes on."""
    trial = Trial(name, models, tmp_path)
    points = [point for point in trial.points if not point[1].startswith("os.r")]
    faults = {}
    for number, kind, path in points:
        folder = trial.place(f"at{number:04d}")
        done = trial.program.run(models, folder, do=how, at=number)
        said = done.stdout.strip().splitlines()[-1:]
        if done.returncode != 2 or "Traceback" in done.stdout or str(folder) not in "".join(said):
            faults[number, kind, path] = f"exit {done.returncode}: {done.stdout[-600:]}"
        elif wrong := trial.again(folder):
            faults[number, kind, path] = wrong
        told = faults.get((number, kind, path), "told in one line, then as if undisturbed")
        print(f"{name}: {how} at {kind} {path}: {told}", flush=True)
        shutil.rmtree(folder.parent)
    summed(record_property, name, len(points), faults)


@pytest.mark.slow
def test_the_harm_is_done(tmp_path):
    """The instrument itself: it lists each kind of write, kills, halves, and refuses."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "out = Path(sys.argv[1])\n"
        "out.mkdir(exist_ok=True)\n"
        "(out / 'text.part').write_text('0123456789')\n"
        "(out / 'text.part').replace(out / 'text')\n"
        "torch.save(torch.zeros(100), out / 'tensor')\n"
        "(out / 'text').unlink()\n"
    )

    def run(name, **harm):
        out = tmp_path / name
        wanted = tmp_path / f"{name}.json"
        wanted.write_text(json.dumps({"under": [str(out)], **harm}))
        return out, run_python(HARM, wanted, program, out, merge_stderr=True)

    out, done = run("all", list=str(tmp_path / "listed"))
    kinds = [line.split("\t")[1] for line in (tmp_path / "listed").read_text().splitlines()]
    assert kinds == ["os.mkdir", "open", "os.rename", "save", "os.remove"], done.stdout
    out, done = run("kill", do="kill", at=2)
    assert done.returncode == -signal.SIGKILL and [f.name for f in out.iterdir()] == ["text.part"]
    out, done = run("half", do="half", at=1)
    assert (out / "text.part").read_text() == "01234"
    out, done = run("half_tensor", do="half", at=3)
    assert (out / "tensor").stat().st_size < (tmp_path / "all" / "tensor").stat().st_size
    for how, text in (("full", os.strerror(errno.ENOSPC)), ("readonly", os.strerror(errno.EROFS))):
        out, done = run(how, do=how, at=3)
        assert done.returncode == 1 and text in done.stdout and not (out / "tensor").exists()
