"""Where query, key and value live: one table of architectures, as data.

A row of :data:`ARCHITECTURES` tells how the parameters of self-attention are named. The same
names are used by a live ``torch.nn.Module`` and by its file on disk, so one function,
:func:`index_attention`, serves both. A new family is a new row.

Example
-------
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

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speechbrain_mam.errors import MAMError

if TYPE_CHECKING:
    import torch

PROJECTIONS = ("query", "key", "value", "output")
KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Architecture:
    """One family of Transformers: a row of the table.

    Arguments
    ---------
    name : str
        What the family is called in plans and messages.
    model_types : tuple of str
        ``model_type`` in its Hugging Face ``config.json``; a live model is recognised by the same
        field of its ``config``.
    layer : str
        Regular expression for the path of layer ``(?P<layer>\\d+)``, from the encoder on.
    names : dict
        For each projection, the names that it has inside a layer, in any version of the library.
    heads : str
        Where the configuration keeps the number of attention heads.
    reads_weight : bool
        True where the attention does not call its projections but reads their ``weight``.
    front : tuple of str
        Modules that run before the first layer, from the encoder on; an evaluation of many merges
        computes them once.
    """

    name: str
    model_types: tuple[str, ...]
    layer: str
    names: Mapping[str, tuple[str, ...]]
    heads: str = "num_attention_heads"
    reads_weight: bool = False
    front: tuple[str, ...] = ()


_PROJ = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "output": ("out_proj",),
}
_WAV2VEC2_FRONT = ("feature_extractor", "feature_projection", "encoder.pos_conv_embed")
_WAV2VEC2_LAYER = r"encoder\.layers\.(?P<layer>\d+)\.attention"

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("HuBERT", ("hubert",), _WAV2VEC2_LAYER, _PROJ, front=_WAV2VEC2_FRONT),
    Architecture("wav2vec 2.0", ("wav2vec2",), _WAV2VEC2_LAYER, _PROJ, front=_WAV2VEC2_FRONT),
    Architecture(
        "WavLM",
        ("wavlm",),
        _WAV2VEC2_LAYER,
        _PROJ,
        reads_weight=True,
        front=_WAV2VEC2_FRONT,
    ),
    Architecture(
        "BERT",
        ("bert",),
        r"encoder\.layer\.(?P<layer>\d+)\.attention",
        {
            "query": ("self.query",),
            "key": ("self.key",),
            "value": ("self.value",),
            "output": ("output.dense",),
        },
    ),
)


def architecture(model_type: str | None) -> Architecture:
    """The table's row for a ``model_type``.

    Raises
    ------
    MAMError
        If no row has that ``model_type``.

    Example
    -------
    >>> architecture("bert").name
    'BERT'
    """
    for row in ARCHITECTURES:
        if model_type in row.model_types:
            return row
    known = [name for row in ARCHITECTURES for name in row.model_types]
    near = difflib.get_close_matches(str(model_type), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise MAMError(
        f"model_type {model_type!r} is not in the table of architectures "
        f"(known: {', '.join(known)}){hint}"
    )


@dataclass(frozen=True)
class TensorRef:
    """Name and shape of one parameter, live or on disk."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AttentionIndex:
    """Every self-attention parameter of one encoder.

    ``tensors[layer, projection, kind]`` is a :class:`TensorRef`; ``kind`` is ``"weight"``
    (``[hidden, hidden]``, rows are outputs) or ``"bias"`` (``[hidden]``).
    """

    architecture: Architecture
    num_layers: int
    heads: int
    hidden_size: int
    prefix: str
    tensors: Mapping[tuple[int, str, str], TensorRef] = field(repr=False)

    def has(self, projection: str) -> bool:
        """Whether every layer holds this projection's weight."""
        return all((i, projection, "weight") in self.tensors for i in range(self.num_layers))


