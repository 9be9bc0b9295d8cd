"""A report's tables of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from speechbrain_mam.report.document import Table
from speechbrain_mam.report.text import (
    interval,
    p_value,
    percent_change,
    points,
    rate_bounds,
    signed,
)
from speechbrain_mam.results.comparisons import pair_seeds, verdict
from speechbrain_mam.results.counts import error_rate
from speechbrain_mam.results.family import Row
from speechbrain_mam.results.resampling import FEWEST_BOUNDED
from speechbrain_mam.results.search_results import NO_CONTROL, Point, Sweep
from speechbrain_mam.results.statistics import paired_difference
from speechbrain_mam.results.systems import Rate, System
from speechbrain_mam.results.tasks import CLASSIFICATION

UTTERANCES_SHOWN = 5


def systems_table(
    systems: Sequence[System], rows: Mapping[str, Sequence[Row]], n_resamples: int
) -> Table:
    """Every system's error rates, and the relative change of the main one against references."""
    task = systems[0].task
    header = ["system", "seeds"]
    for name in task.names:
        header += [f"{name} %", f"{name}, 95 %"]
    lines = []
    for system in systems:
        number = len(system.evaluations)
        line = [system.name, f"{number} draws" if system.drawn and number > 1 else str(number)]
        for name in task.names:
            line += _rate(system.rate(name, n_resamples))
        for of_one in rows.values():
            row = next((row for row in of_one if row.system is system), None)
            line.append(percent_change(row.main) if row else "")
        lines.append(line)
    header += [f"{task.main} against {name}" for name in rows]
    return Table(header, lines, frozenset(range(1, len(header))))


def _rate(rate: Rate) -> list[str]:
    mean = f"{rate.mean:.2f}" + (f" ± {rate.sd:.2f}" if rate.sd is not None else "")
    return [mean, rate_bounds(rate.interval)]


def comparison_table(rows: Sequence[Row]) -> Table:
    """Every system against one reference, with the verdict."""
    main, *others = rows[0].system.task.names
    header = [f"against {rows[0].against.name}", f"verdict on {main}", "seeds", *_columns(main)]
    for name in others:
        header += [name, f"{name} points [95 %]"]
    lines = []
    for row in rows:
        line = [row.system.name, row.verdict, str(row.main.n_seeds), *_cells(row)]
        for name in others:
            line += [percent_change(row.comparisons[name]), points(row.comparisons[name])]
        lines.append(line)
    return Table(header, lines, frozenset(range(2, len(header))))


def controls_table(rows: Sequence[Row]) -> Table:
    """Every merge against each of its controls."""
    header = ["merge", "against its control", "verdict", *_columns(rows[0].system.task.main)]
    lines = [[row.system.name, row.against.control, row.verdict, *_cells(row)] for row in rows]
    return Table(header, lines, frozenset(range(3, len(header))))


def _columns(metric: str) -> list[str]:
    return [metric, f"{metric} points [95 %]", "p", "p, Holm", f"{metric}, seeds' 95 %"]


def _cells(row: Row) -> list[str]:
    found = row.main
    seeds = interval(found.seeds) if found.seeds is not None else ""
    seeds += f" ({found.n_draws} draws)" if found.n_draws > 1 else ""
    p = [p_value(found.p), "primary" if row.primary else p_value(found.p_corrected)]
    return [percent_change(found), points(found), *p, seeds]


