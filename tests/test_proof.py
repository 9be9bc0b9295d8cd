"""Recipes of SpeechBrain's, unmodified but for MAM's lines: trained, resumed, evaluated twice.

``examples/README.md`` has the table of what is found, line by line as it comes out of these runs;
``python examples/proof.py --write`` makes it. They run once a night, and with
``pytest -m "slow or recipes" tests/test_proof.py``: some six seconds each.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import REPO, made_once
from proof.material import make_parts
from proof.run import HEAD, add_lines, check, prove
from proof.shipped import SHIPPED
from proof.table import ROWS, YAMLS, Row

TABLE = (REPO / "examples" / "README.md").read_text(encoding="utf-8").splitlines()
KEY = re.compile(r"^(\w+):", re.MULTILINE)
NOTED = {
    "kept_at_start": True,
    "tensors": 18,
    "evaluations": [
        {
            **{"losses": [1.0, 2.0], "folded": True, "lam_left": [], "lam": [[0.9], [0.94]]},
            **{"off_formula": 0.0, "off_own": 0.1, "others_differ": [], "in_checkpoint": 60},
        }
        for _ in range(2)
    ],
}
MARKS = {True: [pytest.mark.slow], False: [pytest.mark.slow, pytest.mark.recipes]}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "proof_parts", make_parts)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=MARKS[row.telling], id=row.name) for row in ROWS]
)
def test_the_recipe_learns_lam_and_its_line_is_in_the_table(row, unmodified, parts, tmp_path):
    for module in row.needs:
        pytest.importorskip(module, reason=f"the recipe needs {module}")
    assert str(prove(row, unmodified, parts, tmp_path)) in TABLE


@pytest.mark.slow
@pytest.mark.recipes
@pytest.mark.skipif(
    "SPEECHBRAIN_RECIPES" not in os.environ,
    reason="SPEECHBRAIN_RECIPES is not set: the source distribution has no YAMLs",
)
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name in SHIPPED], ids=lambda row: row.name
)
def test_the_recipe_runs_with_the_yaml_that_is_shipped(row, unmodified, parts, tmp_path):
    """Augmentation, dynamic batches, schedulers and searches as SpeechBrain has them, but small."""
    for module in row.needs:
        pytest.importorskip(module, reason=f"the recipe needs {module}")
    assert str(prove(row, unmodified, parts, tmp_path, shipped=True)) in TABLE


def test_the_table_has_every_row_and_no_other():
    start = TABLE.index(HEAD.splitlines()[0])
    names = [line.split(" | ")[0].removeprefix("| ") for line in TABLE[start + 2 :]]
    assert names[: len(ROWS)] == [row.name for row in ROWS]
    assert not any(line.startswith("|") for line in TABLE[start + 2 + len(ROWS) :])


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_but_nine_lines_changes(row, unmodified, tmp_path):
    """And what must be changed besides, which the row gives a reason for."""
    shutil.copytree((unmodified / row.script).parent, tmp_path / "recipe")
    script, yaml = tmp_path / "recipe" / Path(row.script).name, tmp_path / "recipe" / "tiny.yaml"
    yaml.write_text(row.stand_in(), encoding="utf-8")
    lines = add_lines(row, script, yaml, "google-bert/bert-base-uncased")
    assert lines == 9 + 2 * len(row.changed) and bool(row.changed) == bool(row.because)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("losses", [1.0, 2.5]),
        ("folded", False),
        ("lam_left", ["modules.encoder.lam"]),
        ("lam", [[0.95], [0.94]]),
        ("off_formula", 1e-3),
        ("off_own", 0.0),
        ("others_differ", ["bias"]),
        ("in_checkpoint", 3),
    ],
)
def test_a_fault_of_an_evaluation_is_seen(where, what):
    check(ROWS[0], NOTED)
    first, second = NOTED["evaluations"]
    with pytest.raises(AssertionError):
        check(ROWS[0], {**NOTED, "evaluations": [first, {**second, where: what}]})


def test_a_merge_that_changes_the_targets_own_tensors_is_seen():
    with pytest.raises(AssertionError, match="own tensors"):
        check(ROWS[0], {**NOTED, "kept_at_start": False})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_stand_in_has_keys_of_the_recipes_yaml_only(row: Row, unmodified):
    """Where ``SPEECHBRAIN_RECIPES`` names a checkout, which has the YAMLs."""
    real = unmodified / Path(row.script).parent / row.yaml
    if not real.is_file():
        pytest.skip("SPEECHBRAIN_RECIPES is not set: the source distribution has no YAMLs")
    theirs = set(KEY.findall(real.read_text(encoding="utf-8")))
    texts = [(YAMLS / f"{name}.yaml").read_text(encoding="utf-8") for name in row.stand_ins]
    ours = {key for text in texts for key in KEY.findall(text)}
    assert ours and not ours - theirs, sorted(ours - theirs)
    assert row.target in theirs
