"""ruff and mypy, so that one command checks everything; and what the documents promise."""

import re
import subprocess
import sys

import pytest
from conftest import REPO


@pytest.mark.parametrize(
    "arguments", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)]
)
def test_linters(arguments):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
