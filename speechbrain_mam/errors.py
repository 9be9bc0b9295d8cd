"""The one exception that every check of this package raises."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

LONGEST = 1600
"""Characters of a line on stderr."""


class MAMError(ValueError):
    """Bad input: a model, a plan, a YAML key or a corpus that cannot be used as asked.

    The message is one sentence that says what was expected, what was found, where (file,
    tensor, utterance or YAML key) and what to change. The command line prints it as its only
    line and exits with code 2.

    A YAML key is written ``key 'bias'``, and a setting to use ``'bias: keep'``, so that
    :func:`as_options` finds them.
    """


def as_options(message: str, options: Mapping[str, str]) -> str:
    """A message that names YAML keys, in the words of a command line.

    Arguments
    ---------
    message : str
        Of a :class:`MAMError`.
    options : mapping
        The option of each key.

    Example
    -------
    >>> options = {"bias": "--bias"}
    >>> as_options("key 'bias': 'x' is not known; use 'bias: keep'", options)
    "--bias: 'x' is not known; use '--bias keep'"
    """
    keys = "|".join(map(re.escape, options))
    message = re.sub(rf"key '({keys})'", lambda m: options[m[1]], message)
    return re.sub(rf"'({keys}): ([^']*)'", lambda m: f"'{options[m[1]]} {m[2]}'", message)


def of_the_system(error: OSError) -> str:
    """An error of the operating system in one line: what, and with which file.

    Of two files, one that is copied or renamed and where it goes, the second is the one that could
    not be written.

    Example
    -------
    >>> of_the_system(OSError(28, "No space left on device", "source", None, "copy"))
    "No space left on device: 'copy'"
    """
    file = error.filename2 if error.filename2 is not None else error.filename
    return f"{error.strerror or error}" + (f": '{file}'" if file is not None else "")


def one_line(message: str) -> str:
    """A message as one line, without the middle of one that quotes thousands of characters.

    Example
    -------
    >>> one_line("'config.json':\\nexpected a number")
    "'config.json': expected a number"
    >>> len(one_line("[" * 10_000)), one_line("[" * 10_000)[800:803]
    (1603, ' … ')
    """
    line = " ".join(message.splitlines())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with exit code 2 and the message alone where bad input comes up.

    That is a :class:`MAMError`, or a file that the system cannot read or write.

    Example
    -------
    >>> with one_line_errors():
    ...     raise ValueError("no handler") from OSError(28, "No space left on device", "log.txt")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    >>> with one_line_errors():
    ...     raise MAMError("key 'lam': λ = 2 is not a number in [0, 1]")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    try:
        yield
    except MAMError as error:
        logging.getLogger("speechbrain_mam").error("%s", one_line(str(error)))
        raise SystemExit(2) from error
    except (OSError, ValueError) as error:
        # logging has a ValueError for a log that cannot be opened, whose cause is the system's
        told = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(told, OSError) or told.filename is told.filename2 is None:
            raise  # of a socket, of a bug
        logging.getLogger("speechbrain_mam").error("%s", one_line(of_the_system(told)))
        raise SystemExit(2) from error


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise an error that names ``key`` unless ``value`` is among the allowed ones."""
    if value not in allowed:
        raise MAMError(f"key '{key}': {value!r} is not one of {', '.join(allowed)}")
