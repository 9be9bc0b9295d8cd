"""A report's words: its summary and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from speechbrain_mam.report.comparisons import NO_BETTER, direction, pair_seeds, verdict
from speechbrain_mam.report.document import Block, Heading, Items, Table, Text
from speechbrain_mam.report.runs import FINETUNE, RANDOM, UNTOUCHED, Run
from speechbrain_mam.report.search_results import NO_CONTROL, Point, Sweep
from speechbrain_mam.report.statistics import Comparison, Interval, error_rate, paired_bootstrap
from speechbrain_mam.report.systems import Rate, Row, System, all_alike, find

UTTERANCES_SHOWN = 5


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
    counts = next(iter(systems[0].counts("words").values()))
    words = int(counts.words.sum())
    lines = [
        f"{len(runs)} run{'s' if len(runs) > 1 else ''} on one test set of {len(counts.ids):,} "
        f"utterances with {words:,} words."
    ]
    if (untouched := find(systems, UNTOUCHED)) is not None:
        rate = error_rate(next(iter(untouched.counts("words").values())))
        lines.append(f"The untouched model's WER is {rate:.2f} %.")
    blocks: list[Block] = [Text(" ".join(lines))]
    told = [row for row in rows if row.system.control == NO_CONTROL]
    for title, kind in _KINDS.items():
        found = [row for row in told if direction(row.words) == kind]
        spoilt = [row for row in found if kind == "lower" and NO_BETTER in row.verdict]
        sound = [row for row in found if row not in spoilt]
        if sound:
            blocks += [Text(f"{title}:"), Items([_phrase(row) for row in sound])]
        if spoilt:
            title = "Lower, but no better than the same merge with a random donor: these data do "
            title += "not show that the gain came from the donor:"
            blocks += [Text(title), Items([_phrase(row) for row in spoilt])]
    return blocks + [Text(warning, bold=True) for warning in _warnings(runs, systems, told)]


_KINDS = {
    "Gains beyond chance": "lower",
    "Within chance, neither a gain nor a loss": "within chance",
    "Losses beyond chance": "higher",
    "Identical, utterance by utterance": "identical",
}


def _phrase(row: Row) -> str:
    words = row.words
    text = f"{row.system.name} against {row.against.name}"
    if words.identical:
        return text + (f": {row.verdict}" if row.verdict != "identical" else "")
    text += f" {percent_change(words)} WER ({signed(words.difference)} points, 95 % interval "
    text += f"{signed(words.interval.low)} to {signed(words.interval.high)}"
    if words.seeds is not None:
        text += f"; over {words.n_seeds} seeds {signed(words.seeds.low)} to "
        text += signed(words.seeds.high)
    text += f"; p {p_value(words)}" if p_value(words).startswith("<") else f"; p = {p_value(words)}"
    return f"{text})" if row.verdict == direction(words) else f"{text}): {row.verdict}"


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


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def systems_table(
    systems: Sequence[System], rows: Mapping[str, Sequence[Row]], n_resamples: int
) -> Table:
    """WER and CER of every system, and the relative change of its WER against the references."""
    header = ["system", "seeds", "WER %", "WER, 95 %", "CER %", "CER, 95 %"]
    lines = []
    for system in systems:
        line = [system.name, str(len(system.evaluations))]
        for unit in ("words", "chars"):
            line += _rate(system.rate(unit, n_resamples))
        for of_one in rows.values():
            row = next((row for row in of_one if row.system is system), None)
            line.append(percent_change(row.words) if row else "")
        lines.append(line)
    header += [f"WER against {name}" for name in rows]
    return Table(header, lines, frozenset(range(1, len(header))))


def _rate(rate: Rate) -> list[str]:
    mean = f"{rate.mean:.2f}" + (f" ± {rate.sd:.2f}" if rate.sd is not None else "")
    return [mean, f"[{rate.interval.low:.2f}, {rate.interval.high:.2f}]"]


def comparison_table(rows: Sequence[Row]) -> Table:
    """Every system against one reference, with the verdict."""
    header = [f"against {rows[0].against.name}", "verdict on WER", "seeds", *_COLUMNS]
    header += ["CER", "CER points [95 %]"]
    lines = []
    for row in rows:
        chars = [percent_change(row.chars), points(row.chars)]
        seeds = str(row.words.n_seeds)
        lines.append([row.system.name, row.verdict, seeds, *_cells(row.words), *chars])
    return Table(header, lines, frozenset(range(2, len(header))))


def controls_table(rows: Sequence[Row]) -> Table:
    """Every merge against each of its controls."""
    header = ["merge", "against its control", "verdict", *_COLUMNS]
    lines = [
        [row.system.name, row.against.control, row.verdict, *_cells(row.words)] for row in rows
    ]
    return Table(header, lines, frozenset(range(3, len(header))))


_COLUMNS = ("WER", "WER points [95 %]", "p", "WER, seeds' 95 %")


def _cells(words: Comparison) -> list[str]:
    seeds = interval(words.seeds) if words.seeds is not None else ""
    return [percent_change(words), points(words), p_value(words), seeds]


def sweep_table(sweep: Sweep, n_resamples: int) -> Table:
    """The best λ of every donor, subset of layers and control."""
    untouched = next((point for point in sweep.points if point.untouched), None)
    lines: dict[tuple[str, str, str], list[Point]] = {}
    for point in sweep.points:
        if not point.untouched:
            key = point.donor or "", point.subset, point.control
            lines.setdefault(key, []).append(point)
    rows = []
    for (donor, subset, control), of_line in lines.items():
        best = min(of_line, key=lambda point: (error_rate(point.counts), -point.lam))
        row = [control if control != NO_CONTROL else "MAM", donor, subset, str(len(of_line))]
        row += [f"{best.lam:g}", f"{error_rate(best.counts):.2f}"]
        if untouched is not None:
            against = paired_bootstrap(untouched.counts, best.counts, n_resamples)
            row += [points(against), verdict(against)]
        rows.append(row)
    header = ["merge or control", "donor", "layers", "points", "best λ", f"WER %, {sweep.split}"]
    if untouched is not None:
        header += ["against untouched, points [95 %]", "verdict"]
    return Table(header, rows, frozenset(range(3, 7 if untouched is not None else 6)))


def utterance_table(
    before: System, after: System, better: bool, limit: int = UTTERANCES_SHOWN
) -> Table:
    """The utterances whose errors fell (or rose) most, in the mean over seeds.

    Where there are several seeds, the texts are those of the seed that changed most.
    """
    pairs = [
        (before.evaluations[b], after.evaluations[a], a)
        for b, a in pair_seeds(before.evaluations, after.evaluations)
    ]
    sign = -1 if better else 1
    header = ["utterance", "words", "errors", "reference", before.name, after.name]
    if not pairs:
        return Table(header, [])
    change = sum(a.words.errors - b.words.errors for b, a, _ in pairs)
    order = sorted(range(len(change)), key=lambda i: -sign * change[i])
    rows = []
    for i in order[:limit]:
        if sign * change[i] <= 0:
            break
        most = max(pairs, key=lambda p: sign * (p[1].words.errors[i] - p[0].words.errors[i]))
        old, new, seed = most
        name = old.words.ids[i]
        errors = (
            float(np.mean([model.words.errors[i] for model in models]))
            for models in ([b for b, _, _ in pairs], [a for _, a, _ in pairs])
        )
        shown = " → ".join(f"{value:g}" if value % 1 == 0 else f"{value:.1f}" for value in errors)
        label = f"{name} (seed {seed})" if len(pairs) > 1 else name
        texts = [old.refs[name], old.hyps[name], new.hyps[name]]
        rows.append([label, str(int(old.words.words[i])), shown, *texts])
    return Table(header, rows, frozenset([1, 2]))


def how_to_read(n_resamples: int) -> list[Block]:
    """The rules behind the verdicts."""
    return [
        Heading("How to read this"),
        Text(
            "Differences are after − before in percentage points; percentages are relative; "
            "negative means fewer errors. Intervals hold 95 %: over utterances by paired "
            f"bootstrap (BCa, {n_resamples:,} resamples; the percentile where BCa is undefined) of "
            "the mean over seeds, and over seeds by Student's t of the differences paired by "
            "seed. p is two-sided, from the bootstrap distribution. Lower (higher) means that the "
            "whole interval over utterances is below (above) 0 and, where something was run with "
            "several seeds, the whole interval over seeds too; anything else is within chance. A "
            "merge that is not lower than its own random-donor control by the same rule is no "
            "better than the random donor. Intervals are not corrected for the number of "
            "comparisons: of twenty without an effect, one is expected to exclude 0."
        ),
    ]
