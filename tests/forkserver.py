"""A process that has imported the libraries and computed nothing: programs run in forks of it.

The imports of torch, transformers and SpeechBrain take longer than a tiny model's training. Whoever
starts this process (see ``processes.py``) writes one job a line to its standard input, as JSON, and
reads the exit codes from its standard output. The package itself is not imported here: a program
imports it afresh, as a user's does, and may go without.

A fork inherits one thread alone, therefore nothing here may start a second one: OpenMP's are kept
from being born by ``OMP_NUM_THREADS=1``, autograd's by computing nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    *("joblib", "matplotlib.pyplot", "numpy", "scipy.stats", "soundfile", "torch"),
    *("torch.distributed", "torchaudio", "transformers", "transformers.models.bert.modeling_bert"),
    *("transformers.models.hubert.modeling_hubert", "transformers.models.auto.processing_auto"),
    *("speechbrain", "speechbrain.inference.ASR", "speechbrain.inference.classifiers"),
)
POLL_S = 0.01


def threads() -> int:
    """How many threads this process has, also those that Python does not know."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


def wait(children: list[int], timeout_s: float) -> list[int | None]:
    """The exit codes, as :mod:`subprocess` has them; None for what was killed after `timeout_s`.

    Where one of several ends with an error, the others are ended, as ``torchrun`` does.
    """
    codes: dict[int, int | None] = {}
    end = time.monotonic() + timeout_s
    while len(codes) < len(children):
        for pid in set(children) - set(codes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() > end
        if late or any(codes.values()):
            for pid in set(children) - set(codes):
                kill(pid)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                codes[pid] = None if late else code
        time.sleep(POLL_S)
    return [codes[pid] for pid in children]


def kill(pid: int) -> None:
    """End a child and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def become(process: dict[str, Any]) -> Callable[[], object]:
    """Make of a fork what ``python ARGUMENTS`` is at its start; return what is left to do."""
    os.setpgid(0, 0)
    for number, (name, flags) in enumerate(
        (
            (os.devnull, os.O_RDONLY),
            (process["stdout"], os.O_WRONLY | os.O_APPEND),
            (process["stderr"], os.O_WRONLY | os.O_APPEND),
        )
    ):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    os.chdir(process["cwd"])
    os.environ.clear()
    os.environ.update(process["env"])
    import numpy as np

    np.random.seed()  # Python reseeds its own generator in a fork, NumPy does not
    kind, *rest = process["arguments"]
    if kind == "-c":
        code, *arguments = rest
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        compiled = compile(code, "<string>", "exec")
        return lambda: exec(compiled, {"__name__": "__main__"})
    if kind == "-m":
        module, *arguments = rest
        sys.argv, sys.path[0] = [module, *arguments], os.getcwd()
        return lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.argv, sys.path[0] = [kind, *rest], str(Path(kind).resolve().parent)
    return lambda: runpy.run_path(kind, run_name="__main__")


def serve() -> Callable[[], object] | None:
    """Fork for each job until the input ends; in a fork, return what it is to do."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints would disturb the replies
    for library in LIBRARIES:
        __import__(library)
    from speechbrain.utils import logger

    packages = logger.get_environment_description()  # half a second of pip, the same for each run
    logger.get_environment_description = lambda: packages
    gc.collect()
    gc.freeze()  # a fork's collections would copy all that was imported
    assert threads() == 1, f"{threads()} threads: a fork would hold locks of those that it lacks"
    for line in sys.stdin:
        job = json.loads(line)
        children: list[int] = []
        try:
            for process in job["processes"]:
                pid = os.fork()
                if pid == 0:
                    replies.close()
                    return become(process)
                children.append(pid)
            replies.write(f"{json.dumps(wait(children, job['timeout_s']))}\n")
            replies.flush()
        except BaseException:
            for pid in children:
                kill(pid)
            raise
    return None


def end(program: Callable[[], object]) -> NoReturn:
    """Run it, and end as the interpreter does, but for taking apart what was imported."""
    code: Any = 0
    try:
        program()
    except SystemExit as asked:
        code = 0 if asked.code is None else asked.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # waits for the threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    asked = serve()
    if asked is not None:
        end(asked)
