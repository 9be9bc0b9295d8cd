"""Checkpoints that are whole or not there: written beside and renamed, checked before any use.

SpeechBrain writes into a checkpoint's final folder, its ``CKPT.yaml`` first, so that a process that
is killed in between leaves a folder that counts as a checkpoint and cannot be loaded. Here a folder
gets its name when everything in it is on the disk, together with the size and CRC-32 of each file,
and one that is not as it was written is set aside with one line, so that the next best is taken.

Nothing here knows of MAM: :func:`write_whole` takes any ``Checkpointer`` of SpeechBrain.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_mam.brain.checkpoint_files import fault_of, sync, write_checksums
from speechbrain_mam.errors import MAMError

logger = get_logger(__name__)

PART, OLD, DAMAGED = ".part", ".old", "damaged+"


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
    """SpeechBrain's ``Checkpointer``, whose folders are complete from the moment they are there.

    ``read_only`` is for whoever looks into another one's run: nothing is renamed or removed.
    """

    read_only = False

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
        with _naming(self.checkpoints_dir):
            made = super().save_checkpoint(meta or {}, end_of_epoch, name, logging.DEBUG)
        ddp_barrier()  # every rank has written its part
        whole = None
        if made is not None:
            final = made.path.with_name(made.path.name[1 : -len(PART)])
            with _naming(self.checkpoints_dir):
                write_checksums(made.path)
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
            elif not self.read_only and if_main_process():
                _set_aside(folder, fault)
        found: list[Checkpoint] = self._construct_checkpoint_objects(whole)
        return found

    def recover_if_possible(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """As the base class does; an error if the best is asked for and every one is damaged."""
        chosen: Checkpoint | None = super().recover_if_possible(*args, **kwargs)
        if chosen is None and self.faults:
            folder, fault = next(iter(self.faults.items()))
            if any(args) or any(value is not None for value in kwargs.values()):
                raise MAMError(f"the only checkpoint '{folder}' cannot be used: {fault}")
            logger.warning("no whole checkpoint is left: the training starts from the beginning")
        return chosen

    @property
    def faults(self) -> dict[Path, str]:
        """What is wrong with the checkpoints that cannot be used."""
        return {folder: fault for folder, fault in self._checked.items() if fault}

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
        if not self.read_only and if_main_process():
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


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """What cannot be written is said with its folder; nothing half written stays in it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save's archive writer has an error of its own, of many lines
        if not isinstance(error, OSError) and not re.search(
            "inline_container|StreamWriter", str(error)
        ):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        for part in folder.glob(f".*{PART}"):
            shutil.rmtree(part, ignore_errors=True)
        raise MAMError(
            f"'{folder}': a checkpoint could not be written ({str(reason).splitlines()[0]}). Those "
            "of before are there; once there is room, the same command goes on from them"
        ) from error


def _rename(part: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}{OLD}")
    if final.exists():  # a name that a recipe gives again
        final.rename(old)
    part.rename(final)
    sync(final.parent)
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
