"""The ways of merging that a target is checked in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields

from speechbrain_mam.learning.learnable import CONSTRAINTS, GRANULARITIES
from speechbrain_mam.merging.methods import METHODS
from speechbrain_mam.merging.start import STARTS


@dataclass(frozen=True)
class Setting:
    """One way of merging.

    Arguments
    ---------
    method, granularity, constraint : str
        As for :class:`~speechbrain_mam.mam.MAM`.
    donors : int
        How many of the donors are mixed in.
    frozen : bool
        Whether λ is learned alone.
    dtype : str
        The precision that the target is stored in: ``float32`` or ``bfloat16``.
    start : str
        ``target``; or ``donor``: λ = 0 in the chosen layers, which are then trained without λ.
    """

    method: str = "linear"
    granularity: str = "layer"
    constraint: str = "project"
    donors: int = 1
    frozen: bool = False
    dtype: str = "float32"
    start: str = "target"

    def __str__(self) -> str:
        trained = "frozen" if self.frozen else "trained"
        several = f"{self.donors} donors, " if self.donors > 1 else ""
        kind = f"{self.method}, {self.granularity}, {self.constraint}"
        started = "" if self.start == "target" else f", start {self.start}"
        return f"{kind}, {several}{trained}, {self.dtype}{started}"


def every_setting(donors: int = 2) -> Iterator[Setting]:
    """Every method, granularity, constraint, number of donors, frozen or not, both precisions.

    Several donors go with some methods and granularities only (see the documentation of methods), a
    start from the donor has no λ and is of a target that is trained.

    Example
    -------
    >>> len(list(every_setting()))
    296
    """
    choices = itertools.product(
        METHODS,
        GRANULARITIES,
        CONSTRAINTS,
        range(1, donors + 1),
        (False, True),
        ("float32", "bfloat16"),
        STARTS,
    )
    for choice in choices:
        setting = Setting(*choice)
        mixed = setting.donors > 1
        if setting.start == "donor" and (
            setting.method not in ("linear", "norm_matched")
            or setting.frozen
            or (setting.granularity, setting.constraint) != ("layer", "project")
        ):
            continue
        if mixed and (
            setting.method not in ("linear", "norm_matched")
            or setting.granularity not in ("model", "layer")
        ):
            continue
        yield setting


def pairwise(settings: Iterable[Setting]) -> list[Setting]:
    """Few of the settings, in which each value of a field still meets each value of every other.

    Source: all-pairs testing, Cohen et al., "The AETG system", 1997.

    Example
    -------
    >>> few = pairwise(every_setting())
    >>> len(few) < 25, Setting.__name__
    (True, 'Setting')
    """
    pool = list(settings)
    pairs = {setting: _pairs(setting) for setting in pool}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(pool, key=lambda setting: len(pairs[setting] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def _pairs(setting: Setting) -> set[tuple]:
    named = list(zip((field.name for field in fields(setting)), astuple(setting), strict=True))
    return set(itertools.combinations(named, 2))
