"""What :func:`speechbrain_mam.merging.planner.make_plan` makes; it prints as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from speechbrain_mam.architectures.index import TensorRef
from speechbrain_mam.donors.donor import TensorKey
from speechbrain_mam.merging.methods import METHODS


@dataclass(frozen=True)
class PlanEntry:
    """One tensor of the target, the donor's tensor that is mixed into it, the target's share.

    ``target_rows`` and ``donor_rows``: the rows (from, up to) of a tensor that holds several
    projections. ``shape`` is that of the target's part.
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
    target_rows: tuple[int, int] | None = None

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
                    str(TensorRef(entry.target, entry.shape, entry.target_rows)),
                    str(TensorRef(entry.donor, entry.shape, entry.donor_rows)),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines)

    def _kept(self) -> str:
        shown = ", ".join(f"'{name}'" for name in self.kept_biases[:3])
        more = len(self.kept_biases) - 3
        return f"{shown} and {more} biases more" if more > 0 else shown
