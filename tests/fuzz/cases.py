"""One case: a folder of right files, one of them made wrong, and how a reader takes it.

It takes it well where it gives a result, or refuses with one line of this package's: a
:class:`~speechbrain_mam.MAMError`, or an ``OSError`` that names the file. Anything else is a
finding: another exception, several lines, more than :data:`LIMIT_S`, or code that was run.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mutators
import weights
from targets import TARGETS, Target

from speechbrain_mam.errors import MAMError, of_the_system, one_line

LIMIT_S = 20
MORE_MEMORY = 6 << 30
"""How much address space a case may take beyond what the process has."""


class TooLong(BaseException):
    """Raised by the alarm; no ``except Exception`` takes it for something of its own."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case; ``said`` is the line, or the traceback of a finding."""

    target: str
    seed: int
    what: str
    kind: str
    said: str

    def __str__(self) -> str:
        return f"{self.target}:{self.seed} ({self.what}): {self.kind}: {self.said}"


class Workshop:
    """Folders of right files, made once each, and the cases made of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.warm: set[str] = set()

    def original(self, target: Target) -> Path:
        """The target's right files."""
        name = getattr(target.make, "__name__", "x").strip("<>")
        place = self.folder / name
        if not place.exists():
            part = self.folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            # A run's YAML holds where its models lie: made in its own place
            part.rename(place)
            try:
                target.make(place)
            except BaseException:
                shutil.rmtree(place)
                raise
        return place

    def _warm_up(self, target: Target) -> None:
        """What is right is taken so; and what the libraries load is loaded in each fork."""
        self.warm.add(target.name)
        with tempfile.TemporaryDirectory(prefix="right") as folder:
            case = Path(folder) / "in" / "case"
            shutil.copytree(self.original(target), case)
            kind, said = _taken(case, target, random.Random(0))
            assert kind == "right", f"{target.name}: {said}"

    def run(self, name: str, seed: int) -> Outcome:
        """One case, the same one whenever it is run."""
        target, rng = TARGETS[name], random.Random(f"{name} {seed}")
        original = self.original(target)
        if target.share and target.files and name not in self.warm:
            self._warm_up(target)
        with tempfile.TemporaryDirectory(prefix="case") as outside:
            case = Path(outside) / "in" / "case"
            # a link is not changed: the mutated file is written anew
            shutil.copytree(original, case, copy_function=os.link)
            what = _mutate(case, target, rng)
            kind, said = _in_a_fork(lambda: _taken(case, target, rng))
        return Outcome(name, seed, what, kind, said)


def _in_a_fork(run: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """What comes of it in a process of its own: a library may crash, or change what it keeps."""
    reader, writer = os.pipe()
    gc.freeze()  # a fork's collections would copy all that was imported
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(run(), stream)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(child, 0)
    if not content:
        return "finding", f"the process has died: {os.waitstatus_to_exitcode(status)}"
    return pickle.loads(content)


def _mutate(case: Path, target: Target, rng: random.Random) -> str:
    pattern = rng.choice(target.files) if target.files else None
    files = sorted(file for file in case.glob(pattern) if file.is_file()) if pattern else []
    if not files:
        return "its arguments"
    file = rng.choice(files)
    content, told = file.read_bytes(), []
    kinds = target.kinds or weights.BY_SUFFIX.get(file.suffix, mutators.TEXT)
    for _ in range(rng.choice([1, 1, 1, 2])):
        mutator = rng.choice(kinds)
        try:
            what, content = mutator(content, rng)
        except Exception:  # it reads the file, and the first mutation has made that impossible
            continue
        told.append(what)
    file.unlink()
    file.write_bytes(content)
    return f"{file.relative_to(case)}: {'; '.join(told)}"


def _taken(case: Path, target: Target, rng: random.Random) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        with _limits(case), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = target.run(rng)
    except MAMError as error:
        found = "refused", one_line(str(error))
    except OSError as error:
        named = error.filename is not None or error.filename2 is not None
        found = (
            ("refused", one_line(of_the_system(error)))
            if named
            else ("finding", traceback.format_exc())
        )
    except (Exception, TooLong):
        found = "finding", traceback.format_exc()
    else:
        lines = [x for x in err.getvalue().splitlines() if not x.startswith("note: ")]
        if code == 2 and len(lines) == 1 and "error: " in lines[0]:
            found = "refused", lines[0]
        elif code:
            found = "finding", f"exit code {code}, stderr: {err.getvalue()!r}"
        else:
            found = "right", ""
    if found[0] == "refused" and (len(found[1].splitlines()) != 1 or len(found[1]) > 4000):
        found = "finding", f"no line of a readable length: {found[1][:3000]!r}"
    # The YAML that one runs a recipe with is code, and trusted (SECURITY.md).
    if target.name != "recipe" and any(case.parent.parent.rglob(mutators.EXECUTED)):
        found = "finding", f"code was run; said: {found}"
    return found


@contextlib.contextmanager
def _limits(case: Path) -> Iterator[None]:
    """In the case's folder, for a while, with so much memory, and without libraries' notes."""

    def stop(signum: int, frame: object) -> None:
        raise TooLong(f"more than {LIMIT_S} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, level = os.getcwd(), logging.root.manager.disable
    handlers = {one: signal.signal(one, stop) for one in (signal.SIGALRM, signal.SIGPROF)}
    os.chdir(case)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, hard))
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # a busy machine is no hang
        signal.setitimer(signal.ITIMER_REAL, 10 * LIMIT_S)
        logging.disable(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        logging.disable(level)
        for one, handler in handlers.items():
            signal.signal(one, handler)
        os.chdir(before)


def plan(cases: int, seed: int, names: list[str] | None = None) -> list[tuple[str, int]]:
    """Which cases: each target has its share, and no two seeds have a case in common."""
    chosen = [TARGETS[name] for name in names or TARGETS]
    total = sum(target.share for target in chosen)
    found = []
    for target in chosen:
        count = max(1, round(cases * target.share / total))
        found += [(target.name, 10**6 * seed + i) for i in range(count)]
    return found
