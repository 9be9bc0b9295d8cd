"""What the names in a row of the table of architectures mean, and what a message says of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from speechbrain_mam.architectures.registry import Architecture
from speechbrain_mam.errors import MAMError


class Match(NamedTuple):
    """What one tensor's name says: where its layer is, and what the tensor holds."""

    prefix: str
    place: tuple[int, int]
    projections: tuple[str, ...]
    kind: str
    interleaved: bool


class Names:
    """A row's names, ready to be compared with those of tensors.

    Arguments
    ---------
    row : Architecture
        The row.

    Example
    -------
    >>> from speechbrain_mam.architectures.registry import architecture
    >>> Names(architecture("modernbert")).match("model.layers.3.attn.Wqkv.weight")
    Match(prefix='model.', place=(0, 3), projections=('query', 'key', 'value'), kind='weight', \
interleaved=False)
    """

    def __init__(self, row: Architecture):
        self.row = row
        self._holds: dict[str, tuple[str, ...]] = {**row.interleaved, **row.fused}
        self._holds |= {alias: (p,) for p, aliases in row.names.items() for alias in aliases}
        self._biases = {name: (p,) for p, name in row.biases.items()}
        plain = "|".join(re.escape(name) for name in self._holds if not name.endswith("_"))
        joined = "|".join(re.escape(name) for name in self._holds if name.endswith("_"))
        whole = "|".join(re.escape(name) for name in self._biases)
        # an alternative without names would match an empty one: (?!) matches nothing
        self._pattern = re.compile(
            rf"^(?P<prefix>(?:.*\.)?)(?:{row.layer})\.(?:"
            rf"(?:(?P<plain>{plain or '(?!)'})\.|(?P<joined>{joined or '(?!)'}))"
            rf"(?P<kind>weight|bias)|(?P<whole>{whole or '(?!)'}))$"
        )

    def match(self, tensor: str) -> Match | None:
        """What a tensor holds, if it is one of self-attention."""
        found = self._pattern.match(tensor)
        if found is None:
            return None
        groups = found.groupdict()
        place = (int(groups.get("group") or 0), int(groups["layer"]))
        if groups["whole"]:
            return Match(groups["prefix"], place, self._biases[groups["whole"]], "bias", False)
        name = groups["plain"] or groups["joined"]
        interleaved = name in self.row.interleaved
        return Match(groups["prefix"], place, self._holds[name], groups["kind"], interleaved)


def choose_tower(
    shapes: Mapping[str, tuple[int, ...]], row: Architecture, tower: str | None, where: str
) -> tuple[dict[str, tuple[int, ...]], str | None]:
    """The tensors of one of a model's encoders, and which one it is.

    Arguments
    ---------
    shapes : mapping
        All tensor names with their shapes.
    row : Architecture
        The model's family.
    tower : str, optional
        Which encoder. None will do where there is only one.
    where : str
        What the messages call the model.

    Returns
    -------
    tuple
        The tensors, and the tower's name: None where names do not tell it, as in a family without
        towers.

    Raises
    ------
    MAMError
        If the choice is missing, or there is no such tower.

    Example
    -------
    >>> from speechbrain_mam.architectures.registry import architecture
    >>> shapes = {"text_model.x": (1,), "vision_model.y": (1,)}
    >>> choose_tower(shapes, architecture("clip"), "vision", "the model")
    ({'vision_model.y': (1,)}, 'vision')
    """
    there = {
        name: {key: shape for key, shape in shapes.items() if f".{module}." in f".{key}"}
        for name, module in row.towers.items()
    }
    there = {name: tensors for name, tensors in there.items() if tensors}
    if tower is not None and tower not in there:
        known = " and ".join(map(repr, there)) or "none by name"
        raise MAMError(f"{where} ({row.name}) has no tower '{tower}': it has {known}")
    if tower is None and len(there) > 1:
        first = next(iter(there))
        raise MAMError(
            f"{where} ({row.name}) has {len(there)} towers, {' and '.join(map(repr, there))}: for "
            f"a donor, put '#' and the one that is meant behind its name ('…#{first}', or "
            f"Donor(…, tower='{first}')); for a target, pass its {row.towers[first]}"
        )
    chosen = tower or next(iter(there), None)
    return (dict(shapes), None) if chosen is None else (there[chosen], chosen)


def check_role(row: Architecture, role: str, where: str) -> None:
    """Whether a family can be what it is meant to be.

    Raises
    ------
    MAMError
        If it cannot; the message says why.
    """
    if role in row.roles:
        return
    (other,) = row.roles
    why = ""
    if row.repeats:
        why = ": its layers share their weights, of which each can be merged only once"
    elif row.kv_heads:
        why = ": heads of its query share a key and a value"
    elif row.biases:
        why = ": biases of its query, key and value do not lie beside their weights"
    raise MAMError(f"{where} is a {row.name}, which can only be a {other}, no {role}{why}")


def example_name(
    row: Architecture, place: tuple[int, int] = (0, 0), projection: str = "query"
) -> str:
    """What a weight is called in the first of the row's ways.

    Example
    -------
    >>> from speechbrain_mam.architectures.registry import architecture
    >>> example_name(architecture("albert"), (1, 0), "value")
    'encoder.albert_layer_groups.1.albert_layers.0.attention.value.weight'
    """
    path = row.layer
    for group, number in zip(("group", "layer"), place, strict=True):
        path = re.sub(rf"\(\?P<{group}>[^)]*\)", str(number), path)
    path = re.sub(r"\(\?<?!.*?\)", "", path)  # what must not be there
    path = re.sub(r"\(\?:([^|)]*)[^)]*\)\??", r"\1", path).replace(
        "\\", ""
    )  # of several, the first
    several = {**row.fused, **row.interleaved}
    names = row.names.get(projection) or [n for n, held in several.items() if projection in held]
    name = names[0] if names[0].endswith("_") else f"{names[0]}."
    return f"{path}.{name}weight"


def closest(wanted: str, names: Iterable[str]) -> str:
    """The names that come nearest, for a message."""
    near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.0)
    return ", ".join(repr(name) for name in near) or "(it has none)"
