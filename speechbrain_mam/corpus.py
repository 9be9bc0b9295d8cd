"""A name of :mod:`speechbrain_mam.tasks.corpus` that scripts of before the rooms call."""

from speechbrain_mam.tasks.corpus import normalize_text as normalize_text
