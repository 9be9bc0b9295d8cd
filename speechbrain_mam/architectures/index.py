"""Where query, key and value live, by the table of architectures.

A row of :data:`~speechbrain_mam.architectures.registry.ARCHITECTURES` tells how the parameters of
self-attention are named, in a live ``torch.nn.Module`` and in its file on disk, so one function,
:func:`index_attention`, serves both.

Example
-------
>>> from speechbrain_mam.architectures.registry import architecture
>>> shapes = {
...     f"hubert.encoder.layers.{i}.attention.{p}_proj.{kind}": shape
...     for i in range(2) for p in "qkv" for kind, shape in (("weight", (8, 8)), ("bias", (8,)))
... }
>>> index = index_attention(shapes, architecture("hubert"), heads=2)
>>> index.num_layers, index.hidden_size, index.has("output")
(2, 8, False)
>>> index.tensors[1, "key", "weight"].name
'hubert.encoder.layers.1.attention.k_proj.weight'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from speechbrain_mam.architectures.names import (
    Names,
    closest,
    example_name,
)
from speechbrain_mam.architectures.parts import TensorRef as TensorRef
from speechbrain_mam.architectures.parts import refs_of, repeated
from speechbrain_mam.architectures.registry import Architecture
from speechbrain_mam.errors import MAMError

PROJECTIONS = ("query", "key", "value", "output")
KINDS = ("weight", "bias")
POSITION_TERMS = ("c2p", "p2c")
"""Terms that DeBERTa's scores may have beside q·k; their number is in the divisor."""


@dataclass(frozen=True)
class AttentionIndex:
    """Every self-attention parameter of one encoder.

    ``tensors[layer, projection, kind]`` is a :class:`TensorRef`; ``kind`` is ``"weight"``
    (``[hidden, hidden]``, rows are outputs) or ``"bias"`` (``[hidden]``). Layers that share their
    weights have the same references. ``scale`` is what the products of query and key are multiplied
    with, over 1/√(width of a head): 1 in most models.
    """

    architecture: Architecture
    num_layers: int
    heads: int
    hidden_size: int
    prefix: str
    tensors: Mapping[tuple[int, str, str], TensorRef] = field(repr=False)
    scale: float = 1.0

    def has(self, projection: str) -> bool:
        """Whether every layer holds this projection's weight."""
        return all((i, projection, "weight") in self.tensors for i in range(self.num_layers))


def index_attention(
    shapes: Mapping[str, Iterable[int]],
    row: Architecture,
    heads: int | None,
    where: str = "the model",
    repeats: int | None = None,
    told: Callable[[str], Any] = lambda key: None,
) -> AttentionIndex:
    """Find query, key, value (and output) among named tensors.

    A tensor that holds several projections is one :class:`TensorRef` for each, with its part.

    Arguments
    ---------
    shapes : mapping of str to sequence of int
        All tensor names with their shapes.
    row : Architecture
        The family to look for.
    heads : int, optional
        Number of attention heads. None takes it from the width, where the row can tell.
    where : str
        What the messages call the model: a file, a module.
    repeats : int, optional
        How many times layers run that the model has once, for a row with ``repeats``.
    told : callable
        What the configuration says under a key, None where it says nothing: for a row with
        ``kv_heads``, ``terms``, or a ``scale`` that is a key.

    Returns
    -------
    AttentionIndex

    Raises
    ------
    MAMError
        If nothing matches (the closest names are shown), if layers are missing or unequal, or if
        two encoders are found.
    """
    names = Names(row)
    found: dict[str, dict[tuple[tuple[int, int], str, str], TensorRef]] = {}
    for name, shape in shapes.items():
        if (match := names.match(name)) is None:
            continue
        refs = refs_of(name, tuple(shape), match, row, heads or 0, where)
        found.setdefault(match.prefix, {}).update(
            {(match.place, p, match.kind): ref for p, ref in refs.items()}
        )
    if not found:
        raise MAMError(
            f"no {row.name} self-attention in {where}: none of its {len(shapes)} tensors is named "
            f"like '{example_name(row)}'; the closest are {closest(example_name(row), shapes)}"
        )
    if len(found) > 1:
        raise MAMError(
            f"{where} holds {len(found)} {row.name} encoders "
            f"({', '.join(repr(p.rstrip('.')) for p in sorted(found))}): "
            "pass the one that is meant as target"
        )
    ((prefix, stored),) = found.items()
    places = _places({place for place, _, _ in stored}, row, repeats, where)
    tensors = {}
    for layer, place in enumerate(places):
        for projection in PROJECTIONS:
            for kind in KINDS:
                if (place, projection, kind) in stored:
                    tensors[layer, projection, kind] = stored[place, projection, kind]
            if projection != "output" and (layer, projection, "weight") not in tensors:
                raise MAMError(
                    f"{where}: layer {layer} of {len(places)} has no {projection} weight "
                    f"(expected a name like '{example_name(row, place, projection)}')"
                )
    first = tensors[0, "query", "weight"]
    if len(first.shape) != 2 or not first.shape[0] or first.shape[0] != first.shape[1]:
        raise MAMError(
            f"{where}: '{first.name}' has shape {list(first.shape)}, expected a square matrix: "
            "only heads that are together as wide as the model can be merged"
        )
    hidden_size = first.shape[0]
    heads = _heads(row, heads, hidden_size, where)
    if row.kv_heads:
        kv_heads = told(row.kv_heads)
        for key, ref in tensors.items():
            if key[1] in ("key", "value") and ref.shape:
                tensors[key] = repeated(ref, hidden_size, heads, kv_heads, row.kv_heads, where)
    for (_, _, kind), ref in tensors.items():
        expected = (hidden_size, hidden_size) if kind == "weight" else (hidden_size,)
        if ref.shape != expected:
            raise MAMError(
                f"{where}: '{ref.name}' has shape {list(ref.shape)}, expected {list(expected)} "
                f"as in layer 0"
            )
    scale = _scale(row, hidden_size, heads, told, where)
    return AttentionIndex(row, len(places), heads, hidden_size, prefix, tensors, scale)


