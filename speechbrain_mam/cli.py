"""``speechbrain-mam``: plans and merges of Hugging Face folders; reports on finished runs.

Exit codes: 0 done; 2 wrong usage or bad input, with one line on stderr that says why.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from speechbrain_mam import __version__
from speechbrain_mam.choices import LAYER_MAPS
from speechbrain_mam.donor import ModelFolder, open_donor
from speechbrain_mam.errors import MAMError
from speechbrain_mam.folders import check_output, new_folder
from speechbrain_mam.plan import BIAS_POLICIES, DONOR_SCALES, MergePlan, make_plan
from speechbrain_mam.rewrite import merge_folders
from speechbrain_mam.sources import resolve_model

PROGRAM = "speechbrain-mam"

DESCRIPTION = """\
Multimodal Attention Merging (arXiv 2312.14378): give a speech Transformer (TARGET) part of the
self-attention that a text or vision Transformer (DONOR) has learned:

    W = λ · W_target + (1 − λ) · W_donor      for the query, key and value projections
"""

PLAN_HELP = "print which tensors a merge would touch, with what and how much; nothing is written"
PLAN_EXAMPLES = """\
examples:
  speechbrain-mam plan facebook/hubert-large-ls960-ft google-bert/bert-large-uncased
  speechbrain-mam plan speechbrain_mam/hubert-mini sentence-transformers/all-MiniLM-L6-v2 --json
"""

MERGE_HELP = "write a merged copy of TARGET, in which only the planned tensors differ"
MERGE_EXAMPLES = """\
The weight files of TARGET are copied and only the byte ranges of the planned tensors rewritten;
configuration, vocabulary and feature extractor come along, and mam_plan.json says what was done.
TARGET needs safetensors, whole or in shards; a pytorch_model.bin is read with weights_only and
written as safetensors. If anything goes wrong, nothing is left behind.

examples:
  speechbrain-mam merge facebook/hubert-large-ls960-ft google-bert/bert-large-uncased \\
      --lam 0.95 --out hubert-large-mam
  speechbrain-mam merge my/hubert my/bert --lam 0.9 --layers last:4 --projections qk --out merged
  speechbrain-mam merge my/hubert my/bert --lam 0.8,0.9,0.95 --layers 0-2 --out merged --force
"""

PROBE_HELP = "rank TARGET's layers and heads by what a small step towards DONOR does to its loss"
PROBE_EXAMPLES = """\
TARGET is a CTC recogniser. The loss is measured on a manifest, SpeechBrain's CSV with the columns
ID, duration, wav and wrd: a recipe leaves valid.csv in the save folder of its output. Nothing is
changed. With --out, the scores go into DIR/probe.json and their picture into DIR/probe.png.

examples:
  speechbrain-mam probe speechbrain_mam/hubert-mini sentence-transformers/all-MiniLM-L6-v2 \\
      --manifest results/LJSpeech/mam_zeroshot/1986/save/valid.csv --out probe
"""

REPORT_HELP = "compare finished runs of a recipe: tables, pictures, and which gains are chance"
REPORT_EXAMPLES = """\
A RUN_DIR is the output folder of a finished run. DIR gets report.html, which needs no other file
and no network, report.md, report.csv, report.json and the pictures; the tables are printed too.

examples:
  speechbrain-mam report results/LJSpeech/*/1986 --out report
  speechbrain-mam report results/seeds/finetune/* results/seeds/mam_learnable*/* --out report
"""

EXAMPLES = """\
examples:
  speechbrain-mam plan facebook/hubert-large-ls960-ft google-bert/bert-large-uncased
  speechbrain-mam merge my/hubert my/bert --lam 0.95 --out merged

