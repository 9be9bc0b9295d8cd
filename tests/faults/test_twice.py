"""Each recipe twice, in two folders: every file has the same bits but what says when and where."""

from __future__ import annotations

import json

import pytest

from faults.programs import PROGRAMS, tree
from faults.test_faults import models as models

TRAININGS = ("learnable", "search", "vctk", "events", "events merged")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_the_same_again(name, models, tmp_path):
    found = {}
    for place in ("a", "b"):  # of one length: some files hold it
        folder = tmp_path / place / "f"
        folder.mkdir(parents=True)
        done = PROGRAMS[name].run(models, folder)
        assert done.returncode == 0, done.stdout[-3000:]
        found[place] = tree(folder)
    assert found["a"] == found["b"]
    assert any(file.endswith("results.json") for file in found["a"])
    assert any(file.endswith("utterances_untouched.json") for file in found["a"])
    notes = [
        json.loads(next(tmp_path.glob(f"{place}/f/out/**/environment.json")).read_text())
        for place in found
    ]
    differ = {key for key in notes[0] if notes[0][key] != notes[1].get(key)}
    assert notes[0].keys() == notes[1].keys() and differ <= {"command"}


@pytest.mark.slow
def test_another_seed_is_seen(models, tmp_path):
    """The comparison itself: it would tell two trainings apart."""
    folders = [tmp_path / place / "f" for place in ("a", "b")]
    for folder, seed in zip(folders, ("1", "2"), strict=True):
        folder.mkdir(parents=True)
        program = PROGRAMS["learnable"]
        done = program.run(models, folder, extra=("--seed", seed))
        assert done.returncode == 0, done.stdout[-3000:]
    one, other = map(tree, folders)
    differ = {file for file in one if one[file] != other[file]}
    assert {"out/lambdas.csv", "out/results.json", "out/hyperparams.yaml"} <= differ
    assert "out/save/train.csv" not in differ
