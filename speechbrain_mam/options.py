"""What a user may write for ``layers``, ``projections``, ``layer_map`` and ``lam``, made exact.

Each function takes the YAML or command-line form and returns plain tuples, or raises
:class:`~speechbrain_mam.errors.MAMError` that names the key. A text is read as a command line has
it: ``0.9,0.95``, ``[0, 2]`` or ``{query: 0.9, key: 1}``. Nothing is rounded or cut to fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import yaml

from speechbrain_mam.architectures.index import PROJECTIONS
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.text_files import check_aliases

Lam = float | str | Sequence[float] | Mapping[str, float | str | Sequence[float]]
LayerChoice = str | int | Sequence[int]

LAYER_MAPS = ("uniform", "first", "last")
ROTATIONS = ("none", "random", "hadamard")


def parse_projections(projections: str | Sequence[str]) -> tuple[str, ...]:
    """``"qkv"`` or a list of names, in the order query, key, value, output.

    Example
    -------
    >>> parse_projections("vq"), parse_projections("key,value")
    (('query', 'value'), ('key', 'value'))
    """
    letters = {name[0]: name for name in PROJECTIONS}
    asked = in_brackets("projections", projections)
    if isinstance(asked, str):
        asked = asked.replace(" ", "").split(",") if "," in asked or asked in PROJECTIONS else asked
    names = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, Mapping) else []
    unknown = [str(p) for p in names if p not in PROJECTIONS and p not in letters]
    if unknown or not names:
        raise MAMError(
            f"key 'projections': {', '.join(map(repr, unknown)) or repr(projections)} is not one "
            "of q, k, v, o (query, key, value, output)"
        )
    chosen = {letters.get(p, p) for p in names}
    return tuple(p for p in PROJECTIONS if p in chosen)


def parse_layers(layers: LayerChoice, num_layers: int, key: str = "layers") -> tuple[int, ...]:
    """The chosen target layers, ascending; ``key`` is what an error names.

    Example
    -------
    >>> parse_layers("0-1,5", 6), parse_layers("last:2", 6), parse_layers([3], 6)
    ((0, 1, 5), (4, 5), (3,))
    """
    asked = in_brackets(key, layers)
    if isinstance(asked, str):
        text = asked.replace(" ", "")
        if text == "all":
            return tuple(range(num_layers))
        if match := re.fullmatch(r"(first|last):(\d{1,9})", text):
            k = int(match[2])
            if not 1 <= k <= num_layers:
                raise MAMError(f"key '{key}': '{layers}', but the target has {num_layers} layers")
            return tuple(range(k) if match[1] == "first" else range(num_layers - k, num_layers))
        chosen: list[int] = []
        for part in text.split(","):
            first, last = _range(key, part, asked)
            # One layer too many is enough to say so: a billion of them are not to be written out.
            chosen += range(first, min(last, max(first, num_layers)) + 1)
    else:
        chosen = _whole_numbers(key, asked, "all, first:k, last:k, ranges or a list")
    outside = sorted({layer for layer in chosen if not 0 <= layer < num_layers})
    if outside or not chosen:
        raise MAMError(
            f"key '{key}': {layers!r} names {f'layer {outside[0]}' if outside else 'no layer'}, "
            f"but the target has layers 0 to {num_layers - 1}"
        )
    return tuple(sorted(set(chosen)))


def _range(key: str, part: str, whole: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
    if match is None:
        raise MAMError(
            f"key '{key}': cannot read '{part}' in '{whole}'; expected all, first:k, last:k, "
            "ranges like '0-5,8' or a list"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise MAMError(f"key '{key}': '{part}' in '{whole}' names no layer; write '{last}-{first}'")
    return first, last


def _whole_numbers(key: str, value: Any, expected: str) -> list[int]:
    """A whole number, or a list of them; 0.5, True and '1' are none."""
    if isinstance(value, Integral) and value is not True and value is not False:
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise MAMError(f"key '{key}': expected {expected}, got {value!r}")
    values = list(value)
    for item in values:
        if isinstance(item, bool) or not isinstance(item, Integral):
            raise MAMError(f"key '{key}': {item!r} is not a whole number")
    return [int(item) for item in values]


def map_layers(layer_map: str | int | Sequence[int], targets: int, donors: int) -> tuple[int, ...]:
    """The donor layer of each target layer.

    Example
    -------
    >>> map_layers("uniform", 4, 6), map_layers("last", 4, 6), map_layers("uniform", 24, 12)[:5]
    ((0, 2, 3, 5), (2, 3, 4, 5), (0, 0, 1, 1, 2))
    """
    asked = in_brackets("layer_map", layer_map)
    if isinstance(asked, str) and re.fullmatch(r"[\d\s,]*\d[\d\s,]*", asked):
        asked = in_brackets("layer_map", f"[{asked}]")
    if not isinstance(asked, str):
        expected = f"{', '.join(LAYER_MAPS)} or a list"
        mapped = tuple(_whole_numbers("layer_map", asked, expected))
        if len(mapped) != targets or not all(0 <= layer < donors for layer in mapped):
            raise MAMError(
                f"key 'layer_map': expected {targets} donor layers, each 0 to {donors - 1}, "
                f"got {list(mapped)}"
            )
        return mapped
    one_of("layer_map", asked, LAYER_MAPS)
    if targets == donors:
        return tuple(range(targets))
    if asked == "uniform":
        if targets == 1:
            return (donors - 1,)
        # floor(x + 1/2), not round(): halves to even would make the steps uneven
        return tuple(math.floor(i * (donors - 1) / (targets - 1) + 0.5) for i in range(targets))
    if donors < targets:
        raise MAMError(
            f"key 'layer_map': '{asked}' needs a donor of at least {targets} layers, it has "
            f"{donors}; use 'uniform' or a list"
        )
    offset = 0 if asked == "first" else donors - targets
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
    asked = in_brackets("lam", lam)
    if isinstance(asked, Mapping):
        if set(asked) != set(projections):
            found = sorted(map(str, asked))
            raise MAMError(f"key 'lam': has {found}, expected one λ for each of {[*projections]}")
        per_projection = {p: _per_layer(asked[p], layers) for p in projections}
    else:
        per_projection = dict.fromkeys(projections, _per_layer(asked, layers))
    return {(layer, p): per_projection[p][i] for i, layer in enumerate(layers) for p in projections}


def _per_layer(lam: Any, layers: Sequence[int]) -> list[float]:
    found = shares("lam", lam)
    values = found if isinstance(found, list) else [found] * len(layers)
    if len(values) == len(layers):
        return values
    if not 2 <= len(values) < len(layers):
        raise MAMError(
            f"key 'lam': has {len(values)} values for {len(layers)} chosen layers; expected one "
            "number, one for each layer, or from 2 on for a gradient over the layers"
        )
    return _gradient(values, len(layers))


def shares(key: str, value: Any) -> float | list[float]:
    """A number in [0, 1], or a list of them; of a text, with commas between them.

    Example
    -------
    >>> shares("lam", "0.9,1"), shares("lam", [0.5]), shares("lam", "0.5")
    ([0.9, 1.0], [0.5], 0.5)
    """
    asked = in_brackets(key, value)
    if isinstance(asked, str):
        try:
            asked = [float(part) for part in asked.split(",")]
        except ValueError:
            raise MAMError(
                f"key '{key}': '{value}' is neither a number nor numbers with commas between them"
            ) from None
        asked = asked if "," in value else asked[0]
    single = not isinstance(asked, Iterable) or isinstance(asked, Mapping)
    values = [asked] if single else list(asked)
    for item in values:
        if isinstance(item, bool) or not isinstance(item, Real) or not 0 <= float(item) <= 1:
            raise MAMError(f"key '{key}': λ = {item!r} is not a number in [0, 1]")
    numbers = [float(item) for item in values]
    return numbers[0] if single else numbers


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


def in_brackets(key: str, value: Any) -> Any:
    """The list or mapping that a text in brackets or braces writes; all else as it is.

    Example
    -------
    >>> in_brackets("lam", "{query: 0.9, key: [0.8, 1]}"), in_brackets("layers", "last:2")
    ({'query': 0.9, 'key': [0.8, 1]}, 'last:2')
    """
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    check_aliases(value, f"key '{key}'")
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise MAMError(
            f"key '{key}': cannot read '{value}'; expected [a, b] or {{name: a}}"
        ) from None
