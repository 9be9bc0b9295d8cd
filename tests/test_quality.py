"""ruff and mypy, so that one command checks everything; and what the documents promise."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import thorough
from conftest import REPO

LINTERS = (
    *(("-m", "ruff", "check", "."), ("-m", "ruff", "format", "--check", "."), ("-m", "mypy")),
    ("-c", "from importlinter.cli import lint_imports_command as main; main()"),
    ("tools/rooms.py",),
)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(words, id=name, marks=pytest.mark.slow if name == "mypy" else ())
        for name, words in zip(("ruff", "format", "mypy", "imports", "rooms"), LINTERS, strict=True)
    ],
)
def test_linters(arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_upwards_breaks_the_contract(tmp_path):
    """The contract of pyproject.toml, on a copy whose lowest room imports the highest one."""
    shutil.copytree(REPO / "speechbrain_mam", tmp_path / "speechbrain_mam")
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    errors = tmp_path / "speechbrain_mam" / "errors.py"
    errors.write_text(errors.read_text() + "\n\ndef f():\n    from speechbrain_mam import cli\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *LINTERS[3]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "speechbrain_mam.errors -> speechbrain_mam.cli" in done.stdout


def test_the_readme_has_one_command_to_run_and_one_to_test():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    for title, commands in (
        ("Run it", "pip install -e '.[embedded]' && python recipes/LJSpeech/train.py "
                   "hparams/mam_learnable.yaml"),
        ("Test it", "pip install -e '.[embedded,test]' && pytest"),
    ):  # fmt: skip
        section = re.search(rf"^## {title}\n(.*?)^## ", readme, flags=re.M | re.S)
        assert section is not None
        blocks = re.findall(r"^```bash\n(.*?)\n```$", section[1], flags=re.M | re.S)
        assert blocks == [commands]


def test_files_named_in_documents_exist():
    for document in [REPO / "README.md", *REPO.glob("*/**/README.md")]:
        if ".venv" in document.parts or "results" in document.parts:
            continue
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document}: {target}"


def test_what_is_named_thorough_is_there():
    """A test that was renamed would run daily again, and nobody would know why it takes longer."""
    assert all((REPO / file).is_file() for file in thorough.SLOW)
    for entry in thorough.TESTS + thorough.NIGHTLY:
        file, _, name = entry.partition("::")
        text = (REPO / file).read_text(encoding="utf-8")
        assert f"def {name.partition('[')[0]}" in text if name else "mark.slow" in text, entry
