"""``diff``: what became of a model, tensor by tensor."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from speechbrain_mam.cli.parser import Verbs, add_json, add_verb
from speechbrain_mam.errors import one_of
from speechbrain_mam.model_files.find import resolve_model
from speechbrain_mam.model_files.folder import ModelFolder
from speechbrain_mam.model_files.open_donor import open_donor
from speechbrain_mam.options import ROTATIONS

if TYPE_CHECKING:
    from speechbrain_mam.merging.compare import Comparison, Difference

DIFF_HELP = "which tensors of two model folders differ, by how much, and which λ explains it"
DIFF_EXAMPLES = """\
A is the model before, B after: a target and its merge, or the target and a model trained with λ.
'change' is ‖B − A‖ / ‖A‖. With --donor, λ is that of B = λ · A + (1 − λ) · DONOR by least squares,
and 'unexplained' what is left over, as a share of the change: near 0 the merge is all there is,
near 1 it explains nothing (the model was trained too, or it is another donor or layer map).

examples:
  speechbrain-mam diff facebook/hubert-large-ls960-ft merged --donor google-bert/bert-large-uncased
  speechbrain-mam diff my/hubert exported/hf --json
"""
HALF = 0.5
"""Unexplained from here on, least squares has found some λ, but no merge."""
SHOWN = 5
"""Names of tensors in a sentence."""


def add_verbs(verbs: Verbs) -> None:
    """``diff``."""
    diff = add_verb(verbs, "diff", diff_command, DIFF_HELP, DIFF_EXAMPLES)
    folder = "a Hugging Face folder, or a name on the Hub or in its cache"
    diff.add_argument("a", metavar="A", help=f"the model before: {folder}")
    diff.add_argument("b", metavar="B", help="the model after")
    diff.add_argument("--donor", metavar="DONOR", help="what may have been mixed in")
    for name, told in (
        ("--layer-map", "uniform"),
        ("--align", "none"),
        ("--donor-scale", "none"),
        ("--width", "error"),
        ("--rotate", "none"),
    ):
        diff.add_argument(name, default=told, help=f"as of the merge; default {told}")
    diff.add_argument(
        "--control-seed", type=int, default=0, metavar="N", help="as of the merge; default 0"
    )
    add_json(diff)


def diff_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam diff``: print the table."""
    from speechbrain_mam.merging.compare import compare

    a, b = (ModelFolder(resolve_model(name)) for name in (options.a, options.b))
    donor = open_donor(options.donor) if options.donor else None
    keys = ("layer_map", "align", "donor_scale", "width", "rotate")
    chosen = {key: getattr(options, key) for key in keys} if donor else {}
    one_of("rotate", options.rotate, ROTATIONS)
    found = compare(a, b, donor, seed=options.control_seed, **chosen)
    if options.json:
        sys.stdout.write(json.dumps(_as_json(options, found), indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write(
            "\n".join([*_table(found, donor is not None), *_told(found, donor)]) + "\n"
        )


def _as_json(options: argparse.Namespace, found: Comparison) -> dict[str, object]:
    told = asdict(found)
    told.pop("places")
    return {"a": options.a, "b": options.b, "donor": options.donor, **told}


def _table(found: Comparison, with_lam: bool) -> list[str]:
    shown = [one for one in found.differences if not one.cast_only]
    if not shown:
        return []
    header = ["tensor", "elements", "change", "largest"] + ["λ", "unexplained"] * with_lam
    rows = [header, *(_row(one, with_lam) for one in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for name, *figures in rows:
        padded = [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return [*lines, ""]


def _row(one: Difference, with_lam: bool) -> list[str]:
    types = "" if one.types[0] == one.types[1] else f" ({one.types[0]} → {one.types[1]})"
    row = [one.name + types, f"{100 * one.changed:.4g} %", _number(one.relative)]
    row.append(_number(one.largest))
    if with_lam:
        row.append(" ".join(_number(share.lam, 5) for share in one.shares) or "–")
        row.append(" ".join(_number(share.unexplained) for share in one.shares) or "–")
    return row


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _told(found: Comparison, donor: ModelFolder | None) -> list[str]:
    """What the table says, in sentences."""
    differ, lines = found.differences, []
    common = len(differ) + len(found.equal)
    if not differ:
        lines.append(
            f"none of {common} tensors differs: B has the bits of A. A merge between them did "
            "nothing (λ = 1), or was written elsewhere"
        )
    else:
        lines.append(f"{len(differ)} of {common} tensors differ; {len(found.equal)} are equal bits")
        inside = [one for one in differ if one.name in found.places]
        if found.places and inside:
            layers = sorted({found.places[one.name][0] for one in inside})
            kinds = sorted({kind for one in inside for kind in found.places[one.name][1].split()})
            lines.append(
                f"{len(inside)} of them are {', '.join(kinds)} of self-attention in {len(layers)} "
                f"layers ({layers[0]} to {layers[-1]}), {len(differ) - len(inside)} are others"
            )
        if cast := sum(one.cast_only for one in differ):
            lines.append(f"{cast} of them are A's numbers in another type, and not shown")
    if donor is not None and differ:
        lines += _told_of_lambda(differ)
    for names, what in (
        (found.only_a, "only in A"),
        (found.only_b, "only in B"),
        (found.other_shapes, "of another shape"),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{what}: {', '.join(names[:SHOWN])}{more}")
    return lines


def _told_of_lambda(differ: tuple[Difference, ...]) -> list[str]:
    known = [(s.lam, s.unexplained) for one in differ for s in one.shares]
    lams = [lam for lam, _ in known if lam is not None]
    left = [rest for _, rest in known if rest is not None]
    if not lams or not left:
        return ["λ: no tensor that differs has a counterpart in the donor"]
    without = sum(not one.shares for one in differ)
    others = f"; {without} tensors that differ have no counterpart in the donor" if without else ""
    lines = [
        f"λ is {min(lams):.5g} to {max(lams):.5g} in {len(lams)} projections; unexplained of the "
        f"change {min(left):.3g} to {max(left):.3g}{others}"
    ]
    if odd := sum(rest > HALF for rest in left):
        lines.append(
            f"in {odd} of them more than half of the change is unexplained: λ says nothing "
            "there. Was it another donor, layer map, alignment or basis, or trained as well?"
        )
    return lines
