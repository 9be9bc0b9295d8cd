"""Runs grouped into systems (a method, its control, its donor; several seeds), and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.comparisons import mean_and_sd
from speechbrain_mam.results.counts import ErrorCounts, error_rate, pool, rate_interval
from speechbrain_mam.results.evaluations import Evaluation, mean_of
from speechbrain_mam.results.resampling import N_RESAMPLES, Interval
from speechbrain_mam.results.runs import FINETUNE, RANDOM, UNTOUCHED, UNTRAINED, Run
from speechbrain_mam.results.search_results import NO_CONTROL
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
        By seed, or by draw of a random control where nothing is trained; the one key ``None`` where
        nothing depends on a seed.
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
    def drawn(self) -> bool:
        """Whether it is a random control of something untrained: its "seeds" are draws."""
        return self.control == RANDOM and not self.trained

    @property
    def task(self) -> Task:
        """What was tested."""
        return next(iter(self.evaluations.values())).task

    @property
    def units(self) -> str:
        """What is drawn, in words."""
        return next(iter(self.evaluations.values())).units

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
    found: dict[tuple[str, str, str | None], dict[tuple[int, int], tuple[Run, Evaluation]]] = {}
    bases: dict[tuple[int, int], tuple[Run, Evaluation]] = {}
    for run in runs:
        for test, evaluation in run.evaluations.items():
            control, draw = run.control_of(test)
            at = run.seed, draw
            if test == UNTOUCHED:
                by_seed = found.setdefault((UNTOUCHED, NO_CONTROL, None), {})
                by_seed.setdefault(at, (run, evaluation))  # each run tests it again
                continue
            if test == FINETUNE != run.method:
                bases.setdefault(at, (run, evaluation))
                continue
            by_seed = found.setdefault((run.method, control, run.donor), {})
            if at in by_seed:
                raise MAMError(
                    f"'{by_seed[at][0].folder}' and '{run.folder}' are both '{test}' with "
                    f"seed {run.seed}; leave one out"
                )
            by_seed[at] = run, evaluation
    if bases:  # the very models that were merged are a merge's fair comparison
        found[FINETUNE, NO_CONTROL, None] = {**found.get((FINETUNE, NO_CONTROL, None), {}), **bases}
    several = len({donor for *_, donor in found if donor is not None}) > 1
    systems = []
    for key in sorted(found, key=_order):
        method, control, donor = key
        name = method + (f" control {control}" if control != NO_CONTROL else "")
        name += f" ({donor})" if several and donor is not None else ""
        tests = {at: evaluation for at, (_, evaluation) in sorted(found[key].items())}
        systems.append(System(name, method, control, donor, _by_seed(method, control, tests)))
    return systems


def _by_seed(
    method: str, control: str, tests: Mapping[tuple[int, int], Evaluation]
) -> dict[int | None, Evaluation]:
    """A system's tests, given by seed and draw, as it is compared: by seed, by draw, or one."""
    if method in UNTRAINED and control == RANDOM:
        return _draws(tests)
    if method in UNTRAINED and all_alike(tests.values()):
        return {None: next(iter(tests.values()))}
    of_seed: dict[int | None, list[Evaluation]] = {}
    for (seed, _), evaluation in tests.items():
        of_seed.setdefault(seed, []).append(evaluation)
    return {seed: mean_of(found) for seed, found in of_seed.items()}


def _draws(tests: Mapping[tuple[int, int], Evaluation]) -> dict[int | None, Evaluation]:
    """Draws of an untrained control by their numbers; those of several runs are counted through."""
    by_number: dict[int, list[Evaluation]] = {}
    for (_, number), evaluation in tests.items():
        known = by_number.setdefault(number, [])
        if not any(all_alike([other, evaluation]) for other in known):  # the same, tested again
            known.append(evaluation)
    if all(len(found) == 1 for found in by_number.values()):
        return {number: found[0] for number, found in sorted(by_number.items())}
    every = [evaluation for number in sorted(by_number) for evaluation in by_number[number]]
    return {number: evaluation for number, evaluation in enumerate(every, start=1)}


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