def _heads(row: Architecture, told: int | None, hidden_size: int, where: str) -> int:
    heads = row.heads_of_width.get(hidden_size) if told is None else told
    if heads is None:
        hint = f", which the width {hidden_size} does not tell" if row.heads_of_width else ""
        raise MAMError(f"{where}: the configuration has no '{row.heads}'{hint}")
    if heads < 1 or hidden_size % heads:
        raise MAMError(f"{where}: {heads} attention heads do not divide the width {hidden_size}")
    return heads


def _scale(
    row: Architecture, hidden_size: int, heads: int, told: Callable[[str], Any], where: str
) -> float:
    """What scores are multiplied with, over 1/√(width of a head)."""
    width = hidden_size // heads
    known = {"head": width, "model": hidden_size, "none": 1}
    n = known[row.scale] if row.scale in known else told(row.scale)
    n = width if n is None else n
    if not isinstance(n, (int, float)) or not 0 < n < math.inf:
        raise MAMError(f"{where}: expected a number above 0 as '{row.scale}', got {n!r}")
    terms = str(told(row.terms)).lower() if row.terms else ""  # a list, or one string
    return math.sqrt(width / n / (1 + sum(name in terms for name in POSITION_TERMS)))


def _places(
    found: set[tuple[int, int]], row: Architecture, repeats: int | None, where: str
) -> list[tuple[int, int]]:
    """Group and number of the weights of each layer, in the order in which they run."""
    groups, inner = (1 + max(places) for places in zip(*found, strict=True))
    if not row.repeats:
        return [(0, layer) for layer in range(inner)]
    if repeats is None:
        raise MAMError(f"{where}: the configuration has no '{row.repeats}'")
    if repeats < 1:
        raise MAMError(f"{where}: '{row.repeats}' is {repeats}, expected a number from 1 on")
    # the library's own formula, which is not exact where the groups do not divide the layers
    groups_of_steps = [int(step / (repeats / groups)) for step in range(repeats)]
    return [(group, layer) for group in groups_of_steps for layer in range(inner)]


def layer_path(index: AttentionIndex, layer: int) -> str:
    """Path of a whole layer from the target on.

    Example
    -------
    >>> from speechbrain_mam import Donor
    >>> layer_path(Donor("speechbrain_mam/hubert-mini").index, 3)
    'hubert.encoder.layers.3'
    """
    name = index.tensors[layer, "query", "weight"].name[len(index.prefix) :]
    before, _, _ = name.partition(f".{layer}.")
    return f"{index.prefix}{before}.{layer}"
