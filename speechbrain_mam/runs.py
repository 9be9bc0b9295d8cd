"""Output folders of finished runs, read and checked for a report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechbrain_mam.errors import MAMError
from speechbrain_mam.statistics import ErrorCounts, error_rate

UNTOUCHED = "untouched"
FINETUNE = "finetune"
ZEROSHOT = "mam_zeroshot"
NO_CONTROL = "none"
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
class Point:
    """One point of a sweep over λ, on validation data."""

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
    content = _load(file)
    method, seed = _get(content, "method", str, file), _get(content, "seed", int, file)
    results = _get(content, "results", dict, file)
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
        control=_get(content, "control", str, file),
        donor=_get(content, "donor", str, file, optional=True),
        evaluations=evaluations,
        lambdas={k: _number(v, k, file) for k, v in (content.get("lambdas") or {}).items()},
        history=_read_history(folder / "lambdas.csv"),
        sweep=_read_sweep(folder / "sweep.json"),
        probe=_read_probe(folder / "probe.json"),
    )


def _read_evaluation(folder: Path, name: str, metrics: Any, results: Path) -> Evaluation:
    file = folder / f"utterances_{name.replace(' ', '_')}.json"
    if not file.is_file():
        raise MAMError(f"'{file}': no such file, but '{results}' has a test '{name}'")
    utterances = _get(_load(file), "utterances", dict, file)
    if not utterances:
        raise MAMError(f"'{file}': field 'utterances' is empty")
    ids = tuple(sorted(utterances))

    def column(key: str, kind: type) -> list[Any]:
        return [_get(utterances[i], key, kind, f"{file}', utterance '{i}") for i in ids]

    def counts(errors: str, words: str) -> ErrorCounts:
        return ErrorCounts(ids, np.array(column(errors, int)), np.array(column(words, int)))

    evaluation = Evaluation(
        words=counts("errors", "words"),
        chars=counts("char_errors", "chars"),
        refs=dict(zip(ids, column("ref", str), strict=True)),
        hyps=dict(zip(ids, column("hyp", str), strict=True)),
    )
    for metric, found in (("WER", evaluation.words), ("CER", evaluation.chars)):
        said, rate = _get(metrics, metric, (int, float), results), error_rate(found)
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


def _read_sweep(file: Path) -> Sweep | None:
    if not file.is_file():
        return None
    content = _load(file)
    ids = tuple(_get(content, "ids", list, file))
    words = np.array(_get(content, "words", list, file))
    points = []
    for i, point in enumerate(_get(content, "points", list, file)):
        where = f"{file}', point '{i}"
        errors = _get(point, "errors", list, where)
        if not len(errors) == len(ids) == len(words):
            raise MAMError(
                f"'{file}': point {i} has {len(errors)} errors for {len(ids)} utterances and "
                f"{len(words)} word counts"
            )
        points.append(
            Point(
                donor=_get(point, "donor", str, where, optional=True),
                control=_get(point, "control", str, where),
                lam=_get(point, "lam", (int, float), where),
                subset=_get(point, "subset", str, where),
                counts=ErrorCounts(ids, np.array(errors), words),
            )
        )
    if not points:
        raise MAMError(f"'{file}': field 'points' is empty")
    return Sweep(
        tuple(points), _get(content, "chosen", dict, file), _get(content, "split", str, file)
    )


def _read_probe(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    content = _load(file)
    for kind in ("layers", "projections", "heads"):
        for row in _get(content, kind, list, file):
            for key in ("layer", "score", "stderr"):
                _get(row, key, (int, float), f"{file}', field '{kind}")
            if kind != "layers":
                _get(row, kind[:-1], (str, int), f"{file}', field '{kind}")
    return content


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


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MAMError(f"'{file}' is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise MAMError(f"'{file}': expected a JSON object, found {type(content).__name__}")
    return content


def _number(value: Any, key: str, file: Path) -> float:
    return float(_get({key: value}, key, (int, float), file))


def _get(content: Any, key: str, kind: Any, where: Path | str, optional: bool = False) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise MAMError(f"'{where}': field '{key}' is missing")
    value = content[key]
    if optional and value is None:
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise MAMError(f"'{where}': field '{key}' is {value!r}, expected {names}")
    return value
