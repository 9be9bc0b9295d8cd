"""The rooms of the package as a picture: floors from the top down, an arrow to what is imported.

> python -m tools.draw_rooms > rooms.svg

The Mermaid block in docs/design.md is what GitHub draws; Sphinx puts this picture in its place, so
that the built page needs no script of another host. It is SVG written by hand: the same text on
every machine, in the colour of the text around it.
"""

from __future__ import annotations

import itertools
import sys
from html import escape

from tools.rooms import Graph, floors, module_graph, reduced, room_graph

FLOOR, GAP, MARGIN, BOX, LETTER = 62, 22, 14, 28, 8.2
"""Pixels: between two floors, between two boxes, around all, a box's height, a letter's width."""
SWEEPS = 24

Place = tuple[str, ...]
"""A room, ``(name,)``, or where an arrow passes a floor, ``(from, to, floor)``."""


def width(place: Place) -> float:
    """Of a box; an arrow that passes takes little."""
    return 18 + LETTER * len(place[0]) if len(place) == 1 else 8


def chains(rooms: Graph, level: dict[str, int]) -> list[list[Place]]:
    """Each arrow as the places that it goes through, from the upper room to the lower one."""
    return [
        [
            (name,),
            *((name, other, str(f)) for f in range(level[name] - 1, level[other], -1)),
            (other,),
        ]
        for name, others in sorted(rooms.items())
        for other in sorted(others)
    ]


def spread(row: list[Place], wanted: dict[Place, float]) -> dict[Place, float]:
    """Centres as near to the wanted ones as the order and the widths allow.

    Places that would overlap become a block, whose middle is the mean of what its members want.
    """
    blocks: list[list[Place]] = []
    offset: dict[Place, float] = {}
    start: list[float] = []

    def settle(block: list[Place]) -> float:
        at = 0.0
        for place in block:
            offset[place] = at + width(place) / 2
            at += width(place) + GAP
        return sum(wanted[p] - offset[p] for p in block) / len(block)

    for place in row:
        block = [place]
        left = settle(block)
        while blocks and start[-1] + sum(width(p) + GAP for p in blocks[-1]) > left:
            block = blocks.pop() + block
            start.pop()
            left = settle(block)
        blocks.append(block)
        start.append(left)
    for block, left in zip(blocks, start, strict=True):
        settle(block)
        offset |= {place: left + offset[place] for place in block}
    return offset


def layout(rooms: Graph, level: dict[str, int]) -> dict[Place, tuple[float, float]]:
    """Centres: Sugiyama's method, each floor ordered by the mean of its neighbours' places."""
    near: dict[Place, set[Place]] = {(name,): set() for name in rooms}
    rows: dict[int, list[Place]] = {floor: [] for floor in range(1, max(level.values()) + 1)}
    for name in sorted(rooms):
        rows[level[name]].append((name,))
    for chain in chains(rooms, level):
        for place in chain[1:-1]:
            rows[int(place[2])].append(place)
        for upper, lower in itertools.pairwise(chain):
            near.setdefault(upper, set()).add(lower)
            near.setdefault(lower, set()).add(upper)
    floor_of = {place: floor for floor, row in rows.items() for place in row}
    x = {place: 100.0 * i for row in rows.values() for i, place in enumerate(row)}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for floor in sorted(rows, reverse=down):
            step = 1 if down else -1
            wanted = {}
            for place in rows[floor]:
                side = [x[o] for o in near[place] if floor_of[o] == floor + step]
                side = side or [x[o] for o in near[place]] or [x[place]]
                wanted[place] = sum(side) / len(side)
            rows[floor].sort(key=lambda p: (wanted[p], p))
            x |= spread(rows[floor], wanted)
    left = min(x[p] - width(p) / 2 for p in x)
    top = max(rows)
    return {
        p: (x[p] - left + MARGIN, (top - floor_of[p]) * FLOOR + MARGIN + BOX / 2) for p in x
    }  # fmt: skip


def svg(graph: Graph) -> str:
    """The rooms as SVG."""
    level, rooms = floors(graph), reduced(graph)
    at = layout(rooms, level)
    right = max(x + width(place) / 2 for place, (x, _) in at.items()) + MARGIN
    bottom = max(y for _, y in at.values()) + BOX / 2 + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {bottom:.0f}" '
        f'width="{right:.0f}" role="img" aria-label="The rooms and what they import" '
        'font-family="sans-serif" font-size="14" fill="currentColor" stroke="currentColor">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8Z" stroke="none"/></marker></defs>',
    ]
    for chain in chains(rooms, level):
        path = ""
        for upper, lower in itertools.pairwise(chain):
            (x1, y1), (x2, y2) = at[upper], at[lower]
            y1 += BOX / 2 if len(upper) == 1 else 0
            y2 -= BOX / 2 if len(lower) == 1 else 0
            middle = (y1 + y2) / 2
            path += (path and " ") or f"M{x1:.0f} {y1:.0f} "
            path += f"C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"
        lines.append(f'<path d="{path}" fill="none" stroke-opacity="0.55" marker-end="url(#tip)"/>')
    for place in sorted(place for place in at if len(place) == 1):
        (x, y), wide = at[place], width(place)
        lines += [
            f'<rect x="{x - wide / 2:.0f}" y="{y - BOX / 2:.0f}" width="{wide:.0f}" '
            f'height="{BOX}" rx="5" fill="none"/>',
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" stroke="none">'
            f"{escape(place[0])}</text>",
        ]
    return "\n".join([*lines, "</svg>"])


if __name__ == "__main__":
    sys.stdout.write(svg(room_graph(module_graph())) + "\n")
