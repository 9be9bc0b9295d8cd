"""What the verbs' command lines share: their form, and the choices of a merge."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.methods import METHODS
from speechbrain_mam.merging.planner import ALIGNMENTS, DONOR_SCALES, WIDTHS
from speechbrain_mam.merging.start import LAM, PROJECTIONS, STARTS
from speechbrain_mam.options import LAYER_MAPS, ROTATIONS

PROGRAM = "speechbrain-mam"
MERGE_CHOICES = (*("projections", "layer_map", "bias", "donor_scale", "method", "align", "width"),)
"""Options of :func:`add_choices` that ``make_plan`` takes as they are."""

Verbs = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """Keeps the layout of the examples; wrong usage is bad input like any other: one line."""

    def __init__(self, prog: str | None = None, **kwargs: Any):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, formatter_class=layout, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise MAMError(f"{message} (see '{self.prog} --help')")


def add_verb(verbs: Verbs, name: str, run: Any, about: str, examples: str) -> Parser:
    """A verb with its help; ``run`` gets the options."""
    parser = verbs.add_parser(name, help=about, description=_sentence(about), epilog=examples)
    parser.set_defaults(run=run)
    return parser


def add_output(parser: argparse.ArgumentParser, what: str, required: bool = True) -> None:
    """``--out`` and ``--force``."""
    parser.add_argument("--out", metavar="DIR", required=required, help=what)
    parser.add_argument("--force", action="store_true", help="replace DIR where it exists")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def add_speech(parser: argparse.ArgumentParser) -> None:
    """The speech that a verb measures on."""
    parser.add_argument("--manifest", metavar="CSV", required=True, help="the speech to measure on")
    parser.add_argument("--data-folder", metavar="DIR", help="what $data_root in CSV stands for")
    parser.add_argument("--batch-size", type=int, default=8, help="utterances a batch; default 8")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default a GPU where there is one")
    parser.add_argument("--precision", default="fp32", help="fp32, fp16 or bf16; default fp32")


def add_choices(
    parser: argparse.ArgumentParser, merges: bool = True, several_layers: bool = False
) -> None:
    """The arguments of :func:`speechbrain_mam.merging.planner.make_plan`.

    Arguments
    ---------
    parser : argparse.ArgumentParser
        Of a verb.
    merges : bool
        Whether it has ``--lam``, ``--start`` and ``--rotate``.
    several_layers : bool
        Whether ``--layers`` takes several choices.
    """
    model = "a Hugging Face folder, or a name on the Hub or in its cache"
    parser.add_argument("target", metavar="TARGET", help=f"the speech model: {model}")
    parser.add_argument(
        "donor",
        metavar="DONOR",
        help=f"the text or vision model: {model}, or a .safetensors or .onnx file beside its "
        "config.json",
    )
    if merges:
        parser.add_argument(
            "--lam",
            metavar="λ",
            help="TARGET's share in [0, 1], 1 leaves it as it is: one number, or one per chosen "
            "layer (0.9,0.95,…); a shorter list is a gradient over the layers; or "
            "'{query: 0.9, key: 0.8, value: 1}'; where it may be left out it is "
            f"{LAM['target']}, or {LAM['donor']:g} with --start donor",
        )
        parser.add_argument(
            "--start",
            default="target",
            help=f"{' or '.join(STARTS)}: donor where TARGET's layers are not trained yet; default "
            "target",
        )
        parser.add_argument(
            "--rotate",
            default="none",
            help=f"DONOR in another basis of its residual stream: {', '.join(ROTATIONS)}; default "
            "none",
        )
        parser.add_argument(
            "--control-seed",
            type=int,
            default=0,
            metavar="N",
            help="of --rotate's basis; default 0",
        )
    layers = "all, first:k, last:k, ranges like 0-5,8 or a list like [0,2]"
    if several_layers:
        parser.add_argument("--layers", nargs="+", default=["all"], help=f"some of {layers}")
    else:
        parser.add_argument("--layers", default="all", help=f"{layers}; default all")
    parser.add_argument(
        "--projections",
        default=None if merges else PROJECTIONS["target"],
        help="letters out of qkvo, or names; default qkv"
        + (", qkvo with --start donor" if merges else ""),
    )
    parser.add_argument(
        "--layer-map",
        default="uniform",
        help=f"DONOR's layer for each layer of TARGET: {', '.join(LAYER_MAPS)} or a list; "
        "default uniform",
    )
    parser.add_argument(
        "--bias",
        default="where_both",
        help="where_both merges the biases that both have, merge takes one-sided ones for an "
        "error, keep leaves TARGET's; default where_both",
    )
    parser.add_argument(
        "--donor-scale", default="none", help=f"{' or '.join(DONOR_SCALES)}; default none"
    )
    parser.add_argument("--method", default="linear", help=f"{', '.join(METHODS)}; default linear")
    parser.add_argument(
        "--align",
        default="none",
        help=f"match DONOR's heads to TARGET's first: {', '.join(ALIGNMENTS)}; default none",
    )
    parser.add_argument(
        "--width", default="error", help=f"of a wider DONOR: {' or '.join(WIDTHS)}; default error"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
