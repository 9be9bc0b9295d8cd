"""benchmarks/: they run, and what they measure has the expected sign (tiny shape, about 20 s)."""

import json
import subprocess

import pytest
from processes import run_python


def run(*options: str) -> subprocess.CompletedProcess:
    return run_python("benchmarks/train_step.py", *options)


@pytest.mark.slow
def test_train_step_tiny():
    done = run("--shape", "tiny", "--steps", "2", "--no-memory", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    variants = content["variants"]
    assert list(variants["mam"]["time"]) == ["as it comes", "memory kept"]
    assert list(variants) == [
        "plain",
        "mam",
        "parametrize",
        "functional_call",
        "stock",
        "stock, layerdrop 0",
    ]
    # the parts that do not depend on how busy this machine is
    assert variants["mam"]["kept_tensors"] <= variants["plain"]["kept_tensors"]
    assert variants["mam"]["kept_bytes"] <= variants["plain"]["kept_bytes"]
    for other in ("parametrize", "functional_call", "stock"):
        assert variants[other]["kept_bytes"] > variants["plain"]["kept_bytes"]
    losses = [variants[name]["first_loss"] for name in ("mam", "parametrize", "functional_call")]
    assert max(losses) - min(losses) <= 1e-4
    assert "variant" in done.stderr  # the table goes where it does not disturb the JSON


def test_train_step_refuses_one_round():
    done = run("--steps", "1")
    assert done.returncode == 2
    assert "at least 2" in done.stderr


@pytest.mark.slow
def test_sweep_tiny():
    done = run_python("benchmarks/sweep.py", "--shape", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bit-identical") == 2
