#!/usr/bin/env python3
"""Recipe for a HuBERT-CTC speech recogniser with Multimodal Attention Merging on LJ Speech.

The speech model takes over part of the self-attention of BERT (W = λ · W_HuBERT + (1 − λ) · W_BERT
on query, key and value). Which of the ways is run is a matter of the YAML:

> python recipes/LJSpeech/train.py hparams/finetune.yaml        # no merging: the baseline
> python recipes/LJSpeech/train.py hparams/mam_zeroshot.yaml    # λ from a sweep, nothing trained
> python recipes/LJSpeech/train.py hparams/mam_learnable.yaml   # one λ per layer, fine-tuned
> python recipes/LJSpeech/train.py hparams/mam_init.yaml        # attention begins as the donor's

Without further options each runs on the embedded models and corpus, without a network or a GPU.
On LJ Speech, at the paper's scale:

> python recipes/LJSpeech/train.py hparams/large/mam_learnable.yaml --data_folder /data/LJSpeech-1.1

On several GPUs:

> torchrun --nproc_per_node=4 recipes/LJSpeech/train.py hparams/large/mam_learnable.yaml \\
    --data_folder /data/LJSpeech-1.1
"""

import sys

import speechbrain as sb
from ljspeech_prepare import prepare_ljspeech
from speechbrain.utils.distributed import run_on_main

from speechbrain_mam.ctc.units import set_units
from speechbrain_mam.errors import one_line_errors
from speechbrain_mam.runs.recipe import load_recipe, run_stages
from speechbrain_mam.tasks.asr import ASR, KEYS
from speechbrain_mam.tasks.asr_data import dataio_prepare

if __name__ == "__main__":
    with one_line_errors():
        # Command line and YAML; starts DDP under torchrun
        hparams, run_opts, hparams_file, overrides = load_recipe(sys.argv[1:], needed=KEYS)

        # Create experiment directory
        sb.create_experiment_directory(
            experiment_directory=hparams["output_folder"],
            hyperparams_to_save=hparams_file,
            overrides=overrides,
        )

        # Dataset prep (parsing LJ Speech)
        if not hparams.get("skip_prep"):
            run_on_main(
                prepare_ljspeech,
                kwargs={
                    "data_folder": hparams["data_folder"],
                    "save_folder": hparams["save_folder"],
                    "alphabet": hparams["encoder"].alphabet,
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
