"""A report's pictures, as PNG bytes. Only matplotlib's object interface is used."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from speechbrain_mam.report.lambda_map import NAMES_AS_THEY_ARE
from speechbrain_mam.results.comparisons import NO_BETTER, direction
from speechbrain_mam.results.counts import error_rate, rate_interval
from speechbrain_mam.results.family import Row
from speechbrain_mam.results.search_results import NO_CONTROL, Point, Sweep

MERGE, GREY = "#0b5d8f", "#6b6b6b"
CONTROL_STYLES = {
    "random": ("#c1440e", "s"),
    "shuffled_layers": ("#3d8b37", "^"),
    "permuted_rows": ("#8e5ea2", "D"),
    "no_donor": ("#b8860b", "v"),
    "match_norm": ("#46b1c9", "P"),
    "moments": ("#d1495b", "o"),
    "spectrum": ("#00798c", "<"),
    "conjugate": ("#5f0f40", ">"),
    "reversed_layers": ("#6a994e", "h"),
    "mimetic": ("#3a0ca3", "*"),
}
"""Colour and marker: told apart without colours too."""
NO_GAIN = "#b8860b"
COLOURS = {"lower": "#2a7f3b", "higher": "#b3261e"}
HEADS_SHOWN = 24


@NAMES_AS_THEY_ARE
def plot_differences(rows: Sequence[Row]) -> bytes:
    """Each comparison's difference with its intervals, over utterances (clips) and over seeds.

    Arguments
    ---------
    rows : sequence of Row
        All of them, in the order of the tables.
    """
    labels = [
        f"{row.system.name}  −  {row.against.name}"
        + ("" if np.isfinite(row.main.interval).all() else "  (not bounded)")
        for row in rows
    ]
    # inches: a character of a label, and what the bars need beside them
    width = max(8.6, 4.4 + 0.08 * max(map(len, labels)))
    figure, (axes,) = new_figure(width, 1.35 + 0.36 * len(rows), 1)
    task = rows[0].system.task
    for y, row in enumerate(rows):
        found = row.main
        colour = COLOURS.get(direction(found), GREY)
        if direction(found) == "lower" and NO_BETTER in row.verdict:
            colour = NO_GAIN
        if found.seeds is not None:
            axes.plot(found.seeds, [y + 0.18] * 2, color=colour, lw=1.2, ls=":")
        if np.isfinite(found.interval).all():
            axes.plot(found.interval, [y, y], color=colour, lw=2.4, solid_capstyle="butt")
        axes.plot(found.difference, y, "o", color=colour, ms=6)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel(
        f"difference of {task.main}, percentage points; left of 0: fewer errors\n"
        f"bar: 95 % over {rows[0].system.units}; dotted: 95 % over seeds, or for another draw\n"
        f"green: lower; red: higher; grey: within chance or undecided; ochre: {NO_BETTER}",
        fontsize=9,
    )
    axes.grid(axis="x", alpha=0.3)
    return to_png(figure)


@NAMES_AS_THEY_ARE
def plot_sweep(sweep: Sweep, title: str, metric: str = "WER") -> bytes:
    """An error rate against λ: one panel a donor and subset of layers, each control its own line.

    The band is the merge's 95 % interval over utterances (clips); the horizontal line is the
    untouched model, which is also where every line ends at λ = 1.

    Arguments
    ---------
    sweep : Sweep
        Points on validation data.
    title : str
        Above the panels.
    metric : str
        The rate's name.
    """
    merged = [p for p in sweep.points if not p.untouched]
    untouched = next((p for p in sweep.points if p.untouched), None)
    donors = {p.donor for p in merged if p.control == NO_CONTROL}
    panels = panels_of(sweep)
    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    figure, grid = new_figure(
        6.4 if columns == 1 else 10.5, 0.9 + 3.7 * height, len(panels), columns, True
    )
    labelled: dict[str, Any] = {}
    for axes, (donor, subset) in zip(grid, panels, strict=True):
        if untouched is not None:
            rate = error_rate(untouched.counts)
            line = axes.axhline(rate, color="black", ls="--", lw=1)
            labelled.setdefault(f"untouched: {rate:.2f} %", line)
        here = [p for p in merged if _belongs(p, donors, donor, subset)]
        for control in dict.fromkeys([NO_CONTROL, *CONTROL_STYLES, *(p.control for p in here)]):
            line = _plot_line(axes, [p for p in here if p.control == control], untouched, control)
            if line is not None:
                labelled.setdefault(_label(control, merged), line)
        chosen = sweep.chosen
        if chosen.get("subset") == subset and chosen.get("donor") in (donor, None):
            line = axes.axvline(float(chosen["lam"]), color=MERGE, lw=0.9, ls=":")
            labelled.setdefault("chosen λ", line)
        several = len({d for d, _ in panels}) > 1
        axes.set_title(f"layers: {subset}" + (f", {donor}" if several else ""), fontsize=10)
        axes.set_xlabel("λ, the target's share (1 = untouched)")
        axes.set_ylabel(f"{metric} %, {sweep.split}")
        axes.grid(alpha=0.3)
    _cut_far_points(grid, merged, untouched)
    figure.suptitle(title, fontsize=11)
    figure.legend(
        labelled.values(),
        labelled.keys(),
        loc="outside lower center",
        ncols=3 if columns == 1 else 4,
        fontsize=8.5,
    )
    return to_png(figure)


def panels_of(sweep: Sweep) -> list[tuple[str | None, str]]:
    """Donor and subset of each panel: all layers, the chosen subset, and what else is a line.

    One λ is no line. A greedy search leaves many such; the table has them.
    """
    merged = [p for p in sweep.points if not p.untouched]
    own = [p for p in merged if p.control == NO_CONTROL]
    donors = {p.donor for p in own}
    panels = list(dict.fromkeys((p.donor, p.subset) for p in own))
    if len(panels) > 1:
        size = {x: len({p.lam for p in own if _belongs(p, donors, *x)}) for x in panels}
        wanted = {"all", sweep.chosen.get("subset")}
        panels = [x for x in panels if size[x] > 1 or x[1] in wanted]
    shown = {p.control for p in merged if any(_belongs(p, donors, *x) for x in panels)}
    shown.add(NO_CONTROL)
    for point in merged:  # a control that was swept in other subsets alone
        if point.control not in shown:
            panels.append((point.donor, point.subset))
            shown.add(point.control)
    return panels or [(None, "all")]


def _cut_far_points(grid: list[Axes], points: list[Point], untouched: Point | None) -> None:
    """Merges and controls that break the model would flatten the lines where the choice is made."""
    ours = [p for p in points if p.control == NO_CONTROL] + ([untouched] if untouched else [])
    if not ours:
        return
    bounds = np.array([rate_interval(p.counts) for p in ours])
    if not np.isfinite(bounds).all():
        return
    bottom, top = bounds[:, 0].min(), bounds[:, 0].min() + 2.5 * np.ptp(bounds)
    if untouched is not None:
        top = min(top, 2 * error_rate(untouched.counts))
    far = max(error_rate(p.counts) for p in points)
    if far > top > bottom:
        for axes in grid:
            axes.set_ylim(bottom - 0.05 * (top - bottom), top)
            axes.set_ylabel(f"{axes.get_ylabel()} (cut; highest {far:.1f})")


def _belongs(point: Point, donors: set[str | None], donor: str | None, subset: str) -> bool:
    """A control without a donor of its own stands beside every donor."""
    return point.subset == subset and (point.donor == donor or point.donor not in donors)


def _label(control: str, points: list[Point]) -> str:
    if control == NO_CONTROL:
        return "MAM"
    where = [(p.lam, p.subset, p.donor) for p in points if p.control == control]
    drawn_often = len(set(where)) < len(where)
    return f"control {control}" + (", mean of draws" if drawn_often else "")


def _plot_line(axes: Axes, points: list[Point], untouched: Point | None, control: str) -> Any:
    if not points:
        return None
    points = sorted([*points, *([untouched] if untouched else [])], key=lambda p: p.lam)
    lams = [p.lam for p in points]
    rates = [error_rate(p.counts) for p in points]
    if control == NO_CONTROL:
        intervals = np.array([rate_interval(p.counts) for p in points])
        if np.isfinite(intervals).all():
            axes.fill_between(lams, *intervals.T, color=MERGE, alpha=0.15, lw=0)
        return axes.plot(lams, rates, "o-", color=MERGE, lw=2.2, ms=5, zorder=3)[0]
    colour, marker = CONTROL_STYLES.get(control, (GREY, "x"))
    lams = sorted(set(lams))  # a control's draws: their mean
    rates = [float(np.mean([error_rate(p.counts) for p in points if p.lam == lam])) for lam in lams]
    return axes.plot(lams, rates, color=colour, marker=marker, lw=1.1, ms=4, alpha=0.9)[0]


@NAMES_AS_THEY_ARE
def plot_final_lambdas(systems: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Learned λ per layer: a dot a seed, a line through the means.

    Arguments
    ---------
    systems : mapping of str to sequence of dict
        For each system one dict a seed: λ by layer.
    """
    names = list(dict.fromkeys(n for runs in systems.values() for run in runs for n in run))
    figure, (axes,) = new_figure(max(6.4, 1.5 + 0.42 * len(names)), 3.9, 1)
    styles = [(MERGE, "o"), *CONTROL_STYLES.values()]
    for i, (system, runs) in enumerate(systems.items()):
        colour, marker = styles[i % len(styles)]
        at = np.arange(len(names)) + 0.12 * (i - (len(systems) - 1) / 2)
        values = np.array([[run.get(name, np.nan) for name in names] for run in runs])
        label = f"{system}, {len(runs)} seed{'s' if len(runs) > 1 else ''}"
        for row in values:
            axes.plot(at, row, marker, color=colour, ms=4, alpha=0.5, mew=0)
        axes.plot(at, values.mean(0), color=colour, lw=1.6, marker="_", ms=14, label=label)
    steep = len(names) > 8 or max(map(len, names)) > 10
    axes.set_xticks(range(len(names)), names, rotation=60 if steep else 0, fontsize=8.5)
    axes.set_ylabel("λ, the target's share")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return to_png(figure)


