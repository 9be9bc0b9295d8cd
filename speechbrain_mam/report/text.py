"""A report's words: how figures are written, its summary, its rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from speechbrain_mam.report.document import Block, Heading, Items, Text
from speechbrain_mam.results.comparisons import NO_BETTER, ONE_DRAW, direction
from speechbrain_mam.results.counts import error_rate, pool
from speechbrain_mam.results.evaluations import Evaluation
from speechbrain_mam.results.family import Family, Row
from speechbrain_mam.results.resampling import (
    FEWEST_BOUNDED,
    FEWEST_DRAWN,
    UNBOUNDED,
    Interval,
)
from speechbrain_mam.results.runs import FINETUNE, RANDOM, UNTOUCHED, Run
from speechbrain_mam.results.search_results import NO_CONTROL
from speechbrain_mam.results.statistics import Comparison
from speechbrain_mam.results.systems import System, all_alike, find
from speechbrain_mam.results.tasks import CLASSIFICATION


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


NOT_BOUNDED = "[not bounded]"


def interval(bounds: Interval) -> str:
    """An interval of a difference.

    Example
    -------
    >>> interval(Interval(-1.5, 0.25)), interval(UNBOUNDED)
    ('[−1.50, +0.25]', '[not bounded]')
    """
    return NOT_BOUNDED if bounds == UNBOUNDED else f"[{signed(bounds.low)}, {signed(bounds.high)}]"


def rate_bounds(bounds: Interval) -> str:
    """An interval of an error rate.

    Example
    -------
    >>> rate_bounds(Interval(1.5, 20.25)), rate_bounds(UNBOUNDED)
    ('[1.50, 20.25]', '[not bounded]')
    """
    return NOT_BOUNDED if bounds == UNBOUNDED else f"[{bounds.low:.2f}, {bounds.high:.2f}]"


def p_value(p: float) -> str:
    """A p-value, never as 0.

    Example
    -------
    >>> p_value(0.00001), p_value(0.0012), p_value(0.25)
    ('< 0.0001', '0.0012', '0.250')
    """
    if p < 0.0001 - 1e-9:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def summary(runs: Sequence[Run], systems: Sequence[System], family: Family) -> list[Block]:
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
    if family.rows:
        blocks.append(Text(_corrected(family)))
    every = [row for rows in family.against.values() for row in rows]
    told = [row for row in every if row.system.control == NO_CONTROL]
    for kind, title in _KINDS.items():
        found = [row for row in told if direction(row.main) == kind]
        spoilt = [row for row in found if kind == "lower" and NO_BETTER in row.verdict]
        sound = [row for row in found if row not in spoilt]
        if sound:
            title = title.format(item=task.item, units=systems[0].units)
            blocks += [Text(f"{title}:"), Items([_phrase(row) for row in sound])]
        if spoilt:
            title = "Lower, but not shown to be better than the same merge with a random donor: "
            title += "these data do not show that the gain came from the donor:"
            blocks += [Text(title), Items([_phrase(row) for row in spoilt])]
    return blocks + [Text(warning, bold=True) for warning in _warnings(runs, systems, told)]


def _corrected(family: Family) -> str:
    """Which comparison is the primary one, and how many others there are."""
    number = family.corrected
    if family.primary is None:
        return (
            "No comparison is the primary one, since no merge has a control with a random donor; "
            f"p of all {number} is corrected for their number, by Holm's rule."
        )
    text = f"The primary comparison is {_phrase(family.primary)}."
    if number:
        text += f" p of the {number} other comparison{'s' if number != 1 else ''} is corrected for "
        text += "their number, by Holm's rule."
    return text


def _test_set(evaluation: Evaluation) -> str:
    task, counts = evaluation.task, evaluation.main
    text = f"{len(counts.ids):,} {task.items}"
    if task is CLASSIFICATION:
        text += f" of {len(set(evaluation.refs.values()))} classes"
    else:
        text += f" with {int(counts.words.sum()):,} words"
    if evaluation.units != task.items:
        text += f" in {counts.n_clusters} {evaluation.units}"
    if folds := sorted(set(evaluation.folds.values())):
        text += f" in fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
    return text


_KINDS = {
    "lower": "Gains beyond chance",
    "within chance": "Within chance, neither a gain nor a loss",
    "undecided": "Undecided, of too few {units}",
    "higher": "Losses beyond chance",
    "identical": "Identical, {item} by {item}",
}


def _phrase(row: Row) -> str:
    found = row.main
    text = f"{row.system.name} against {row.against.name}"
    if found.identical:
        return text + (f": {row.verdict}" if row.verdict != "identical" else "")
    text += f" {percent_change(found)} {row.system.task.main} ({signed(found.difference)} points, "
    text += f"95 % interval {_ends(found.interval)}"
    if found.seeds is not None and found.n_draws:
        text += f"; for another draw than these {found.n_draws} {_ends(found.seeds)}"
    elif found.seeds is not None:
        text += f"; over {found.n_seeds} seeds {_ends(found.seeds)}"
    shown = p_value(found.p_corrected)
    text += f"; p {shown}" if shown.startswith("<") else f"; p = {shown}"
    text += " after correction" if found.p_corrected != found.p else ""
    same = row.verdict == direction(found) and row.verdict != ONE_DRAW
    return f"{text})" if same else f"{text}): {row.verdict}"


def _ends(bounds: Interval) -> str:
    if bounds == UNBOUNDED:
        return "not bounded"
    return f"{signed(bounds.low)} to {signed(bounds.high)}"


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
    few = next(iter(systems[0].evaluations.values()))
    if few.main.n_clusters < FEWEST_BOUNDED:
        yield (
            f"With {few.main.n_clusters} {few.units} no difference can be shown: of so few, chance "
            "alone puts all on one side in more than 5 % of cases."
        )
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


def how_to_read(system: System, folds: bool, n_resamples: int, margin: float | None) -> list[Block]:
    """The rules behind the verdicts."""
    units = system.units
    blocks: list[Block] = [Heading("How to read this")]
    text, parts = "", "Utterances of one speaker or chapter"
    if system.task is CLASSIFICATION:
        text = "Error is the percentage of the clips that were given a wrong class. "
        parts = "Clips that were cut from one recording"
    if units == system.task.items:
        text += f"{parts} are drawn as if they were independent; where there are such, intervals "
        text += "are somewhat too narrow."
    if text:
        blocks.append(Text(text.strip()))
    blocks.append(
        Text(
            "Differences are after − before in percentage points; percentages are relative; "
            f"negative means fewer errors. p is two-sided, of a sign-flip test over {units}: "
            f"before and after are swapped in each of them, in all ways or in {n_resamples:,}, and "
            "p is how often the difference is as far from 0. It is corrected for the number of "
            "comparisons by Holm's rule, but for the primary one, which is declared beforehand. "
            f"Intervals hold 95 % and are not corrected: over {units} by BCa bootstrap of the "
            "mean over seeds (the percentile where BCa is undefined), of fewer than "
            f"{FEWEST_DRAWN} what the sign-flip test does not reject, and below {FEWEST_BOUNDED} "
            "not bounded; over seeds by Student's t of the differences paired by seed. One "
            f"system's own interval, of fewer than {FEWEST_DRAWN}, is Student's t over them."
        )
    )
    text = (
        f"Lower (higher) means that the whole interval over {units} is below (above) 0, that "
        "corrected p is below 0.05 and, where something was run with several seeds, that the whole "
        "interval over seeds is below (above) 0 too; anything else is within chance, and where p "
        "and an interval disagree the verdict says so. Undecided is what has no bounded interval. "
        "A merge that is not lower than its own random-donor control by the same rule is "
        f"{NO_BETTER}. Where nothing is trained, the control is drawn several times, and the "
        "second interval is one for another draw: one draw has no verdict."
    )
    if margin is not None:
        text += (
            f" Equivalent means that the 90 % intervals lie within ± {margin:g} points, a margin "
            "that was fixed before the runs: two one-sided tests at 5 %."
        )
    blocks.append(Text(text))
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
