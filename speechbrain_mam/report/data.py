"""A report's figures for programs: JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speechbrain_mam.report.classes import class_errors, class_names, confusion
from speechbrain_mam.report.folds import ByFold, differences_by_fold, has_folds, rates_by_fold
from speechbrain_mam.results.family import Family, Row
from speechbrain_mam.results.resampling import LEVEL
from speechbrain_mam.results.runs import Run
from speechbrain_mam.results.systems import System
from speechbrain_mam.results.tasks import CLASSIFICATION, TASKS
from speechbrain_mam.version import __version__


def as_dict(
    runs: Sequence[Run], systems: Sequence[System], family: Family, n_resamples: int
) -> dict[str, Any]:
    """What ``report.json`` holds: runs, systems and comparisons.

    Rates are in percent, differences in percentage points. ``p_holm`` is corrected
    for ``corrected`` comparisons, that of ``primary`` is ``p``; other metrics than the main one
    have none. An end of an interval, or a ``detectable`` difference, that is not bounded is null.
    Where the test set has folds, ``folds`` holds the rate or difference of each, and ``folds_mean``
    and the like are over folds. ``classes`` holds, for each class, its number of clips, its error
    and what its clips were taken for, the mean over seeds.
    """
    return {
        "speechbrain_mam": __version__,
        "n_resamples": n_resamples,
        "level": LEVEL,
        "primary": _pair(family.primary) if family.primary is not None else None,
        "corrected": family.corrected,
        "clusters": next(iter(systems[0].evaluations.values())).main.n_clusters,
        "units": systems[0].units,
        "runs": [
            {
                "folder": str(run.folder),
                "method": run.method,
                "control": run.control,
                "seed": run.seed,
                "donor": run.donor,
                "lambdas": dict(run.lambdas),
            }
            for run in runs
        ],
        "systems": [
            {
                "name": system.name,
                "method": system.method,
                "control": system.control,
                "donor": system.donor,
                "seeds": [seed for seed in system.evaluations if seed is not None],
                **{name: _rate(system, name, n_resamples) for name in system.task.names},
                **_classes(system),
            }
            for system in systems
        ],
        "comparisons": [
            {
                **_pair(row),
                "verdict": row.verdict,
                **{name: _figures(row, name) for name in row.comparisons},
            }
            for row in family.rows
        ],
    }


def as_csv(content: Mapping[str, Any]) -> str:
    """The same as a table: a line a system or comparison, and metric.

    Arguments
    ---------
    content : mapping
        What :func:`as_dict` returned.
    """
    lines: list[dict[str, Any]] = []
    known = {name for task in TASKS for name in task.names}
    for metric in (name for name in content["systems"][0] if name in known):
        for system in content["systems"]:
            names = {"system": system["name"], "against": "", "metric": metric}
            lines.append({**names, "n_seeds": len(system["seeds"]) or 1, **_flat(system[metric])})
        for row in content["comparisons"]:
            names = {"system": row["system"], "against": row["against"], "metric": metric}
            said = {"verdict": row["verdict"]} if metric in {task.main for task in TASKS} else {}
            lines.append({**names, **_flat(row[metric]), **said})
    stream = io.StringIO()
    keys = dict.fromkeys(key for line in lines for key in line)
    table = csv.DictWriter(stream, list(keys), lineterminator="\n")
    table.writeheader()
    table.writerows({key: _no_formula(value) for key, value in line.items()} for line in lines)
    return stream.getvalue()


def _no_formula(value: Any) -> Any:
    """A name as a spreadsheet shows it: one that begins as a formula does gets a quote before it.

    Example
    -------
    >>> _no_formula("=1+1"), _no_formula(-0.5)
    ("'=1+1", -0.5)
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    folds = {f"fold {fold}": value for fold, value in figures.get("folds", {}).items()}
    return {key: value for key, value in figures.items() if key != "folds"} | folds


def _rate(system: System, metric: str, n_resamples: int) -> dict[str, Any]:
    rate = system.rate(metric, n_resamples)
    low, high = _finite(rate.interval)
    values: dict[str, Any] = {"mean": rate.mean, "sd": rate.sd, "low": low, "high": high}
    if metric == system.task.main and has_folds([system]):
        found = rates_by_fold(system)
        values |= {"folds": _by_fold(found), "folds_mean": found.mean, "folds_sd": found.sd}
    return values


def _figures(row: Row, metric: str) -> dict[str, Any]:
    comparison = row.comparisons[metric]
    values = dict(vars(comparison))
    for name, low, high in (
        ("interval", "low", "high"),
        ("seeds", "seeds_low", "seeds_high"),
        ("narrow", "low_90", "high_90"),
        ("seeds_narrow", "seeds_low_90", "seeds_high_90"),
    ):
        values |= zip((low, high), _finite(values.pop(name) or (None, None)), strict=True)
    names = ("detectable_clusters", "needed_clusters", "detectable_seeds")
    values |= zip(names, _finite(values[name] for name in names), strict=True)
    values |= zip(("detectable",), _finite([comparison.detectable]), strict=True)
    values |= {"relative_change": comparison.relative_change, "equivalent": comparison.equivalent}
    if metric == row.system.task.main and has_folds([row.system]):
        found = differences_by_fold(row.against, row.system)
        folds_low, folds_high = found.interval or (None, None)
        values |= {"folds": _by_fold(found), "folds_mean": found.mean, "folds_sd": found.sd}
        values |= {"folds_low": folds_low, "folds_high": folds_high}
    return values


def _pair(row: Row) -> dict[str, str]:
    return {"system": row.system.name, "against": row.against.name}


def _finite(values: Iterable[float | None]) -> list[float | None]:
    """JSON has no infinity."""
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _by_fold(found: ByFold) -> dict[str, float]:
    return {str(fold): value for fold, value in found.values.items()}


def _classes(system: System) -> dict[str, Any]:
    if system.task is not CLASSIFICATION:
        return {}
    names = class_names([system])
    counts = confusion(system, names)
    return {
        "classes": {
            name: {
                "clips": round(row.sum()),
                "error": error,
                "taken_for": {names[i]: row[i] for i in row.nonzero()[0]},
            }
            for name, row, error in zip(names, counts, class_errors(counts).tolist(), strict=True)
            if row.any()
        }
    }
