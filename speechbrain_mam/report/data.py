"""A report's figures for programs: JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from speechbrain_mam import __version__
from speechbrain_mam.report.runs import Run
from speechbrain_mam.report.statistics import LEVEL, Comparison
from speechbrain_mam.report.systems import Row, System

_UNITS = {"WER": "words", "CER": "chars"}


def as_dict(
    runs: Sequence[Run], systems: Sequence[System], rows: Sequence[Row], n_resamples: int
) -> dict[str, Any]:
    """What ``report.json`` holds: runs, systems and comparisons.

    Rates are in percent, differences in percentage points. A ``p`` of 0 means less than
    1/``n_resamples``.
    """
    return {
        "speechbrain_mam": __version__,
        "n_resamples": n_resamples,
        "level": LEVEL,
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
                **{name: _rate(system, unit, n_resamples) for name, unit in _UNITS.items()},
            }
            for system in systems
        ],
        "comparisons": [
            {
                "system": row.system.name,
                "against": row.against.name,
                "verdict": row.verdict,
                **{name: _figures(getattr(row, unit)) for name, unit in _UNITS.items()},
            }
            for row in rows
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
    for metric in _UNITS:
        for system in content["systems"]:
            names = {"system": system["name"], "against": "", "metric": metric}
            lines.append({**names, "n_seeds": len(system["seeds"]) or 1, **system[metric]})
        for row in content["comparisons"]:
            names = {"system": row["system"], "against": row["against"], "metric": metric}
            said = {"verdict": row["verdict"]} if metric == "WER" else {}
            lines.append({**names, **row[metric], **said})
    stream = io.StringIO()
    keys = dict.fromkeys(key for line in lines for key in line)
    table = csv.DictWriter(stream, list(keys), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return stream.getvalue()


def _rate(system: System, unit: str, n_resamples: int) -> dict[str, float | None]:
    rate = system.rate(unit, n_resamples)
    low, high = rate.interval
    return {"mean": rate.mean, "sd": rate.sd, "low": low, "high": high}


def _figures(comparison: Comparison) -> dict[str, Any]:
    values = dict(vars(comparison))
    low, high = values.pop("interval")
    seeds_low, seeds_high = values.pop("seeds") or (None, None)
    values |= {"low": low, "high": high, "seeds_low": seeds_low, "seeds_high": seeds_high}
    return values | {"relative_change": comparison.relative_change}
