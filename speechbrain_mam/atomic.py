"""Files and folders that come whole or not at all, written by one process at a time.

The operating system frees a lock when its holder ends, however it ends, so that a killed process
locks nobody out.
"""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from speechbrain_mam.errors import MAMError

logger = logging.getLogger(__name__)

LOCK, HOLDER = ".running.lock", ".running.json"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF}
_mine: dict[Path, FileLock] = {}


def check_output(out: Path, force: bool, **sources: Path) -> Path:
    """Where the merged model may be written.

    Arguments
    ---------
    out : Path
        The folder that is asked for.
    force : bool
        Whether an existing folder may be replaced.
    **sources : Path
        The folders that are read (``target=…, donor=…``) and must stay.

    Returns
    -------
    Path
        ``out``, absolute and without links.

    Raises
    ------
    MAMError
        If ``out`` is, holds or lies in one of the sources, is a file, is not empty (without
        ``force``), or holds the home folder or the working directory.
    """
    out = out.resolve()
    for role, source in sources.items():
        source = source.resolve()
        for at_fault, relation in (
            (out == source, "is"),
            (out in source.parents, "holds"),
            (source in out.parents, "lies inside"),
        ):
            if at_fault:
                raise MAMError(f"--out '{out}' {relation} the {role}'s folder; choose another one")
    if any(out.parent.glob(f".{glob.escape(out.name)}.*")):  # of a process that was killed
        with only_here(out):
            put_right(out)
    if out.exists() and not out.is_dir():
        raise MAMError(f"--out '{out}' is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise MAMError(f"--out '{out}' exists and is not empty; --force replaces it")
        for place in (Path.cwd(), Path(os.path.expanduser("~")).resolve()):
            if out == place or out in place.parents:
                raise MAMError(f"--out '{out}' holds '{place}' and is not replaced")
    return out


@contextmanager
def new_folder(out: Path, force: bool = False) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` if the block ends well, and else is removed.

    What a process that was killed here has left beside ``out`` is put right first.

    Arguments
    ---------
    out : Path
        As :func:`check_output` returned it.
    force : bool
        Replace ``out`` where it exists. It is moved away only once the new one is complete.

    Raises
    ------
    MAMError
        If another process is writing ``out``.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     with new_folder(Path(scratch) / "a" / "b") as folder:
    ...         _ = (folder / "file").write_text("whole")
    ...     [path.name for path in Path(scratch).rglob("*")]
    ['a', 'b', 'file']
    """
    parents = [parent for parent in out.parents if not parent.exists()]
    unique = f".{out.name}.{secrets.token_hex(4)}"
    staging, aside = out.with_name(f"{unique}.partial"), out.with_name(f"{unique}.old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with only_here(out):
            put_right(out)
            staging.mkdir()
            yield staging
            if force and out.exists():
                out.rename(aside)
            try:
                staging.rename(out)
            except OSError:
                if aside.exists():
                    aside.rename(out)
                raise
            if aside.exists():
                shutil.rmtree(aside)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in parents:
            with suppress(OSError):
                parent.rmdir()
        raise


@contextmanager
def only_here(out: Path, wait: bool = False) -> Iterator[None]:
    """Within the block no other process is in such a block of the same ``out``.

    Arguments
    ---------
    out : Path
        A folder that need not exist; the one that holds it must.
    wait : bool
        Wait for the other one to end, rather than raise.

    Raises
    ------
    MAMError
        If another process is in it.
    """
    with held(out.with_name(f".{out.name}.lock"), wait) as mine:
        if not mine:
            raise MAMError(f"'{out}' is being written by another process; choose another folder")
        yield


def put_right(out: Path) -> None:
    """Remove what a killed :func:`new_folder` has left beside ``out``; ``out`` itself comes back.

    It is gone for a moment while ``force`` replaces it.
    """
    hexadecimal = "[0-9a-f]" * 8
    name = glob.escape(out.name)
    for old in out.parent.glob(f".{name}.{hexadecimal}.old"):
        if not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    for staging in out.parent.glob(f".{name}.{hexadecimal}.partial"):
        shutil.rmtree(staging, ignore_errors=True)


def write_text_beside(file: Path, text: str) -> None:
    """A text in UTF-8, by :func:`write_beside`."""
    write_beside(file, lambda part: part.write_text(text, encoding="utf-8"))


def write_beside(file: Path, write) -> None:
    """Call ``write(part)`` on a name beside ``file`` and rename: never a half-written file."""
    part = file.with_name(f".{file.name}.part")
    try:
        write(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def held(file: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file within the block, and remove it; again within the block does nothing.

    Arguments
    ---------
    file : Path
        The lock; its folder exists.
    wait : bool
        Wait for another process that holds it.

    Yields
    ------
    bool
        False if another process holds it.

    Example
    -------
    >>> file = getfixture("tmp_path") / ".lock"
    >>> with held(file) as first, held(file) as second:
    ...     first, second, file.exists()
    (True, True, True)
    >>> file.exists()
    False
    """
    file = file.resolve()
    if file in _mine:
        yield True
        return
    if not _take(file, wait):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            file.unlink()  # while it is held: whoever opened it before sees that it is gone
        _mine.pop(file).release()


def _take(file: Path, wait: bool = False) -> bool:
    lock = FileLock(str(file), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        return False
    except NotImplementedError:
        logger.warning("'%s': this file system has no locks", file.parent)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("'%s': this file system has no locks (%s)", file.parent, error.strerror)
    _mine[file] = lock
    return True


def hold_folder(folder: Path) -> None:
    """Take a run's folder for this process, until it ends. Twice does no more than once.

    Raises
    ------
    MAMError
        If another process has it: which one, where, since when, and what it runs.

    Example
    -------
    >>> hold_folder(folder := getfixture("tmp_path"))
    >>> sorted(json.loads((folder / HOLDER).read_text()))
    ['command', 'host', 'process', 'since']
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.resolve() / LOCK
    if file in _mine:
        return
    if not _take(file):
        raise MAMError(
            f"'{folder}' is in use{_holder(folder)}; wait until it ends, or choose another"
        )
    content = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "command": shlex.join(sys.argv),
    }
    (folder / HOLDER).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return " by process {process} on {host} since {since}: {command}".format(**found)
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return " by another process"
