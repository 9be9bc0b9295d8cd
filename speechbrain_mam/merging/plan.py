"""What :func:`speechbrain_mam.merging.planner.make_plan` makes; it prints as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from speechbrain_mam.architectures.parts import Part, TensorRef
from speechbrain_mam.donors.donor import TensorKey
from speechbrain_mam.merging.methods import METHODS


@dataclass(frozen=True)
class PlanEntry:
    """One tensor of the target, the donor's tensor that is mixed into it, the target's share.

    ``target_part`` and ``donor_part`` are what of the tensor it is, where that is not the whole of
    it. ``shape`` is that of the target's part. ``donor_factor`` is what the donor's part is
    multiplied with before anything else: see ``scale`` in :func:`make_plan
    <speechbrain_mam.merging.planner.make_plan>`.
    """

    target: str
    donor: str
    layer: int
    donor_layer: int
    projection: str
    kind: str
    shape: tuple[int, ...]
    lam: float
    donor_part: Part | None = None
    target_part: Part | None = None
    donor_factor: float = 1.0

    @property
    def target_rows(self) -> tuple[int, int] | None:
        """The rows (from, up to) of a target's tensor with projections on top of each other."""
        return None if self.target_part is None else self.target_part.rows

    @property
    def donor_rows(self) -> tuple[int, int] | None:
        """The same of the donor's."""
        return None if self.donor_part is None else self.donor_part.rows

    @property
    def donor_key(self) -> TensorKey:
        """Where the donor keeps its part."""
        return (self.donor_layer, self.projection, self.kind)


@dataclass(frozen=True)
class MergePlan:
    """The checked list of what a merge touches."""

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
    method: str = "linear"
    align: str = "none"
    donor_width: int = 0
    kept_biases: tuple[str, ...] = ()
    donor_note: str = ""

    def lam_of(self, layer: int, projection: str) -> float:
        """λ of one projection in one layer."""
        for entry in self.entries:
            if (entry.layer, entry.projection) == (layer, projection):
                return entry.lam
        raise KeyError((layer, projection))

    def settings(self) -> dict[str, Any]:
        """What a λ of this plan means, by the key that says it."""
        weights = [entry for entry in self.entries if entry.kind == "weight"]
        return {
            "method": self.method,
            "donor_scale": self.donor_scale,
            "align": self.align,
            "layers": list(self.layers),
            "projections": list(self.projections),
            "layer_map": sorted({(entry.layer, entry.donor_layer) for entry in weights}),
            "bias": [entry.target for entry in self.entries if entry.kind == "bias"],
        }

    def to_json(self) -> str:
        """The plan as JSON."""
        content = asdict(self)
        for entry, held in zip(self.entries, content["entries"], strict=True):
            held |= {"donor_rows": entry.donor_rows, "target_rows": entry.target_rows}
        return json.dumps(content, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        weights = [entry for entry in self.entries if entry.kind == "weight"]
        biases = len(self.entries) - len(weights)
        heads = f"{self.target_heads} heads"
        if self.donor_heads != self.target_heads:
            heads += f" (donor: {self.donor_heads}; rows are mixed by position)"
        depth = "layer by layer" if self.target_layers == self.donor_layers else "by the layer map"
        width = f"width {self.hidden_size}"
        if self.donor_width > self.hidden_size:
            width += f" (donor: {self.donor_width}, cropped to its first rows and columns)"
        how = f"method: {self.method}, align: {self.align}, bias: {self.bias}"
        lines = [
            f"MAM plan: {self.target_name} ({self.target_architecture}, "
            f"{self.target_layers} layers) takes attention from {self.donor_name} "
            f"({self.donor_architecture}, {self.donor_layers} layers), {depth}",
            f"{width}, {heads}; {len(weights)} weights and {biases} biases",
            f"{how}, donor_scale: {self.donor_scale}",
            f"W = {METHODS[self.method].formula}",
        ]
        if self.kept_biases:
            lines.append(f"left as they are, only one side having them: {self._kept()}")
        lines += [*self._shared_heads(), *self._scaled()]
        if self.donor_note:
            lines.append(f"not merged: {self.donor_note}")
        lines.append("")
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
                    str(TensorRef(entry.target, entry.shape, entry.target_part)),
                    str(TensorRef(entry.donor, entry.shape, entry.donor_part)),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines)

    def _shared_heads(self) -> list[str]:
        parts = [entry.donor_part for entry in self.entries]
        found = {(part.blocks, part.repeats) for part in parts if part and part.repeats > 1}
        return [
            f"the donor has {heads} heads of key and value, each of which is repeated for "
            f"{repeats} heads of the query in turn"
            for heads, repeats in sorted(found)
        ]

    def _scaled(self) -> list[str]:
        factors = {entry.donor_factor for entry in self.entries} - {1.0}
        return [
            f"the donor's query is multiplied with {factor:.6g}: its scores have another scale"
            for factor in sorted(factors)
        ]

    def _kept(self) -> str:
        shown = ", ".join(f"'{name}'" for name in self.kept_biases[:3])
        more = len(self.kept_biases) - 3
        return f"{shown} and {more} biases more" if more > 0 else shown
