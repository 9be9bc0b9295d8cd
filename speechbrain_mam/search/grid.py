"""The points of a λ sweep: which merges to evaluate, and which of them to choose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from speechbrain_mam.donors.controls import CONTROLS
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.options import in_brackets, parse_layers, shares

SWEEP_CONTROLS = (*CONTROLS, "match_norm")


@dataclass(frozen=True)
class Point:
    """One merge to evaluate. λ = 1 is the untouched model, whatever else is chosen.

    ``draw`` counts the random numbers of a control: each has a seed of its own.
    """

    lam: float
    layers: tuple[int, ...]
    donor: str
    control: str = "none"
    subset: str = "all"
    draw: int = 1

    @property
    def key(self) -> str:
        """A file name that stands for what is merged; ``subset`` is only what it is called."""
        content = {k: v for k, v in asdict(self).items() if k != "subset"}
        if self.lam == 1:
            content = {"lam": 1}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scored:
    """A point with its errors on every utterance, in the order of the sweep's ``ids``.

    One that a race has dropped after so many ``parts`` of the set has the errors of those parts'
    utterances only, and their reference ``units``.
    """

    point: Point
    errors: tuple[int, ...]
    parts: int | None = None
    units: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it has seen every utterance."""
        return self.parts is None


def parse_grid(lam_grid: float | str | Iterable[float]) -> list[float]:
    """A λ grid, sorted, without 1: the untouched model is a point of every sweep.

    Raises
    ------
    MAMError
        If nothing is left, or something is not a number in [0, 1].

    Example
    -------
    >>> parse_grid([1, 0.9, 0.5, 0.9]), parse_grid("0.8,0.9")
    ([0.5, 0.9], [0.8, 0.9])
    """
    found = shares("lam_grid", lam_grid)
    values = found if isinstance(found, list) else [found]
    grid = sorted(set(values) - {1.0})
    if not grid:
        raise MAMError("key 'lam_grid' is empty: expected at least one λ in [0, 1) to try")
    return grid


def points_of(
    grid: Sequence[float],
    subsets: Mapping[str, Sequence[int]],
    donors: Sequence[str],
    control: str = "none",
    draw: int = 1,
) -> list[Point]:
    """Every λ with every subset of layers and every donor.

    Example
    -------
    >>> [p.lam for p in points_of([0.8, 0.9], {"last:1": [3]}, ["bert"])]
    [0.8, 0.9]
    """
    one_of("controls", control, SWEEP_CONTROLS)
    return [
        Point(lam, tuple(layers), donor, control, subset, draw)
        for donor in donors
        for subset, layers in subsets.items()
        for lam in grid
    ]


def parse_subsets(choices: Any, num_layers: int) -> dict[str, tuple[int, ...]]:
    """Named subsets of layers: ``all``, ``first:k``, ``last:k``, ranges, lists.

    Example
    -------
    >>> parse_subsets(["all", "last:2", [0]], 4)
    {'all': (0, 1, 2, 3), 'last:2': (2, 3), '0': (0,)}
    """
    subsets = {}
    for choice in listed("layer_choices", choices):
        name = choice if isinstance(choice, str) else ",".join(map(str, _as_list(choice)))
        subsets[name] = parse_layers(choice, num_layers, "layer_choices")
    if not subsets:
        raise MAMError("key 'layer_choices' is empty: expected at least one, e.g. 'all'")
    return subsets


def listed(key: str, value: Any) -> list[Any]:
    """A list; a single choice is a list of one.

    Example
    -------
    >>> listed("layer_choices", "0-2,5"), listed("controls", "[random, no_donor]")
    (['0-2,5'], ['random', 'no_donor'])
    """
    asked = in_brackets(key, value)
    if asked is None or isinstance(asked, bool | Mapping):
        raise MAMError(f"key '{key}': expected a list, got {value!r}")
    return [asked] if isinstance(asked, str) else _as_list(asked)


