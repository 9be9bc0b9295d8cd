"""Python programs as the tests start them: in a fork of a warm process, or each on its own.

``run_python`` is ``subprocess.run([sys.executable, ...])`` for programs that import torch: the fork
has its own arguments, folder, environment, output, exit code and time limit, and spares itself the
libraries' imports. ``ranks`` starts as many at once, with what ``torchrun`` tells each.

A variable that Python or a library reads at its start decides what a fork no longer can: where the
environment has another value of one, the program is a process of its own, as with ``fork=False``
and under ``pytest --no-fork``.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "KMP_", "HF_", "TRANSFORMERS_", "TORCH", "LD_", "MPL")
SET_BY_TORCH = (
    *("TORCHINDUCTOR_CACHE_DIR", "TORCH_WARM_POOL", "KMP_DUPLICATE_LIB_OK"),
    *("TORCHCOMM_RANK", "TORCHCOMM_SIZE", "TORCHELASTIC_SIGNALS_TO_HANDLE"),
)
"""In the process that has compiled or joined a group: nobody's wish for the next one."""
forks_allowed = hasattr(os, "fork")
_server: Server | None = None


class Server:
    """The warm process of ``forkserver.py``, which starts a program a fork."""

    def __init__(self) -> None:
        inherited = {key: value for key, value in os.environ.items() if key not in SET_BY_TORCH}
        self.environment = {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forkserver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPO,
            env=self.environment,
        )

    def can_run(self, environment: Mapping[str, str]) -> bool:
        """Whether no variable that is read at the start differs from this process's."""
        ours = {k: v for k, v in self.environment.items() if k.startswith(READ_AT_START)}
        return ours == {k: v for k, v in environment.items() if k.startswith(READ_AT_START)}

    def run(self, processes: list[dict[str, Any]], timeout_s: float) -> list[int | None]:
        """The exit codes; None for a program that was ended after `timeout_s`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(
            f"{json.dumps({'processes': processes, 'timeout_s': timeout_s})}\n"
        )
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        assert reply, f"the server of forks has ended with code {self.process.wait()}"
        return json.loads(reply)

    def close(self) -> None:
        """Let it see the end of its input."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def _warm() -> Server:
    global _server
    if _server is None or _server.process.poll() is not None:
        _server = Server()
        atexit.register(_server.close)
    return _server


def run_python(
    *arguments: object,
    cwd: Path | str = REPO,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 300,
    merge_stderr: bool = False,
    ranks: int = 0,
    fork: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program and wait for its end.

    Arguments
    ---------
    *arguments : object
        What follows ``python``: a script and its arguments, ``-m`` and a module, ``-c`` and code.
    cwd : Path or str
        Its folder.
    env : mapping, optional
        Added to this process's environment, ``OMP_NUM_THREADS=1`` and ``HF_HUB_OFFLINE=1``.
    timeout_s : float
        It is ended then, with all that it started.
    merge_stderr : bool
        Both outputs in ``stdout``.
    ranks : int
        As many processes as ``torchrun --nproc_per_node`` starts; 0 for one without DDP.
    fork : bool
        False for a process of its own.

    Returns
    -------
    subprocess.CompletedProcess
        Exit code and output; for several ranks ``torchrun``'s, which is 1 where one failed.

    Raises
    ------
    subprocess.TimeoutExpired
        After `timeout_s`.

    Example
    -------
    >>> done = run_python("-c", "import sys; print(sys.argv[1]); sys.exit(3)", "hello", fork=False)
    >>> done.returncode, done.stdout
    (3, 'hello\\n')
    """
    words = [str(argument) for argument in arguments]
    inherited = {key: value for key, value in os.environ.items() if key not in SET_BY_TORCH}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
    if not (fork and forks_allowed and _warm().can_run(environment)):
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
        return subprocess.run(
            [sys.executable, *(launcher if ranks else []), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge_stderr else subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment,
            timeout=timeout_s,
        )
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, name) for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        program = {"arguments": words, "cwd": str(cwd), "stdout": str(files[0])}
        program["stderr"] = str(files[0 if merge_stderr else 1])
        told = _told_to_ranks(ranks) if ranks else [{}]
        codes = _warm().run([{**program, "env": {**environment, **own}} for own in told], timeout_s)
        out, err = (file.read_text(errors="replace") for file in files)
    if None in codes:
        raise subprocess.TimeoutExpired(words, timeout_s, out, err)
    code = int(any(codes)) if ranks else codes[0]  # torchrun has a 1 for every failure
    return subprocess.CompletedProcess(words, code, out, None if merge_stderr else err)


def _told_to_ranks(ranks: int) -> list[dict[str, str]]:
    """The environment that ``torchrun`` gives each rank, all on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
