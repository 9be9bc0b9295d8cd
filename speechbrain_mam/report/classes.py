"""Classification: the errors of every class, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechbrain_mam.report.confusion import plot_confusions
from speechbrain_mam.report.document import Block, Heading, Picture, Table, Text
from speechbrain_mam.report.text import signed
from speechbrain_mam.results.runs import FINETUNE, UNTOUCHED
from speechbrain_mam.results.systems import System, find, reference_of
from speechbrain_mam.results.tasks import CLASSIFICATION


def class_names(systems: Sequence[System]) -> list[str]:
    """All classes that a clip has or was given, sorted."""
    names: set[str] = set()
    for system in systems:
        for found in system.evaluations.values():
            names |= {*found.refs.values(), *found.hyps.values()}
    return sorted(names)


def confusion(system: System, names: Sequence[str]) -> np.ndarray:
    """Clips of each class (row) by the class they were given (column), the mean over seeds.

    Returns
    -------
    numpy.ndarray
        ``[len(names), len(names)]``.
    """
    at = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for found in system.evaluations.values():
        for i, ref in found.refs.items():
            counts[at[ref], at[found.hyps[i]]] += 1
    return counts / len(system.evaluations)


def class_errors(counts: np.ndarray) -> np.ndarray:
    """Percent of each class's clips that were given another class; NaN for a class without clips.

    Example
    -------
    >>> class_errors(np.array([[3, 1], [0, 4]])).tolist()
    [25.0, 0.0]
    """
    clips = counts.sum(1)
    with np.errstate(invalid="ignore"):
        return 100 * (clips - counts.diagonal()) / clips


def classes_section(systems: Sequence[System]) -> list[Block]:
    """Errors by class of what was started from and of every merge; a picture of each pair."""
    if systems[0].task is not CLASSIFICATION:
        return []
    blocks: list[Block] = [Heading("Classes"), Text(_NOTE), _class_table(systems)]
    names = class_names(systems)
    pairs = [
        [before, system] if (before := reference_of(system, systems)) is not None else [system]
        for system in systems
        if system.merged
    ]
    for i, pair in enumerate(pairs or [[reference] for reference in _references(systems)[-1:]]):
        file = "report_confusion.png" if i == 0 else f"report_confusion_{i + 1}.png"
        found = {system.name: confusion(system, names) for system in pair}
        alt = f"Which class is taken for which: {' and '.join(found)}"
        blocks.append(Picture(file, plot_confusions(found, names), alt))
    return blocks


_NOTE = (
    "Error in percent by class, the mean over seeds, the hardest class of the first model first; "
    "columns with − are changes in points. A class has few clips, so a single class's change is a "
    "hint and no result."
)


def _references(systems: Sequence[System]) -> list[System]:
    """What the merges started from; without a merge, the untouched and the fine-tuned model."""
    started = [reference_of(system, systems) for system in systems if system.merged]
    known = [find(systems, UNTOUCHED), find(systems, FINETUNE)]
    return [s for s in known if s is not None and (s in started or not started)]


def _class_table(systems: Sequence[System]) -> Table:
    names = class_names(systems)
    references = _references(systems)
    merges = [system for system in systems if system.merged]
    errors = {s.name: class_errors(confusion(s, names)) for s in [*references, *merges]}
    clips = confusion(systems[0], names).sum(1).round().astype(int)
    header = ["class", "clips", *(reference.name for reference in references)]
    columns = [[f"{value:.1f}" for value in errors[reference.name]] for reference in references]
    for merge in merges:
        header.append(merge.name)
        columns.append([f"{value:.1f}" for value in errors[merge.name]])
        if (before := reference_of(merge, systems)) is not None:
            header.append(f"− {before.name}")
            changes = errors[merge.name] - errors[before.name]
            columns.append([signed(value, 1) for value in changes])
    first = next(iter(errors.values()), np.zeros(len(names)))
    tested = [i for i in range(len(names)) if clips[i]]
    order = sorted(tested, key=lambda i: (-first[i], names[i]))
    rows = [[names[i], str(clips[i]), *(column[i] for column in columns)] for i in order]
    return Table(header, rows, frozenset(range(1, len(header))))
