"""Become another program that is told to end (SIGTERM) when the process that started it is gone.

> python end_with_parent.py PARENT COMMAND...

``speechbrain-mam``'s series of trainings cannot end its children when it is killed itself; Linux
does it. Elsewhere the command runs as it would without this file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Become ``arguments[1:]``, unless ``arguments[0]`` is no longer this process's parent."""
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it ended before the line above
            return
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
