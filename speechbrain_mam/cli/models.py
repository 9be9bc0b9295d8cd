"""``plan`` and ``merge``: what needs the models' folders and no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speechbrain_mam.atomic import check_output, new_folder
from speechbrain_mam.cli.parser import (
    MERGE_CHOICES,
    Verbs,
    add_choices,
    add_json,
    add_output,
    add_verb,
)
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.merging.on_disk import merge_folders
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.merging.start import read_start
from speechbrain_mam.model_files.find import resolve_model
from speechbrain_mam.model_files.folder import ModelFolder
from speechbrain_mam.model_files.open_donor import open_donor
from speechbrain_mam.options import ROTATIONS

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
  speechbrain-mam merge my/untrained-hubert my/bert --start donor --out started
  speechbrain-mam merge my/untrained-hubert my/bert --start donor --rotate random --out turned
"""


def add_verbs(verbs: Verbs) -> None:
    """``plan`` and ``merge``."""
    plan = add_verb(verbs, "plan", plan_command, PLAN_HELP, PLAN_EXAMPLES)
    add_choices(plan)
    add_json(plan)
    merge = add_verb(verbs, "merge", merge_command, MERGE_HELP, MERGE_EXAMPLES)
    add_choices(merge)
    add_output(merge, "the folder to write")


def plan_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam plan``: print the plan."""
    plan = _make_plan(options, *_open_folders(options))
    sys.stdout.write(f"{plan.to_json() if options.json else plan}\n")


def merge_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam merge``: write the merged folder."""
    if options.lam is None and options.start == "target":
        raise MAMError(
            "the following arguments are required: --lam (see 'speechbrain-mam merge --help')"
        )
    target, donor = _open_folders(options)
    out = check_output(Path(options.out), options.force, target=target.path, donor=donor.path)
    plan = _make_plan(options, target, donor)
    with new_folder(out, options.force) as folder:
        merge_folders(plan, target, donor, folder, options.rotate, options.control_seed)
    weights = sum(entry.kind == "weight" for entry in plan.entries)
    shares = sorted({entry.lam for entry in plan.entries})
    lam = f"{shares[0]:.6g}" + (f" to {shares[-1]:.6g}" if len(shares) > 1 else "")
    sys.stdout.write(
        f"{plan.target_name} + {plan.donor_name}, λ {lam}: {weights} weights and "
        f"{len(plan.entries) - weights} biases in {len(plan.layers)} layers; written to '{out}'\n"
    )


def _open_folders(options: argparse.Namespace) -> tuple[ModelFolder, ModelFolder]:
    folders = ModelFolder(resolve_model(options.target)), open_donor(options.donor)
    for folder in folders:
        if folder.weights.note:
            sys.stderr.write(f"note: {folder.weights.note}\n")
    return folders


def _make_plan(options: argparse.Namespace, target: ModelFolder, donor: ModelFolder) -> MergePlan:
    choices = {key: getattr(options, key) for key in MERGE_CHOICES}
    said = [choices[key] for key in ("projections", "method", "align")]
    start = read_start(options.start, options.lam, *said)
    name, index = options.donor, donor.attention()
    one_of("rotate", options.rotate, ROTATIONS)
    if options.rotate != "none":  # torch takes its time to load
        from speechbrain_mam.donors.rotation import hadamard_factors, turned_name

        if options.rotate == "hadamard":
            hadamard_factors(index.hidden_size)
        name = turned_name(name, options.rotate, options.control_seed)
    return make_plan(
        target.attention(),
        index,
        lam=start.lam,
        layers=options.layers,
        **choices | {"projections": start.projections},
        target_name=options.target,
        donor_name=name,
    )
