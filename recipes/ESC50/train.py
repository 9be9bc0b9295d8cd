#!/usr/bin/env python3
"""Recipe for a BEATs classifier of audio events with Multimodal Attention Merging on ESC-50.

The audio model takes over part of the self-attention of a Vision Transformer
(W = λ · W_BEATs + (1 − λ) · W_ViT on query, key and value). Which of the ways is run is a
matter of the YAML:

> python recipes/ESC50/train.py hparams/esc50_finetune.yaml      # no merging: the baseline
> python recipes/ESC50/train.py hparams/esc50_mam_zeroshot.yaml  # λ from a sweep, not trained
> python recipes/ESC50/train.py hparams/esc50_mam_learnable.yaml # one λ per layer, fine-tuned
> python recipes/ESC50/train.py hparams/esc50_mam_init.yaml      # attention begins as the donor's

Without further options each runs on the embedded models and corpus, without a network or a GPU, and
tests on fold 1. All five folds of ESC-50, at the paper's scale:

> python recipes/ESC50/train.py hparams/large/esc50_mam_learnable.yaml --folds all \\
    --data_folder /data/ESC-50 --beats_checkpoint /models/BEATs_iter3_plus_AS2M.pt

--download True fetches ESC-50 (CC BY-NC 3.0) into the data folder if it is not there.

On several GPUs:

> torchrun --nproc_per_node=4 recipes/ESC50/train.py hparams/large/esc50_mam_learnable.yaml …

One option is this recipe's own: --folds all, or some of 1 to 5 as in 1,3. Each fold has its folder
in the results' folder, which holds what is true of all of them together. --output_folder names that
one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import speechbrain as sb
from esc50_prepare import prepare_esc50
from speechbrain.utils.distributed import run_on_main

from speechbrain_mam.cli.parser import Parser
from speechbrain_mam.errors import one_line_errors
from speechbrain_mam.runs.event_fold import run_fold
from speechbrain_mam.runs.folds import parse_folds, pool_folds
from speechbrain_mam.runs.recipe import load_recipe
from speechbrain_mam.tasks.audio_events import KEYS, AudioEvents
from speechbrain_mam.tasks.audio_events_data import class_names, dataio_prepare


def fold_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This recipe's own options, and the rest of the command line.

    A fold is a training of its own, with the YAML read anew.
    """
    parser = Parser(add_help=False)
    parser.add_argument("--folds")
    parser.add_argument("--output_folder")
    options, rest = parser.parse_known_args(argv)
    if options.output_folder is not None:
        rest += ["--results_folder", options.output_folder]
    return options, rest


def train_fold(argv: Sequence[str]) -> tuple[str, str]:
    """Train and test on one fold; returns the results' folder and the method."""
    # Command line and YAML; starts DDP under torchrun
    hparams, run_opts, hparams_file, overrides = load_recipe(argv, needed=KEYS)

    # Create experiment directory
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    # Dataset prep (parsing ESC-50)
    run_on_main(
        prepare_esc50,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "fold": hparams["fold"],
            "valid": hparams["valid_share"],
            "download": hparams["download"],
        },
    )
    datasets = dataio_prepare(hparams)

    # Trainer initialization: the merge stage runs here
    brain = AudioEvents(
        modules=hparams["modules"],
        opt_class=hparams.get("opt_class"),
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams.get("checkpointer"),
    )
    brain.class_names = class_names(Path(hparams["save_folder"]))

    # A linear classifier of the untouched model, training, λ's search, results
    run_fold(brain, hparams, datasets)
    return hparams["results_folder"], hparams["method"]


if __name__ == "__main__":
    with one_line_errors():
        options, argv = fold_options(sys.argv[1:])
        if options.folds is None:
            trained = train_fold(argv)
        else:
            for fold in parse_folds(options.folds):
                trained = train_fold([*argv, "--fold", str(fold)])

        # Mean and spread over the folds, pooled error, confusion matrix, per-class change
        run_on_main(pool_folds, args=trained)