'speechbrain-mam plan --help' and 'speechbrain-mam merge --help' have more.
"""


class _Parser(argparse.ArgumentParser):
    """Keeps the layout of the examples; wrong usage is bad input like any other: one line."""

    def __init__(self, prog: str | None = None, **kwargs: Any):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, formatter_class=layout, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise MAMError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``speechbrain-mam``.

    Arguments
    ---------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.

    Example
    -------
    >>> main(["plan", "speechbrain_mam/hubert-mini", "speechbrain_mam/hubert-mini", "--json"])
    ... # doctest: +ELLIPSIS
    {
      "target_name": "speechbrain_mam/hubert-mini",
      ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # λ and × must not fail where a terminal is ASCII
    try:
        options = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's would add to the one line on stderr
            options.run(options)
        sys.stdout.flush()
    except MAMError as error:
        return _fail(_as_options(str(error)))
    except BrokenPipeError:
        # '| head' has seen enough. Python flushes stdout once more at exit: give it a place to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f": '{error.filename}'" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}")
    except KeyboardInterrupt:
        _fail("interrupted; nothing is left behind")
        return 130
    return 0


def plan_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam plan``: print the plan."""
    plan = _make_plan(options, *_open_folders(options))
    sys.stdout.write(f"{plan.to_json() if options.json else plan}\n")


def merge_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam merge``: write the merged folder."""
    target, donor = _open_folders(options)
    out = check_output(Path(options.out), options.force, target=target.path, donor=donor.path)
    plan = _make_plan(options, target, donor)
    with new_folder(out, options.force) as folder:
        merge_folders(plan, target, donor, folder)
    weights = sum(entry.kind == "weight" for entry in plan.entries)
    shares = sorted({entry.lam for entry in plan.entries})
    lam = f"{shares[0]:.6g}" + (f" to {shares[-1]:.6g}" if len(shares) > 1 else "")
    sys.stdout.write(
        f"{plan.target_name} + {plan.donor_name}, λ {lam}: {weights} weights and "
        f"{len(plan.entries) - weights} biases in {len(plan.layers)} layers; written to '{out}'\n"
    )


def probe_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam probe``: print the ranking, draw it."""
    from speechbrain_mam.asr_probe import probe_manifest

    keys = ("layers", "projections", "layer_map", "bias", "donor_scale")
    found = probe_manifest(
        options.target,
        options.donor,
        Path(options.manifest),
        Path(options.data_folder) if options.data_folder else None,
        options.batch_size,
        progress=sys.stderr.isatty(),
        **{key: getattr(options, key) for key in keys},
    )
    content = json.dumps(found.as_dict(), indent=2)
    if options.out:
        from speechbrain_mam.report.figures import plot_probe

        out = Path(options.out)
        check_output(out, options.force)
        with new_folder(out, options.force) as folder:
            (folder / "probe.json").write_text(content, encoding="utf-8")
            (folder / "probe.png").write_bytes(plot_probe(found.as_dict()))
    sys.stdout.write(f"{content if options.json else found}\n")


