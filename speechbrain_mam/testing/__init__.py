"""Conformance: whether a model can be a target, in a whole run and in a second one.

``python -m speechbrain_mam.testing`` checks every row of the table of architectures; a row of one's
own is checked by :func:`check_target`. Pieces that work alone failed together, so nothing here is
tried alone. It may import brain, mam, lobes and what they may import.
"""

from speechbrain_mam.testing.conformance import Failure as Failure
from speechbrain_mam.testing.conformance import check_target as check_target
from speechbrain_mam.testing.settings import Setting as Setting
from speechbrain_mam.testing.settings import every_setting as every_setting
from speechbrain_mam.testing.settings import pairwise as pairwise