@NAMES_AS_THEY_ARE
def plot_probe(probe: Mapping[str, Any]) -> bytes:
    """The probe's ranking, best first, with standard errors.

    Arguments
    ---------
    probe : mapping
        ``layers``, ``projections`` and ``heads`` with ``score`` and ``stderr``.
    """
    kinds = [kind for kind in ("layers", "projections", "heads") if probe.get(kind)]
    shown = {k: sorted(probe[k], key=lambda r: r["score"])[:HEADS_SHOWN] for k in kinds}
    longest = max((len(rows) for rows in shown.values()), default=1)
    panels, height = len(kinds) or 1, 1.4 + 0.25 * max(longest, 5)
    figure, grid = new_figure(3.6 * panels, height, panels, panels)
    for axes, kind in zip(grid, kinds, strict=False):
        rows = shown[kind]
        labels = [
            f"layer {row['layer']}" + (f" {row[kind[:-1]]}" if kind == "projections" else "")
            + (f" head {row['head']}" if kind == "heads" else "")
            for row in rows
        ]  # fmt: skip
        scores = [row["score"] for row in rows]
        colours = [COLOURS["lower"] if score < 0 else COLOURS["higher"] for score in scores]
        axes.barh(
            range(len(rows)), scores, xerr=[row["stderr"] for row in rows], color=colours,
            alpha=0.8, error_kw={"lw": 1, "capsize": 2},
        )  # fmt: skip
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.set_ylim(max(longest, 5) - 0.4, -0.6)
        axes.axvline(0, color="black", lw=0.8)
        cut = len(probe[kind]) - len(rows)
        axes.set_title(kind + (f" (the best {len(rows)} of {cut + len(rows)})" if cut else ""),
                       fontsize=10)  # fmt: skip
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel("change of the loss per unit moved towards the donor ± s.e.", fontsize=9)
    return to_png(figure)


def new_figure(
    width: float, height: float, panels: int, columns: int = 1, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure, in inches, and its panels, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    rows = -(-panels // columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    flat = list(grid.flat)
    for spare in flat[panels:]:
        spare.set_visible(False)
    return figure, flat[:panels]


def to_png(figure: Figure) -> bytes:
    """A figure as a file's bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=130, format="png")
    return stream.getvalue()
