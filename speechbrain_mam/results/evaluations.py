"""One model on the test set, utterance by utterance or clip by clip: read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results import fields
from speechbrain_mam.results.counts import ErrorCounts, error_rate, pool
from speechbrain_mam.results.fields import get
from speechbrain_mam.results.tasks import CLASSIFICATION, TASKS, Task
from speechbrain_mam.text_files import read_json


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model on the test set.

    Arguments
    ---------
    task : Task
        What was tested.
    counts : mapping of str to ErrorCounts
        By name of the metric; all by the same sorted IDs of utterances (clips).
    refs, hyps : mapping of str to str
        Reference and recognised text (true and predicted class) by ID.
    folds : mapping of str to int
        The fold that tested each ID; empty where the test set has none.
    decoders : mapping of str to mapping
        ``counts`` of the simpler decoders of the same test, by their names.
    """

    task: Task
    counts: Mapping[str, ErrorCounts]
    refs: Mapping[str, str]
    hyps: Mapping[str, str]
    folds: Mapping[str, int]
    decoders: Mapping[str, Mapping[str, ErrorCounts]] = field(default_factory=dict)

    @property
    def main(self) -> ErrorCounts:
        """The errors that verdicts are about."""
        return self.counts[self.task.main]

    @property
    def units(self) -> str:
        """What is drawn, in words: clusters, or where there are none utterances (clips)."""
        if self.main.n_clusters == len(self.main.ids):
            return self.task.items
        return f"clusters ({self.task.groups})"


def mean_of(several: Sequence[Evaluation]) -> Evaluation:
    """Several tests as one: its error rates are the means, its texts those of the first."""
    first, *others = several
    if not others:
        return first
    counts = {name: pool([one.counts[name] for one in several]) for name in first.counts}
    decoders = {
        decoder: {name: pool([one.decoders[decoder][name] for one in several]) for name in found}
        for decoder, found in first.decoders.items()
    }
    return replace(first, counts=counts, decoders=decoders)


def read_evaluation(folder: Path, name: str, metrics: Any, results: Path) -> Evaluation:
    """``utterances_{name}.json``, checked against what ``results.json`` says.

    Arguments
    ---------
    folder : Path
        A run's.
    name : str
        The test's.
    metrics : dict
        Its rates in ``results.json``; which of them are there tells the task.
    results : Path
        ``results.json``, for messages.

    Raises
    ------
    MAMError
        Names the file, the field, and the utterance or clip.
    """
    task = _task_of(metrics, name, results)
    file = folder / f"utterances_{name.replace(' ', '_')}.json"
    if not file.is_file():
        raise MAMError(f"'{file}': no such file, but '{results}' has a test '{name}'")
    utterances = get(read_json(file), "utterances", dict, file)
    if not utterances:
        raise MAMError(f"'{file}': field 'utterances' is empty")
    ids = tuple(sorted(utterances))

    clusters: tuple[str, ...] = ()
    if any("cluster" in utterance for utterance in utterances.values()):
        clusters = tuple(
            get(utterances[i], "cluster", str, f"{file}', {task.item} '{i}") for i in ids
        )

    def column(key: str, kind: type, of: tuple[str, ...] = ids) -> list[Any]:
        return [get(utterances[i], key, kind, f"{file}', {task.item} '{i}") for i in of]

    evaluation = Evaluation(
        task=task,
        counts={
            m.name: ErrorCounts(
                ids,
                fields.counts(column(m.errors, int), m.errors, file),
                fields.counts(column(m.units, int), m.units, file),
                clusters,
            )
            for m in task.metrics
        },
        refs=dict(zip(ids, column("ref", str), strict=True)),
        hyps=dict(zip(ids, column("hyp", str), strict=True)),
        # One clip with a fold asks for all of them
        folds=dict(zip(ids, column("fold", int), strict=True))
        if any("fold" in utterance for utterance in utterances.values())
        else {},
        decoders=_decoders(utterances, task, ids, clusters, file),
    )
    if task is CLASSIFICATION:
        _check_clips(evaluation, file)
    for metric, found in evaluation.counts.items():
        said = fields.number(metrics.get(metric), metric, results)
        rate = error_rate(found)
        if abs(said - rate) > 0.01:
            raise MAMError(
                f"'{results}' says {metric} {said:.2f} for '{name}', but '{file}' adds up to "
                f"{rate:.2f}: they come from different evaluations; run the test again"
            )
    return evaluation


