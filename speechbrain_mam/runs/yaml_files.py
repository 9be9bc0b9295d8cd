"""A recipe's command line, and a YAML that says only what differs from another one, its base.

HyperPyYAML includes a file under a key, never at the top. But it takes *overrides*, keys that
replace those of the file which it loads, references and placeholders included; a recipe's command
line goes that way. So what is loaded is the file that stands alone, the base. What includes it is
an override of it, and so is the command line after that. Read without this package::

    large = ruamel.yaml.YAML().load(open("hparams/large/finetune.yaml"))
    overrides = {**large, "data_folder": "/data/LJSpeech-1.1"}
    hparams = load_hyperpyyaml(open("hparams/finetune.yaml"), overrides)

Such a file loaded as if it were whole is an error of HyperPyYAML's, not half a recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import sys
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml
from hyperpyyaml.core import recursive_update
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from speechbrain_mam.errors import MAMError
from speechbrain_mam.text_files import check_aliases, read_text

_INCLUDE = re.compile(r"^(?:--- +)?!include:(\S+)", flags=re.M)
"""At the start of a line: the tag of the whole file, not that of a key."""
OF_WHAT_IS_CALLED = (
    *(YAMLError, TypeError, AttributeError, ImportError, ArithmeticError, RecursionError),
)
"""What a YAML with a wrong value, name or nesting ends in, in HyperPyYAML or in what it calls."""


def files_of(yaml: Path) -> list[Path]:
    """A YAML and the one it includes as a whole, which may do so too; the last one stands alone.

    Raises
    ------
    MAMError
        If one of them does not exist, or includes itself.
    """
    files = [yaml]
    while True:
        try:
            tag = _INCLUDE.search(read_text(files[-1]))
        except MAMError as error:
            by = f"'{files[-2]}' includes " if len(files) > 1 else ""
            raise MAMError(f"{by}{error}") from error
        if tag is None:
            return files
        included = files[-1].parent / tag[1]
        short = Path(os.path.normpath(included))  # another file where a folder is a link
        files.append(short if short.exists() and short.samefile(included) else included)
        if any(files[-1].resolve() == file.resolve() for file in files[:-1]):
            raise MAMError(f"'{files[-2]}' includes '{files[-1]}': they include one another")


def content_sha256(yaml: Path) -> str:
    """SHA-256 of a YAML together with what it includes as a whole."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files_of(yaml))).hexdigest()


def base_and_overrides(yaml: Path, overrides: str = "") -> tuple[Path, str | dict[str, Any]]:
    r"""What HyperPyYAML is to load, and what is to replace keys of it.

    Arguments
    ---------
    yaml : Path
        A recipe's YAML, whole or with the tag ``!include:FILE`` above its keys.
    overrides : str
        The command line's, which go before those of the file.

    Returns
    -------
    tuple
        The file that stands alone, and its overrides: as they were given, or a mapping.

    Raises
    ------
    MAMError
        If a key is not in the file that stands alone: it would replace nothing. Or if aliases stand
        for too many values.

    Example
    -------
    >>> import tempfile
    >>> from hyperpyyaml import load_hyperpyyaml
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "small.yaml").write_text("width: 384\ndouble: !ref <width> * 2\nlr: 0.1\n")
    >>> _ = (folder / "large.yaml").write_text("!include:small.yaml\nwidth: 1024\n")
    >>> base, overrides = base_and_overrides(folder / "large.yaml", "lr: 0.2")
    >>> load_hyperpyyaml(base.open(), overrides)
    {'width': 1024, 'double': 2048, 'lr': 0.2}
    """
    files = files_of(yaml)
    for file in files:
        check_aliases(read_text(file), f"'{file}'")
    check_aliases(overrides, "the command line")
    *above, base = files
    if not above:
        return base, overrides
    known = keys_of(base)
    replaced: dict[str, Any] = {}
    for file in reversed(above):
        keys = keys_of(file)
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise MAMError(f"'{file}': '{base}' has no key '{key}' to replace{hint}")
        _replace(replaced, keys, f"'{file}'")
    _replace(replaced, YAML().load(overrides) or {}, "the command line")
    return base, replaced


