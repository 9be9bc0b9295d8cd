"""Controls: donors that hold nothing of what a donor has learned, to compare a gain with.

A merge that helps because of the donor's attention must help more than the same merge with a donor
in which something was destroyed. :data:`TABLE` says of each control what it destroys and what it
keeps. The donor scaled to the target's norms is the plan's ``donor_scale: match_norm``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from speechbrain_mam.donors import control_tensors as make
from speechbrain_mam.donors.control_tensors import Asked
from speechbrain_mam.donors.donor import TensorKey, TensorSource
from speechbrain_mam.errors import MAMError, one_of


def _in_place(layers: int, seed: int) -> list[int]:
    return list(range(layers))


def _reversed(layers: int, seed: int) -> list[int]:
    return list(range(layers))[::-1]


def _derangement(layers: int, seed: int) -> list[int]:
    """A random order in which nothing is at its own place."""
    draw, order = random.Random(seed), list(range(layers))
    while any(i == place for i, place in enumerate(order)):
        draw.shuffle(order)
    return order


@dataclass(frozen=True)
class Control:
    """What stands in the donor's place.

    Arguments
    ---------
    destroys, keeps : str
        What of the donor is lost, and what a merge may still use.
    formula : str
        What a weight W becomes; Z is normal, R, U and V are random and orthogonal, P permutes.
    source : str
        Where it is from.
    tensor : callable
        The donor's tensor in, the control's out.
    drawn : bool
        Whether it hangs on a seed.
    order : callable
        Which of so many layers stands at each place, by their number and a seed.
    """

    destroys: str
    keeps: str
    formula: str
    source: str
    tensor: Callable[[Asked], torch.Tensor] = make.unchanged
    drawn: bool = False
    order: Callable[[int, int], list[int]] = _in_place


TABLE: dict[str, Control] = {
    "random": Control(
        "all but each tensor's norm",
        "norms",
        "‖W‖ · Z / ‖Z‖",
        "this project",
        make.same_norm,
        drawn=True,
    ),
    "moments": Control(
        "all but each tensor's mean and spread",
        "mean and standard deviation of each tensor",
        "mean(W) + sd(W) · Z",
        "Wu et al., NeurIPS 2022",
        make.same_moments,
        drawn=True,
    ),
    "spectrum": Control(
        "directions: what the donor reads and writes",
        "singular values of each weight, norms of biases",
        "U · diag(σ(W)) · Vᵀ",
        "this project",
        make.same_spectrum,
        drawn=True,
    ),
    "conjugate": Control(
        "the basis of the residual stream, which the donor does not share with the target anyway",
        "the donor as a function: Q · Kᵀ up to the rotation, spectra, heads, biases",
        "W · R of q, k, v; Rᵀ · W of o; one R",
        "this project",
        make.conjugate,
        drawn=True,
    ),
    "shuffled_layers": Control(
        "which layer is where",
        "every tensor; no layer is at its own place",
        "W of another layer",
        "this project",
        drawn=True,
        order=_derangement,
    ),
    "reversed_layers": Control(
        "the order of the layers",
        "every tensor; neighbours stay neighbours",
        "W of layer L − 1 − i",
        "this project",
        order=_reversed,
    ),
    "permuted_rows": Control(
        "which output belongs to which, and to which head",
        "every row of each projection",
        "P · W",
        "this project",
        make.permuted_rows,
        drawn=True,
    ),
    "mimetic": Control(
        "the donor as a whole",
        "what trained attention looks like: Q · Kᵀ and V · O near multiples of I",
        "Wqᵀ · Wk ≈ 0.7 · Z + 0.7 · I of each head, (Wo · Wv)ᵀ ≈ 0.4 · Z − 0.4 · I; biases 0",
        "Trockman and Kolter, ICML 2023, arXiv 2305.09828",
        make.mimetic,
        drawn=True,
    ),
    "no_donor": Control(
        "the donor as a whole",
        "nothing: λ · W_target, shrinking alone",
        "0",
        "this project",
        make.zeros,
    ),
}
"""Every control by its name."""

CONTROLS = ("none", *TABLE)
DRAWN = tuple(name for name, control in TABLE.items() if control.drawn)
"""Those that hang on a seed."""


class ControlDonor:
    """A donor in which something has been destroyed; it is read like the donor itself.

    Arguments
    ---------
    donor : TensorSource
        The real one.
    control : str
        One of :data:`CONTROLS`; ``none`` gives the donor's own tensors.
    layers : int
        Number of the donor's layers.
    seed : int
        Of the random tensors, orders and permutations. Each tensor has its own generator, so that
        it does not matter which ones are asked for, or when.
    heads : int, optional
        The donor's number of heads, by default that of ``donor.index``; ``mimetic`` needs it.
    keep : bool
        Whether a tensor is kept once it is made, for a merge that is made at many λ: to draw or to
        decompose one takes longer than to merge it.

    Raises
    ------
    MAMError
        If the control is unknown, the order of a single layer is to be changed, or ``mimetic`` is
        not told the heads.

    Example
    -------
    >>> class Ones:
    ...     def tensor(self, key):
    ...         return torch.full((2, 2), float(key[0]))
    >>> ControlDonor(Ones(), "shuffled_layers", layers=2).tensor((0, "query", "weight"))
    tensor([[1., 1.],
            [1., 1.]])
    >>> ControlDonor(Ones(), "random", layers=2).tensor((1, "query", "weight")).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        donor: TensorSource,
        control: str,
        layers: int,
        seed: int = 0,
        heads: int | None = None,
        keep: bool = False,
    ):
        one_of("control", control, CONTROLS)
        self.donor, self.control, self.seed, self.keep = donor, control, seed, keep
        self.row = TABLE.get(control, Control("nothing", "all", "W", ""))
        if self.row.order is not _in_place and layers < 2:
            raise MAMError(f"key 'control': '{control}' needs a donor of two layers")
        self.order = self.row.order(layers, seed)
        index: Any = getattr(donor, "index", None)
        self.heads: int = heads or (index.heads if index is not None else 0)
        if control == "mimetic" and not self.heads:
            raise MAMError("key 'control': 'mimetic' needs to know the donor's number of heads")
        self._kept: dict[TensorKey, torch.Tensor] = {}

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """The tensor of ``(layer, projection, kind)``, in the shape and precision of the donor's.

        Computed in float32, whatever the donor's is.
        """
        if key in self._kept:
            return self._kept[key]
        layer, projection, kind = key
        # Read by every control: of a donor that cannot be read there is none.
        theirs = self.donor.tensor((self.order[layer], projection, kind))
        asked = Asked(theirs, layer, projection, kind, self.heads, self.seed)
        found = self.row.tensor(asked).to(theirs.dtype)
        if self.keep:
            self._kept[key] = found
        return found


def controlled(
    donor: TensorSource, layers: int, control: str, seed: int = 0, keep: bool = False
) -> TensorSource:
    """A donor of so many layers, or its control."""
    one_of("control", control, CONTROLS)
    return donor if control == "none" else ControlDonor(donor, control, layers, seed, keep=keep)
