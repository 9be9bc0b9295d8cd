"""What a user may write for ``layers``, ``projections``, ``layer_map`` and ``lam``, made exact.

Each function takes the YAML or command-line form and returns plain tuples, or raises
:class:`~speechbrain_mam.errors.MAMError` that names the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from speechbrain_mam.attention import PROJECTIONS
from speechbrain_mam.errors import MAMError

Lam = float | Sequence[float] | Mapping[str, float | Sequence[float]]
LayerChoice = str | int | Sequence[int]

LAYER_MAPS = ("uniform", "first", "last")


def parse_projections(projections: str | Sequence[str]) -> tuple[str, ...]:
    """``"qkv"`` or a list of names, in the order query, key, value, output.

    Example
    -------
    >>> parse_projections("vq")
    ('query', 'value')
    """
    letters = {name[0]: name for name in PROJECTIONS}
    asked = [projections] if projections in PROJECTIONS else list(projections)
    unknown = [str(p) for p in asked if p not in PROJECTIONS and p not in letters]
    if unknown or not asked:
        raise MAMError(
            f"key 'projections': {''.join(unknown) or projections!r} is not one of "
            "q, k, v, o (query, key, value, output)"
        )
    names = {letters.get(p, p) for p in asked}
    return tuple(p for p in PROJECTIONS if p in names)


def parse_layers(layers: LayerChoice, num_layers: int) -> tuple[int, ...]:
    """The chosen target layers, ascending.

    Example
    -------
    >>> parse_layers("0-1,5", 6), parse_layers("last:2", 6), parse_layers([3], 6)
    ((0, 1, 5), (4, 5), (3,))
    """
    chosen: list[int] = []
    if isinstance(layers, bool) or layers is None:
        raise MAMError(
            f"key 'layers': expected all, first:k, last:k, ranges or a list, got {layers!r}"
        )
    if isinstance(layers, str):
        text = layers.replace(" ", "")
        if text == "all":
            return tuple(range(num_layers))
        if match := re.fullmatch(r"(first|last):(\d+)", text):
            k = int(match[2])
            if not 1 <= k <= num_layers:
                raise MAMError(f"key 'layers': '{layers}', but the target has {num_layers} layers")
            return tuple(range(k) if match[1] == "first" else range(num_layers - k, num_layers))
        for part in text.split(","):
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
            if match is None:
                raise MAMError(
                    f"key 'layers': cannot read '{part}' in '{layers}'; expected all, first:k, "
                    "last:k, ranges like '0-5,8' or a list"
                )
            chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    else:
        chosen = [layers] if isinstance(layers, int) else [int(layer) for layer in layers]
    outside = sorted({layer for layer in chosen if not 0 <= layer < num_layers})
    if outside or not chosen:
        raise MAMError(
            f"key 'layers': {layers!r} names {f'layer {outside[0]}' if outside else 'no layer'}, "
            f"but the target has layers 0 to {num_layers - 1}"
        )
    return tuple(sorted(set(chosen)))


def map_layers(layer_map: str | Sequence[int], targets: int, donors: int) -> tuple[int, ...]:
    """The donor layer of each target layer.

    Example
    -------
    >>> map_layers("uniform", 4, 6), map_layers("last", 4, 6), map_layers("uniform", 24, 12)[:5]
    ((0, 2, 3, 5), (2, 3, 4, 5), (0, 0, 1, 1, 2))
    """
    if not isinstance(layer_map, str):
        mapped = tuple(int(layer) for layer in layer_map)
        if len(mapped) != targets or not all(0 <= layer < donors for layer in mapped):
            raise MAMError(
                f"key 'layer_map': expected {targets} donor layers, each 0 to {donors - 1}, "
                f"got {list(mapped)}"
            )
        return mapped
    one_of("layer_map", layer_map, LAYER_MAPS)
    if targets == donors:
        return tuple(range(targets))
    if layer_map == "uniform":
        if targets == 1:
            return (donors - 1,)
        # floor(x + 1/2), not round(): halves to even would make the steps uneven
        return tuple(math.floor(i * (donors - 1) / (targets - 1) + 0.5) for i in range(targets))
    if donors < targets:
        raise MAMError(
            f"key 'layer_map': '{layer_map}' needs a donor of at least {targets} layers, it has "
            f"{donors}; use 'uniform' or a list"
        )
    offset = 0 if layer_map == "first" else donors - targets
    return tuple(range(offset, offset + targets))


def parse_lam(
    lam: Lam, layers: Sequence[int], projections: Sequence[str]
) -> dict[tuple[int, str], float]:
    """λ of every chosen layer and projection.

    Example
    -------
    A list as long as the chosen layers is one λ for each of them. A shorter one is a gradient: its
    values are spread evenly from the first chosen layer to the last, and the layers between get the
    straight line.

    >>> parse_lam([0.9, 1], [4, 5], ["query"])
    {(4, 'query'): 0.9, (5, 'query'): 1.0}
    >>> list(parse_lam([0.8, 1.0], range(5), ["query"]).values())
    [0.8, 0.85, 0.9, 0.95, 1.0]
    """
    if isinstance(lam, Mapping):
        if set(lam) != set(projections):
            raise MAMError(
                f"key 'lam': has {sorted(lam)}, expected one λ for each of {list(projections)}"
            )
        per_projection = {p: _per_layer(lam[p], layers) for p in projections}
    else:
        per_projection = dict.fromkeys(projections, _per_layer(lam, layers))
    return {(layer, p): per_projection[p][i] for i, layer in enumerate(layers) for p in projections}


def _per_layer(lam: float | Sequence[float], layers: Sequence[int]) -> list[float]:
    values = [lam] * len(layers) if isinstance(lam, int | float) else list(lam)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise MAMError(f"key 'lam': λ = {value!r} is not a number in [0, 1]")
    if len(values) == len(layers):
        return [float(value) for value in values]
    if not 2 <= len(values) < len(layers):
        raise MAMError(
            f"key 'lam': has {len(values)} values for {len(layers)} chosen layers; expected one "
            "number, one for each layer, or from 2 on for a gradient over the layers"
        )
    return _gradient([float(value) for value in values], len(layers))


def _gradient(anchors: Sequence[float], size: int) -> list[float]:
    """``size`` values on the line through anchors that are equally far from each other."""
    found = []
    for i in range(size):
        place = i * (len(anchors) - 1) / (size - 1)
        left = min(int(place), len(anchors) - 2)
        share = place - left
        # Rounded, so that 0.8 to 1 does not show as 0.8500000000000001
        found.append(round((1 - share) * anchors[left] + share * anchors[left + 1], 12))
    return found


def one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise an error that names ``key`` unless ``value`` is among the allowed ones."""
    if value not in allowed:
        raise MAMError(f"key '{key}': {value!r} is not one of {', '.join(allowed)}")
