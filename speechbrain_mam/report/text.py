"""A report's words: how figures are written, its summary, its rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from speechbrain_mam.report.document import Block, Heading, Items, Text
from speechbrain_mam.results.comparisons import NO_BETTER, direction
from speechbrain_mam.results.evaluations import Evaluation
from speechbrain_mam.results.runs import FINETUNE, RANDOM, UNTOUCHED, Run
from speechbrain_mam.results.search_results import NO_CONTROL
from speechbrain_mam.results.statistics import Comparison, Interval, error_rate, pool
from speechbrain_mam.results.systems import Row, System, all_alike, find
from speechbrain_mam.results.tasks import CLASSIFICATION, Task


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign.

    Example
    -------
    >>> signed(-1.234), signed(0.5, 1), signed(-0.001)
    ('−1.23', '+0.5', '0.00')
    """
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def percent_change(comparison: Comparison) -> str:
    """Relative change, percent."""
    change = comparison.relative_change
    return "" if change is None else f"{signed(change, 1)} %"


def points(comparison: Comparison) -> str:
    """The difference in percentage points with its interval."""
    if comparison.identical:
        return "identical"
    return f"{signed(comparison.difference)} {interval(comparison.interval)}"


def interval(bounds: Interval) -> str:
    """An interval of a difference.

    Example
    -------
    >>> interval(Interval(-1.5, 0.25))
    '[−1.50, +0.25]'
    """
    return f"[{signed(bounds.low)}, {signed(bounds.high)}]"


def p_value(comparison: Comparison) -> str:
    """A p-value, never as 0: no more is known than the number of resamples allows.

    Example
    -------
    >>> p_value(Comparison(3, 2, -1, Interval(-2, -1), "BCa", 0.0, 9999, False))
    '< 0.0001'
    """
    if comparison.p < 1 / comparison.n_resamples:
        return f"< {1 / comparison.n_resamples:.1g}"
    return f"{comparison.p:.4f}" if comparison.p < 0.01 else f"{comparison.p:.3f}"


def summary(runs: Sequence[Run], systems: Sequence[System], rows: Sequence[Row]) -> list[Block]:
    """Which gains are real, in plain words; and in bold what is missing to tell."""
    task = systems[0].task
    lines = [
        f"{len(runs)} run{'s' if len(runs) > 1 else ''} on one test set of "
        f"{_test_set(next(iter(systems[0].evaluations.values())))}."
    ]
    if (untouched := find(systems, UNTOUCHED)) is not None:
        rate = error_rate(pool([*untouched.counts(task.main).values()]))
        lines.append(f"The untouched model's {task.main} is {rate:.2f} %.")
    blocks: list[Block] = [Text(" ".join(lines))]
    told = [row for row in rows if row.system.control == NO_CONTROL]
    for kind, title in _KINDS.items():
        found = [row for row in told if direction(row.main) == kind]
        spoilt = [row for row in found if kind == "lower" and NO_BETTER in row.verdict]
        sound = [row for row in found if row not in spoilt]
        if sound:
            title = title.format(item=task.item)
            blocks += [Text(f"{title}:"), Items([_phrase(row) for row in sound])]
        if spoilt:
            title = "Lower, but no better than the same merge with a random donor: these data do "
            title += "not show that the gain came from the donor:"
            blocks += [Text(title), Items([_phrase(row) for row in spoilt])]
    return blocks + [Text(warning, bold=True) for warning in _warnings(runs, systems, told)]


def _test_set(evaluation: Evaluation) -> str:
    task, counts = evaluation.task, evaluation.main
    text = f"{len(counts.ids):,} {task.items}"
    if task is CLASSIFICATION:
        text += f" of {len(set(evaluation.refs.values()))} classes"
    else:
        text += f" with {int(counts.words.sum()):,} words"
    if folds := sorted(set(evaluation.folds.values())):
        text += f" in fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
    return text


_KINDS = {
    "lower": "Gains beyond chance",
    "within chance": "Within chance, neither a gain nor a loss",
    "higher": "Losses beyond chance",
    "identical": "Identical, {item} by {item}",
}


