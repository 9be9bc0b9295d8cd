"""Where a test set has folds: error rates and differences of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechbrain_mam.report.document import Block, Heading, Table, Text
from speechbrain_mam.report.text import interval, points, signed
from speechbrain_mam.results.comparisons import mean_and_sd, pair_seeds, t_interval
from speechbrain_mam.results.counts import error_rate, pool
from speechbrain_mam.results.evaluations import Evaluation
from speechbrain_mam.results.family import Row
from speechbrain_mam.results.resampling import Interval
from speechbrain_mam.results.systems import System


@dataclass(frozen=True)
class ByFold:
    """A rate in percent, or a difference in percentage points, of every fold.

    Example
    -------
    >>> found = ByFold({1: 10.0, 2: 14.0})
    >>> round(found.mean, 1), round(found.sd, 2), round(found.interval.low, 1)
    (12.0, 2.83, -13.4)
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over folds, each counting the same, whatever its number of clips."""
        return mean_and_sd([*self.values.values()])[0]

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over folds; ``None`` for one fold."""
        return mean_and_sd([*self.values.values()])[1]

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean over folds, by Student's t; ``None`` for one fold."""
        return t_interval([*self.values.values()])


def has_folds(systems: Sequence[System]) -> bool:
    """Whether the test set has folds."""
    return any(found.folds for system in systems for found in system.evaluations.values())


def rates_by_fold(system: System) -> ByFold:
    """The main error rate of each fold, the mean over seeds."""
    return ByFold(_mean([_rates(found) for found in system.evaluations.values()]))


def differences_by_fold(before: System, after: System) -> ByFold:
    """``after − before`` of each fold, of the seeds that the comparison is of."""
    pairs = pair_seeds(before.evaluations, after.evaluations)
    one = [before.evaluations[b] for b, _ in pairs] or [*before.evaluations.values()]
    other = [after.evaluations[a] for _, a in pairs] or [*after.evaluations.values()]
    rates = _mean([_rates(found) for found in one]), _mean([_rates(found) for found in other])
    return ByFold({fold: rates[1][fold] - rates[0][fold] for fold in rates[0]})


def _rates(evaluation: Evaluation) -> dict[int, float]:
    counts = evaluation.main
    folds = np.array([evaluation.folds[i] for i in counts.ids])
    return {
        fold: float(100 * counts.errors[folds == fold].sum() / counts.words[folds == fold].sum())
        for fold in map(int, np.unique(folds))
    }


def _mean(rates: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {fold: float(np.mean([one[fold] for one in rates])) for fold in rates[0]}


def folds_section(systems: Sequence[System], rows: Sequence[Row]) -> list[Block]:
    """Every fold of every system, and of every comparison."""
    if not has_folds(systems):
        return []
    blocks: list[Block] = [
        Heading("Folds singly"),
        Text(
            f"{systems[0].task.main.capitalize()} in percent, the mean over seeds. Pooled is that "
            f"of all {systems[0].task.items} together, as in the tables above."
        ),
        _rates_table(systems),
    ]
    if rows:
        text = "Differences in percentage points, after − before. The interval over folds treats "
        text += f"each fold as one value; that over {systems[0].units} gives the verdict."
        blocks += [Text(text), _differences_table(rows)]
    return blocks


def _rates_table(systems: Sequence[System]) -> Table:
    folds = [*rates_by_fold(systems[0]).values]
    header = ["system", *(f"fold {fold}" for fold in folds), "mean ± s.d. over folds", "pooled"]
    lines = []
    for system in systems:
        found = rates_by_fold(system)
        mean = f"{found.mean:.2f}" + (f" ± {found.sd:.2f}" if found.sd is not None else "")
        pooled = f"{error_rate(pool([*system.counts(system.task.main).values()])):.2f}"
        lines.append([system.name, *(f"{found.values[f]:.2f}" for f in folds), mean, pooled])
    return Table(header, lines, frozenset(range(1, len(header))))


def _differences_table(rows: Sequence[Row]) -> Table:
    folds = [*rates_by_fold(rows[0].system).values]
    header = ["system − against", *(f"fold {fold}" for fold in folds), "mean [95 % over folds]"]
    header += [f"pooled [95 % over {rows[0].system.units}]", "verdict"]
    lines = []
    for row in rows:
        found = differences_by_fold(row.against, row.system)
        bounds = f" {interval(found.interval)}" if found.interval is not None else ""
        lines.append(
            [
                f"{row.system.name} − {row.against.name}",
                *(signed(found.values[fold]) for fold in folds),
                f"{signed(found.mean)}{bounds}",
                points(row.main),
                row.verdict,
            ]
        )
    return Table(header, lines, frozenset(range(1, len(header) - 1)))
