"""λ over the epochs, as a picture, drawn without a display or global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from speechbrain_mam.atomic import write_beside

NAMES_AS_THEY_ARE = rc_context({"text.parse_math": False})
"""Around what draws: a name with dollars in it is no formula."""

MAX_WIDTH, MAX_HEIGHT, MAX_NAMES = 16.0, 40.0, 120
"""Inches, and names beside the rows: hundreds of epochs or heads stay some megabytes."""


@NAMES_AS_THEY_ARE
def plot_lambdas(epochs: Sequence[int], lambdas: Sequence[dict[str, float]], file: Path) -> None:
    """Heat map of λ: one row a layer (projection, head), one column an epoch.

    Arguments
    ---------
    epochs : sequence of int
        0 is the start, before any step.
    lambdas : sequence of dict
        λ by name at the end of each epoch.
    file : Path
        PNG to write.

    Example
    -------
    >>> png = Path(getfixture("tmp_path")) / "lambdas.png"
    >>> plot_lambdas([0, 1], [{"layer 0": 0.95}, {"layer 0": 0.93}], png)
    >>> png.is_file()
    True
    """
    names = list(lambdas[0])
    grid = np.array([[row[name] for row in lambdas] for name in names])
    width, height = 1.6 + 0.55 * len(epochs), 1.4 + 0.32 * len(names)
    figure = Figure(figsize=(float(np.clip(width, 5, MAX_WIDTH)), np.clip(height, 2.6, MAX_HEIGHT)))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low, high = float(grid.min()), float(grid.max())
    if high - low < 1e-3:  # colours would show rounding as structure
        low, high = low - 5e-4, high + 5e-4
    image = axes.imshow(
        grid, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest"
    )
    step = max(1, len(epochs) // 20)
    axes.set_xticks(range(0, len(epochs), step), [str(e) for e in epochs[::step]])
    every = -(-len(names) // MAX_NAMES)
    axes.set_yticks(range(0, len(names), every), names[::every])
    axes.set_xlabel("epoch (0: start)")
    axes.set_title("λ, the target's share (1 = untouched)")
    if grid.size <= 300 and len(epochs) <= 16:
        for (i, j), value in np.ndenumerate(grid):
            dark = value < (low + high) / 2
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")  # fmt: skip
    figure.colorbar(image, ax=axes, label="λ")
    figure.tight_layout()
    write_beside(file, lambda part: figure.savefig(part, dpi=130, format="png"))
