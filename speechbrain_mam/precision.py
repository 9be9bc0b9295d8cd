"""A name of :mod:`speechbrain_mam.search.place` that YAMLs and saved ``hyperparams.yaml`` call."""

from speechbrain_mam.search.place import fast_precision as fast_precision
