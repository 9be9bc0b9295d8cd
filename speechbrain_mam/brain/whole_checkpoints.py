"""Checkpoints that are whole or not there: written beside and renamed, checked before any use.

SpeechBrain writes into a checkpoint's final folder, its ``CKPT.yaml`` first, so that a process that
is killed in between leaves a folder that counts as a checkpoint and cannot be loaded. Here a folder
gets its name when everything in it is on the disk, together with the size and CRC-32 of each file,
and one that is not as it was written is set aside with one line, so that the next best is taken.

Nothing here knows of MAM: :func:`write_whole` takes any ``Checkpointer`` of SpeechBrain.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from speechbrain.utils.checkpoints import METAFNAME, Checkpoint, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_mam.errors import MAMError

logger = get_logger(__name__)

CHECKSUMS = "files.json"
"""In a checkpoint: ``[size, CRC-32]`` of every other file, by its path."""
PART, OLD, DAMAGED = ".part", ".old", "damaged+"
_BLOCK = 1 << 20


def write_whole(checkpointer: Checkpointer) -> None:
    """Let a checkpointer write and read whole checkpoints only. Twice does no more than once.

    Example
    -------
    >>> import torch
    >>> from speechbrain.utils.checkpoints import Checkpointer
    >>> folder = getfixture("tmp_path")
    >>> checkpointer = Checkpointer(folder, {"model": torch.nn.Linear(1, 1)})
    >>> write_whole(checkpointer)
    >>> saved = checkpointer.save_checkpoint(name="best")
    >>> sorted(file.name for file in saved.path.iterdir())
    ['CKPT.yaml', 'files.json', 'model.ckpt']
    >>> _ = saved.paramfiles["model"].write_bytes(b"half")
    >>> write_whole(another := Checkpointer(folder, {"model": torch.nn.Linear(1, 1)}))
    >>> another.list_checkpoints(), [file.name for file in folder.iterdir()]
    ([], ['damaged+CKPT+best'])
    """
    kind = type(checkpointer)
    if issubclass(kind, WholeCheckpointer):
        return
    # The object stays, since a recipe's YAML and data loaders refer to it.
    checkpointer.__class__ = type(kind.__name__, (WholeCheckpointer, kind), {})
    assert isinstance(checkpointer, WholeCheckpointer)
    checkpointer.remove_orphans()


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's ``Checkpointer``, whose folders are complete from the moment they are there."""

    def _new_checkpoint_dirpath(self) -> Path:
        return self._part(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        return self._part(super()._custom_checkpoint_dirpath(name))

    def _part(self, final: Path) -> Path:
        """Where a checkpoint is written. Its name makes no checkpoint of it, and no other run's."""
        part = final.with_name(f".{final.name}{PART}")
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        return part

    def save_checkpoint(
        self,
        meta: Any = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """As the base class does, but the folder is renamed when all of it is on the disk."""
        self.remove_orphans()
        made = super().save_checkpoint(meta or {}, end_of_epoch, name, logging.DEBUG)
        ddp_barrier()  # every rank has written its part
        whole = None
        if made is not None:
            final = made.path.with_name(made.path.name[1 : -len(PART)])
            _write_checksums(made.path)
            _rename(made.path, final)
            self._checked[final] = ""
            files = {name: final / file.name for name, file in made.paramfiles.items()}
            kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
            logger.log(verbosity, f"Saved an {kind} checkpoint in {final}")
            whole = Checkpoint(final, made.meta, files)
        ddp_barrier()  # no rank looks for it before it is there
        return whole

    def list_checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that are as they were written; others are set aside."""
        whole = []
        for folder in self._list_checkpoint_dirs():
            fault = self._fault(folder)
            if not fault:
                whole.append(folder)
            elif if_main_process():
                _set_aside(folder, fault)
        found: list[Checkpoint] = self._construct_checkpoint_objects(whole)
        return found

    def recover_if_possible(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """As the base class does; an error if the best is asked for and every one is damaged."""
        chosen: Checkpoint | None = super().recover_if_possible(*args, **kwargs)
        faults = {folder: fault for folder, fault in self._checked.items() if fault}
        if chosen is None and faults:
            folder, fault = next(iter(faults.items()))
            if any(args) or any(value is not None for value in kwargs.values()):
                raise MAMError(f"the only checkpoint '{folder}' cannot be used: {fault}")
            logger.warning("no whole checkpoint is left: the training starts from the beginning")
        return chosen

    @property
    def _checked(self) -> dict[Path, str]:
        """What is wrong with each checkpoint that this process has looked at, or ``""``."""
        checked: dict[Path, str] = self.__dict__.setdefault("_whole_checked", {})
        return checked

    def _fault(self, folder: Path) -> str:
        """What is wrong with a checkpoint; it is read once in a process."""
        if folder not in self._checked:
            expected = () if self.allow_partial_load else self.recoverables
            self._checked[folder] = fault_of(folder, expected)
        return self._checked[folder]

    def remove_orphans(self) -> None:
        """What a process that was killed has left is removed; a name that it replaced, put back."""
        if if_main_process():
            self._remove_orphans()
        ddp_barrier()

    def _remove_orphans(self) -> None:
        for old in self.checkpoints_dir.glob(f".*{OLD}"):
            final = old.with_name(old.name[1 : -len(OLD)])
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(final)
        for part in self.checkpoints_dir.glob(f".*{PART}"):
            shutil.rmtree(part, ignore_errors=True)


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
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError) as error:
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


def _write_checksums(folder: Path) -> None:
    """Note every file's size and CRC-32, and bring all of them to the disk."""
    noted = {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _crc32(file)]
        for file in _files_in(folder)
    }
    (folder / CHECKSUMS).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    for file in _files_in(folder):
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems have no fsync of folders
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _rename(part: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}{OLD}")
    if final.exists():  # a name that a recipe gives again
        final.rename(old)
    part.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(folder: Path, fault: str) -> None:
    aside, number = folder.with_name(DAMAGED + folder.name), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{DAMAGED}{folder.name}-{number}")
    try:
        folder.rename(aside)
    except OSError as error:
        logger.warning("the checkpoint '%s' is not used: %s (%s)", folder, fault, error.strerror)
        return
    logger.warning(
        "the checkpoint '%s' is not used: %s. It lies in '%s' now", folder, fault, aside.name
    )
