"""Text, JSON, YAML and tables that anybody may have written: what is wrong with them is one line.

A file in another encoding, a number of 4,300 digits, brackets a thousand deep and a quote without
an end each raise an exception of their own in Python, and none of them names the file.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml

from speechbrain_mam.errors import MAMError

MOST_VALUES = 100_000
"""How many values a YAML's aliases may stand for: a hundred times what a recipe has."""


def read_text(file: Path) -> str:
    """The text of a UTF-8 file; its line ends stay as they are.

    Raises
    ------
    MAMError
        If there is no such file, or it is in another encoding.
    """
    try:
        return file.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MAMError(f"'{file}': no such file") from error
    except UnicodeDecodeError as error:
        raise MAMError(f"'{file}' is not UTF-8 text: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    MAMError
        If there is no such file, or it holds something else.

    Example
    -------
    >>> file = getfixture("tmp_path") / "config.json"
    >>> _ = file.write_text('{"layers": ' + "[" * 20_000)
    >>> read_json(file)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: '...config.json' is not valid JSON: maximum recursion depth ...
    """
    text = read_text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MAMError(f"'{file}' is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise MAMError(f"'{file}': expected a JSON object, found {type(content).__name__}")
    return content


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first line, as a program wrote it.

    Raises
    ------
    MAMError
        If it is no such table, or a row has more or fewer fields than the first line.

    Example
    -------
    >>> file = getfixture("tmp_path") / "lambdas.csv"
    >>> _ = file.write_text("epoch,layer 0\\n0,0.95\\n1\\n")
    >>> read_table(file)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: '...lambdas.csv', line 3: expected 2 fields, as the header has
    """
    rows, text = [], read_text(file)
    try:
        table: csv.DictReader[str] = csv.DictReader(io.StringIO(text, newline=""))
        for row in table:
            if None in row or None in row.values():
                names = table.fieldnames or ()
                raise MAMError(
                    f"'{file}', line {table.line_num}: expected {len(names)} fields, as the header "
                    "has"
                )
            rows.append(row)
    except csv.Error as error:
        raise MAMError(f"'{file}' is not a CSV table: {error}") from error
    return rows


def check_aliases(text: str, where: str) -> None:
    r"""Refuse a YAML whose aliases stand for more than :data:`MOST_VALUES` values in all.

    Lists of aliases of lists of aliases are a few hundred characters, and more values than memory
    holds for whatever walks through them, as HyperPyYAML and a message that quotes them do. What is
    no YAML is left to its reader.

    Raises
    ------
    MAMError
        If there are more.

    Example
    -------
    >>> check_aliases("a: &a [1, 2]\nb: [*a, *a]", "'x.yaml'")
    >>> lines = ["a: &a0 [1, 1, 1, 1]"]
    >>> lines += [f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 9)]
    >>> check_aliases("\n".join(lines), "'x.yaml'")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: 'x.yaml': its aliases stand for 466039 values, expected at
    most 100000
    """
    if text.count("*") < 10:  # too few to multiply
        return
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = 0 if root is None else _values(root, {})
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    if values > MOST_VALUES:
        many = str(values) if values < 10**9 else "a thousand million or more"
        raise MAMError(
            f"{where}: its aliases stand for {many} values, expected at most {MOST_VALUES}"
        )


def read_yaml(file: Path) -> Any:
    """What a YAML without tags of its own holds.

    Raises
    ------
    MAMError
        If there is no such file, it is none, or its aliases stand for too many values.
    """
    text = read_text(file)
    check_aliases(text, f"'{file}'")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise MAMError(f"'{file}' is no YAML: {reason[:300]}") from error


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node is, each alias written out; ``known`` has those of nodes seen."""
    if id(node) not in known:
        known[id(node)] = 1  # also to an alias within the node itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        known[id(node)] += sum(
            _values(one, known)
            for part in parts
            for one in (part if isinstance(part, tuple) else (part,))
        )
    return known[id(node)]