def report_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam report``: write the report, print its tables."""
    # SciPy and matplotlib take seconds to load, and the other commands need neither.
    from speechbrain_mam.report import write_report

    report = write_report(options.runs, Path(options.out), options.force)
    sys.stdout.write(f"{report.table}\n\nwritten to '{options.out}'\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(PROGRAM, description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    plan = verbs.add_parser(
        "plan", help=PLAN_HELP, description=_sentence(PLAN_HELP), epilog=PLAN_EXAMPLES
    )
    _add_choices(plan, lam_default=0.95)
    plan.add_argument("--json", action="store_true", help="as JSON, for programs")
    plan.set_defaults(run=plan_command)

    merge = verbs.add_parser(
        "merge", help=MERGE_HELP, description=_sentence(MERGE_HELP), epilog=MERGE_EXAMPLES
    )
    _add_choices(merge, lam_default=None)
    merge.add_argument("--out", metavar="DIR", required=True, help="the folder to write")
    merge.add_argument("--force", action="store_true", help="replace DIR where it exists")
    merge.set_defaults(run=merge_command)

    probe = verbs.add_parser(
        "probe", help=PROBE_HELP, description=_sentence(PROBE_HELP), epilog=PROBE_EXAMPLES
    )
    _add_choices(probe, lam_default=None, with_lam=False)
    probe.add_argument("--manifest", metavar="CSV", required=True, help="the speech to measure on")
    probe.add_argument("--data-folder", metavar="DIR", help="what $data_root in CSV stands for")
    probe.add_argument("--batch-size", type=int, default=8, help="utterances a batch; default 8")
    probe.add_argument("--out", metavar="DIR", help="a folder for probe.json and probe.png")
    probe.add_argument("--force", action="store_true", help="replace DIR where it exists")
    probe.add_argument("--json", action="store_true", help="as JSON, for programs")
    probe.set_defaults(run=probe_command)

    report = verbs.add_parser(
        "report", help=REPORT_HELP, description=_sentence(REPORT_HELP), epilog=REPORT_EXAMPLES
    )
    report.add_argument("runs", metavar="RUN_DIR", nargs="+", help="a run's output folder")
    report.add_argument("--out", metavar="DIR", required=True, help="the folder to write into")
    report.add_argument("--force", action="store_true", help="replace the report in DIR")
    report.set_defaults(run=report_command)
    return parser


def _add_choices(
    parser: argparse.ArgumentParser, lam_default: float | None, with_lam: bool = True
) -> None:
    """The arguments of :func:`speechbrain_mam.plan.make_plan`."""
    model = "a Hugging Face folder, or a name on the Hub or in its cache"
    parser.add_argument("target", metavar="TARGET", help=f"the speech model: {model}")
    parser.add_argument(
        "donor",
        metavar="DONOR",
        help=f"the text or vision model: {model}, or a .safetensors or .onnx file beside its "
        "config.json",
    )
    if with_lam:
        parser.add_argument(
            "--lam",
            type=_numbers,
            default=lam_default,
            required=lam_default is None,
            metavar="λ",
            help="TARGET's share in [0, 1], 1 leaves it as it is: one number, or one per chosen "
            "layer (0.9,0.95,…)" + (f"; default {lam_default}" if lam_default is not None else ""),
        )
    parser.add_argument(
        "--layers", default="all", help="all, first:k, last:k or ranges like 0-5,8; default all"
    )
    parser.add_argument(
        "--projections", default="qkv", type=_names, help="letters out of qkvo; default qkv"
    )
    parser.add_argument(
        "--layer-map",
        default="uniform",
        type=_layer_map,
        help=f"DONOR's layer for each layer of TARGET: {', '.join(LAYER_MAPS)} or a list; "
        "default uniform",
    )
    parser.add_argument(
        "--bias", default="merge", help=f"{' or '.join(BIAS_POLICIES)} (TARGET's); default merge"
    )
    parser.add_argument(
        "--donor-scale", default="none", help=f"{' or '.join(DONOR_SCALES)}; default none"
    )


def _open_folders(options: argparse.Namespace) -> tuple[ModelFolder, ModelFolder]:
    return ModelFolder(resolve_model(options.target)), open_donor(options.donor)


def _make_plan(options: argparse.Namespace, target: ModelFolder, donor: ModelFolder) -> MergePlan:
    return make_plan(
        target.attention(),
        donor.attention(),
        lam=options.lam,
        layers=options.layers,
        projections=options.projections,
        layer_map=options.layer_map,
        bias=options.bias,
        donor_scale=options.donor_scale,
        target_name=options.target,
        donor_name=options.donor,
    )


def _numbers(text: str) -> float | list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither a number nor numbers with commas between them"
        ) from None
    return values if "," in text else values[0]


def _names(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text


def _layer_map(text: str) -> str | list[int]:
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else text


def _as_options(message: str) -> str:
    """The core's messages name YAML keys; here they are options."""
    keys = "lam|layers|projections|layer_map|bias|donor_scale"
    return re.sub(rf"key '({keys})'", lambda m: "--" + m[1].replace("_", "-"), message)


def _fail(message: str) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {' '.join(message.splitlines())}\n")
    return 2


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