def parse_donors(donors: Any) -> list[str]:
    """The names of a search's donors.

    Raises
    ------
    MAMError
        If there is none, one is named twice, or several are to be mixed.

    Example
    -------
    >>> parse_donors("bert"), parse_donors(["bert", "vit"])
    (['bert'], ['bert', 'vit'])
    """
    names = listed("donor_models", donors)
    for name in names:
        if not isinstance(name, str | PurePath):
            raise MAMError(f"key 'donor_models': {name!r} is no name; a search mixes in one donor")
    found = [str(name) for name in names]
    if not found:
        raise MAMError("key 'donor_models' is empty: expected at least one donor")
    if doubled := sorted({name for name in found if found.count(name) > 1}):
        raise MAMError(f"key 'donor_models': {doubled[0]!r} is named twice")
    return found


def parse_controls(controls: Any) -> list[str]:
    """Controls without ``none``, each once; a text may have commas.

    Example
    -------
    >>> parse_controls("random,no_donor"), parse_controls(["none"]), parse_controls(None)
    (['random', 'no_donor'], [], [])
    """
    if isinstance(controls, str) and "[" not in controls:
        controls = controls.replace(" ", "").split(",")
    names = [] if controls is None else listed("controls", controls)
    for name in names:
        one_of("controls", name, SWEEP_CONTROLS)
    return [name for name in dict.fromkeys(names) if name != "none"]


def _as_list(choice: Any) -> list[Any]:
    return list(choice) if isinstance(choice, Iterable) else [choice]


def error_rate(scored: Scored, units: Sequence[int]) -> float:
    """Errors per hundred reference units; of a point that was dropped, of those that it saw."""
    return 100 * sum(scored.errors) / max(1, sum(units if scored.whole else scored.units))


def suffix(control: str, draw: int) -> str:
    """What a control's draw is called.

    Example
    -------
    >>> suffix("random", 1), suffix("random", 10)
    ('random', 'random 10')
    """
    return control if draw == 1 else f"{control} {draw}"


def choose(results: Iterable[Scored]) -> Scored:
    """The point with the fewest errors; of equal ones the gentlest: larger λ, fewer layers.

    Then the lower layers, so that the choice does not hang on the order of the points. One that a
    race has dropped is never chosen.
    """
    return min(
        (scored for scored in results if scored.whole),
        key=lambda s: (
            sum(s.errors),
            -s.point.lam,
            len(s.point.layers),
            s.point.layers,
            s.point.donor,
        ),
    )


def sweep_content(
    split: str,
    ids: Sequence[str],
    units: Sequence[int],
    metric: str,
    untouched: Scored,
    points: Sequence[Scored],
    parts: int = 1,
) -> dict[str, Any]:
    """What ``sweep.json`` holds, for the report and for programs.

    Arguments
    ---------
    split : str
        What the figures are of.
    ids : sequence of str
        Utterances or clips.
    units : sequence of int
        Reference units of each.
    metric : str
        What the error rate is called.
    untouched : Scored
        The target as it is, λ = 1.
    points : sequence of Scored
        Every merge, with the controls. ``dropped`` has those that a race has dropped: after which
        of its parts, and the error rate on the utterances until then.
    parts : int
        Of the race.

    Returns
    -------
    dict
        ``chosen`` is the donor's best merge, ``chosen_controls`` that of each control and draw.
    """
    lines: dict[str, list[Scored]] = {}
    for scored in points:
        lines.setdefault(suffix(scored.point.control, scored.point.draw), []).append(scored)
    chosen = {name: choose(line) for name, line in lines.items()}
    best = chosen.pop("none")
    return {
        "split": split,
        "ids": list(ids),
        "words": list(units),
        "points": [
            {**asdict(s.point), metric: error_rate(s, units), "errors": list(s.errors)}
            for s in (untouched, *points)
            if s.whole
        ],
        "dropped": [
            {
                **asdict(s.point),
                metric: error_rate(s, units),
                "after_part": s.parts,
                "of_parts": parts,
                "utterances": len(s.errors),
            }
            for s in points
            if not s.whole
        ],
        "chosen": asdict(best.point),
        "chosen_controls": {name: asdict(scored.point) for name, scored in chosen.items()},
        "untouched_was_better": choose([untouched, best]).point.lam == 1,
    }