def _decoders(
    utterances: Mapping[str, Any],
    task: Task,
    ids: tuple[str, ...],
    clusters: tuple[str, ...],
    file: Path,
) -> dict[str, dict[str, ErrorCounts]]:
    """What the simpler decoders of a test got wrong."""
    first = utterances[ids[0]]
    names = first.get("decoders", {}) if isinstance(first, dict) else {}
    found: dict[str, dict[str, ErrorCounts]] = {}
    for name in names:
        found[name] = {}
        for metric in task.metrics:
            errors, units = [], []
            for i in ids:
                where = f"{file}', {task.item} '{i}"
                of_all = get(utterances[i], "decoders", dict, where)
                own = get(of_all, name, dict, f"{where}', field 'decoders")
                errors.append(get(own, metric.errors, int, f"{where}', decoder '{name}"))
                units.append(get(utterances[i], metric.units, int, where))
            found[name][metric.name] = ErrorCounts(
                ids,
                fields.counts(errors, metric.errors, file),
                fields.counts(units, metric.units, file),
                clusters,
            )
    return found


def _task_of(metrics: Any, name: str, results: Path) -> Task:
    for task in TASKS:
        if isinstance(metrics, dict) and task.main in metrics:
            return task
    known = " nor ".join(f"'{task.main}' ({task.name})" for task in TASKS)
    raise MAMError(f"'{results}': field 'results': '{name}' has neither {known}")


def _check_clips(evaluation: Evaluation, file: Path) -> None:
    """``errors`` must say what ``ref`` and ``hyp`` say: different tables count different ones."""
    counts = evaluation.main
    for i, errors, units in zip(counts.ids, counts.errors, counts.words, strict=True):
        wrong = int(evaluation.refs[i] != evaluation.hyps[i])
        if (errors, units) != (wrong, 1):
            raise MAMError(
                f"'{file}', clip '{i}': 'errors' is {errors} and 'words' is {units}, expected "
                f"{wrong} and 1 of a clip of '{evaluation.refs[i]}' that was taken for "
                f"'{evaluation.hyps[i]}'"
            )


def check_same_test(where: str, one: Evaluation, elsewhere: str, other: Evaluation) -> None:
    """Two evaluations must be of one task and one test set, with the same folds.

    Raises
    ------
    MAMError
        Names what differs, and both places.
    """
    if one.task is not other.task:
        raise MAMError(
            f"{one.task.name} and {other.task.name} cannot be in one report: {where} has "
            f"'{one.task.main}', {elsewhere} has '{other.task.main}'; make a report of each"
        )
    covered = [sorted(set(evaluation.folds.values())) for evaluation in (one, other)]
    if covered[0] != covered[1]:
        found = [
            f"folds {', '.join(map(str, folds))}" if folds else "no folds" for folds in covered
        ]
        raise MAMError(
            f"runs of different test sets cannot be in one report: {where} has {found[0]}, "
            f"{elsewhere} has {found[1]}"
        )
    for odd in _differing(one, other):
        texts = [e.refs.get(odd) for e in (one, other)]
        found = [f"'{text}'" if text is not None else "not there" for text in texts]
        raise MAMError(
            f"runs of different test sets cannot be in one report: {one.task.item} '{odd}' is "
            f"{found[0]} in {where} and {found[1]} in {elsewhere}"
        )
    if one.main.clusters != other.main.clusters:
        pairs = zip(one.main.ids, one.main.clusters, other.main.clusters, strict=True)
        odd, *named = next((i, a, b) for i, a, b in pairs if a != b)
        said = [f"cluster '{name}'" if name != odd else "no cluster" for name in named]
        raise MAMError(
            f"runs with different clusters cannot be in one report: {one.task.item} '{odd}' has "
            f"{said[0]} in {where} and {said[1]} in {elsewhere}; test the older run again"
        )
    for i, fold in one.folds.items():
        if other.folds[i] != fold:
            raise MAMError(
                f"runs of different folds cannot be in one report: {one.task.item} '{i}' is in "
                f"fold {fold} in {where} and in fold {other.folds[i]} in {elsewhere}"
            )


def _differing(one: Evaluation, other: Evaluation) -> Iterator[str]:
    yield from sorted(set(one.refs) ^ set(other.refs))
    yield from (i for i in one.refs if one.refs[i] != other.refs[i])
