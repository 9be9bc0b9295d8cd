"""Trainings as processes: side by side, logged, and never twice."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.errors import MAMError

LOG_LINES_SHOWN = 20
WITH_PARENT = Path(__file__).with_name("end_with_parent.py")
"""Run as a file, so that it imports none of the libraries."""


@dataclass(frozen=True)
class Job:
    """One training.

    Arguments
    ---------
    label : str
        The method and its own overrides, safe as a file name.
    seed : int
        Its seed.
    folder : Path
        Its output folder. What it printed, over all its starts, is ``SEED.log`` beside it.
    command : tuple of str
        What is run.
    asked : dict
        What decides about the result; kept in ``SEED.json``.
    """

    label: str
    seed: int
    folder: Path
    command: tuple[str, ...]
    asked: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it wrote its results."""
        return (self.folder / "results.json").is_file()

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_name(f"{self.seed}.log")

    @property
    def record(self) -> Path:
        """What was asked of it."""
        return self.folder.with_name(f"{self.seed}.json")


def run_jobs(jobs: Sequence[Job], at_once: int = 1, show_progress: bool = True) -> None:
    """Run what is not finished; a failure stops the rest.

    Arguments
    ---------
    jobs : sequence of Job
        As :func:`plan_jobs` returns them.
    at_once : int
        How many side by side. With more than one, each gets its share of the processor cores,
        unless ``OMP_NUM_THREADS`` says otherwise.
    show_progress : bool
        A bar on stderr with the time left.

    Raises
    ------
    MAMError
        If a run fails: its name and the end of its log.
    """
    waiting = deque(job for job in jobs if not job.finished)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    environment = {**(threads if at_once > 1 else {}), **os.environ}
    running: dict[Future[int], tuple[Job, subprocess.Popen]] = {}
    done = len(jobs) - len(waiting)
    bar = tqdm(total=len(jobs), initial=done, unit="run", disable=not show_progress)
    # In a file each refresh of the bar would be one more line.
    refresh_s = 0.5 if sys.stderr.isatty() else None
    with ThreadPoolExecutor(at_once) as pool, bar:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.popleft()
                    process = _start(job, environment)
                    running[pool.submit(process.wait)] = job, process
                    names = (f"{job.label} seed {job.seed}" for job, _ in running.values())
                    bar.set_postfix_str(", ".join(names))
                for ended in wait(running, refresh_s, FIRST_COMPLETED).done:
                    _check_end(running.pop(ended)[0], ended.result())
                    bar.update()
                if refresh_s:
                    bar.refresh()
        finally:
            for _, process in running.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)  # what it has started, too


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    write_text_beside(job.record, json.dumps(job.asked, indent=1))
    with job.log.open("a", encoding="utf-8") as log:  # a resumed run's log goes on
        log.write(f"$ {shlex.join(job.command)}\n")
        log.flush()
        command = [sys.executable, str(WITH_PARENT), str(os.getpid()), *job.command]
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _check_end(job: Job, exit_code: int) -> None:
    if exit_code == 0 and job.finished:
        return
    what = f"exit code {exit_code}" if exit_code else "no results.json"
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    end = "\n".join(lines[-LOG_LINES_SHOWN:])
    raise MAMError(
        f"the run '{job.label}' with seed {job.seed} failed ({what}); the same command goes on "
        f"once that is put right. Its log '{job.log}' ends:\n{end}"
    )