def index_attention(
    shapes: Mapping[str, Iterable[int]], row: Architecture, heads: int, where: str = "the model"
) -> AttentionIndex:
    """Find query, key, value (and output) among named tensors.

    Arguments
    ---------
    shapes : mapping of str to sequence of int
        All tensor names with their shapes.
    row : Architecture
        The family to look for.
    heads : int
        Number of attention heads.
    where : str
        What the messages call the model: a file, a module.

    Returns
    -------
    AttentionIndex

    Raises
    ------
    MAMError
        If nothing matches (the closest names are shown), if layers are missing or unequal, or if
        two encoders are found.
    """
    projection_of = {alias: p for p, aliases in row.names.items() for alias in aliases}
    pattern = re.compile(
        rf"^(?P<prefix>(?:.*\.)?){row.layer}\."
        rf"(?P<projection>{'|'.join(re.escape(a) for a in projection_of)})\.(?P<kind>weight|bias)$"
    )
    found: dict[str, dict[tuple[int, str, str], TensorRef]] = {}
    for name, shape in shapes.items():
        if match := pattern.match(name):
            key = (int(match["layer"]), projection_of[match["projection"]], match["kind"])
            found.setdefault(match["prefix"], {})[key] = TensorRef(name, tuple(shape))
    if not found:
        raise MAMError(
            f"no {row.name} self-attention in {where}: none of its {len(shapes)} tensors is named "
            f"like '{_example_name(row)}'; the closest are {_closest(_example_name(row), shapes)}"
        )
    if len(found) > 1:
        raise MAMError(
            f"{where} holds {len(found)} {row.name} encoders "
            f"({', '.join(repr(p.rstrip('.')) for p in sorted(found))}): "
            "pass the one that is meant as target"
        )
    ((prefix, tensors),) = found.items()
    num_layers = 1 + max(layer for layer, _, _ in tensors)
    for layer in range(num_layers):
        for projection in ("query", "key", "value"):
            if (layer, projection, "weight") not in tensors:
                raise MAMError(
                    f"{where}: layer {layer} of {num_layers} has no {projection} weight "
                    f"(expected a name like '{_example_name(row, layer, projection)}')"
                )
    hidden_size = tensors[0, "query", "weight"].shape[0]
    for (_, _, kind), ref in tensors.items():
        expected = (hidden_size, hidden_size) if kind == "weight" else (hidden_size,)
        if ref.shape != expected:
            raise MAMError(
                f"{where}: '{ref.name}' has shape {list(ref.shape)}, expected {list(expected)} "
                f"as in layer 0"
            )
    if heads < 1 or hidden_size % heads:
        raise MAMError(f"{where}: {heads} attention heads do not divide the width {hidden_size}")
    return AttentionIndex(row, num_layers, heads, hidden_size, prefix, tensors)


def find_attention(target: torch.nn.Module) -> AttentionIndex:
    """Find the one supported encoder inside any module.

    The module may be the encoder itself, a model with a head, a SpeechBrain lobe or a
    ``ModuleList`` around one of them. Names in the result are paths from ``target`` on, so
    ``target.get_parameter(ref.name)`` works.

    Raises
    ------
    MAMError
        If no part of ``target`` has a ``config`` with a supported ``model_type``, or if two do.

    Example
    -------
    >>> import torch
    >>> from transformers import HubertConfig, HubertModel
    >>> tiny = HubertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=8, conv_dim=(8,), conv_kernel=(4,), conv_stride=(4,),
    ...     num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    >>> index = find_attention(torch.nn.ModuleList([HubertModel(tiny)]))
    >>> index.architecture.name, index.num_layers, index.heads, index.prefix
    ('HuBERT', 2, 2, '0.')
    """
    owners: list[tuple[str, Any]] = []
    types_seen = set()
    for name, module in target.named_modules():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if model_type is None or any(_inside(name, outer) for outer, _ in owners):
            continue
        types_seen.add(model_type)
        if any(model_type in row.model_types for row in ARCHITECTURES):
            owners.append((name, module))
    what = type(target).__name__
    if not owners:
        seen = f"; model types seen: {', '.join(sorted(types_seen))}" if types_seen else ""
        known = ", ".join(name for row in ARCHITECTURES for name in row.model_types)
        raise MAMError(
            f"{what} holds no supported encoder: no part of it has a config with one of the "
            f"model types {known}{seen}. Check the key 'target' of your MAM"
        )
    if len(owners) > 1:
        raise MAMError(
            f"{what} holds {len(owners)} supported encoders "
            f"({', '.join(repr(name) for name, _ in owners)}): pass the one that is meant as target"
        )
    ((path, owner),) = owners
    row = architecture(owner.config.model_type)
    below = f"{path}." if path else ""
    shapes = {below + name: tuple(p.shape) for name, p in owner.named_parameters()}
    return index_attention(shapes, row, int(getattr(owner.config, row.heads)), where=what)


def _inside(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(outer + ".")


def _example_name(row: Architecture, layer: int = 0, projection: str = "query") -> str:
    path = row.layer.replace(r"(?P<layer>\d+)", str(layer)).replace("\\", "")
    return f"{path}.{row.names[projection][0]}.weight"


def _closest(wanted: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.0)
    return ", ".join(repr(name) for name in near) or "(it has none)"
