"""The blocks of the documents, and what is checked of a shell command in them.

A command of this package runs where all that it reads is there; else it must get as far as to say
what is missing. A recipe's command is parsed: script, YAML, options, keys. A program that is not in
:data:`PROGRAMS` fails.
"""

from __future__ import annotations

import glob
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import setuptools
import speechbrain as sb
from conftest import REPO
from hyperpyyaml import resolve_references
from torch.distributed.run import get_args_parser

from speechbrain_mam import cli
from speechbrain_mam.runs import seeds
from speechbrain_mam.runs.folds import parse_folds
from speechbrain_mam.runs.yaml_checks import asked_donors
from speechbrain_mam.runs.yaml_files import base_and_overrides

DIRECTIVES = {"include", "toctree"}
"""Of MyST, which the strict build checks."""

NOT_THERE = re.compile(
    r"was found neither in .* nor on the Hub|no such folder, and not a name on|no such file|"
    r"holds no results\.json|expected the output folder of a finished run|"
    r"not the output folder of a recipe|HF_TOKEN is not set"
)
"""What a command may say whose models, runs or data are not on this machine."""

VARIABLES = {
    **{"SLURM_NNODES": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[1-2]"},
    **dict.fromkeys(("OMP_NUM_THREADS", "HF_HUB_OFFLINE"), "1"),
    **dict.fromkeys(
        ("SPEECHBRAIN_MAM_CACHE", "SPEECHBRAIN_MAM_REAL_DATA", "SPEECHBRAIN_RECIPES"), "folder"
    ),
}
SBATCH = {
    "job-name",
    "nodes",
    "ntasks-per-node",
    "gpus-per-node",
    "cpus-per-task",
    "time",
    "requeue",
}


@dataclass(frozen=True)
class Block:
    """A fenced block, where it stands, and the comment above it (``<!-- message -->``)."""

    page: Path
    line: int
    kind: str
    text: str
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPO)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page but MyST's directives."""
    pattern = re.compile(
        r"(?:^<!-- (?P<mark>.*?) -->\n)?^(?P<fence>`{3,}|~{3,}|:{3,})(?P<kind>[^\n]*)\n"
        r"(?P<text>.*?)^(?P=fence)$",
        re.M | re.S,
    )
    text, found = page.read_text(encoding="utf-8"), []
    for m in pattern.finditer(text):
        line, kind = text.count("\n", 0, m.start("text")) + 1, m["kind"].strip()
        if directive := re.fullmatch(r"\{([\w-]+)\}.*", kind):
            assert directive[1] in DIRECTIVES, f"{page}:{line}: unknown directive {kind}"
            continue
        found.append(Block(page, line, kind, m["text"], m["mark"] or ""))
    return found


def commands(text: str) -> list[list[str]]:
    """A shell block's commands as words, variables and globs expanded."""
    variables, found = dict(VARIABLES), []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("#!"):
            assert line == "#!/bin/bash", line
        elif line.startswith("#SBATCH"):
            option = re.fullmatch(r"#SBATCH --([\w-]+)(?:=\S+)?", line)
            assert option is not None and option[1] in SBATCH, line
        elif computed := re.fullmatch(r"(\w+)=\$\((\w+) .*\)", line):
            assert computed[2] in ("scontrol",), line
            variables[computed[1]] = "value"
        elif line.strip() and not line.startswith("#"):
            for part in re.split(r" && | ; ", line):
                found.append(_words(part, variables))
    return found


def _words(command: str, variables: dict[str, str]) -> list[str]:
    def value(match: re.Match[str]) -> str:
        assert match[1] in variables, f"${match[1]} is set nowhere: {command}"
        return variables[match[1]]

    words = []
    for word in shlex.split(re.sub(r"\$\{?(\w+)\}?", value, command)):
        braces = re.fullmatch(r"(.*)\{(.*,.*)\}(.*)", word) if " " not in word else None
        several = [braces[1] + b + braces[3] for b in braces[2].split(",")] if braces else [word]
        for one in several:
            words += sorted(glob.glob(one)) or [one] if "*" in one else [one]
    return words


def check_command(words: list[str], capsys) -> None:
    """Fail where a command would be refused."""
    program, *rest = words
    assert program in PROGRAMS, f"unknown program: {shlex.join(words)}"
    PROGRAMS[program](rest, capsys)


def _mam(words: list[str], capsys) -> None:
    if words[0] == "compare":
        return _seeds(words[1:])
    capsys.readouterr()
    try:
        code = cli.main(words)
    except SystemExit as exit:  # --help, --version
        code = exit.code or 0
    said = capsys.readouterr()
    assert code == 0 or (code == 2 and NOT_THERE.search(said.err)), said.err
    return None


