"""A training that is told to stop saves a checkpoint first, and the same command goes on from it.

Schedulers give notice with a signal: Slurm and Kubernetes with SIGTERM, Slurm with
``--signal=USR1@90`` ninety seconds before the time limit, a user with Ctrl-C. Nothing here knows of
MAM: it goes in front of any Brain.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, is_distributed_initialized
from speechbrain.utils.logger import get_logger

from speechbrain_mam.atomic import hold_folder
from speechbrain_mam.brain.whole_checkpoints import write_whole

logger = get_logger(__name__)

EXIT_CODES = {
    name: code
    # A job that ends with 0 after SIGUSR1 is requeued by its own script; 128 + n is the shell's way
    for name, code in (("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 0))
    if hasattr(signal, name)
}


class StopSignals:
    """Notes the signals that ask for an end, while it is used as a context manager.

    A second one of the same kind does what it did before: Ctrl-C twice ends at once.

    Example
    -------
    >>> with StopSignals() as asked:
    ...     before = asked.name
    ...     signal.raise_signal(signal.SIGTERM)
    ...     (before, asked.name)
    ('', 'SIGTERM')
    """

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses
            for name in EXIT_CODES:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        before = self._before[number]
        signal.signal(number, signal.SIG_DFL if before is None else before)


class DurableBrain(sb.Brain):
    """A ``Brain`` that loses nothing when it is stopped.

    Its checkpoints are whole or not there (:mod:`speechbrain_mam.brain.whole_checkpoints`). After a
    signal its training ends at the next optimizer step, with a checkpoint, and the process exits
    with 143 for SIGTERM, 130 for SIGINT, 0 for SIGUSR1. Under DDP a signal to one rank stops all.
    """

    _asked: StopSignals | None = None

    def __init__(
        self, modules=None, opt_class=None, hparams=None, run_opts=None, checkpointer=None
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        if self.checkpointer is not None:
            write_whole(self.checkpointer)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """``sb.Brain.fit``, between whose steps signals are heeded, alone in its folder."""
        if self.checkpointer is not None and if_main_process():
            hold_folder(Path(self.checkpointer.checkpoints_dir))
        with self._heeding():
            super().fit(*args, **kwargs)

    @contextmanager
    def _heeding(self) -> Iterator[None]:
        with StopSignals() as self._asked:
            yield
        # One that came after the last step
        if self._asked.name:
            signal.raise_signal(getattr(signal, self._asked.name))

    def _stop_name(self) -> str:
        """The signal that one of the ranks has been sent, at a step whose gradients are used up."""
        if self._asked is None or self.step % self.grad_accumulation_factor:
            return ""
        names = ["", *EXIT_CODES]
        mine = names.index(self._asked.name)
        if is_distributed_initialized():
            device = self.device if torch.distributed.get_backend() == "nccl" else "cpu"
            highest = torch.tensor(mine, device=device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            mine = int(highest)
        return names[mine]

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        if name := self._stop_name():
            if self.checkpointer is not None:
                self._save_intra_epoch_ckpt()
            self._leave(name)
        due: bool = super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)
        return due

    def _leave(self, name: str) -> None:
        done = "a checkpoint is saved, and the same command goes on"
        if self.checkpointer is None:
            done = "there is no checkpointer, so that nothing is saved"
        logger.warning("%s after step %d of this epoch: %s", name, self.step, done)
        sys.exit(EXIT_CODES[name])
