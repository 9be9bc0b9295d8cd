"""Workflows, hooks and owners: what they run is there, and is what the documents say."""

import re
import shlex
from itertools import chain

import pytest
import yaml
from conftest import REPO
from document_blocks import check_command, setup_arguments
from test_quality import LINTERS

WORKFLOWS = REPO / ".github" / "workflows"
HOOKS = REPO / ".pre-commit-config.yaml"

pytestmark = pytest.mark.skipif(
    not WORKFLOWS.is_dir(), reason="a source distribution has no workflows"
)


def jobs():
    for file in sorted(WORKFLOWS.glob("*.yml")):
        for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items():
            yield f"{file.stem}: {name}", job


def steps(key):
    return [(name, step[key]) for name, job in jobs() for step in job["steps"] if key in step]


def of(name):
    return next(job for title, job in jobs() if title == name)


def test_there_are_lint_tests_docs_and_nights():
    assert {name.partition(":")[0] for name, _ in jobs()} == {"lint", "tests", "docs", "nightly"}
    for file in WORKFLOWS.glob("*.yml"):
        text = file.read_text(encoding="utf-8")
        assert "permissions:\n  contents: read\n" in text, file
        assert not re.search(r"https?://", text), f"{file}: names a host"
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", uses) for _, uses in steps("uses"))


@pytest.mark.parametrize(("name", "command"), steps("run"))
def test_each_command_is_one_that_the_documents_could_give(name, command, capsys, monkeypatch):
    """Its program is known, its files exist, its extras are setup.py's."""
    monkeypatch.chdir(REPO)
    words = [word for word in shlex.split(command) if not word.startswith("transformers==")]
    check_command(words, capsys)


def test_every_python_that_setup_allows():
    allowed = setup_arguments()["python_requires"].removeprefix(">=")
    tested = of("tests: python")["strategy"]["matrix"]["python"]
    assert tested[0] == allowed and tested == [f"3.{minor}" for minor in range(10, 14)]
    runs = [step["run"] for step in of("tests: python")["steps"] if "run" in step]
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    *test_it, thorough = runs
    assert f"```bash\n{' && '.join(test_it)}\n```" in readme
    assert thorough == "pytest -m thorough"  # what the README's command leaves out


def test_the_oldest_and_the_newest_transformers():
    (oldest,) = (
        row.partition(">=")[2]
        for row in setup_arguments()["install_requires"]
        if row.startswith("transformers")
    )
    job = of("tests: transformers")
    assert job["strategy"]["matrix"]["transformers"] == [f"{oldest}.*", "5.*"]
    tested = re.findall(r"tests/\w+\.py", job["steps"][-1]["run"])
    assert len(tested) == len(set(tested)) > 20


def test_lint_runs_what_the_tests_run():
    commands = [shlex.split(step["run"]) for step in of("lint: lint")["steps"][3:]]
    ours = [list(words) for words in LINTERS]
    assert commands == [
        *(words[1:] for words in ours[:3]),
        ["lint-imports"],
        ["python", *ours[4]],
    ]


def test_hooks():
    """The linters of the tests, with their own versions, and a limit on what is added."""
    hooks = [
        hook
        for repo in yaml.safe_load(HOOKS.read_text(encoding="utf-8"))["repos"]
        for hook in repo["hooks"]
        if repo["repo"] == "local"
    ]
    entries = {hook["id"]: hook["entry"].split()[0] for hook in hooks}
    assert list(entries) == ["ruff", "ruff-format", "mypy", "import-linter", "large-files"]
    run = set(chain.from_iterable(shlex.split(command) for _, command in steps("run")))
    assert {entry for name, entry in entries.items() if name != "large-files"} <= run
    assert "--maxkb=200" in hooks[-1]["entry"]


def test_owned_paths_exist():
    lines = (REPO / ".github" / "CODEOWNERS").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert rows[0][0] == "*"
    for path, *owners in rows:
        assert owners and all(owner.startswith("@") for owner in owners)
        assert path == "*" or any(REPO.glob(path.strip("/"))), path


def test_a_wrong_command_is_found(capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    for command in ("pytest tests/test_nothing.py", "pip install -e '.[tset]'", "mpyy"):
        with pytest.raises(AssertionError):
            check_command(shlex.split(command), capsys)