def load_yaml(yaml: Path, overrides: str = "") -> tuple[dict[str, Any], Path, str | dict[str, Any]]:
    """Load a recipe's YAML with HyperPyYAML; mistakes in it are one line that names the file.

    Arguments
    ---------
    yaml, overrides : Path, str
        As of :func:`base_and_overrides`.

    Returns
    -------
    tuple
        Hyperparameters, and what :func:`base_and_overrides` returns.

    Raises
    ------
    MAMError
        If a file does not exist or is no YAML, a key, reference or argument is not known, or a
        placeholder has no value.
    """
    named = " over ".join(f"'{file}'" for file in files_of(yaml))
    try:
        base, replaced = base_and_overrides(yaml, overrides)
        with base.open(encoding="utf-8") as stream:
            return load_hyperpyyaml(stream, replaced), base, replaced
    except MAMError:  # of what the YAML calls
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        known = mark is not None and not mark.name.startswith("<")  # else of what was made of them
        where = f"'{mark.name}', line {mark.line + 1}" if known else named
        raise MAMError(f"{where}: {error.problem or error.context}") from error
    except KeyError as error:
        match = re.match(r"Override '(.*?)' not found in: (\[.*\])", str(error.args[0]))
        if match is None:
            raise _cannot_be_loaded(named, error) from error
        near = difflib.get_close_matches(match[1], re.findall(r"'(.*?)'", match[2]), n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise MAMError(f"--{match[1]}: {named} has no such key{hint}") from error
    except ValueError as error:
        if match := re.match(r"'(.*)' is a !PLACEHOLDER", str(error)):
            raise MAMError(f"{named}: '{match[1]}' has no value yet; use --{match[1]}") from error
        if "structure of the overrides" in str(error):
            keys = ", ".join(f"'{k}'" for k, v in error.args[1].items() if isinstance(v, dict))
            raise MAMError(
                f"{named}: an override cannot give {keys} keys of its own; write them into the YAML"
            ) from error
        if "reference" not in str(error):
            raise _cannot_be_loaded(named, error) from error
        raise MAMError(f"{named}: {error}") from error
    except OF_WHAT_IS_CALLED as error:
        raise _cannot_be_loaded(named, error) from error


def _cannot_be_loaded(named: str, error: Exception) -> MAMError:
    """Of what a YAML calls, or of its values."""
    told = str(error) if isinstance(error, YAMLError) else " ".join(map(str, error.args))
    reason = " ".join(told.split()) or type(error).__name__
    return MAMError(f"{named} cannot be loaded: {reason}")


def _replace(replaced: dict[str, Any], keys: dict[str, Any], where: str) -> None:
    try:
        recursive_update(replaced, keys)
    except TypeError as error:
        raise MAMError(f"{where}: {error}") from error


def keys_of(file: Path) -> dict[str, Any]:
    """The YAML's keys; HyperPyYAML's tags stay as they are."""
    text = read_text(file)
    check_aliases(text, f"'{file}'")
    # Without its own tag: ruamel.yaml takes a tagged mapping less strictly
    stream = StringIO(_INCLUDE.sub("#", text))
    stream.name = str(file)  # type: ignore[attr-defined] # for ruamel.yaml's errors
    keys = YAML().load(stream) or {}
    if not isinstance(keys, dict):
        raise MAMError(f"'{file}': expected keys and values, found a {type(keys).__name__}")
    return keys


def parse_arguments(arguments: list[str]) -> tuple[str, Any, str]:
    """SpeechBrain's reading of a command line, whose errors are one line.

    Checkpoints may be fractions of a minute apart, and λ may be one of each projection.

    Returns
    -------
    tuple
        The YAML, run options, overrides.

    Raises
    ------
    MAMError
        For an option that SpeechBrain does not take as it is.

    Example
    -------
    >>> parse_arguments(["mam.yaml", "--debug_batches", "few"])
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: argument --debug_batches: invalid int value: 'few'
    """
    import speechbrain as sb  # seconds, which a series of seeds does not need

    arguments, minutes = _fractions(_lam_as_text(arguments))
    told = StringIO()
    try:
        with redirect_stderr(told):
            yaml, run_opts, overrides = sb.parse_arguments(arguments)
    except SystemExit as end:
        if end.code != 2:  # --help
            raise
        raise MAMError(told.getvalue().strip().rpartition("error: ")[2]) from end
    sys.stderr.write(told.getvalue())
    if minutes is not None:
        run_opts = dataclasses.replace(run_opts, ckpt_interval_minutes=minutes)
    return yaml, run_opts, overrides


def _lam_as_text(arguments: list[str]) -> list[str]:
    """The arguments with ``--lam {query: 0.9}`` in quotes: MAM reads the text itself.

    HyperPyYAML would put the mapping's keys into the number that stands in the YAML.

    Example
    -------
    >>> _lam_as_text(["mam.yaml", "--lam", "{query: 0.9}", "--lam={key: 1}"])
    ['mam.yaml', '--lam', "'{query: 0.9}'", "--lam='{key: 1}'"]
    """
    words = [re.sub(r"^--lam=(\{.*)$", r"--lam='\1'", word) for word in arguments]
    after = zip(["", *words], words, strict=False)
    return [f"'{w}'" if before == "--lam" and w.startswith("{") else w for before, w in after]


def _fractions(arguments: list[str]) -> tuple[list[str], float | None]:
    """The arguments with a whole number in the place of ``--ckpt_interval_minutes 0.5``, and that.

    SpeechBrain compares it with a fraction, but its command line takes whole numbers only.

    Example
    -------
    >>> _fractions(["mam.yaml", "--ckpt_interval_minutes=0.5"])
    (['mam.yaml', '--ckpt_interval_minutes=1'], 0.5)
    """
    key, found = "--ckpt_interval_minutes", None
    words = list(arguments)
    for i, word in enumerate(words):
        before, equals, value = word.partition("=")
        if before == key and not equals and i + 1 < len(words):
            before, equals, value, i = "", "", words[i + 1], i + 1
        elif before != key or not equals:
            continue
        with suppress(ValueError):
            if not float(value).is_integer():
                found = float(value)
                words[i] = f"{before}{equals}1"
    return words, found
