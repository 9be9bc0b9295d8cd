"""SpeechBrain's CSV of recordings, read and checked, whoever wrote it."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechbrain_mam.errors import MAMError

_VARIABLE = re.compile(r"\$([\w.]+)")


def read_manifest(
    manifest: Path, columns: Sequence[str], replacements: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The rows of a manifest by ``ID``, as SpeechBrain's datasets take them.

    What ``speechbrain.dataio.dataio.load_data_csv`` gives, but a byte-order mark is no part of the
    first column's name, and every fault is one line that says where.

    Arguments
    ---------
    manifest : Path
        The file.
    columns : sequence of str
        What it must have, ``ID`` and ``duration`` (seconds) among them. ``cluster``, the speaker or
        recording that a row shares with others, may be there too, and then of each row.
    replacements : mapping of str to str
        What ``$name`` stands for in its fields.

    Raises
    ------
    MAMError
        If it is missing, empty or not UTF-8, lacks a column or a field, repeats an ``ID``, or has a
        duration that is no number above 0.
    """
    if not manifest.is_file():
        raise MAMError(f"'{manifest}': no such file")
    found: dict[str, dict[str, Any]] = {}
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True, strict=True)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise MAMError(
                    f"'{manifest}' has no column {', '.join(missing)}; expected "
                    f"{', '.join(columns)}"
                )
            for row in rows:
                where = f"'{manifest}', line {rows.line_num}"
                item = _item(row, where, replacements)
                if (name := item.pop("ID")) in found:
                    raise MAMError(f"{where}: the ID {name} stands there twice")
                found[name] = item
    except (UnicodeDecodeError, csv.Error) as error:
        raise MAMError(f"'{manifest}' is not a CSV table in UTF-8: {error}") from error
    if not found:
        raise MAMError(f"'{manifest}' has no utterance")
    return found


def _item(row: dict[str, Any], where: str, replacements: Mapping[str, str]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise MAMError(f"{where}: expected as many fields as the header has")

    def replace(match: re.Match[str]) -> str:
        if match[1] not in replacements:
            known = ", ".join(f"${name}" for name in replacements)
            raise MAMError(f"{where}: ${match[1]} stands for nothing; expected {known}")
        return str(replacements[match[1]])

    item: dict[str, Any] = {}
    for name, value in row.items():
        # A dollar in a transcript is no variable
        item[name] = value if name == "wrd" else _VARIABLE.sub(replace, value)
    for name in ("ID", "cluster"):
        if not item.get(name, "none"):
            raise MAMError(f"{where}: the {name} is empty")
    try:
        item["duration"] = float(item["duration"])
    except ValueError:
        item["duration"] = math.nan
    if not 0 < item["duration"] < math.inf:
        raise MAMError(
            f"{where}: duration {row['duration']!r}, expected a number of seconds above 0"
        )
    return item


def cluster_keys(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """``["cluster"]`` if the rows of a manifest have that column.

    Example
    -------
    >>> cluster_keys({"p225_001": {"cluster": "p225"}}), cluster_keys({"a": {"wrd": "A"}})
    (['cluster'], [])
    """
    return ["cluster"] if all("cluster" in row for row in rows.values()) else []