def power_table(rows: Sequence[Row]) -> Table:
    """For each merge's comparison the smallest difference that could have been seen, and more.

    The last columns say with how many clusters, or seeds, the paper's gain would be seen: n times
    (detectable / gain)², as the standard error falls with √n.
    """
    task = rows[0].system.task
    header = ["comparison", "points seen in 80 %", "of the error rate before"]
    header += [f"−{task.published:g} %, points", f"{rows[0].system.units} for it", "seeds for it"]
    lines = []
    for row in rows:
        found = row.main
        if found.detectable is None:
            continue
        target = found.before * task.published / 100
        line = [f"{row.system.name} − {row.against.name}", "none", ""]
        if math.isfinite(found.detectable):
            line[1] = f"±{found.detectable:.2f}"
            line[2] = f"{100 * found.detectable / found.before:.1f} %" if found.before else ""
        seeds = None if found.n_draws else found.detectable_seeds
        seeds = None if seeds is None else found.n_seeds * seeds**2
        line += [
            signed(-target),
            _needed(found.needed_clusters, target, found.n_clusters, FEWEST_BOUNDED),
        ]
        lines.append([*line, _needed(seeds, target, found.n_seeds, 2)])
    return Table(header, lines, frozenset(range(1, len(header))))


def _needed(for_a_point: float | None, target: float, number: int, least: int) -> str:
    if for_a_point is None or not target:
        return ""
    if not math.isfinite(for_a_point):
        return f"more than {number}"
    return f"{max(least, math.ceil(for_a_point / target**2)):,} (here {number:,})"


def sweep_table(sweep: Sweep, metric: str, n_resamples: int) -> Table:
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
            against = paired_difference(untouched.counts, best.counts, n_resamples)
            # The best of so many points: Bonferroni's correction for having chosen it
            p_holm = min(1.0, against.p * (len(sweep.points) - 1))
            row += [points(against), verdict(replace(against, p_holm=p_holm))]
        rows.append(row)
    header = [
        "merge or control",
        "donor",
        "layers",
        "points",
        "best λ",
        f"{metric} %, {sweep.split}",
    ]
    if untouched is not None:
        header += ["against untouched, points [95 %]", "verdict"]
    return Table(header, rows, frozenset(range(3, 7 if untouched is not None else 6)))


def utterance_table(
    before: System, after: System, better: bool, limit: int = UTTERANCES_SHOWN
) -> Table:
    """The utterances (clips) whose errors fell (or rose) most, in the mean over seeds.

    Where there are several seeds, the texts (classes) are those of the seed that changed most.
    """
    pairs = [
        (before.evaluations[b], after.evaluations[a], a)
        for b, a in pair_seeds(before.evaluations, after.evaluations)
    ]
    sign = -1 if better else 1
    clips = after.task is CLASSIFICATION
    folds = bool(next(iter(after.evaluations.values())).folds)
    header = [after.task.item, *(["fold"] if folds else []), *([] if clips else ["words"])]
    numeric = frozenset(range(1, len(header) + 1))
    header += ["errors"]
    if clips:
        header += ["class", f"taken for: {before.name} → {after.name}"]
    else:
        header += ["reference", before.name, after.name]
    if not pairs:
        return Table(header, [])
    change = sum(a.main.errors - b.main.errors for b, a, _ in pairs)
    order = sorted(range(len(change)), key=lambda i: -sign * change[i])
    rows = []
    for i in order[:limit]:
        if sign * change[i] <= 0:
            break
        most = max(pairs, key=lambda p: sign * (p[1].main.errors[i] - p[0].main.errors[i]))
        old, new, seed = most
        name = old.main.ids[i]
        errors = (
            float(np.mean([model.main.errors[i] for model in models]))
            for models in ([b for b, _, _ in pairs], [a for _, a, _ in pairs])
        )
        shown = " → ".join(f"{value:g}" if value % 1 == 0 else f"{value:.1f}" for value in errors)
        label = f"{name} (seed {seed})" if len(pairs) > 1 else name
        line = [label, *([str(old.folds[name])] if folds else [])]
        line += [shown] if clips else [str(int(old.main.words[i])), shown]
        if clips:
            line += [old.refs[name], f"{old.hyps[name]} → {new.hyps[name]}"]
        else:
            line += [old.refs[name], old.hyps[name], new.hyps[name]]
        rows.append(line)
    return Table(header, rows, numeric)
