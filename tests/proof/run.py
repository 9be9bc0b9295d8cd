"""A row of the proof: the recipe with MAM's lines is trained, resumed, evaluated twice, checked."""

from __future__ import annotations

import csv
import difflib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import run_python

from proof.shipped import SHIPPED
from proof.table import Row
from speechbrain_mam.recipe_edits.add import add_mam

WITNESS = Path(__file__).with_name("witness.py")
START = 0.95


@dataclass(frozen=True)
class Proven:
    """What came of a row."""

    row: Row
    lines: int
    tensors: int = 0
    found: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The row of the printed table."""
        where = f"`{self.row.script.removeprefix('recipes/')}`, `{Path(self.row.yaml).name}`"
        tensors = self.tensors or "–"
        return (
            f"| {self.row.name} | {where} | `{self.row.target}` | {tensors} | {self.lines} "
            f"| {'; '.join(self.found)} |"
        )


HEAD = (
    "| recipe | files | target | tensors merged | lines | found |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def add_lines(row: Row, script: Path, yaml: Path, donor: str) -> int:
    """MAM in a recipe, by ``speechbrain-mam add``; how many lines of the two files change."""
    before = [path.read_text("utf-8") for path in (script, yaml)]
    for old, new in row.changed:
        assert "".join(before).count(f"\n{old}\n") == 1, old
        for path in (script, yaml):
            text = path.read_text("utf-8").replace(f"\n{old}\n", f"\n{new}\n")
            path.write_text(text, encoding="utf-8")
    add_mam(script, yaml, row.target, donor).write_in_place()
    after = [path.read_text("utf-8") for path in (script, yaml)]
    return sum(changed_lines(*pair) for pair in zip(before, after, strict=True))


def changed_lines(old: str, new: str) -> int:
    """How many lines a diff of two texts adds and takes away."""
    lines = difflib.ndiff(old.splitlines(), new.splitlines())
    return sum(line.startswith(("+ ", "- ")) for line in lines)


def prove(row: Row, recipes: Path, parts: Path, folder: Path, shipped: bool = False) -> Proven:
    """Run a row; an assertion says what did not hold.

    Arguments
    ---------
    row : Row
        What is tried.
    recipes : Path
        The folder that holds SpeechBrain's ``recipes``.
    parts : Path
        What :func:`proof.material.make_parts` made.
    folder : Path
        An empty one.
    shipped : bool
        Whether the YAML is the recipe's own, which a checkout has, and no stand-in.
    """
    place = folder / "recipe"
    shutil.copytree((recipes / row.script).parent, place)
    script, yaml = place / Path(row.script).name, place / "stand_in.yaml"
    own = (place / row.yaml).read_text("utf-8") if shipped else row.stand_in()
    yaml.write_text(own, encoding="utf-8")
    lines = add_lines(row, script, yaml, str(parts / "bert"))
    options = SHIPPED[row.name] if shipped else row.options
    given = {key: value.format(parts=parts) for key, value in options.items()}
    given |= {"output_folder": str(folder / "out"), "data_folder": str(parts)}
    if row.refusal:
        said = train(script, yaml, given, folder, refused=True)
        assert row.refusal in said, said[-3000:]
        return Proven(row, lines, found=(f"refused: “{row.refusal}”",))
    former: list[list[float]] = [[START] * 3]
    for epochs in (1, 2):
        notes = train(script, yaml, given | {"number_of_epochs": str(epochs)}, folder)
        check(row, notes)
        moved = lambdas(folder / "out")
        assert moved[:-1] == former and moved[-1] != moved[-2], "λ does not move on"
        former = moved
    log = (folder / "out" / "train_log.txt").read_text(encoding="utf-8")
    assert log.count("valid loss") == 2, log
    tested = [line for line in log.splitlines() if "test loss" in line]
    tested = [re.sub(r"test loss: [^ ,]+", "", line) for line in tested]
    assert len(set(tested[-2:])) == 1, tested
    return Proven(row, lines, notes["tensors"], seen(row, notes))


def train(
    script: Path, yaml: Path, given: dict[str, str], folder: Path, refused: bool = False
) -> Any:
    """The notes of the witness, or what a refused recipe said."""
    words = [word for key, value in given.items() for word in (f"--{key}", value)]
    notes = folder / "notes.json"
    notes.unlink(missing_ok=True)
    done = run_python(
        WITNESS, notes, script.name, yaml, *words, "--device", "cpu", cwd=script.parent
    )
    if refused:
        assert done.returncode != 0, "it was not refused"
        return done.stdout + done.stderr
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(notes.read_text(encoding="utf-8"))


def check(row: Row, notes: dict[str, Any]) -> None:
    """What must hold of every row, after every run."""
    assert notes["kept_at_start"], "putting λ in has changed the target's own tensors"
    first, second, *_ = evaluations = notes["evaluations"]
    assert first["losses"] and first["losses"] == second["losses"], evaluations
    for one in evaluations:
        assert one["folded"] and not one["lam_left"], one
        assert one["off_formula"] < 1e-6 < one["off_own"], one
        assert not one["others_differ"], one["others_differ"]
        assert one["in_checkpoint"] > notes["tensors"] or row.changed, one
        assert all(0 < lam < 1 and lam != START for (lam,) in one["lam"]), one["lam"]


def lambdas(output: Path) -> list[list[float]]:
    """λ of every layer, one row for the start and one for each epoch."""
    with (output / "lambdas.csv").open(encoding="utf-8") as stream:
        return [[float(value) for value in row[1:]] for row in list(csv.reader(stream))[1:]]


def seen(row: Row, notes: dict[str, Any]) -> tuple[str, ...]:
    """What is particular to a recipe."""
    last = notes["evaluations"][-1]
    trained, frozen = "λ and the encoder are trained", "the encoder is frozen, λ is learned"
    found = [trained if last["trained"] else frozen]
    if notes["loaded_later"]:
        found.append("a pretrainer loads after the merge")
    if notes["averaged"]:
        found.append("checkpoints are averaged")
    if any(one["saved"] for one in notes["evaluations"]):
        found.append("saves at TEST")
    if last["optimizer"] == "SGD":
        found.append("makes a new optimizer in training")
    if row.because:
        found.append(row.because)
    return tuple(found)
