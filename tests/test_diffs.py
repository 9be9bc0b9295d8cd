"""The diffs of ``examples/diffs``: SpeechBrain's own recipes, unmodified but for them, train.

The recipes come from SpeechBrain's source distribution on PyPI, which has no YAMLs: those of the
tests have the keys that a recipe reads, and the very lines that the diff adds. The environment
variable ``SPEECHBRAIN_RECIPES`` names a checkout of SpeechBrain instead; then its real YAMLs are
patched and trained as well.

Each run of a recipe takes about three seconds, as a process of its own some seconds more.
"""

import csv
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import REPO, made_once
from processes import run_python
from proof.material import make_parts
from proof.table import ROWS
from safetensors.torch import load_file

from speechbrain_mam.cli import main

DIFFS = sorted((REPO / "examples" / "diffs").glob("*.diff"))
OWN_YAMLS = {
    diff.stem: row.stand_in()
    for diff in DIFFS
    for row in ROWS
    if f"+++ b/{Path(row.script).parent / row.yaml}\n" in diff.read_text(encoding="utf-8")
}
RECIPES = {diff.stem: diff for diff in DIFFS}


def changes(diff: Path) -> dict[str, list[str]]:
    """The changed lines of a diff by file, with their sign."""
    found: dict[str, list[str]] = {}
    for line in diff.read_text(encoding="utf-8").splitlines():
        if line.startswith("+++ b/"):
            lines = found.setdefault(line[6:], [])
        elif line[0] in "+-" and not line.startswith("--- "):
            lines.append(line)
    return found


def files_of(diff: Path) -> tuple[str, str]:
    """The recipe's Python file and its YAML."""
    script, yaml = sorted(changes(diff), key=lambda name: name.endswith(".yaml"))
    return script, yaml


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    """Tiny random models, a few seconds of audio, and manifests as the two corpora have them."""
    folder = made_once(tmp_path_factory, "proof_parts", make_parts)
    return {name: folder / name for name in ("", "wav2vec2", "bert", "data.csv", "data.json")}


def options_of(recipe: str, parts: dict[str, Path], output: Path) -> dict[str, str]:
    """What a user gives on the command line, and the width that the tiny encoder has."""
    manifest = parts["data.csv" if recipe == "librispeech_ctc_wav2vec2" else "data.json"]
    options = {
        "output_folder": str(output),
        "data_folder": str(parts[""]),
        "wav2vec2_hub": str(parts["wav2vec2"]),
        "skip_prep": "True",
        "mam": f"{{donor: {parts['bert']}}}",
    }
    if recipe == "librispeech_ctc_wav2vec2":
        return options | {
            "train_csv": str(manifest),
            "valid_csv": str(manifest),
            "test_csv": f"[{manifest}]",
            "enc": "{input_shape: [null, null, 16]}",
        }
    return options | {
        **{f"{part}_annotation": str(manifest) for part in ("train", "valid", "test")},
        "encoder_dim": "16",
    }


