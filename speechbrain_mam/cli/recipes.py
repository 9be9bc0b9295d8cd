"""``add``: MAM in a recipe of SpeechBrain's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speechbrain_mam.cli.parser import Verbs, add_verb
from speechbrain_mam.recipe_edits.add import add_mam, by_hand
from speechbrain_mam.recipe_edits.lines import Unclear

ADD_HELP = "add Learnable-MAM to a SpeechBrain recipe: nine lines, and nothing else changes"
ADD_EXAMPLES = """\
TRAIN.py gets an import, and MAMBrain in front of the bases of its Brain; HPARAMS.yaml gets the keys
mam and mam_optimizer after that of the target. A script that has MAM already, for another YAML, is
left as it is. What the recipe needs besides is printed. A recipe that is not understood is left
alone, and the lines to add by hand are printed.

examples:
  speechbrain-mam add train_with_wav2vec2.py hparams/train_with_wav2vec2.yaml \\
      --target wav2vec2 --donor google-bert/bert-base-uncased --diff > mam.diff
  speechbrain-mam add train.py hparams/train.yaml --target wav2vec2 \\
      --donor google-bert/bert-large-uncased --out with_mam
"""


def add_verbs(verbs: Verbs) -> None:
    """``add``."""
    add = add_verb(verbs, "add", add_command, ADD_HELP, ADD_EXAMPLES)
    add.add_argument("script", metavar="TRAIN.py", help="the recipe's script")
    add.add_argument("yaml", metavar="HPARAMS.yaml", help="its YAML")
    add.add_argument("--target", metavar="KEY", required=True, help="the YAML's key of the encoder")
    add.add_argument("--donor", metavar="DONOR", required=True, help="a name on the Hub, a folder")
    add.add_argument("--brain", metavar="NAME", help="the Brain's class, where it has several")
    ways = add.add_mutually_exclusive_group(required=True)
    ways.add_argument("--diff", action="store_true", help="print a diff, and write nothing")
    ways.add_argument("--in-place", action="store_true", help="change both files")
    ways.add_argument(
        "--out", metavar="DIR", help="write a copy: both, and what the script imports"
    )
    add.add_argument("--force", action="store_true", help="replace DIR where it exists")


def add_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam add``: write, or print, the nine lines."""
    try:
        added = add_mam(
            Path(options.script), Path(options.yaml), options.target, options.donor, options.brain
        )
    except Unclear:
        sys.stdout.write(by_hand(options.target, options.donor))
        raise
    told = sys.stdout
    if options.diff:
        told = sys.stderr  # the diff goes into a file
        sys.stdout.write(added.diff().decode())
    else:
        if options.in_place:
            written = added.write_in_place()
        else:
            written = added.write_copy(Path(options.out), options.force)
        sys.stdout.write("".join(f"written: '{path}'\n" for path in written))
    kept = "" if added.script.edits else " (it has MAM already; only the YAML changes)"
    told.write(f"Brain: {added.brain}{kept}\n")
    told.write("".join(f"{note}\n" for note in added.notes))
