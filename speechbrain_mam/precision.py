"""The name of :mod:`speechbrain_mam.runs.place` that YAMLs and saved ``hyperparams.yaml`` call."""

from speechbrain_mam.runs.place import fast_precision as fast_precision