def _phrase(row: Row) -> str:
    found = row.main
    text = f"{row.system.name} against {row.against.name}"
    if found.identical:
        return text + (f": {row.verdict}" if row.verdict != "identical" else "")
    text += f" {percent_change(found)} {row.system.task.main} ({signed(found.difference)} points, "
    text += f"95 % interval {signed(found.interval.low)} to {signed(found.interval.high)}"
    if found.seeds is not None:
        text += f"; over {found.n_seeds} seeds {signed(found.seeds.low)} to "
        text += signed(found.seeds.high)
    text += f"; p {p_value(found)}" if p_value(found).startswith("<") else f"; p = {p_value(found)}"
    return f"{text})" if row.verdict == direction(found) else f"{text}): {row.verdict}"


def _warnings(runs: Sequence[Run], systems: Sequence[System], told: Sequence[Row]) -> Iterable[str]:
    for system in systems:
        controls = system.controls(systems)
        if system.merged and not controls:
            yield (
                f"The gain of {system.name} is not controlled: without a merge with a random "
                "donor beside it, nobody can tell whether the donor's attention helped."
            )
        elif system.merged and all(control.control != RANDOM for control in controls):
            yield f"{system.name} has no control with a random donor, only others."
    trained = [system for system in systems if system.merged and system.trained]
    if trained and find(systems, FINETUNE) is None:
        yield (
            "No fine-tuning without merging is in this report: what came from merging cannot be "
            "told from what came from training."
        )
    one_seed = dict.fromkeys(row.system.name for row in told if "(one seed)" in row.verdict)
    if one_seed:
        yield f"Trained with one seed only, which alone can make a difference: {_list(one_seed)}."
    untouched = [run.evaluations[UNTOUCHED] for run in runs if UNTOUCHED in run.evaluations]
    if not untouched:
        yield "No run tested the untouched model."
    elif not all_alike(untouched):
        yield (
            "The untouched model's errors differ between the runs: they started from different "
            "models, or ran on different machines."
        )
    finetuned: dict[int, list[Evaluation]] = {}
    for run in runs:
        if FINETUNE in run.evaluations:
            finetuned.setdefault(run.seed, []).append(run.evaluations[FINETUNE])
    if not all(all_alike(of_seed) for of_seed in finetuned.values()):
        yield (
            "Runs with the same seed hold fine-tuned models with different errors, and only one of "
            "them stands for that seed here; a report of each merge alone compares it with its own."
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def how_to_read(task: Task, folds: bool, n_resamples: int) -> list[Block]:
    """The rules behind the verdicts."""
    blocks: list[Block] = [Heading("How to read this")]
    if task is CLASSIFICATION:
        text = (
            "Error is the percentage of the clips that were given a wrong class. Clips that were "
        )
        text += "cut from one recording are drawn as if they were independent; where there are "
        blocks.append(Text(f"{text}such, intervals are somewhat too narrow."))
    blocks.append(
        Text(
            "Differences are after − before in percentage points; percentages are relative; "
            f"negative means fewer errors. Intervals hold 95 %: over {task.items} by paired "
            f"bootstrap (BCa, {n_resamples:,} resamples; the percentile where BCa is undefined) of "
            "the mean over seeds, and over seeds by Student's t of the differences paired by "
            "seed. p is two-sided, from the bootstrap distribution. Lower (higher) means that the "
            f"whole interval over {task.items} is below (above) 0, that p is below 0.05 (where few "
            f"{task.items} differ, the two may disagree) and, where something was run with several "
            "seeds, that the whole interval over seeds is below (above) 0 too; anything else is "
            "within chance. A merge that is not lower than its own random-donor control by the "
            "same rule is no better than the random donor. Intervals are not corrected for the "
            "number of comparisons: of twenty without an effect, one is expected to exclude 0."
        )
    )
    if folds:
        blocks.append(
            Text(
                "Intervals over folds are Student's t of the folds' differences, each the mean "
                "over seeds. They stand beside the verdicts and do not enter them: folds are few, "
                "and trainings of different folds share most of their clips, so they are no "
                "independent repetitions."
            )
        )
    return blocks
