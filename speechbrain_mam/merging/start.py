"""What a merge starts from: the target, which is trained, or the donor, where it is not yet.

``start: target``
    the paper's: λ near 1, a trained target takes a little of the donor.
``start: donor``
    layers that are not trained yet begin with the donor's attention, λ = 0, and all four
    projections: V says nothing without the O that reads it. Then they are trained as any others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.merging.methods import METHODS, method_named
from speechbrain_mam.options import Lam, parse_projections

logger = logging.getLogger(__name__)

STARTS = ("target", "donor")
LAM = {"target": 0.95, "donor": 0.0}
PROJECTIONS = {"target": "qkv", "donor": "qkvo"}
"""What λ and the projections are where nothing is said."""


@dataclass(frozen=True)
class Start:
    """λ and projections of a merge, as they are once its start is known."""

    lam: Lam
    projections: str | Sequence[str]


def read_start(
    start: str,
    lam: Lam | None = None,
    projections: str | Sequence[str] | None = None,
    method: str = "linear",
    align: str = "none",
) -> Start:
    """Fill in what ``start`` decides, and check that the rest goes with it.

    Value without output, or output without value, is warned of and done: what each projection is
    worth alone is a question that an experiment may ask.

    Arguments
    ---------
    start : str
        One of :data:`STARTS`.
    lam, projections
        As for :func:`speechbrain_mam.merging.planner.make_plan`; None takes the start's own.
    method, align : str
        As for ``make_plan``.

    Raises
    ------
    MAMError
        If there is no such start, or a donor that is started from meets a method that needs a
        trained target, or an alignment with one.

    Example
    -------
    >>> read_start("target"), read_start("donor")
    (Start(lam=0.95, projections='qkv'), Start(lam=0.0, projections='qkvo'))
    """
    one_of("start", start, STARTS)
    lam = LAM[start] if lam is None else lam
    projections = PROJECTIONS[start] if projections is None else projections
    if start == "target":
        return Start(lam, projections)
    if not method_named(method).is_linear or METHODS[method].same_family:
        raise MAMError(
            f"key 'method': '{method}' with 'start: donor'; a target that is not trained yet has "
            "nothing for it to keep: use linear or norm_matched, or 'start: target'"
        )
    if align != "none":
        raise MAMError(
            f"key 'align': '{align}' with 'start: donor'; heads of a target that is not trained "
            "yet are noise to align with: use 'align: none' (key 'rotate' turns the donor)"
        )
    chosen = parse_projections(projections)
    if ("value" in chosen) != ("output" in chosen):
        alone, other = ("value", "output") if "value" in chosen else ("output", "value")
        logger.warning(
            "key 'projections': %s of the donor without its %s: what one writes, the other cannot "
            "read; 'projections: qkvo' takes both",
            alone,
            other,
        )
    return Start(lam, projections)
