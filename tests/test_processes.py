"""A program in a fork behaves as one of its own: arguments, output, end, time limit, ranks."""

import json
import os
import subprocess
import sys
import time

import processes
import pytest
from conftest import made_once
from processes import READ_AT_START, run_python

TELL = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), os.environ.get("A_VARIABLE"), __name__, sys.path[0]]))
print("to stderr", file=sys.stderr)
"""
ENDS = {
    "as it is": ("print(1)", 0),
    "exit": ("import sys; sys.exit(3)", 3),
    "exit with a message": ("import sys; sys.exit('no such file')", 1),
    "error": ("1 / 0", 1),
    "at once": ("import os; os._exit(9)", 9),
    "signal": ("import os; os.kill(os.getpid(), 11)", -11),
    "at exit": ("import atexit; atexit.register(print, 'last')", 0),
    "thread": ("import threading, time; threading.Timer(0.1, print, ['late']).start()", 0),
}


@pytest.fixture()
def script(tmp_path):
    (tmp_path / "beside.py").write_text("HERE = 1")
    file = tmp_path / "script.py"
    file.write_text(f"import beside\n{TELL}")
    return file


@pytest.mark.parametrize("end", ENDS)
def test_ends(end):
    code, expected = ENDS[end]
    fork, own = (run_python("-c", code, fork=fork) for fork in (True, False))
    assert fork.returncode == own.returncode == expected
    assert fork.stdout == own.stdout
    assert fork.stderr.splitlines()[-1:] == own.stderr.splitlines()[-1:]


@pytest.mark.parametrize("kind", ["script", "-m", "-c"])
def test_what_a_program_is_told(kind, script, tmp_path):
    (tmp_path / "folder").mkdir()
    cwd = tmp_path if kind == "-m" else tmp_path / "folder"
    words = {"script": [script], "-m": ["-m", "script"], "-c": ["-c", TELL]}[kind]
    options = {"cwd": cwd, "env": {"A_VARIABLE": "1"}}
    fork, own = (run_python(*words, "a b", "--c", **options, fork=f) for f in (True, False))
    assert fork.returncode == 0, fork.stderr
    assert json.loads(fork.stdout) == json.loads(own.stdout)
    assert json.loads(fork.stdout)[1:4] == [str(cwd), "1", "__main__"]
    assert fork.stderr == own.stderr == "to stderr\n"
    merged = run_python(*words, cwd=cwd, merge_stderr=True)
    assert merged.stderr is None and "to stderr" in merged.stdout and "script" not in sys.modules


@pytest.mark.parametrize("fork", [True, False])
def test_a_program_has_its_time(fork, tmp_path):
    """What it has printed by then is told; what it has started ends with it."""
    code = "import time; print('begun', flush=True); time.sleep(60)"
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as error:
        run_python("-c", code, timeout_s=1, fork=fork)
    assert time.monotonic() - start < 30 and "begun" in str(error.value.stdout)


def test_what_torch_leaves_behind_is_no_reason_to_start_anew(monkeypatch):
    """Compiling sets a variable; every later run of a recipe would take a process of its own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")
    code = "import os, sys; print('torch' in sys.modules, 'TORCHINDUCTOR_CACHE_DIR' in os.environ)"
    assert run_python("-c", code).stdout.split() == ["True", "False"]


def test_what_is_read_at_the_start_makes_a_process_of_its_own():
    code = "import sys; print(ascii(sys.stdout.encoding), 'torch' in sys.modules)"
    assert run_python("-c", code).stdout.split()[1] == "True"
    told = run_python("-c", code, env={"PYTHONIOENCODING": "ascii"})
    assert told.stdout.split() == ["'ascii'", "False"]
    assert "PYTHON" in READ_AT_START


def test_no_fork(monkeypatch):
    monkeypatch.setattr(processes, "forks_allowed", False)
    done = run_python("-c", "import sys; print('torch' in sys.modules)")
    assert done.stdout == "False\n"


def test_a_fork_is_warm_single_threaded_and_without_the_package():
    """And with random numbers of its own."""
    code = "import sys, torch, numpy; from forkserver import threads; print(json.dumps([threads(), "
    code += "torch.get_num_threads(), 'speechbrain_mam' in sys.modules, numpy.random.rand()]))"
    found = [
        json.loads(run_python("-c", f"import json, sys; sys.path.append('tests'); {code}").stdout)
        for _ in range(2)
    ]
    assert found[0][:3] == found[1][:3] == [1, 1, False]
    assert found[0][3] != found[1][3]


RANKS = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
print(f"{os.environ['LOCAL_RANK']} of {dist.get_world_size()}: {total.item()}\\n", end="")
dist.destroy_process_group()
"""


def test_ranks_find_each_other(tmp_path):
    done = run_python("-c", RANKS, ranks=2)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 of 2: 3.0", "1 of 2: 3.0"]


def test_a_rank_that_fails_ends_the_others():
    code = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit(2); time.sleep(60)"
    start = time.monotonic()
    assert run_python("-c", code, ranks=2).returncode == 1
    assert time.monotonic() - start < 30


def test_made_once(tmp_path_factory):
    calls = []

    def make(folder):
        calls.append(folder)
        folder.mkdir()
        (folder / "half").touch()
        if len(calls) == 1:
            raise OSError("no space")
        (folder / "half").rename(folder / "whole")

    name = f"test_{os.getpid()}"
    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path_factory, name, make)
    for _ in range(2):
        folder = made_once(tmp_path_factory, name, make)
        assert [file.name for file in folder.iterdir()] == ["whole"]
    assert len(calls) == 2
