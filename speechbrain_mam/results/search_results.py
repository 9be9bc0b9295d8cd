"""What a search for λ left in a run's folder: ``sweep.json`` and ``probe.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.counts import ErrorCounts
from speechbrain_mam.results.fields import counts, get, number
from speechbrain_mam.text_files import read_json

NO_CONTROL = "none"


@dataclass(frozen=True, eq=False)
class Point:
    """One point of a sweep over λ, on validation data; ``subset`` names its layers."""

    donor: str | None
    control: str
    lam: float
    subset: str
    counts: ErrorCounts

    @property
    def untouched(self) -> bool:
        """λ = 1 is the target as it was."""
        return self.lam == 1 and self.control == NO_CONTROL


@dataclass(frozen=True, eq=False)
class Sweep:
    """All points of a sweep, and the one that was chosen."""

    points: tuple[Point, ...]
    chosen: Mapping[str, Any]
    split: str
    untouched_was_better: bool = False


def read_sweep(file: Path) -> Sweep | None:
    """``sweep.json``, or ``None`` where there is none."""
    if not file.is_file():
        return None
    content = read_json(file)
    ids = tuple(get(content, "ids", list, file))
    words = counts(get(content, "words", list, file), "words", file)
    rows = get(content, "points", list, file)
    chosen = get(content, "chosen", dict, file)
    name = _subset_names([*rows, chosen], file)
    points = []
    for i, point in enumerate(rows):
        where = f"{file}', point '{i}"
        errors = get(point, "errors", list, where)
        if not len(errors) == len(ids) == len(words):
            raise MAMError(
                f"'{file}': point {i} has {len(errors)} errors for {len(ids)} IDs and "
                f"{len(words)} word counts"
            )
        points.append(
            Point(
                donor=get(point, "donor", str, where, optional=True),
                control=get(point, "control", str, where),
                lam=number(point.get("lam"), "lam", where),
                subset=name(point),
                counts=ErrorCounts(ids, counts(errors, "errors", where), words),
            )
        )
    if not points:
        raise MAMError(f"'{file}': field 'points' is empty")
    number(chosen.get("lam"), "lam", f"{file}', field 'chosen")
    return Sweep(
        points=tuple(points),
        chosen={**chosen, "subset": name(chosen)},
        split=get(content, "split", str, file),
        untouched_was_better=bool(content.get("untouched_was_better")),
    )


def _subset_names(rows: list[Any], file: Path) -> Callable[[dict[str, Any]], str]:
    """A name for each set of layers: a search's ``greedy`` stands for every set that it tried."""
    layers: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        subset = get(row, "subset", str, f"{file}', field 'points")
        if row.get("lam") != 1:
            layers.setdefault(subset, set()).add(_layers(row, file))

    def name(row: dict[str, Any]) -> str:
        subset = str(row["subset"])
        if len(layers.get(subset, ())) < 2:
            return subset
        return f"{subset} ({', '.join(map(str, _layers(row, file)))})"

    return name


def _layers(row: Mapping[str, Any], file: Path) -> tuple[int, ...]:
    found = row.get("layers") or []
    if not isinstance(found, list) or not all(type(layer) is int for layer in found):
        raise MAMError(f"'{file}': 'layers' is {found!r}, expected a list of layers' numbers")
    return tuple(found)


def read_probe(file: Path) -> dict[str, Any] | None:
    """``probe.json``, or ``None`` where there is none."""
    if not file.is_file():
        return None
    content = read_json(file)
    for kind in ("layers", "projections", "heads"):
        for row in get(content, kind, list, file):
            for key in ("layer", "score", "stderr"):
                get(row, key, (int, float), f"{file}', field '{kind}")
            if kind != "layers":
                get(row, kind[:-1], (str, int), f"{file}', field '{kind}")
    return content
