"""Runs grouped into systems (a method, its control, its donor; several seeds), and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechbrain_mam.errors import MAMError
from speechbrain_mam.report.comparisons import compare, mean_and_sd, verdict
from speechbrain_mam.report.runs import FINETUNE, RANDOM, UNTOUCHED, ZEROSHOT, Evaluation, Run
from speechbrain_mam.report.search_results import NO_CONTROL
from speechbrain_mam.report.statistics import (
    N_RESAMPLES,
    Comparison,
    ErrorCounts,
    Interval,
    error_rate,
    pool,
    rate_interval,
)


@dataclass(frozen=True, eq=False)
class Rate:
    """An error rate in percent: mean and s.d. over seeds, interval of the mean over utterances."""

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
        return self.method not in (UNTOUCHED, ZEROSHOT)

    def counts(self, unit: str) -> dict[int | None, ErrorCounts]:
        """``words`` or ``chars`` by seed."""
        return {seed: getattr(found, unit) for seed, found in self.evaluations.items()}

    def rate(self, unit: str, n_resamples: int = N_RESAMPLES) -> Rate:
        """WER (``words``) or CER (``chars``)."""
        counts = list(self.counts(unit).values())
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
    """A system compared with another one; the verdict is that of the word errors."""

    system: System
    against: System
    words: Comparison
    chars: Comparison
    verdict: str


def group(runs: Sequence[Run]) -> list[System]:
    """The systems of some runs: the untouched model, the methods, each before its controls.

    Arguments
    ---------
    runs : sequence of Run
        As :func:`~speechbrain_mam.report.runs.read_runs` returns them.

    Raises
    ------
    MAMError
        If a system was run twice with the same seed: names both folders.
    """
    found: dict[tuple[str, str, str | None], dict[int, tuple[Run, Evaluation]]] = {}
    for run in runs:
        for test, evaluation in run.evaluations.items():
            if test == UNTOUCHED:
                by_seed = found.setdefault((UNTOUCHED, NO_CONTROL, None), {})
                by_seed.setdefault(run.seed, (run, evaluation))  # each run tests it again
                continue
            key = (run.method, run.control_of(test), run.donor)
            by_seed = found.setdefault(key, {})
            if run.seed in by_seed:
                raise MAMError(
                    f"'{by_seed[run.seed][0].folder}' and '{run.folder}' are both '{test}' with "
                    f"seed {run.seed}; leave one out"
                )
            by_seed[run.seed] = run, evaluation
    several = len({donor for *_, donor in found if donor is not None}) > 1
    systems = []
    for key in sorted(found, key=_order):
        method, control, donor = key
        name = method + (f" control {control}" if control != NO_CONTROL else "")
        name += f" ({donor})" if several and donor is not None else ""
        evaluations: dict[int | None, Evaluation] = {
            seed: evaluation for seed, (_, evaluation) in sorted(found[key].items())
        }
        if method in (UNTOUCHED, ZEROSHOT) and all_alike(evaluations.values()):
            evaluations = {None: next(iter(evaluations.values()))}
        systems.append(System(name, method, control, donor, evaluations))
    return systems


def _order(key: tuple[str, str, str | None]) -> tuple:
    method, control, donor = key
    known = (UNTOUCHED, ZEROSHOT, FINETUNE)
    rank = known.index(method) if method in known else len(known)
    return rank, method, donor or "", control != NO_CONTROL, control != RANDOM, control


def all_alike(evaluations: Iterable[Evaluation]) -> bool:
    """Whether several evaluations made the same errors on every utterance."""
    first, *others = evaluations
    return all(
        np.array_equal(first.words.errors, other.words.errors)
        and np.array_equal(first.chars.errors, other.chars.errors)
        for other in others
    )


def find(systems: Iterable[System], method: str) -> System | None:
    """The first system of a method that is no control."""
    found = (s for s in systems if s.method == method and s.control == NO_CONTROL)
    return next(found, None)


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
            control = _compare(randoms[0], system, "words", n_resamples) if randoms else None
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
    words, chars = (_compare(reference, system, unit, n_resamples) for unit in ("words", "chars"))
    trained = system.trained or reference.trained
    return Row(system, reference, words, chars, verdict(words, trained, control))


def _compare(before: System, after: System, unit: str, n_resamples: int) -> Comparison:
    return compare(before.counts(unit), after.counts(unit), n_resamples)
