"""Controls: donors that hold nothing of what a donor has learned, to compare a gain with.

A merge that helps because of the donor's attention must help more than the same merge with

``random``
    normal random tensors of the donor's norms;
``shuffled_layers``
    the donor's layers in another order, none at its own place;
``permuted_rows``
    the rows of each of the donor's projections in random order;
``no_donor``
    zeros: λ · W_target, shrinking alone.

The donor scaled to the target's norms is the plan's ``donor_scale: match_norm``.
"""

from __future__ import annotations

import random
import zlib

import torch

from speechbrain_mam.donors.donor import TensorKey, TensorSource
from speechbrain_mam.errors import MAMError, one_of

CONTROLS = ("none", "random", "shuffled_layers", "permuted_rows", "no_donor")
DRAWN = ("random", "shuffled_layers", "permuted_rows")
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

    Raises
    ------
    MAMError
        If the control is unknown, or the layers of a donor with one layer are to be shuffled.

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

    def __init__(self, donor: TensorSource, control: str, layers: int, seed: int = 0):
        one_of("control", control, CONTROLS)
        self.donor, self.control, self.seed = donor, control, seed
        self.order = list(range(layers))
        if control == "shuffled_layers":
            if layers < 2:
                raise MAMError("key 'control': 'shuffled_layers' needs a donor of two layers")
            self.order = _derangement(layers, seed)

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """The tensor of ``(layer, projection, kind)``."""
        layer, projection, kind = key
        theirs = self.donor.tensor((self.order[layer], projection, kind))
        if self.control == "random":
            noise = torch.randn(theirs.shape, generator=self._generator(layer, projection, kind))
            return noise * (theirs.norm() / noise.norm())
        if self.control == "permuted_rows":
            # Weight and bias of a projection together: the same outputs, in another order.
            rows = torch.randperm(len(theirs), generator=self._generator(layer, projection))
            return theirs[rows]
        return torch.zeros_like(theirs) if self.control == "no_donor" else theirs

    def _generator(self, *name: object) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(repr((self.seed, *name)).encode()))


def _derangement(size: int, seed: int) -> list[int]:
    """A random order in which nothing is at its own place."""
    draw, order = random.Random(seed), list(range(size))
    while any(i == place for i, place in enumerate(order)):
        draw.shuffle(order)
    return order


def controlled(donor: TensorSource, layers: int, control: str, seed: int = 0) -> TensorSource:
    """A donor of so many layers, or its control."""
    one_of("control", control, CONTROLS)
    return donor if control == "none" else ControlDonor(donor, control, layers, seed)
