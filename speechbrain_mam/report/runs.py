"""Output folders of finished runs, read and checked for a report."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechbrain_mam.errors import MAMError
from speechbrain_mam.report.fields import get, load, number
from speechbrain_mam.report.search_results import Sweep, read_probe, read_sweep
from speechbrain_mam.report.statistics import ErrorCounts, error_rate

UNTOUCHED = "untouched"
FINETUNE = "finetune"
ZEROSHOT = "mam_zeroshot"
RANDOM = "random"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model on the test set.

    Arguments
    ---------
    words, chars : ErrorCounts
        Word and character errors, by sorted utterance ID.
    refs, hyps : mapping of str to str
        Reference and recognised text by utterance ID.
    """

    words: ErrorCounts
    chars: ErrorCounts
    refs: Mapping[str, str]
    hyps: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Run:
    """One output folder.

    Arguments
    ---------
    evaluations : mapping of str to Evaluation
        By name of the test: ``untouched``, the method, the method with a control.
    lambdas : mapping of str to float
        Learned λ by layer (projection, head) of the tested checkpoint; empty if none was learned.
    history : list of dict
        λ by name after each epoch, with the key ``epoch``.
    """

    folder: Path
    method: str
    seed: int
    control: str
    donor: str | None
    evaluations: Mapping[str, Evaluation]
    lambdas: Mapping[str, float]
    history: list[dict[str, float]]
    sweep: Sweep | None
    probe: dict[str, Any] | None

    def control_of(self, test: str) -> str:
        """The control that a test of this run belongs to."""
        if test == self.method:
            return self.control
        return test.removeprefix(f"{self.method} control ")


def read_runs(folders: Iterable[Path | str]) -> list[Run]:
    """Read finished runs that were tested on the same utterances.

    Arguments
    ---------
    folders : iterable of Path
        Output folders with ``results.json`` and one ``utterances_{test}.json`` per test;
        ``lambdas.csv``, ``sweep.json`` and ``probe.json`` are read where they are.

    Raises
    ------
    MAMError
        If there is no folder, one is not finished, a file is malformed, or the test sets differ.

    Example
    -------
    >>> read_runs([])
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: no runs: name at least one output folder of a finished run
    """
    runs = [read_run(Path(folder)) for folder in folders]
    if not runs:
        raise MAMError("no runs: name at least one output folder of a finished run")
    first_name, first = next(iter(runs[0].evaluations.items()))
    for run in runs:
        for name, evaluation in run.evaluations.items():
            _check_same_test(
                f"'{runs[0].folder}' ({first_name})", first, f"'{run.folder}' ({name})", evaluation
            )
    return runs


def read_run(folder: Path) -> Run:
    """Read one output folder.

    Raises
    ------
    MAMError
        Names the folder or file, and the field.
    """
    file = folder / "results.json"
    if not file.is_file():
        raise MAMError(f"'{folder}' holds no results.json: the run is not finished")
    content = load(file)
    method, seed = get(content, "method", str, file), get(content, "seed", int, file)
    results = get(content, "results", dict, file)
    if not results:
        raise MAMError(f"'{file}': field 'results' is empty: the run is not finished")
    evaluations = {}
    for name, metrics in results.items():
        if name not in (UNTOUCHED, method) and not name.startswith(f"{method} control "):
            raise MAMError(
                f"'{file}': field 'results': '{name}' is neither '{UNTOUCHED}' nor '{method}' nor "
                f"'{method} control …'"
            )
        evaluations[name] = _read_evaluation(folder, name, metrics, file)
    return Run(
        folder=folder,
        method=method,
        seed=seed,
        control=get(content, "control", str, file),
        donor=get(content, "donor", str, file, optional=True),
        evaluations=evaluations,
        lambdas={k: number(v, k, file) for k, v in (content.get("lambdas") or {}).items()},
        history=_read_history(folder / "lambdas.csv"),
        sweep=read_sweep(folder / "sweep.json"),
        probe=read_probe(folder / "probe.json"),
    )


def _read_evaluation(folder: Path, name: str, metrics: Any, results: Path) -> Evaluation:
    file = folder / f"utterances_{name.replace(' ', '_')}.json"
    if not file.is_file():
        raise MAMError(f"'{file}': no such file, but '{results}' has a test '{name}'")
    utterances = get(load(file), "utterances", dict, file)
    if not utterances:
        raise MAMError(f"'{file}': field 'utterances' is empty")
    ids = tuple(sorted(utterances))

    def column(key: str, kind: type) -> list[Any]:
        return [get(utterances[i], key, kind, f"{file}', utterance '{i}") for i in ids]

    def counts(errors: str, words: str) -> ErrorCounts:
        return ErrorCounts(ids, np.array(column(errors, int)), np.array(column(words, int)))

    evaluation = Evaluation(
        words=counts("errors", "words"),
        chars=counts("char_errors", "chars"),
        refs=dict(zip(ids, column("ref", str), strict=True)),
        hyps=dict(zip(ids, column("hyp", str), strict=True)),
    )
    for metric, found in (("WER", evaluation.words), ("CER", evaluation.chars)):
        said, rate = get(metrics, metric, (int, float), results), error_rate(found)
        if abs(said - rate) > 0.01:
            raise MAMError(
                f"'{results}' says {metric} {said:.2f} for '{name}', but '{file}' adds up to "
                f"{rate:.2f}: they come from different evaluations; run the test again"
            )
    return evaluation


def _read_history(file: Path) -> list[dict[str, float]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    try:
        return [{key: float(value) for key, value in row.items()} for row in rows]
    except (TypeError, ValueError, AttributeError) as error:
        raise MAMError(f"'{file}': not a table of numbers: {error}") from error


def _check_same_test(where: str, one: Evaluation, elsewhere: str, other: Evaluation) -> None:
    for odd in _differing(one, other):
        texts = [e.refs.get(odd) for e in (one, other)]
        found = [f"'{text}'" if text is not None else "not there" for text in texts]
        raise MAMError(
            f"runs of different test sets cannot be in one report: utterance '{odd}' is {found[0]} "
            f"in {where} and {found[1]} in {elsewhere}"
        )


def _differing(one: Evaluation, other: Evaluation) -> Iterator[str]:
    yield from sorted(set(one.refs) ^ set(other.refs))
    yield from (i for i in one.words.ids if one.refs[i] != other.refs[i])
