"""The recipes as SpeechBrain's own recipe tests see them: a table with debug flags and checks."""

import csv
import re
import shlex

import pytest
from conftest import REPO
from test_recipe import run

ROWS = [
    row
    for table in sorted((REPO / "tests" / "recipes").glob("*.csv"))
    for row in csv.DictReader(table.open(encoding="utf-8"))
]

FIRST = list({row["Script_file"]: row for row in reversed(ROWS)}.values())


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["Hparam_file"])
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