def _python(words: list[str], capsys) -> None:
    if words[0] != "-m":
        return _script(words)
    module, rest = words[1], words[2:]
    if module == "speechbrain_mam":
        return _mam(rest, capsys)
    if module == "speechbrain_mam.report":
        return _mam(["report", *rest], capsys)
    if module == "speechbrain_mam.seeds":
        return _seeds(rest)
    assert importlib.util.find_spec(module), f"python -m {module}: no such module"
    return None


def _script(words: list[str]) -> None:
    """A recipe with its YAML and overrides, or a benchmark."""
    script, *arguments = words
    assert Path(script).is_file(), f"{script}: no such file"
    if Path(script).parts[0] != "recipes":
        return
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        recipe = runpy.run_path(script)
    finally:
        sys.path.pop(0)
    for name, own_options in recipe.items():
        if name.endswith("_options"):
            options, arguments = own_options(arguments)
            if getattr(options, "folds", None):
                parse_folds(options.folds)
    yaml, _, overrides = sb.parse_arguments(arguments)
    assert Path(yaml).is_file(), f"{yaml}: no such file"
    base, replaced = base_and_overrides(Path(yaml), overrides)
    with base.open(encoding="utf-8") as stream:
        # An override that names no key, and a !PLACEHOLDER that is left, raise
        content = resolve_references(stream, replaced, overrides_must_match=True).getvalue()
    assert "PLACEHOLDER" not in content, f"{yaml}: needs more options"


def _seeds(words: list[str]) -> None:
    jobs: list[seeds.Job] = []

    class Planned(Exception):
        """No run is started."""

    def run_jobs(found, _):
        jobs.extend(found)
        raise Planned

    real = seeds.run_jobs, seeds.check_asked_donors
    seeds.run_jobs, seeds.check_asked_donors = run_jobs, asked_donors  # large ones are not here
    try:
        seeds.main(words)
    except Planned:
        pass
    finally:
        seeds.run_jobs, seeds.check_asked_donors = real
    for job in jobs:
        words = list(job.command[1:])
        _torchrun(words[2:]) if words[0] == "-m" else _script(words)


def _torchrun(words: list[str], capsys=None) -> None:
    options = get_args_parser().parse_args(words)
    _script([options.training_script, *options.training_script_args])


def _pip(words: list[str], capsys) -> None:
    assert words[0] == "install", words
    for word in words[1:]:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(setup_arguments()["extras_require"]), word
        else:
            known = [
                line for group in setup_arguments()["extras_require"].values() for line in group
            ]
            assert word in ("-e", "--no-deps", ".", *known), f"pip install {word}"


def setup_arguments() -> dict:
    """What ``setup.py`` says."""
    said: dict = {}
    real, setuptools.setup = setuptools.setup, said.update
    try:
        runpy.run_path(str(REPO / "setup.py"))
    finally:
        setuptools.setup = real
    return said


WORDS = {
    *("check", "format", "--check", "-W", "--keep-going", "-m", "not slow", "faults", "-n", "0"),
    *("-s", "-k", "learnable and kill", "docs/build"),
    *("slow or recipes", "recipes", "thorough", "nightly"),
}
"""Of linters, pytest and Sphinx, that are no files."""


def _files(words: list[str], capsys) -> None:
    for word in words:
        known = word in WORDS
        assert known or Path(word).exists(), f"{word}: no such file"


def _export(words: list[str], capsys) -> None:
    name, is_set, _ = words[0].partition("=")
    assert is_set and name in VARIABLES, words


def _mutmut(words: list[str], capsys) -> None:
    """Not installed for the tests; what it reads is in ``pyproject.toml``."""
    assert words[0] in ("run", "results", "show"), words
    assert "[tool.mutmut]" in (REPO / "pyproject.toml").read_text("utf-8")


PROGRAMS: dict[str, Callable[[list[str], object], None]] = {
    "speechbrain-mam": _mam,
    "python": _python,
    "torchrun": _torchrun,
    "srun": check_command,
    "sbatch": lambda words, _: None,  # its file is a block of the same page, see test_docs
    "pip": _pip,
    "export": _export,
    "source": lambda words, _: None,
    **dict.fromkeys(("sclite", "cat"), lambda words, _: None),  # NIST's, what it reads piped on
    **dict.fromkeys(("pytest", "ruff", "mypy", "lint-imports", "sphinx-build"), _files),
    "mutmut": _mutmut,
}
