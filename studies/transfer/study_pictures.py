"""What the cells say, drawn: differences in panels, and what becomes of them with λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from study_tables import compared, difference, differences, split_lam

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Settings = Mapping[str, Sequence[dict[str, Any]]]
"""The cells of each setting, by its name."""


def picture(settings: Settings, file: Path) -> None:
    """Differences with their intervals, a panel for each setting, as a PNG."""
    found = {name: differences(compared(cells))[::-1] for name, cells in settings.items()}
    rows = [len(panel) for panel in found.values()]
    figure, panels = plt.subplots(
        len(found),
        figsize=(8, 0.9 * len(found) + 0.24 * sum(rows)),
        height_ratios=[row + 1 for row in rows],
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axes, (name, panel) in zip(panels[:, 0], found.items(), strict=True):
        for y, one in enumerate(panel):
            colour = "tab:blue" if one.against == "default" else "tab:orange"
            axes.plot([one.low, one.high], [y, y], color=colour)
            axes.plot(one.mean, y, "o", color=colour)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(panel)), [f"{one.arm} − {one.against}" for one in panel])
        axes.tick_params(labelsize=8)
        axes.set_title(name, fontsize=10)
    panels[-1, 0].set_xlabel("mean validation loss, difference with its 95 % interval")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def lam_picture(settings: Settings, file: Path) -> None:
    """Loss minus the default's over λ, a line for each donor, its twin dashed, as a PNG."""
    figure, panels = plt.subplots(
        len(settings), figsize=(8, 5 * len(settings)), squeeze=False, layout="constrained"
    )
    for axes, (name, cells) in zip(panels[:, 0], settings.items(), strict=True):
        by_arm = compared(cells)
        bases: dict[str, list[str]] = {}
        for arm in sorted(by_arm):
            base, lam = split_lam(arm)
            if lam:
                bases.setdefault(base, []).append(lam)
        colours = {b: f"C{i}" for i, b in enumerate(b for b in bases if "moments" not in b)}
        spread = np.linspace(-0.02, 0.02, len(bases))  # so that intervals stand side by side
        for shift, (base, lams) in zip(spread, bases.items(), strict=True):
            pairs = [(lam, difference(f"{base}@{lam}", "default", by_arm)) for lam in lams]
            known = [(float(lam), one) for lam, one in pairs if one is not None]
            axes.errorbar(
                [lam + shift for lam, _ in known],
                [one.mean for _, one in known],
                yerr=[[one.mean - one.low for _, one in known]] * 2,
                color=colours.get(base.removesuffix("-moments"), "grey"),
                linestyle="--" if base.endswith("moments") else "-",
                marker="o",
                markerfacecolor="white" if base.endswith("moments") else None,
                markersize=4,
                capsize=2,
                label=base,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("mean validation loss − the default's")
        axes.legend(fontsize=8, ncols=2)
    panels[-1, 0].set_xlabel("λ, the target's own share")
    figure.savefig(file, dpi=100)
    plt.close(figure)
