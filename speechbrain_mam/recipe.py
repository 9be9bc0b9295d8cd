"""Names of :mod:`speechbrain_mam.runs.recipe` that YAMLs and saved ``hyperparams.yaml`` call."""

from speechbrain_mam.runs.recipe import tensorboard_logger as tensorboard_logger
