"""The files of a checkpoint: whether they are what was written, and that they are on the disk."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from speechbrain.utils.checkpoints import METAFNAME

CHECKSUMS = "files.json"
"""In a checkpoint: ``[size, CRC-32]`` of every other file, by its path."""
_BLOCK = 1 << 20


def fault_of(folder: Path, recoverables: Any = ()) -> str:
    """What is wrong with a checkpoint's folder, in a few words; nothing, if ``""``.

    Arguments
    ---------
    folder : Path
        Of this module, or of SpeechBrain's own checkpointer, which notes no sizes: then every
        object must have its file, and those of ``torch.save`` must be whole archives.
    recoverables : iterable of str, optional
        The objects that SpeechBrain's checkpointer would have saved.
    """
    try:
        meta = yaml.safe_load((folder / METAFNAME).read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or not {"unixtime", "end-of-epoch"} <= meta.keys():
            return f"its '{METAFNAME}' is cut"
        noted = folder / CHECKSUMS
        if noted.is_file():
            return _fault_by_checksums(folder, json.loads(noted.read_text(encoding="utf-8")))
        files = {file.stem: file for file in folder.glob("*.ckpt")}
        if first := _first_of_the_end(files, recoverables):
            return f"it has no '{first}.ckpt'"
        return next((fault for file in files.values() if (fault := _archive_fault(file))), "")
    except FileNotFoundError as error:
        return f"it has no '{Path(error.filename).name}'"
    except (
        OSError,
        ValueError,
        yaml.YAMLError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        return f"it cannot be read ({str(error).splitlines()[0]})"


def _fault_by_checksums(folder: Path, noted: dict[str, list[int]]) -> str:
    for name, (size, checksum) in noted.items():
        file = folder / name
        if not file.is_file():
            return f"it has no '{name}'"
        if file.stat().st_size != size:
            return f"'{name}' has {file.stat().st_size} bytes of {size}"
        if _crc32(file) != checksum:
            return f"'{name}' is not what was written"
    return ""


def _first_of_the_end(files: Collection[str], recoverables: Iterable[str]) -> str:
    """The first object that was not saved, where writing ended before its time.

    SpeechBrain saves in the order of the recoverables, so that then all that follow are missing,
    too. One that another recipe has saved lacks some and has others.
    """
    order = [name for name in recoverables if "dataloader" not in name]
    missing = [name for name in order if name not in files]
    cut = (
        missing
        and missing == order[-len(missing) :]
        and not any(name not in order for name in files)
    )
    return missing[0] if cut else ""


def _archive_fault(file: Path) -> str:
    """Whether a file without a note is cut: ``torch.save`` writes archives that have checksums."""
    with file.open("rb") as stream:
        start = stream.read(4)
    if not start:
        return f"'{file.name}' is empty"
    if start != b"PK\x03\x04":  # text, such as an epoch counter's
        return ""
    try:
        with zipfile.ZipFile(file) as archive:
            return f"'{file.name}' is damaged" if archive.testzip() else ""
    except zipfile.BadZipFile:
        return f"'{file.name}' is cut"


def _files_in(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def write_checksums(folder: Path) -> None:
    """Note every file's size and CRC-32, and bring all of them to the disk."""
    noted = {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _crc32(file)]
        for file in _files_in(folder)
    }
    (folder / CHECKSUMS).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    for file in _files_in(folder):
        sync(file)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems have no fsync of folders
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
