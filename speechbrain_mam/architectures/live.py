"""Where the self-attention of a live model is, however deep it lies in other modules."""

from __future__ import annotations

from typing import Any

import torch

from speechbrain_mam.architectures.index import AttentionIndex, index_attention
from speechbrain_mam.architectures.names import check_role, choose_tower
from speechbrain_mam.architectures.registry import ARCHITECTURES, nearest_model_types
from speechbrain_mam.architectures.row import Architecture
from speechbrain_mam.architectures.table import WITHOUT_ATTENTION
from speechbrain_mam.architectures.tensor_checks import check_plain
from speechbrain_mam.errors import MAMError


def find_attention(target: torch.nn.Module) -> AttentionIndex:
    """Find the one supported encoder inside any module.

    The module may be the encoder itself, a model with a head, a SpeechBrain lobe or a
    ``ModuleList`` around one of them. Names in the result are paths from ``target`` on, so
    ``target.get_parameter(ref.name)`` works.

    Raises
    ------
    MAMError
        If ``target`` is no module, no part of it is a supported encoder (by its
        ``config.model_type`` or its class), if two are, or if it is of a family that can only be a
        donor.

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
    if not isinstance(target, torch.nn.Module):
        raise MAMError(f"the target is a {type(target).__name__}, expected a torch.nn.Module")
    owners: list[tuple[str, Any, Architecture]] = []
    sources = {}
    types_seen = set()
    for name, module in target.named_modules():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        row, inside = _row_of(module, model_type)
        if any(_inside(name, outer) for outer, _, _ in owners):
            continue
        if row is not None:
            owners.append((name, module, row))
            sources[name] = inside
        elif model_type is not None:
            types_seen.add(model_type)
    what = type(target).__name__
    if not owners:
        _check_has_attention(target, what)
        raise _nothing_supported(what, types_seen)
    if len(owners) > 1:
        raise MAMError(
            f"{what} holds {len(owners)} supported encoders "
            f"({', '.join(repr(name) for name, _, _ in owners)}): pass the one that is meant as "
            "target"
        )
    ((path, owner, row),) = owners
    check_role(row, "target", what)
    below = f"{path}." if path else ""
    shapes = {below + name: tuple(p.shape) for name, p in owner.named_parameters()}
    shapes, tower = choose_tower(shapes, row, None, what)
    source: Any = sources[path] or (owner if row.classes else owner.config)
    source = getattr(source, f"{tower}_config", source)
    heads = _told(source, row.heads)
    index = index_attention(
        shapes,
        row,
        None if heads is None else int(heads),
        what,
        told=lambda key: _told(source, key),
    )
    parameters = dict(target.named_parameters())
    for (_, projection, _), ref in index.tensors.items():
        if projection != "output":  # which most merges leave alone; the merge itself sees to it
            check_plain(parameters[ref.name], ref.name, what)
    return index


def _row_of(
    module: torch.nn.Module, model_type: str | None
) -> tuple[Architecture | None, torch.nn.Module | None]:
    """The table's row for a live module, and its first attention where the row is known by that.

    By the names of classes, so that none is imported.
    """
    classes = _classes(module)
    for row in ARCHITECTURES:
        if model_type in row.model_types:
            return row, None
        if classes.isdisjoint(row.classes):
            continue
        if not row.attention:
            return row, None
        for part in module.modules():
            if not _classes(part).isdisjoint(row.attention):
                return row, part
    return None, None


def _classes(module: torch.nn.Module) -> set[str]:
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}


def _told(source: Any, key: str) -> Any:
    for step in key.split("."):
        source = getattr(source, step, None)
    return source


def _check_has_attention(target: torch.nn.Module, what: str) -> None:
    """Refuse an encoder that mixes its frames without query, key and value."""
    for name, module in target.named_modules():
        for kind in _classes(module) & set(WITHOUT_ATTENTION):
            raise MAMError(f"{what}: '{name}' {WITHOUT_ATTENTION[kind]}")


def _nothing_supported(what: str, types_seen: set[str]) -> MAMError:
    seen = ""
    if types_seen:
        seen = f"; model types seen: {', '.join(sorted(types_seen))}"
        seen += "".join(nearest_model_types(name) for name in sorted(types_seen))
    types = ", ".join(name for row in ARCHITECTURES for name in row.model_types)
    classes = ", ".join(name for row in ARCHITECTURES for name in row.classes)
    return MAMError(
        f"{what} holds no supported encoder: no part of it has a config with one of the "
        f"model types {types}, or is a {classes}{seen}. Check the key 'target' of your MAM"
    )


def _inside(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(outer + ".")
