"""The tutorial: its stored outputs are of a whole execution, and it runs."""

import json
import re

import pytest
from conftest import REPO, expanded_corpus

FILE = REPO / "docs" / "tutorial.ipynb"
CELLS = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
LARGE = '"train": utterances[:64], "valid": utterances[64:80], "test": utterances[80:120]'
SMALL = '"train": utterances[:8], "valid": utterances[64:66], "test": utterances[80:85]'
SYSTEMS = ("untouched", "mam_zeroshot", "finetune", "mam_learnable")


def printed(cells):
    """What each cell has shown as text."""
    shown = []
    for cell in cells:
        texts = [output.get("text") for output in cell["outputs"]]
        texts += [output.get("data", {}).get("text/markdown") for output in cell["outputs"]]
        shown.append("".join("".join(text) for text in texts if text))
    return shown


def check(cells):
    """λ are learned, folded, and the report knows all four systems."""
    text = "\n".join(printed(cells))
    assert "taken back, bit for bit:    True" in text
    lambdas = [float(lam) for lam in re.findall(r"^layer \d: λ = ([\d.]+)$", text, flags=re.M)]
    assert len(lambdas) == 4 and all(0.8 < lam < 1 for lam in lambdas) and set(lambdas) != {0.95}
    assert "λ that are still in the model: []" in text
    for name in SYSTEMS:
        assert f"| {name} | 1 |" in text
    for cell in cells:
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        assert all(output.get("name") != "stderr" for output in cell["outputs"])


def test_the_stored_outputs():
    """Of one execution from the top, small, and nothing of the machine in them."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    check(CODE)
    assert FILE.stat().st_size < 150_000
    assert not re.search(r"/(?:work|root|home|tmp)\b", json.dumps([c["outputs"] for c in CODE]))


def test_what_it_links_to_exists():
    text = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert links and all((REPO / "docs" / link).is_file() for link in links)
    assert "](tutorial.ipynb)" in (REPO / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_runs(tmp_path, tmp_path_factory, monkeypatch):
    """On an eighth of its utterances: the stored outputs are those of all."""
    nbclient = pytest.importorskip("nbclient", reason="extra test")
    nbformat = pytest.importorskip("nbformat", reason="extra test")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    cache = expanded_corpus(tmp_path_factory, "mini_ljspeech").parent
    monkeypatch.setenv("SPEECHBRAIN_MAM_CACHE", str(cache))
    notebook = nbformat.read(FILE, as_version=4)
    (cell,) = (cell for cell in notebook.cells if LARGE in cell["source"])
    cell["source"] = cell["source"].replace(LARGE, SMALL)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=where).execute()
    again = [cell for cell in notebook.cells if cell.cell_type == "code"]
    check(again)
    untrained = slice(0, 4)  # the plan and the merge: the same everywhere
    assert printed(again)[untrained] == printed(CODE)[untrained]
    assert (tmp_path / "tutorial" / "report" / "report.html").is_file()
