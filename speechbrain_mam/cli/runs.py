"""``compare``, ``export``, ``report`` and ``decode``: several runs, and what becomes of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speechbrain_mam.cli.parser import Verbs, add_output, add_verb
from speechbrain_mam.errors import MAMError
from speechbrain_mam.runs.seeds import add_arguments, run_series

ALPHAS, BETAS = [0.25, 0.5, 0.75, 1.0], [0.0, 1.0, 2.0, 3.0]
EXPORT_HELP = "write a finished run's model as folders that load without this package"
EXPORT_EXAMPLES = """\
RUN_DIR is the output folder of a finished run; of audio events, that of one test fold. λ is folded
in. Of a recogniser, hf is a folder for transformers' AutoModelForCTC, speechbrain one for
SpeechBrain's EncoderASR. Of a BEATs classifier, hf is a checkpoint {cfg, model, label_dict} as
BEATs' authors publish them (transformers has no BEATs), speechbrain a folder for EncoderClassifier.
Each has a model card. With both, they are DIR/hf and DIR/speechbrain.

--push uploads the folder, of both hf, with the token of the environment variable HF_TOKEN. With
--force it replaces what the repository holds.

examples:
  speechbrain-mam export results/LJSpeech/mam_learnable/1986 --out exported
  speechbrain-mam export results/ESC50/mam_learnable/1986/fold_1 --format speechbrain --out events
"""

REPORT_HELP = "compare finished runs of a recipe: tables, pictures, and which gains are chance"
REPORT_EXAMPLES = """\
A RUN_DIR is the output folder of a finished run. DIR gets report.html, which needs no other file
and no network, report.md, report.csv, report.json and the pictures; the tables are printed too.

examples:
  speechbrain-mam report results/LJSpeech/*/1986 --out report
  speechbrain-mam report results/seeds/finetune/* results/seeds/mam_learnable*/* --out report
"""


DECODE_HELP = "choose a language model's weights on the validation set of a finished run"
DECODE_EXAMPLES = """\
RUN_DIR is the output folder of a finished run of speech recognition. Its validation set is decoded
by the run's beam search with every α and β; give the best of them to all runs that are compared,
as --test_beam_search "{alpha: 0.5, beta: 1.5}". The test set is not touched.

examples:
  speechbrain-mam decode results/LJSpeech/finetune/1986 --lm mini_ljspeech --alpha 0.5 1
"""


COMPARE = "compare"
COMPARE_HELP = "run a recipe with several YAMLs and seeds, the same budget for all, and report"
COMPARE_EXAMPLES = """\
TRAIN_PY is a recipe's script. Each YAML may have overrides of its own, in quotes; what follows --
goes to every run. Runs lie in DIR/LABEL/SEED, their output in DIR/LABEL/SEED.log, the report in
DIR/report. Finished runs are not repeated and interrupted ones go on when the same command is run
again; where it ends, so does all that it has started.

examples:
  speechbrain-mam compare recipes/LJSpeech/train.py hparams/finetune.yaml \\
      hparams/mam_learnable.yaml "hparams/mam_learnable.yaml --control random" \\
      --seeds 1 2 3 4 5 --out results/seeds -- --number_of_epochs 3
  speechbrain-mam compare recipes/VCTK/train.py hparams/finetune.yaml hparams/mam_learnable.yaml \\
      --seeds 1 2 3 --data /data/VCTK-0.92 /data/VCTK-0.80
"""


def add_verbs(verbs: Verbs) -> None:
    """``compare``, ``export``, ``report`` and ``decode``."""
    compare = add_verb(verbs, COMPARE, compare_command, COMPARE_HELP, COMPARE_EXAMPLES)
    add_arguments(compare)
    compare.set_defaults(overrides=[])

    export = add_verb(verbs, "export", export_command, EXPORT_HELP, EXPORT_EXAMPLES)
    export.add_argument("run_dir", metavar="RUN_DIR", help="a run's output folder")
    export.add_argument("--format", default="both", help="hf, speechbrain or both; default both")
    add_output(export, "the folder to write")
    export.add_argument(
        "--push", metavar="OWNER/NAME", help="upload it to the Hub too, as a private model"
    )
    export.add_argument("--public", action="store_true", help="with --push: as a public one")

    report = add_verb(verbs, "report", report_command, REPORT_HELP, REPORT_EXAMPLES)
    report.add_argument("runs", metavar="RUN_DIR", nargs="+", help="a run's output folder")
    report.add_argument("--out", metavar="DIR", required=True, help="the folder to write into")
    report.add_argument("--force", action="store_true", help="replace the report in DIR")
    report.add_argument(
        "--primary",
        metavar="SYSTEM",
        help="the system whose comparison with its random control is the primary one, and not "
        "corrected; default mam_learnable, or else the first merge that has one",
    )
    report.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="systems that differ by less are equivalent; for runs that were made without "
        "equivalence_margin in their YAML",
    )

    decode = add_verb(verbs, "decode", decode_command, DECODE_HELP, DECODE_EXAMPLES)
    decode.add_argument("run_dir", metavar="RUN_DIR", help="a run's output folder")
    decode.add_argument("--lm", metavar="FILE", help="an ARPA file or KenLM's; default the run's")
    for name, values in (("alpha", ALPHAS), ("beta", BETAS)):
        decode.add_argument(
            f"--{name}", type=float, nargs="+", default=values, metavar="X",
            help=f"what to try; default {' '.join(map(str, values))}",
        )  # fmt: skip


def compare_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam compare``: run what is not there yet, print the report's tables."""
    run_series(options, options.overrides)


def decode_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam decode``: print the grid, the best weights last."""
    from speechbrain_mam.export.decode import choose_weights

    plain, found = choose_weights(Path(options.run_dir), options.alpha, options.beta, options.lm)
    lines = [f"beam search without a language model: WER {plain:.2f} %", "  alpha    beta   WER %"]
    lines += [f"{one.alpha:7g} {one.beta:7g} {one.wer:7.2f}" for one in reversed(found)]
    best = found[0]
    lines.append(f'the best: --test_beam_search "{{alpha: {best.alpha:g}, beta: {best.beta:g}}}"')
    sys.stdout.write("\n".join(lines) + "\n")


def export_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam export``: write the folders."""
    from speechbrain_mam.export import export_run
    from speechbrain_mam.export.push import check_push, push_folder

    if options.push is not None:
        check_push(options.push)
    elif options.public:
        raise MAMError("--public goes with --push")
    folders = export_run(
        Path(options.run_dir), Path(options.out), options.format, force=options.force
    )
    sys.stdout.write("".join(f"written to '{folder}'\n" for folder in folders))
    if options.push is not None:
        sys.stdout.flush()  # an upload takes its time
        url = push_folder(folders[0], options.push, options.public, options.force)
        sys.stdout.write(f"pushed to {url} ({'public' if options.public else 'private'})\n")


def report_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam report``: write the report, print its tables."""
    # SciPy and matplotlib take seconds to load, and the other commands need neither.
    from speechbrain_mam.report import write_report

    report = write_report(
        options.runs,
        Path(options.out),
        options.force,
        primary=options.primary,
        margin=options.margin,
    )
    sys.stdout.write(f"{report.table}\n\nwritten to '{options.out}'\n")
