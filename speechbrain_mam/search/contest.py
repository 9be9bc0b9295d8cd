"""One donor's search, and the same for each control: its own λ and its own layers.

A control that is tested at the λ and layers that suit the donor has had less of a chance than the
donor; each gets the same points to choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from speechbrain_mam.search.grid import Point, Scored, choose, points_of
from speechbrain_mam.search.sweep import Sweep

DRAWN_OFTEN = "random"
"""The control that is drawn several times: how well chance does is a distribution."""


@dataclass(frozen=True)
class Wanted:
    """What a search tries, checked."""

    grid: list[float]
    subsets: dict[str, tuple[int, ...]]
    greedy: bool
    donors: list[str]
    controls: list[str]
    random_draws: int = 1
    race: bool = False

    def contestants(self) -> list[tuple[str, int]]:
        """Every control with its draws.

        Example
        -------
        >>> Wanted([0.9], {}, False, ["bert"], ["random", "no_donor"], 2).contestants()
        [('random', 1), ('random', 2), ('no_donor', 1)]
        """
        return [
            (control, draw + 1)
            for control in self.controls
            for draw in range(self.random_draws if control == DRAWN_OFTEN else 1)
        ]


def contest(
    sweep: Sweep,
    wanted: Wanted,
    untouched: Scored,
    ranking: Callable[[], Sequence[int]],
    control: str = "none",
    draw: int = 1,
) -> list[Scored]:
    """Every point of one donor or control: grid × layers, greedy layers, and the best ones' grid.

    Arguments
    ---------
    sweep : Sweep
        Evaluates.
    wanted : Wanted
        What is tried.
    untouched : Scored
        The target as it is: where a greedy search starts.
    ranking : callable
        Gives the layers in the order in which a greedy search adds them.
    control, draw
        What stands in the donor's place.

    Returns
    -------
    list of Scored
        Each merge once.
    """
    points = sweep.run(points_of(wanted.grid, wanted.subsets, wanted.donors, control, draw))
    if wanted.greedy:
        first = choose(points).point
        points += greedy(sweep, ranking(), first, untouched)
    # The best subset with every λ, whichever way it was found
    best = choose(points)
    layers = {best.point.subset: best.point.layers}
    again = points_of(wanted.grid, layers, [best.point.donor], control, draw)
    points += sweep.run(again, against=[best])
    # A greedy subset may be among the others: the first name stays, and a whole result.
    kept: dict[str, Scored] = {}
    for scored in points:
        former = kept.get(scored.point.key)
        if former is None or (scored.whole and not former.whole):
            kept[scored.point.key] = scored
    return list(kept.values())


def greedy(sweep: Sweep, ranking: Sequence[int], first: Point, untouched: Scored) -> list[Scored]:
    """Add layers in the order of a ranking; keep each one that lowers the error.

    Arguments
    ---------
    sweep : Sweep
        Evaluates.
    ranking : sequence of int
        Layers, the one whose merge promises most first.
    first : Point
        λ, donor and control of the merges.
    untouched : Scored
        No layer at all.

    Returns
    -------
    list of Scored
        Every subset that was tried.
    """
    tried: list[Scored] = []
    best = untouched
    kept: tuple[int, ...] = ()
    for layer in ranking:
        subset = tuple(sorted((*kept, layer)))
        point = replace(first, layers=subset, subset="greedy")
        (scored,) = sweep.run([point], against=[best])
        tried.append(scored)
        if scored.whole and sum(scored.errors) < sum(best.errors):
            best, kept = scored, subset
    return tried
