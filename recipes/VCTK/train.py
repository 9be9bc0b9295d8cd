#!/usr/bin/env python3
"""Recipe for a HuBERT-CTC speech recogniser with Multimodal Attention Merging on VCTK.

The speech model takes over part of the self-attention of BERT (W = λ · W_HuBERT + (1 − λ) · W_BERT
on query, key and value). Which of the ways is run is a matter of the YAML:

> python recipes/VCTK/train.py hparams/finetune.yaml        # no merging: the baseline
> python recipes/VCTK/train.py hparams/mam_zeroshot.yaml    # λ from a sweep, nothing trained
> python recipes/VCTK/train.py hparams/mam_learnable.yaml   # one λ per layer, fine-tuned
> python recipes/VCTK/train.py hparams/mam_init.yaml        # attention begins as the donor's

Without further options each runs on the embedded models and corpus, without a network or a GPU.
On VCTK (0.92 or 0.80), at the paper's scale:

> python recipes/VCTK/train.py hparams/large/mam_learnable.yaml --data_folder /data/VCTK-Corpus-0.92

On several GPUs:

> torchrun --nproc_per_node=4 recipes/VCTK/train.py hparams/large/mam_learnable.yaml \\
    --data_folder /data/VCTK-Corpus-0.92

Two options are this recipe's own: --vctk_mic mic1 | mic2 (default: mic2), and
--vctk_split speakers (default: no speaker is in two sets) | espnet (ESPnet's split).
"""

import argparse
import sys
from collections.abc import Sequence

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from vctk_prepare import MICS, SPLITS, prepare_vctk

from speechbrain_mam.cli.parser import Parser
from speechbrain_mam.ctc.units import set_units
from speechbrain_mam.errors import one_line_errors
from speechbrain_mam.runs.recipe import load_recipe, run_stages
from speechbrain_mam.tasks.asr import ASR, KEYS
from speechbrain_mam.tasks.asr_data import dataio_prepare


def vctk_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This recipe's own options, and the rest of the command line.

    They are no keys of the YAMLs, which all corpora share, and SpeechBrain refuses an override that
    names no key.
    """
    parser = Parser(add_help=False)
    parser.add_argument("--vctk_mic", default="mic2", choices=MICS)
    parser.add_argument("--vctk_split", default="speakers", choices=SPLITS)
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    with one_line_errors():
        # Command line and YAML; starts DDP under torchrun
        options, argv = vctk_options(sys.argv[1:])
        hparams, run_opts, hparams_file, overrides = load_recipe(
            argv, needed=KEYS, defaults={"corpus": "VCTK", "data_folder": "mini_vctk"}
        )

        # Create experiment directory
        sb.create_experiment_directory(
            experiment_directory=hparams["output_folder"],
            hyperparams_to_save=hparams_file,
            overrides=overrides,
        )

        # Dataset prep (parsing VCTK)
        if not hparams.get("skip_prep"):
            run_on_main(
                prepare_vctk,
                kwargs={
                    "data_folder": hparams["data_folder"],
                    "save_folder": hparams["save_folder"],
                    "alphabet": hparams["encoder"].alphabet,
                    "mic": options.vctk_mic,
                    "split": options.vctk_split,
                },
            )

        # Labels: those of the pretrained head, or a SentencePiece tokenizer's and a new head
        set_units(hparams)
        datasets = dataio_prepare(hparams)

        # Trainer initialization: the merge stage runs here
        brain = ASR(
            modules=hparams["modules"],
            opt_class=hparams.get("opt_class"),
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams.get("checkpointer"),
        )

        # The untouched model, training, λ's search or the best checkpoint, results
        run_stages(brain, hparams, datasets)
