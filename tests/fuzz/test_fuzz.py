"""Five hundred cases of bad input; ``nightly.py`` runs as many as one likes, or one of these.

The cases are made and read in a process of their own, which has limits of time and memory.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

NIGHTLY = Path(__file__).with_name("nightly.py")


@pytest.mark.slow
def test_five_hundred_cases_are_refused_in_one_line_or_read_right():
    """About a minute of one core: a third of it makes the models, corpora and runs."""
    done = subprocess.run(
        [sys.executable, str(NIGHTLY), "--cases", "500", "--seed", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    cases, refused, right, findings = map(int, done.stdout.split("\nall")[1].split()[:4])
    assert cases > 450 and findings == 0
    assert refused > 200 and right > 60  # neither is all that comes out


def test_a_case_is_the_same_whenever_it_is_run():
    import mutators

    content = b'{"a": [1, 2, {"b": "c"}], "d": 1.5}'
    for kinds in (mutators.JSON, mutators.TEXT, mutators.YAML, mutators.BYTES):
        for seed in range(40):
            found = [
                chance.choice(kinds)(content, chance)
                for chance in (random.Random(seed), random.Random(seed))
            ]
            assert repr(found[0]) == repr(found[1])


def test_what_a_finding_is(tmp_path, monkeypatch):
    """A traceback, an exit code alone, code that was run and a hang; and what is none."""
    import os

    import cases
    import mutators
    from targets import Target

    from speechbrain_mam import MAMError

    def made(folder):
        (folder / "a.txt").write_text("a")

    def raises(error):
        def run(rng):
            raise error

        return run

    def hangs(rng):
        while True:
            pass

    monkeypatch.setattr(cases, "LIMIT_S", 0.2)
    kinds = {
        "a traceback": (raises(KeyError("a")), "finding"),
        "no file": (raises(OSError("a")), "finding"),
        "a file": (raises(FileNotFoundError(2, "No such file", "a.txt")), "refused"),
        "a line": (raises(MAMError("'a.txt' is wrong")), "refused"),
        "no line": (lambda rng: 2, "finding"),
        "code": (lambda rng: os.mkdir(mutators.EXECUTED), "finding"),
        "a hang": (hangs, "finding"),
        "a crash": (lambda rng: os.abort(), "finding"),
        "right": (lambda rng: None, "right"),
    }
    for name, (run, kind) in kinds.items():
        target = Target(name, made, ("a.txt",), run, share=0)
        monkeypatch.setitem(cases.TARGETS, name, target)
        assert cases.Workshop(tmp_path).run(name, 1).kind == kind, name
