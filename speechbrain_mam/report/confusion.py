"""A picture of which classes are taken for which, with ten classes as with fifty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from speechbrain_mam.report.figures import to_png
from speechbrain_mam.report.lambda_map import NAMES_AS_THEY_ARE

CLASSES_SHOWN = 60
WRITTEN_UP_TO = 16
"""Classes, up to which each cell says its percentage."""
GAP = 0.3
"""Inches to the right of a panel."""


@NAMES_AS_THEY_ARE
def plot_confusions(systems: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
    """Confusion matrices side by side, each row in percent of its class's clips.

    Of more than :data:`CLASSES_SHOWN` classes, those with the most errors are shown.

    Arguments
    ---------
    systems : mapping of str to numpy.ndarray
        For each system ``[C, C]``: clips of a class (row) by the class they were given (column).
    names : sequence of str
        The ``C`` classes.
    """
    errors = sum(
        counts.sum(1) + counts.sum(0) - 2 * counts.diagonal() for counts in systems.values()
    )
    kept = np.sort(np.argsort(-np.asarray(errors), kind="stable")[:CLASSES_SHOWN])
    titles = [f"{name}: {_error(counts):.2f} % wrong" for name, counts in systems.items()]
    cell = 0.17 if len(kept) > WRITTEN_UP_TO else 0.42
    # Inches. Set by hand: a layout engine takes seconds for the labels of fifty classes.
    side = max(cell * len(kept), 0.085 * max(map(len, titles)))
    margin = 0.45 + 0.085 * max(len(names[i]) for i in kept)
    width, height = margin + (side + GAP) * len(systems) + 0.95, margin + side + 0.4
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)

    def panel(x: float, breadth: float) -> Axes:
        return figure.add_axes((x / width, margin / height, breadth / width, side / height))

    for k, (title, counts) in enumerate(zip(titles, systems.values(), strict=True)):
        axes = panel(margin + (side + GAP) * k, side)
        shares = 100 * counts / np.maximum(counts.sum(1), 1e-9)[:, None]
        shown = shares[np.ix_(kept, kept)]
        # The root: one clip of forty that went astray is still seen.
        image = axes.imshow(
            shown, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest"
        )
        axes.set_xticks(range(len(kept)), [names[i] for i in kept], rotation=90)
        axes.set_yticks(range(len(kept)), [names[i] if k == 0 else "" for i in kept])
        axes.set_xlabel("taken for")
        axes.tick_params(labelsize=9.5, length=2)
        axes.set_xticks(np.arange(0.5, len(kept) - 1), minor=True)
        axes.set_yticks(np.arange(0.5, len(kept) - 1), minor=True)
        axes.grid(which="minor", color="#dddddd", lw=0.5)
        axes.tick_params(which="minor", length=0)
        axes.set_title(title, fontsize=10)
        if k == 0:
            cut = len(kept) < len(names)
            axes.set_ylabel("class" + (f" (the worst {len(kept)} of {len(names)})" if cut else ""))
        if len(kept) <= WRITTEN_UP_TO:
            for (row, column), share in np.ndenumerate(shown):
                if share > 0:
                    axes.text(
                        column, row, f"{share:.0f}" if share >= 0.5 else "<1",
                        ha="center", va="center", fontsize=8,
                        color="white" if share > 40 else "black",
                    )  # fmt: skip
    bar = figure.colorbar(image, cax=panel(width - 0.95, 0.18), ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("percent of the class's clips", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return to_png(figure)


def _error(counts: np.ndarray) -> float:
    return float(100 * (counts.sum() - counts.trace()) / counts.sum())