def patch(recipe: str, unmodified: Path, folder: Path, *arguments: str) -> None:
    """The recipe's folder, patched with the command that the README gives."""
    script, _ = files_of(RECIPES[recipe])
    shutil.copytree(unmodified / Path(script).parent, folder / Path(script).parent)
    done = subprocess.run(
        ["git", "apply", "--unidiff-zero", *arguments, str(RECIPES[recipe])],
        cwd=folder,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def train(
    folder: Path, script: str, yaml: Path, options: dict[str, str], fork: bool = True
) -> None:
    flat = [word for key, value in options.items() for word in (f"--{key}", value)]
    place = folder / Path(script).parent
    arguments = (Path(script).name, yaml, *flat, "--device", "cpu")
    done = run_python(*arguments, cwd=place, fork=fork)
    assert done.returncode == 0, done.stdout + done.stderr


def lambdas(output: Path) -> list[list[float]]:
    """λ of every layer, one row for the start and one for each epoch."""
    with (output / "lambdas.csv").open(encoding="utf-8") as stream:
        return [[float(value) for value in row[1:]] for row in list(csv.reader(stream))[1:]]


def check_run(recipe: str, output: Path, epochs: int, encoder: Path) -> None:
    assert "bert" in (output / "merge_plan.txt").read_text(encoding="utf-8")
    start, *learned = lambdas(output)
    assert start == [0.95] * 3 and len(learned) == epochs
    assert all(value != 0.95 for value in learned[0])
    checkpoint = max((output / "save").glob("CKPT+*"), key=lambda path: path.stat().st_mtime)
    assert (checkpoint / "mam.ckpt").is_file() and (checkpoint / "mam_optimizer.ckpt").is_file()
    saved = torch.load(checkpoint / "wav2vec2.ckpt", weights_only=True)
    query = "encoder.layers.0.attention.q_proj.weight"
    same = torch.equal(
        saved[f"model.{query}"], load_file(encoder / "model.safetensors")[f"wav2vec2.{query}"]
    )
    assert same == (recipe == "librispeech_ctc_wav2vec2")  # which has `freeze_wav2vec: True`
    log = (output / "train_log.txt").read_text(encoding="utf-8")
    assert log.count("valid loss") == epochs and log.count("test loss") >= 1


def test_there_are_two_diffs():
    assert sorted(RECIPES) == sorted(OWN_YAMLS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_ten_lines_are_enough(recipe):
    """And all but the class line are added: nothing of SpeechBrain's text is in the diff."""
    changed = changes(RECIPES[recipe])
    assert sum(len(lines) for lines in changed.values()) <= 10
    removed = [line for lines in changed.values() for line in lines if line[0] == "-"]
    assert len(removed) == 1 and re.fullmatch(r"-class \w+\(sb\.Brain\):", removed[0])
    text = RECIPES[recipe].read_text(encoding="utf-8")
    assert all(line[0] in "+-@" for line in text.splitlines())  # no line of context


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_add_writes_the_diff(recipe, unmodified, tmp_path, monkeypatch, capsys):
    """``speechbrain-mam add --diff`` on the recipe itself; with a checkout, on its YAML too."""
    script, yaml = files_of(RECIPES[recipe])
    shutil.copytree(unmodified / Path(script).parent, tmp_path / Path(script).parent)
    diff = RECIPES[recipe].read_text(encoding="utf-8")
    if not (tmp_path / yaml).exists():
        (tmp_path / yaml).parent.mkdir(exist_ok=True)
        (tmp_path / yaml).write_text(OWN_YAMLS[recipe])
    monkeypatch.chdir(tmp_path)
    donor = diff.partition("donor: ")[2].partition("\n")[0]
    assert main(["add", script, yaml, "--target", "wav2vec2", "--donor", donor, "--diff"]) == 0
    printed = capsys.readouterr().out
    of_script = re.search(rf"--- a/{script}\n.*?(?=--- a/|\Z)", diff, flags=re.S)[0]
    assert of_script in printed
    if "SPEECHBRAIN_RECIPES" in os.environ:
        assert printed == diff


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_hides_what_it_inherits(recipe, unmodified):
    """Methods without ``super()``: why MAMBrain wraps those of its subclasses."""
    script, _ = files_of(RECIPES[recipe])
    text = (unmodified / script).read_text(encoding="utf-8")
    for name in ("init_optimizers", "on_stage_end"):
        assert f"def {name}(self" in text and f"super().{name}" not in text


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_trains_and_resumes(recipe, unmodified, parts, tmp_path):
    script, yaml_name = files_of(RECIPES[recipe])
    patch(recipe, unmodified, tmp_path / "tree", "--include=*.py")
    added = [line[1:] for line in changes(RECIPES[recipe])[yaml_name]]
    yaml = tmp_path / "tiny.yaml"
    yaml.write_text("\n".join([OWN_YAMLS[recipe], *added, ""]), encoding="utf-8")
    options = options_of(recipe, parts, tmp_path / "out")
    train(tmp_path / "tree", script, yaml, options, fork=False)
    check_run(recipe, tmp_path / "out", 1, parts["wav2vec2"])
    first = lambdas(tmp_path / "out")
    train(tmp_path / "tree", script, yaml, options | {"number_of_epochs": "2"})
    check_run(recipe, tmp_path / "out", 2, parts["wav2vec2"])
    assert lambdas(tmp_path / "out")[:2] == first != lambdas(tmp_path / "out")[1:]


@pytest.mark.slow
@pytest.mark.skipif(
    "SPEECHBRAIN_RECIPES" not in os.environ,
    reason="SPEECHBRAIN_RECIPES is not set: the source distribution has no YAMLs",
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_trains_with_its_own_yaml(recipe, unmodified, parts, tmp_path):
    script, yaml_name = files_of(RECIPES[recipe])
    patch(recipe, unmodified, tmp_path / "tree")
    options = options_of(recipe, parts, tmp_path / "out")
    options |= {"number_of_epochs": "1"}
    train(tmp_path / "tree", script, tmp_path / "tree" / yaml_name, options)
    check_run(recipe, tmp_path / "out", 1, parts["wav2vec2"])
