"""MergePlan: every tensor that a merge will touch, with what and how much, checked beforehand.

A plan is made from two :class:`~speechbrain_mam.attention.AttentionIndex` (live models or files
alike), is immutable, and prints as a table. Nothing is merged without one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from speechbrain_mam.attention import KINDS, AttentionIndex, TensorRef
from speechbrain_mam.choices import (
    Lam,
    LayerChoice,
    map_layers,
    one_of,
    parse_lam,
    parse_layers,
    parse_projections,
)
from speechbrain_mam.donor import TensorKey
from speechbrain_mam.errors import MAMError

BIAS_POLICIES = ("merge", "keep")
DONOR_SCALES = ("none", "match_norm")


@dataclass(frozen=True)
class PlanEntry:
    """One tensor of the target, the donor's tensor that is mixed into it, the target's share.

    ``donor_rows``: the rows (from, up to) of a donor's tensor that holds several projections.
    """

    target: str
    donor: str
    layer: int
    donor_layer: int
    projection: str
    kind: str
    shape: tuple[int, ...]
    lam: float
    donor_rows: tuple[int, int] | None = None

    @property
    def donor_key(self) -> TensorKey:
        """Where the donor keeps its part."""
        return (self.donor_layer, self.projection, self.kind)


@dataclass(frozen=True)
class MergePlan:
    """The checked list of what a merge touches. Make one with :func:`make_plan`."""

    target_name: str
    donor_name: str
    target_architecture: str
    donor_architecture: str
    target_layers: int
    donor_layers: int
    target_heads: int
    donor_heads: int
    hidden_size: int
    layer_map: tuple[int, ...]
    projections: tuple[str, ...]
    layers: tuple[int, ...]
    bias: str
    donor_scale: str
    entries: tuple[PlanEntry, ...]

    def lam_of(self, layer: int, projection: str) -> float:
        """λ of one projection in one layer."""
        for entry in self.entries:
            if (entry.layer, entry.projection) == (layer, projection):
                return entry.lam
        raise KeyError((layer, projection))

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        weights = [entry for entry in self.entries if entry.kind == "weight"]
        biases = len(self.entries) - len(weights)
        heads = f"{self.target_heads} heads"
        if self.donor_heads != self.target_heads:
            heads += f" (donor: {self.donor_heads}; rows are mixed by position)"
        depth = "layer by layer" if self.target_layers == self.donor_layers else "by the layer map"
        lines = [
            f"MAM plan: {self.target_name} ({self.target_architecture}, "
            f"{self.target_layers} layers) takes attention from {self.donor_name} "
            f"({self.donor_architecture}, {self.donor_layers} layers), {depth}",
            f"width {self.hidden_size}, {heads}; {len(weights)} weights and {biases} biases;"
            f" bias: {self.bias}, donor_scale: {self.donor_scale}",
            "W = λ · W_target + (1 − λ) · W_donor",
            "",
        ]
        rows = [
            ("layer", "donor layer", "projection", "λ", "shape", "target tensor", "donor tensor")
        ]
        for entry in weights:
            shape = "×".join(map(str, entry.shape))
            rows.append(
                (
                    str(entry.layer),
                    str(entry.donor_layer),
                    entry.projection,
                    f"{entry.lam:.6g}",
                    shape,
                    entry.target,
                    str(TensorRef(entry.donor, entry.shape, entry.donor_rows)),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines)


def make_plan(
    target: AttentionIndex,
    donor: AttentionIndex,
    lam: Lam = 0.95,
    layers: LayerChoice = "all",
    projections: str | Sequence[str] = "qkv",
    layer_map: str | Sequence[int] = "uniform",
    bias: str = "merge",
    donor_scale: str = "none",
    target_name: str = "target",
    donor_name: str = "donor",
) -> MergePlan:
    """Check everything that a merge needs and list what it will do.

    Arguments
    ---------
    target, donor : AttentionIndex
        Where the two models keep their attention.
    lam : float, sequence or mapping
        The target's share in [0, 1]: one number, one per chosen layer, or a mapping from
        projection to either. 1 leaves the target as it is, 0 takes the donor's projections.
    layers : str, int or sequence of int
        ``all``, ``first:k``, ``last:k``, ranges like ``"0-5,8"``, or a list of target layers.
    projections : str or sequence of str
        Letters out of ``qkvo``, or full names.
    layer_map : str or sequence of int
        Donor layer for each target layer where the depths differ: ``uniform`` spreads the donor's
        layers evenly (round(i·(D−1)/(T−1))), ``first`` and ``last`` align either end, a list names
        the donor layer of each target layer.
    bias : str
        ``merge`` or ``keep`` (the target's).
    donor_scale : str
        ``none``, or ``match_norm``: the donor's projection is scaled to the target's norm.
    target_name, donor_name : str
        What the plan calls them.

    Raises
    ------
    MAMError
        For anything that does not fit; the message names the key, both tensors and both shapes.

    Example
    -------
    >>> from speechbrain_mam.attention import architecture, index_attention
    >>> def tiny(family, layers, name, projections):
    ...     shapes = {name.format(i, p): (8, 8) for i in range(layers) for p in projections.split()}
    ...     return index_attention(shapes, architecture(family), heads=2)
    >>> hubert = tiny("hubert", 2, "encoder.layers.{}.attention.{}_proj.weight", "q k v")
    >>> bert = tiny("bert", 3, "encoder.layer.{}.attention.self.{}.weight", "query key value")
    >>> plan = make_plan(hubert, bert, lam=0.9, layers="last:1", projections="qk")
    >>> [(e.layer, e.donor_layer, e.projection, e.lam) for e in plan.entries]
    [(1, 2, 'query', 0.9), (1, 2, 'key', 0.9)]
    """
    one_of("bias", bias, BIAS_POLICIES)
    one_of("donor_scale", donor_scale, DONOR_SCALES)
    if target.hidden_size != donor.hidden_size:
        one, other = target.tensors[0, "query", "weight"], donor.tensors[0, "query", "weight"]
        raise MAMError(
            f"widths differ: target '{one.name}' is {list(one.shape)}, donor '{other.name}' is "
            f"{list(other.shape)}; choose a donor of width {target.hidden_size} (key 'donor')"
        )
    for ref in target.tensors.values():
        if ref.rows is not None:
            raise MAMError(
                f"the target's '{ref.name}' holds several projections in one tensor, which only a "
                "donor's may: choose a target with separate query, key and value (key 'target')"
            )
    chosen_projections = parse_projections(projections)
    for projection in chosen_projections:
        for index, role in ((target, target_name), (donor, donor_name)):
            if not index.has(projection):
                raise MAMError(f"key 'projections': {role} has no {projection} projection")
    chosen_layers = parse_layers(layers, target.num_layers)
    mapped = map_layers(layer_map, target.num_layers, donor.num_layers)
    lams = parse_lam(lam, chosen_layers, chosen_projections)

    entries = []
    for layer in chosen_layers:
        for projection in chosen_projections:
            for kind in KINDS if bias == "merge" else KINDS[:1]:
                ours = target.tensors.get((layer, projection, kind))
                theirs = donor.tensors.get((mapped[layer], projection, kind))
                if ours is None and theirs is None:
                    continue
                if ours is None or theirs is None:
                    has, lacks = (theirs, "target") if ours is None else (ours, "donor")
                    assert has is not None
                    raise MAMError(
                        f"the {lacks} has no {projection} bias in layer "
                        f"{layer if ours is None else mapped[layer]}, but '{has.name}' exists: "
                        "set 'bias: keep' to merge weights only"
                    )
                entries.append(
                    PlanEntry(
                        target=ours.name,
                        donor=theirs.name,
                        layer=layer,
                        donor_layer=mapped[layer],
                        projection=projection,
                        kind=kind,
                        shape=ours.shape,
                        lam=lams[layer, projection],
                        donor_rows=theirs.rows,
                    )
                )
    return MergePlan(
        target_name=target_name,
        donor_name=donor_name,
        target_architecture=target.architecture.name,
        donor_architecture=donor.architecture.name,
        target_layers=target.num_layers,
        donor_layers=donor.num_layers,
        target_heads=target.heads,
        donor_heads=donor.heads,
        hidden_size=target.hidden_size,
        layer_map=mapped,
        projections=chosen_projections,
        layers=chosen_layers,
        bias=bias,
        donor_scale=donor_scale,
        entries=tuple(entries),
    )
