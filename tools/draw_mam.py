#!/usr/bin/env python3
"""The picture at the head of the README: what MAM does, in every layer.

> python tools/draw_mam.py docs/mam.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

TARGET, DONOR, MERGED, PLAIN = "#2b6cb0", "#c05621", "#6b46c1", "#718096"
"""Colours of what is the target's, the donor's, mixed, and of neither."""
LAYERS = ((2, "0.97"), (1, "0.95"), (0, "0.92"))
"""From the top: the layer, and the λ that it is drawn with."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "mam",
    "font.family": "DejaVu Sans",
}


def box(
    axes: Axes, x: float, y: float, wide: float, high: float, colour: str, *, text: str = "",
    size: float = 11, fill: float = 0.14,
) -> None:  # fmt: skip
    """A rounded box around (x, y) with a text in its middle."""
    shape = FancyBboxPatch(
        (x - wide / 2, y - high / 2), wide, high, boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=to_rgba(colour, fill), edgecolor=colour, lw=1.3,
    )  # fmt: skip
    axes.add_patch(shape)
    if text:
        axes.text(x, y, text, ha="center", va="center", size=size, color="#1a202c")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """From one point to another."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.3, color=colour)
    )


def layer(axes: Axes, x: float, y: float, own: str, colour: str, name: str, mark: str = "") -> None:
    """A Transformer's layer, all its own colour but Q, K and V."""
    box(axes, x, y, 4.0, 1.5, own, fill=0.06)
    axes.text(x - 1.85, y + 0.5, name, ha="left", va="center", size=9, color=PLAIN)
    box(axes, x + 0.7, y + 0.46, 2.4, 0.4, own, text="all the rest", size=8.5)
    for i, projection in enumerate("QKV"):
        text = f"{projection}{mark}"
        box(axes, x + (i - 1) * 1.25, y - 0.27, 1.0, 0.66, colour, text=text, size=12, fill=0.25)


def draw() -> Figure:
    """Target on the left, donor on the right; in the middle the target's Q, K, V as a mixture."""
    figure = Figure(figsize=(10, 4.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 20), ylim=(0, 8.6))
    axes.axis("off")
    left, middle, right = 2.7, 10.0, 17.3
    heads = (
        (left, TARGET, "target", "HuBERT: speech"),
        (middle, MERGED, "merged target", "W = λ · W_target + (1 − λ) · W_donor"),
        (right, DONOR, "donor", "BERT: text. Only read, never run"),
    )
    for x, colour, name, note in heads:
        axes.text(x, 8.15, name, ha="center", size=15, weight="bold", color=colour)
        axes.text(x, 7.65, note, ha="center", size=10, color="#1a202c")
    for (number, lam), y in zip(LAYERS, (6.5, 4.7, 2.9), strict=True):
        layer(axes, left, y, TARGET, TARGET, f"layer {number}")
        layer(axes, right, y, DONOR, DONOR, f"layer {number}")
        layer(axes, middle, y, TARGET, MERGED, f"layer {number}", "′")
        for x, step, colour, share in (
            (left, 1, TARGET, f"λ = {lam}"),
            (right, -1, DONOR, f"1 − λ = {1 - float(lam):.2f}"),
        ):
            start, end = x + step * 2.1, middle - step * 2.1
            arrow(axes, (start, y - 0.27), (end, y - 0.27), colour)
            place = ((start + end) / 2, y - 0.05)
            axes.text(*place, share, ha="center", va="bottom", size=10, color=colour)
    for x, colour in ((left, TARGET), (middle, MERGED)):
        axes.text(x, 1.2, "audio", ha="center", va="center", size=11, color=colour)
        arrow(axes, (x, 1.45), (x, 2.1), colour)
    note = "Zero-shot: λ is fixed.  Learnable-MAM: one λ a layer, learned while the target is "
    note += "fine-tuned, then folded into plain linear layers."
    axes.text(middle, 0.45, note, ha="center", va="center", size=10, color="#1a202c")
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="an .svg or a .png")
    out = parser.parse_args().out
    with matplotlib.rc_context(STYLE):
        # No date, or each drawing would be another file
        metadata = {"Date": None} if out.suffix == ".svg" else {}
        draw().savefig(out, facecolor="white", metadata=metadata)


if __name__ == "__main__":
    main()
