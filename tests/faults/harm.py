"""Run a program and do harm at one of its writes: ``python harm.py HARM.json PROGRAM ARGUMENTS…``

``HARM.json`` says under which folders writes are counted (``under``), where they are listed
(``list``), and what is to happen (``do``) at the one numbered ``at``:

- ``kill``: SIGKILL before it;
- ``half``: SIGKILL when a file is half written;
- ``full``, ``readonly``: no room is left on the disk, or it can no longer be written: at this write
  and at every later one.

A write is an opened, renamed, removed or made file or folder, as Python's audit events tell, and
what the libraries write from C++ or Rust: ``torch.save``, ``safetensors``, ``soundfile``.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0}
"""Audit events, and which argument is the path that is changed."""
ERRORS = {"full": errno.ENOSPC, "readonly": errno.EROFS}


class Harm:
    """Counts the writes, and does the harm."""

    def __init__(self, under: list[str], do: str = "", at: int = -1, list: str = ""):
        self.under = [os.path.realpath(folder) for folder in under]
        self.do, self.at, self.listed = do, at, list
        self.count, self.half_of = 0, ""

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python calls it before each operation."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and isinstance(path, str | bytes | Path):
                self.write("append" if flags & os.O_APPEND else "open", path)
        elif event in CHANGES:
            self.write(event, arguments[CHANGES[event]])

    def write(self, kind: str, path: Any) -> None:
        """One write is about to happen."""
        name = os.path.abspath(os.fsdecode(path))
        if not any(f"{name}/".startswith(f"{folder}/") for folder in self.under):
            return
        if self.half_of:
            self.end()
        number, self.count = self.count, self.count + 1
        if self.listed:
            self.note(f"{number}\t{kind}\t{name}\n")
        if number < self.at or self.at < 0:
            return
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.do == "half":
            self.half_of = name
        elif self.do in ERRORS and kind != "os.remove" and kind != "os.rmdir":
            code = ERRORS[self.do]
            raise OSError(code, os.strerror(code), name)

    def note(self, line: str) -> None:
        """Without an audit event of its own under the folders."""
        with open(self.listed, "a", encoding="utf-8") as stream:
            stream.write(line)

    def end(self) -> None:
        """Half of what was written is on the disk."""
        os.truncate(self.half_of, os.path.getsize(self.half_of) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def tell(harm: Harm, module: Any, name: str, path_at: int) -> None:
    """Let a function that writes from C++ or Rust be a write like any other."""
    original: Callable[..., Any] = getattr(module, name)

    @functools.wraps(original)
    def told(*arguments: Any, **options: Any) -> Any:
        path = arguments[path_at] if len(arguments) > path_at else None
        is_path = isinstance(path, str | os.PathLike)
        if is_path:
            harm.write(name, path)
        made = original(*arguments, **options)
        if is_path and harm.half_of == os.path.abspath(os.fsdecode(path)):
            harm.end()
        return made

    setattr(module, name, told)


def normalised(path: str, under: list[str]) -> str:
    """A name that is the same in each run: without folder, time and random letters.

    Example
    -------
    >>> normalised("/o/save/.CKPT+2026-11-28+22-10-29+00.part/model.ckpt", ["/o"])
    'save/.CKPT+….part/model.ckpt'
    >>> normalised("/o/.out.0a1b2c3d.partial/config.json", ["/o"])
    '.out.….partial/config.json'
    """
    for folder in under:
        path = path.removeprefix(os.path.realpath(folder)).lstrip("/")
    path = re.sub(r"CKPT\+[0-9+-]+", "CKPT+…", path)
    return re.sub(r"\b[0-9a-f]{8}(?=\.(partial|old))", "…", path)


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.argv = sys.argv[2:]
    harm = Harm(**wanted)
    import safetensors.torch
    import soundfile
    import torch

    tell(harm, torch, "save", 1)
    tell(harm, safetensors.torch, "save_file", 1)
    tell(harm, soundfile, "write", 0)
    sys.addaudithook(harm.audit)
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
