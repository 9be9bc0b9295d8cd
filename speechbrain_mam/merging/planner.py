"""make_plan: checks everything that a merge needs, and lists every tensor that it will touch.

A plan is made from two :class:`~speechbrain_mam.architectures.index.AttentionIndex`
(live models or files alike), is immutable, and prints as a table. Nothing is merged without one.
"""

from __future__ import annotations

from collections.abc import Sequence

from speechbrain_mam.architectures.index import KINDS, AttentionIndex, TensorRef
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.merging.methods import METHODS, MergeMethod, method_named
from speechbrain_mam.merging.plan import MergePlan, PlanEntry
from speechbrain_mam.options import (
    Lam,
    LayerChoice,
    map_layers,
    parse_lam,
    parse_layers,
    parse_projections,
)

BIAS_POLICIES = ("where_both", "merge", "keep")
DONOR_SCALES = ("none", "match_norm")
ALIGNMENTS = ("none", "heads", "rotation")
WIDTHS = ("error", "crop")


def make_plan(
    target: AttentionIndex,
    donor: AttentionIndex,
    lam: Lam = 0.95,
    layers: LayerChoice = "all",
    projections: str | Sequence[str] = "qkv",
    layer_map: str | int | Sequence[int] = "uniform",
    bias: str = "where_both",
    donor_scale: str = "none",
    method: str = "linear",
    align: str = "none",
    width: str = "error",
    target_name: str = "target",
    donor_name: str = "donor",
) -> MergePlan:
    """Check everything that a merge needs and list what it will do.

    Scores are s · q·k. Where the donor's s is not the target's (T5 has no 1/√d, SpeechBrain's
    RelPosMHAXL takes the model's width for d), the donor's query, weight and bias, is multiplied
    with s_donor / s_target, so that λ = 0 gives the donor's scores, and a merge does not hang on
    how the donor happens to be written. Heads of another width are no reason: their rows are mixed
    by position.

    Arguments
    ---------
    target, donor : AttentionIndex
        Where the two models keep their attention.
    lam : float, sequence or mapping
        The target's share in [0, 1]: one number, one per chosen layer, a shorter list that is a
        gradient over the layers, or a mapping from projection to any of these. 1 leaves the target
        as it is, 0 takes the donor's projections.
    layers : str, int or sequence of int
        ``all``, ``first:k``, ``last:k``, ranges like ``"0-5,8"``, or a list of target layers.
    projections : str or sequence of str
        Letters out of ``qkvo``, or full names.
    layer_map : str or sequence of int
        Donor layer for each target layer where the depths differ: ``uniform`` spreads the donor's
        layers evenly (round(i·(D−1)/(T−1))), ``first`` and ``last`` align either end, a list names
        the donor layer of each target layer.
    bias : str
        ``where_both``: merged where both models have one, and the plan names those that only one
        has; ``merge``: such a bias is an error; ``keep`` the target's.
    donor_scale : str
        ``none``, or ``match_norm``: the donor's projection is scaled to the target's norm.
    method : str
        One of :data:`speechbrain_mam.merging.methods.METHODS`.
    align : str
        ``none``, ``heads`` or ``rotation``, see :mod:`speechbrain_mam.merging.alignment`.
    width : str
        Where the donor is wider: ``error``, or ``crop`` it to its first rows and columns.
    target_name, donor_name : str
        What the plan calls them.

    Raises
    ------
    MAMError
        For anything that does not fit; the message names the key, both tensors and both shapes.

    Example
    -------
    >>> from speechbrain_mam.architectures.index import index_attention
    >>> from speechbrain_mam.architectures.registry import architecture
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
    one_of("align", align, ALIGNMENTS)
    chosen_method = method_named(method)
    _check_widths(target, donor, width)
    _check_method(target, donor, chosen_method)
    chosen_projections = parse_projections(projections)
    for projection in chosen_projections:
        for index, role in ((target, target_name), (donor, donor_name)):
            if not index.has(projection):
                raise MAMError(f"key 'projections': {role} has no {projection} projection")
    _check_alignment(target, donor, align, chosen_projections)
    chosen_layers = parse_layers(layers, target.num_layers)
    mapped = map_layers(layer_map, target.num_layers, donor.num_layers)
    lams = parse_lam(lam, chosen_layers, chosen_projections)

    factor = donor.scale / target.scale
    entries, kept = [], []
    for layer in chosen_layers:
        for projection in chosen_projections:
            for kind in KINDS if bias != "keep" else KINDS[:1]:
                ours = target.tensors.get((layer, projection, kind))
                theirs = donor.tensors.get((mapped[layer], projection, kind))
                if ours is None or theirs is None:
                    if (alone := ours or theirs) is not None:
                        if bias == "merge":
                            raise _one_sided(alone, ours is None, layer, mapped[layer], projection)
                        kept.append(str(alone))
                    continue
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
                        donor_part=theirs.part,
                        target_part=ours.part,
                        donor_factor=factor if projection == "query" else 1.0,
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
        donor_scale=chosen_method.donor_scale or donor_scale,
        entries=tuple(entries),
        method=method,
        align=align,
        donor_width=donor.hidden_size,
        kept_biases=tuple(kept),
        donor_note=donor.architecture.note,
    )


def _check_widths(target: AttentionIndex, donor: AttentionIndex, width: str) -> None:
    one_of("width", width, WIDTHS)
    ours, theirs = target.hidden_size, donor.hidden_size
    if ours == theirs or (width == "crop" and theirs > ours):
        return
    one, other = target.tensors[0, "query", "weight"], donor.tensors[0, "query", "weight"]
    hint = "" if theirs < ours else ", or crop a wider one ('width: crop')"
    raise MAMError(
        f"widths differ: target '{one.name}' is {list(one.shape)}, donor '{other.name}' is "
        f"{list(other.shape)}; choose a donor of width {ours} (key 'donor'){hint}"
    )


def _check_method(target: AttentionIndex, donor: AttentionIndex, method: MergeMethod) -> None:
    if not method.same_family:
        return
    for what, ours, theirs in (
        ("architecture", target.architecture.name, donor.architecture.name),
        ("number of layers", target.num_layers, donor.num_layers),
        ("number of heads", target.heads, donor.heads),
        ("width", target.hidden_size, donor.hidden_size),
    ):
        if ours != theirs:
            others = ", ".join(name for name, row in METHODS.items() if not row.same_family)
            raise MAMError(
                f"key 'method': '{method.name}' needs a donor that the target was trained from, "
                f"but their {what} differs: {ours} and {theirs}; for another donor use {others}"
            )


def _check_alignment(
    target: AttentionIndex, donor: AttentionIndex, align: str, projections: Sequence[str]
) -> None:
    if align == "none":
        return
    ours, theirs = (index.hidden_size // index.heads for index in (target, donor))
    if ours != theirs:
        raise MAMError(
            f"key 'align': '{align}' needs heads of one width; the target's {target.heads} are "
            f"{ours} wide, the donor's {donor.heads} are {theirs}: use 'align: none'"
        )
    if align == "rotation" and not {"query", "key"} <= set(projections):
        raise MAMError(
            "key 'align': 'rotation' turns queries and keys together; key 'projections' must name "
            "both, or use 'align: heads'"
        )


def _one_sided(
    alone: TensorRef, lacks_target: bool, layer: int, donor_layer: int, projection: str
) -> MAMError:
    lacks, where = ("target", layer) if lacks_target else ("donor", donor_layer)
    return MAMError(
        f"the {lacks} has no {projection} bias in layer {where}, but '{alone.name}' exists: set "
        "'bias: where_both' to merge the biases that both have, or 'bias: keep' to merge weights "
        "only"
    )
