"""The source distribution, the wheel that is built from it, and that wheel on its own.

What is built is a copy of the tree in which lie the leftovers of a working checkout, about 15 s.
"""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import REPO, made_once

LEFT_OUT = (".ci", ".github")
"""What a source distribution does without."""

LEFTOVERS = (
    "results/LJSpeech/mam_learnable/1986/results.json",
    "build/lib/speechbrain_mam/removed_long_ago.py",
    "docs/build/index.html",
    "dist/speechbrain_mam-0.0.1.tar.gz",
    "speechbrain_mam/__pycache__/cli.cpython-311.pyc",
    "recipes/LJSpeech/__pycache__/ljspeech_prepare.cpython-311.pyc",
    "tests/.hypothesis/examples",
    "docs/.ipynb_checkpoints/tutorial-checkpoint.ipynb",
)
DEFAULTS = ("speechbrain_mam/hubert-mini", "sentence-transformers/all-MiniLM-L6-v2")


def python(*arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def sources() -> set[str]:
    """The files of this checkout, or of an unpacked source distribution.

    What the README's commands leave at the top (``report``, ``merged``) is none of them.
    """
    if not (REPO / ".git").exists():
        caches = ("__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis")
        return {name for name in files_below(REPO) if not set(Path(name).parts) & set(caches)}

    def listed(*options):
        done = subprocess.run(
            ["git", "ls-files", "-z", *options], cwd=REPO, capture_output=True, check=True
        )
        return {name for name in done.stdout.decode().split("\0") if (REPO / name).is_file()}

    tracked = listed("--cached")
    tops = {name.split("/")[0] for name in tracked if "/" in name}
    new = listed("--others", "--exclude-standard")
    return tracked | {name for name in new if name.split("/")[0] in tops}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """``(files of the tree, sdist, wheel)``."""
    names = sources()
    assert not names & set(LEFTOVERS)

    def build(folder: Path) -> None:
        tree, out = folder / "tree", folder / "dist"
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, tree / name)
        for name in LEFTOVERS:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text("left over")
        code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
        python("-c", code, cwd=tree)
        (sdist,) = out.glob("*.tar.gz")
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
        python("-m", "pip", "wheel", "--quiet", *options, sdist, cwd=folder)

    dist = made_once(tmp_path_factory, "packaging", build) / "dist"
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return names, sdist, wheel


@pytest.mark.slow
def test_the_source_distribution_is_the_tree(built):
    """All that the README and the docs speak of, and nothing that a run or a build left."""
    given, sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = [Path(member.name) for member in archive.getmembers() if member.isfile()]
    held = {Path(*name.parts[1:]).as_posix() for name in names}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in held if ".egg-info/" in name}
    assert held - made == {name for name in given if name.split("/")[0] not in LEFT_OUT} - made
    for name in ("recipes/LJSpeech/train.py", "hparams/large/mam_learnable.yaml", "docs/conf.py"):
        assert name in held


@pytest.mark.slow
def test_the_wheel_is_the_package(built):
    """Embedded models and corpora, ``py.typed``; no tests, recipes or results."""
    given, _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    held = {name for name in names if ".dist-info/" not in name}
    assert held == {name for name in given if name.startswith("speechbrain_mam/")}
    assert "speechbrain_mam/py.typed" in held
    for name in ("hubert_mini/model.safetensors", "beats_mini/beats_mini.pt", "data/mini_vctk.tar"):
        assert f"speechbrain_mam/embedded/{name}" in held
    assert {name.split("/")[-1] for name in names - held} >= {"LICENSE", "METADATA", "RECORD"}


@pytest.mark.slow
def test_the_metadata(built):
    _, _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        meta = email.message_from_string(archive.read(file).decode())
        entry_points = archive.read(file.replace("METADATA", "entry_points.txt")).decode()
    assert meta["Name"] == "speechbrain_mam"
    assert meta["License"] == "Apache-2.0"
    assert meta["Requires-Python"] == ">=3.10"
    assert {"embedded", "docs", "test", "tensorboard"} <= set(meta.get_all("Provides-Extra"))
    assert "speechbrain-mam = speechbrain_mam.cli:main" in entry_points
    version = f'__version__ = "{meta["Version"]}"'
    assert version in (REPO / "speechbrain_mam" / "version.py").read_text(encoding="utf-8")
    assert f"## [{meta['Version']}]" in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {meta['Version']}" in (REPO / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_runs_alone(built, tmp_path):
    """Away from the checkout: version, plan of the embedded default, the embedded corpora."""
    _, _, wheel = built
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    options = ("--no-deps", "--no-index", "--no-compile", "--target", target)
    python("-m", "pip", "install", "--quiet", *options, wheel, cwd=empty)
    alone = {"PYTHONPATH": str(target), "SPEECHBRAIN_MAM_CACHE": str(tmp_path / "cache")}

    place = python("-c", "import speechbrain_mam as m; print(m.__file__)", cwd=empty, **alone)
    assert Path(place.strip()).is_relative_to(target)
    said = python("-m", "speechbrain_mam", "--version", cwd=empty, **alone)
    assert said.startswith("speechbrain-mam ")
    plan = python("-m", "speechbrain_mam", "plan", *DEFAULTS, cwd=empty, **alone)
    assert "12 weights and 12 biases" in plan
    corpora = "from speechbrain_mam.embedded.corpora import mini_corpus as m; "
    names = ("mini_ljspeech", "mini_vctk", "mini_esc50")
    read = corpora + "; ".join(f"print(m({name!r}))" for name in names)
    folders = python("-c", read, cwd=empty, **alone).split()
    assert [len(list(Path(folder).rglob("*.*"))) > 100 for folder in folders] == [True] * 3
    assert not list(empty.iterdir())


def test_the_citation_and_the_forms_are_whole():
    """CITATION.cff names both parents; each issue form has what GitHub asks of one."""
    cff = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(cff)
    paper = cff["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Sundar", "Yang"]
    assert "2312.14378" in paper["url"]
    forms = REPO / ".github" / "ISSUE_TEMPLATE"
    if not forms.is_dir():
        pytest.skip("a source distribution has no issue forms")
    for form in sorted(set(forms.glob("*.yml")) - {forms / "config.yml"}):
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(content), form
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert all(field["attributes"]["label"] for field in fields), form
        ids = [field["id"] for field in fields]
        assert len(ids) == len(set(ids)) > 3, form
        kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert {field["type"] for field in content["body"]} <= kinds, form
