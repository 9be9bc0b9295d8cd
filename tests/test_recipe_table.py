"""The recipes as SpeechBrain's own recipe tests see them: a table with debug flags and checks.

Where the environment variable ``SPEECHBRAIN_RECIPES`` names a checkout of SpeechBrain, its own
``tests/utils/recipe_tests.py`` runs the table as well.
"""

import csv
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import REPO
from processes import run_python
from test_recipe import run

ROWS = [
    row
    for table in sorted((REPO / "tests" / "recipes").glob("*.csv"))
    for row in csv.DictReader(table.open(encoding="utf-8"))
]

COLUMNS = "Task Dataset Script_file Hparam_file Data_prep_file Readme_file Result_url HF_repo "
COLUMNS += "test_debug_flags test_debug_checks performance"
FIRST = list({row["Script_file"]: row for row in reversed(ROWS)}.values())


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['Dataset']} {row['Hparam_file']}")
def test_a_row_runs_and_leaves_its_files(row, tmp_path):
    """The embedded models and corpus, two batches of training.

    The first row of each recipe is a process of its own, as a user starts it.
    """
    for key in ("Script_file", "Hparam_file", "Data_prep_file", "Readme_file"):
        assert (REPO / row[key]).is_file(), row[key]
    flags = shlex.split(row["test_debug_flags"])
    output = tmp_path / "out"
    arguments = [row["Hparam_file"], *flags, "--output_folder", str(output)]
    run(arguments, script=(row["Script_file"],), fork=row not in FIRST)
    checks = re.search(r"file_exists=\[(.*)\]", row["test_debug_checks"])
    missing = [name for name in checks[1].split(",") if not (output / name).is_file()]
    assert not missing


def test_the_columns_are_those_of_speechbrain():
    assert all(list(row) == COLUMNS.split() for row in ROWS)
    assert all(not row["Result_url"] and not row["HF_repo"] for row in ROWS)  # none is uploaded
    assert all("performance_check" not in row["test_debug_checks"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['Dataset']} {row['Hparam_file']}")
def test_a_performance_is_that_of_the_readme(row):
    """Of the first table there that has the system; none where the README has none."""
    system = Path(row["Hparam_file"]).stem.removeprefix("esc50_")
    header: list[str] = []
    found: dict[str, str] = {}
    for line in (REPO / row["Readme_file"]).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif header[0] in ("system", "Release"):
            name = cells[0] if header[0] == "system" else Path(cells[1]).stem
            if name.removeprefix("esc50_") == system:
                figures = {
                    name.removeprefix("Test ").removesuffix(" %"): cell.split(" ")[0]
                    for name, cell in zip(header, cells, strict=True)
                }
                told = {name: figures[name] for name in ("WER", "CER", "error") if name in figures}
                found = found or told
    assert row["performance"] == " ".join(f"{k}={v}%" for k, v in found.items())


@pytest.mark.slow
@pytest.mark.recipes
@pytest.mark.skipif(
    "SPEECHBRAIN_RECIPES" not in os.environ, reason="SPEECHBRAIN_RECIPES names no checkout"
)
def test_speechbrains_own_recipe_tests_pass(tmp_path):
    """As SpeechBrain's developers start them, in one process after the other: some minutes.

    They start ``python``, with the recipe's folder for ``PYTHONPATH``: the package that is
    installed is the one that runs.
    """
    call = (
        "from tests.utils.recipe_tests import run_recipe_tests; import os, sys; "
        "os.chdir(sys.argv[1]); sys.exit(not run_recipe_tests(output_folder=sys.argv[2]))"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run_python(
        *("-c", call, REPO, tmp_path),
        cwd=os.environ["SPEECHBRAIN_RECIPES"],
        env={"PATH": path},
        timeout_s=900,
        merge_stderr=True,
        fork=False,
    )
    assert done.returncode == 0, done.stdout
    assert len(list(tmp_path.glob("*/.passed"))) == len(ROWS)
