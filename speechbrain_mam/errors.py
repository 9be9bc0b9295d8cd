"""The one exception that every check of this package raises."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with exit code 2 and the message alone where a :class:`MAMError` comes up.

    Example
    -------
    >>> with one_line_errors():
    ...     raise MAMError("key 'lam': λ = 2 is not a number in [0, 1]")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    try:
        yield
    except MAMError as error:
        logging.getLogger("speechbrain_mam").error("%s", error)
        raise SystemExit(2) from error


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise an error that names ``key`` unless ``value`` is among the allowed ones."""
    if value not in allowed:
        raise MAMError(f"key '{key}': {value!r} is not one of {', '.join(allowed)}")
