"""The table of architectures: how each family of Transformers names its self-attention.

A new family is a new row: in :mod:`speechbrain_mam.architectures.table`, or of one's own with
:func:`register_architecture`. What reads the rows is in :mod:`speechbrain_mam.architectures.index`.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from speechbrain_mam.architectures.row import ROLES
from speechbrain_mam.architectures.row import Architecture as Architecture
from speechbrain_mam.architectures.table import ROWS
from speechbrain_mam.errors import MAMError

ARCHITECTURES: list[Architecture] = list(ROWS)
"""The table. :func:`register_architecture` adds to it."""


class SupportedModel(NamedTuple):
    """A row of the table, for readers."""

    family: str
    model_types: tuple[str, ...]
    classes: tuple[str, ...]
    roles: tuple[str, ...]
    fused: bool
    towers: tuple[str, ...]
    attention: tuple[str, ...] = ()


def architecture(model_type: str | None) -> Architecture:
    """The table's row for a ``model_type``.

    Raises
    ------
    MAMError
        If no row has that ``model_type``; the message names the nearest ones.

    Example
    -------
    >>> architecture("bert").name
    'BERT'
    >>> architecture("huber")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: model_type 'huber' is not in ...; did you mean 'hubert'?
    """
    for row in ARCHITECTURES:
        if model_type in row.model_types:
            return row
    raise MAMError(
        f"model_type {model_type!r} is not in the table of architectures "
        f"(known: {', '.join(known_model_types())}){nearest_model_types(str(model_type))}"
    )


def known_model_types() -> list[str]:
    """Every ``model_type`` in the table."""
    return [name for row in ARCHITECTURES for name in row.model_types]


def nearest_model_types(model_type: str) -> str:
    """The end of a message: which known ones were perhaps meant.

    Example
    -------
    >>> nearest_model_types("hubert2"), nearest_model_types("rwkv")
    ("; did you mean 'hubert'?", '')
    """
    near = difflib.get_close_matches(model_type, known_model_types(), n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def register_architecture(row: Architecture) -> Architecture:
    """Add a family to the table, for this process.

    Arguments
    ---------
    row : Architecture
        Where the family keeps its attention.

    Returns
    -------
    Architecture
        The same row, for which this may be used as it is built.

    Raises
    ------
    MAMError
        If the table has a row of that name, ``model_type`` or class, or if the row is incomplete.

    Example
    -------
    >>> from speechbrain_mam import find_attention, register_architecture
    >>> import torch
    >>> class MyEncoder(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.heads = 2
    ...         attn = {name: torch.nn.Linear(8, 8) for name in ("to_q", "to_k", "to_v")}
    ...         self.blocks = torch.nn.ModuleList([torch.nn.ModuleDict(attn)])
    >>> mine = register_architecture(
    ...     Architecture(
    ...         name="My encoder",
    ...         model_types=(),
    ...         classes=(f"{MyEncoder.__module__}.MyEncoder",),
    ...         layer=r"blocks\\.(?P<layer>\\d+)",
    ...         names={"query": ("to_q",), "key": ("to_k",), "value": ("to_v",)},
    ...         heads="heads",
    ...     )
    ... )
    >>> index = find_attention(MyEncoder())
    >>> index.architecture.name, index.num_layers, index.heads
    ('My encoder', 1, 2)
    >>> register_architecture(mine)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: architecture 'My encoder': the name 'My encoder' is taken ...
    >>> ARCHITECTURES.remove(mine)
    """
    _check_row(row)
    for other in ARCHITECTURES:
        for what, ours, theirs in (
            ("name", (row.name,), (other.name,)),
            ("model_type", row.model_types, other.model_types),
            ("class", row.classes, other.classes if _same_attention(row, other) else ()),
        ):
            if taken := sorted(set(ours) & set(theirs)):
                raise MAMError(
                    f"architecture '{row.name}': the {what} '{taken[0]}' is taken by the row "
                    f"'{other.name}'; each stands in one row"
                )
    ARCHITECTURES.append(row)
    return row


def _same_attention(row: Architecture, other: Architecture) -> bool:
    """Whether a module of a class that both name could be either's."""
    told_apart = row.attention and other.attention
    return not told_apart or bool(set(row.attention) & set(other.attention))


def _check_row(row: Architecture) -> None:
    try:
        groups = set(re.compile(row.layer).groupindex)
    except re.error as error:
        raise MAMError(
            f"architecture '{row.name}': 'layer' is no regular expression: {error}"
        ) from error
    lacks = [p for p in ("query", "key", "value") if p not in row.projections]
    for wrong, what in (
        ("layer" not in groups, r"'layer' must hold the group '(?P<layer>\d+)'"),
        (bool(row.repeats) != ("group" in groups), "'repeats' and '(?P<group>…)' go together"),
        (bool(lacks), f"neither 'names' nor 'fused' tells where {' and '.join(lacks)} is"),
        (
            not row.model_types and not row.classes,
            "nothing to recognise it by: give 'model_types' or 'classes'",
        ),
        (
            not row.roles or not set(row.roles) <= set(ROLES),
            f"'roles' are {row.roles}, expected some of {ROLES}",
        ),
        (
            bool(row.transposed or row.kv_heads) and row.roles != ("donor",),
            "with 'transposed' or 'kv_heads' it can only be a donor: 'roles' must be ('donor',)",
        ),
    ):
        if wrong:
            raise MAMError(f"architecture '{row.name}': {what}")


def supported_models() -> list[SupportedModel]:
    """The table for readers: which families there are, recognised by what, as target or donor.

    Example
    -------
    >>> {row.family: row for row in supported_models()}["CLIP"].towers
    ('text', 'vision')
    """
    return [
        SupportedModel(
            row.name,
            row.model_types,
            row.classes,
            row.roles,
            bool(row.fused or row.interleaved),
            tuple(row.towers),
            row.attention,
        )
        for row in ARCHITECTURES
    ]
