"""``probe`` and ``sweep``: what a merge does to a recogniser on given speech."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from speechbrain_mam.atomic import check_output, new_folder
from speechbrain_mam.cli.parser import (
    MERGE_CHOICES,
    Verbs,
    add_choices,
    add_json,
    add_output,
    add_speech,
    add_verb,
)

PROBE_HELP = "rank TARGET's layers and heads by what a small step towards DONOR does to its loss"
PROBE_EXAMPLES = """\
TARGET is a CTC recogniser. The loss is measured on a manifest, SpeechBrain's CSV with the columns
ID, duration, wav and wrd: a recipe leaves valid.csv in the save folder of its output. Nothing is
changed. With --out, the scores go into DIR/probe.json and their picture into DIR/probe.png.

examples:
  speechbrain-mam probe speechbrain_mam/hubert-mini sentence-transformers/all-MiniLM-L6-v2 \\
      --manifest results/LJSpeech/mam_zeroshot/1986/save/valid.csv --out probe
"""

SWEEP_HELP = "evaluate merges of TARGET and DONOR over a grid of λ, and choose the best"
SWEEP_EXAMPLES = """\
TARGET is a CTC recogniser; nothing is trained. Each λ is tried in each choice of layers, on a
manifest as for 'probe'. Choose on validation speech, never on the speech that you report on. With
--out, every utterance's errors go into DIR/sweep.json and the curves into DIR/sweep.png; merge the
choice with 'speechbrain-mam merge'.

examples:
  speechbrain-mam sweep speechbrain_mam/hubert-mini sentence-transformers/all-MiniLM-L6-v2 \\
      --manifest results/LJSpeech/mam_zeroshot/1986/save/valid.csv --grid 0.8,0.9,0.95 --out sweep
  speechbrain-mam sweep my/hubert my/bert --manifest valid.csv --data-folder /data/LJSpeech-1.1 \\
      --grid 0.9,0.95,0.99 --layers all last:4 --controls random no_donor --out sweep
"""


def add_verbs(verbs: Verbs) -> None:
    """``probe`` and ``sweep``."""
    probe = add_verb(verbs, "probe", probe_command, PROBE_HELP, PROBE_EXAMPLES)
    add_choices(probe, merges=False)
    add_speech(probe)
    add_output(probe, "a folder for probe.json and probe.png", required=False)
    add_json(probe)

    sweep = add_verb(verbs, "sweep", sweep_command, SWEEP_HELP, SWEEP_EXAMPLES)
    add_choices(sweep, merges=False, several_layers=True)
    sweep.add_argument(
        "--grid",
        required=True,
        metavar="λ,λ,…",
        help="TARGET's shares to try, in [0, 1]; 1, the untouched model, is always among them",
    )
    sweep.add_argument(
        "--controls",
        nargs="+",
        default=[],
        metavar="NAME",
        help="in DONOR's place, each with the same λ and layers to choose from: random, moments, "
        "spectrum, conjugate, shuffled_layers, reversed_layers, permuted_rows, mimetic, "
        "match_norm, no_donor",
    )
    add_speech(sweep)
    add_output(sweep, "a folder for sweep.json and sweep.png", required=False)
    add_json(sweep)


def probe_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam probe``: print the ranking, draw it."""
    from speechbrain_mam.runs.probe_manifest import probe_manifest

    _hide_loading()

    out = _checked_out(options)
    found = probe_manifest(
        options.target,
        options.donor,
        layers=options.layers,
        **_speech(options),
    )
    content = json.dumps(found.as_dict(), indent=2)
    if out is not None:
        from speechbrain_mam.report.figures import plot_probe

        with new_folder(out, options.force) as folder:
            (folder / "probe.json").write_text(content, encoding="utf-8")
            (folder / "probe.png").write_bytes(plot_probe(found.as_dict()))
    sys.stdout.write(f"{content if options.json else found}\n")


def sweep_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam sweep``: print the table, draw the curves."""
    from speechbrain_mam.report.figures import plot_sweep
    from speechbrain_mam.results.search_results import read_sweep
    from speechbrain_mam.runs.sweep_manifest import sweep_manifest

    _hide_loading()
    out = _checked_out(options)
    found = sweep_manifest(
        options.target,
        options.donor,
        grid=options.grid,
        layers=options.layers,
        controls=options.controls,
        **_speech(options),
    )
    content = json.dumps(found.as_dict(), indent=1, ensure_ascii=False)
    if out is not None:
        with new_folder(out, options.force) as folder:
            (folder / "sweep.json").write_text(content, encoding="utf-8")
            read = read_sweep(folder / "sweep.json")
            assert read is not None
            title = f"{options.target} + {options.donor}"
            (folder / "sweep.png").write_bytes(plot_sweep(read, title))
    sys.stdout.write(f"{content if options.json else found}\n")


def _hide_loading() -> None:
    """The bar that transformers shows while it loads a model, on stderr."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _speech(options: argparse.Namespace) -> dict[str, Any]:
    """What both commands hand on: the speech, where it is evaluated, how the merge is made."""
    return {
        "manifest": Path(options.manifest),
        "data_folder": Path(options.data_folder) if options.data_folder else None,
        "batch_size": options.batch_size,
        "device": options.device,
        "precision": options.precision,
        "progress": sys.stderr.isatty(),
        **{key: getattr(options, key) for key in MERGE_CHOICES},
    }


def _checked_out(options: argparse.Namespace) -> Path | None:
    """Where to write, told before the work rather than after it."""
    return check_output(Path(options.out), options.force) if options.out else None
