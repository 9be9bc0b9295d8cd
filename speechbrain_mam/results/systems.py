"""Runs grouped into systems (a method, its control, its donor; several seeds), and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.comparisons import compare, mean_and_sd, verdict
from speechbrain_mam.results.evaluations import Evaluation
from speechbrain_mam.results.runs import FINETUNE, RANDOM, UNTOUCHED, UNTRAINED, Run
from speechbrain_mam.results.search_results import NO_CONTROL
from speechbrain_mam.results.statistics import (
    N_RESAMPLES,
    Comparison,
    ErrorCounts,
    Interval,
    error_rate,
    pool,
    rate_interval,
)
from speechbrain_mam.results.tasks import Task


@dataclass(frozen=True, eq=False)
class Rate:
    """An error rate in percent: mean and s.d. over seeds, bootstrap interval of the mean."""

    mean: float
    sd: float | None
    interval: Interval


@dataclass(frozen=True, eq=False)
class System:
    """What is compared.

    Arguments
    ---------
    name : str
        As tables show it.
    evaluations : mapping of int to Evaluation
        By seed; the one key ``None`` where nothing depends on a seed.
    """

    name: str
    method: str
    control: str
    donor: str | None
    evaluations: Mapping[int | None, Evaluation]

    @property
    def merged(self) -> bool:
        """Whether it is a merge with the donor itself, and not one of its controls."""
        return self.method.startswith("mam_") and self.control == NO_CONTROL

    @property
    def trained(self) -> bool:
        """Whether a seed decides about more than a control's random numbers."""
        return self.method not in UNTRAINED

    @property
    def task(self) -> Task:
        """What was tested."""
        return next(iter(self.evaluations.values())).task

    def counts(self, metric: str) -> dict[int | None, ErrorCounts]:
        """The errors that a metric of the task counts, by seed."""
        return {seed: found.counts[metric] for seed, found in self.evaluations.items()}

    def rate(self, metric: str, n_resamples: int = N_RESAMPLES) -> Rate:
        """A metric of the task."""
        counts = list(self.counts(metric).values())
        mean, sd = mean_and_sd([error_rate(one) for one in counts])
        return Rate(mean, sd, rate_interval(pool(counts), n_resamples))

    def controls(self, systems: Iterable[System]) -> list[System]:
        """The controls of this merge."""
        return [
            other
            for other in systems
            if other.method == self.method
            and other.control != NO_CONTROL
            and other.donor in (self.donor, None)
        ]


@dataclass(frozen=True, eq=False)
class Row:
    """A system compared with another one, by metric; the verdict is that of the main one."""

    system: System
    against: System
    comparisons: Mapping[str, Comparison]
    verdict: str

    @property
    def main(self) -> Comparison:
        """The comparison that the verdict is about."""
        return self.comparisons[self.system.task.main]


def group(runs: Sequence[Run]) -> list[System]:
    """The systems of some runs: the untouched model, the methods, each before its controls.

    Arguments
    ---------
    runs : sequence of Run
        As :func:`~speechbrain_mam.results.runs.read_runs` returns them.

    Raises
    ------
    MAMError
        If a system was run twice with the same seed: names both folders.
    """
    found: dict[tuple[str, str, str | None], dict[int, tuple[Run, Evaluation]]] = {}
    bases: dict[int, tuple[Run, Evaluation]] = {}
    for run in runs:
        for test, evaluation in run.evaluations.items():
            if test == UNTOUCHED:
                by_seed = found.setdefault((UNTOUCHED, NO_CONTROL, None), {})
                by_seed.setdefault(run.seed, (run, evaluation))  # each run tests it again
                continue
            if test == FINETUNE != run.method:
                bases.setdefault(run.seed, (run, evaluation))
                continue
            key = (run.method, run.control_of(test), run.donor)
            by_seed = found.setdefault(key, {})
            if run.seed in by_seed:
                raise MAMError(
                    f"'{by_seed[run.seed][0].folder}' and '{run.folder}' are both '{test}' with "
                    f"seed {run.seed}; leave one out"
                )
            by_seed[run.seed] = run, evaluation
    if bases:  # the very models that were merged are a merge's fair comparison
        found[FINETUNE, NO_CONTROL, None] = {**found.get((FINETUNE, NO_CONTROL, None), {}), **bases}
    several = len({donor for *_, donor in found if donor is not None}) > 1
    systems = []
    for key in sorted(found, key=_order):
        method, control, donor = key
        name = method + (f" control {control}" if control != NO_CONTROL else "")
        name += f" ({donor})" if several and donor is not None else ""
        evaluations: dict[int | None, Evaluation] = {
            seed: evaluation for seed, (_, evaluation) in sorted(found[key].items())
        }
        if method in UNTRAINED and all_alike(evaluations.values()):
            evaluations = {None: next(iter(evaluations.values()))}
        systems.append(System(name, method, control, donor, evaluations))
    return systems


def _order(key: tuple[str, str, str | None]) -> tuple:
    method, control, donor = key
    known = (*UNTRAINED, FINETUNE)
    rank = known.index(method) if method in known else len(known)
    return rank, method, donor or "", control != NO_CONTROL, control != RANDOM, control


def all_alike(evaluations: Iterable[Evaluation]) -> bool:
    """Whether several evaluations made the same errors on every utterance (clip)."""
    first, *others = evaluations
    return all(
        np.array_equal(counts.errors, other.counts[metric].errors)
        for other in others
        for metric, counts in first.counts.items()
    )


def find(systems: Iterable[System], method: str) -> System | None:
    """The first system of a method that is no control."""
    found = (s for s in systems if s.method == method and s.control == NO_CONTROL)
    return next(found, None)


def reference_of(system: System, systems: Sequence[System]) -> System | None:
    """What a merge started from: the fine-tuned model if it was trained, else the untouched one."""
    finetuned = find(systems, FINETUNE) if system.trained else None
    return finetuned if finetuned is not None else find(systems, UNTOUCHED)


def compare_with(
    reference: System, systems: Sequence[System], n_resamples: int = N_RESAMPLES
) -> list[Row]:
    """Every other system against one; a merge's verdict knows of its random control."""
    rows = []
    for system in systems:
        if system is reference or system.method == UNTOUCHED:
            continue
        control = None
        if system.merged:
            randoms = [c for c in system.controls(systems) if c.control == RANDOM]
            control = (
                _compare(randoms[0], system, system.task.main, n_resamples) if randoms else None
            )
        rows.append(_row(reference, system, control, n_resamples))
    return rows


def compare_with_controls(systems: Sequence[System], n_resamples: int = N_RESAMPLES) -> list[Row]:
    """Every merge against each of its controls."""
    return [
        _row(control, system, None, n_resamples)
        for system in systems
        if system.merged
        for control in system.controls(systems)
    ]


def _row(reference: System, system: System, control: Comparison | None, n_resamples: int) -> Row:
    found = {name: _compare(reference, system, name, n_resamples) for name in system.task.names}
    trained = system.trained or reference.trained
    return Row(system, reference, found, verdict(found[system.task.main], trained, control))


def _compare(before: System, after: System, metric: str, n_resamples: int) -> Comparison:
    return compare(before.counts(metric), after.counts(metric), n_resamples)
