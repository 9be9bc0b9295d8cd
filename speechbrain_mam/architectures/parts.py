"""Which part of a tensor a projection is, and how it is read and written.

With n projections in one tensor, blocks of d rows, and projection j:

===================  ==================================================  ====================
fused                rows j·d … (j + 1)·d                                1 block
head by head         of head h the rows (n·h + j)·d … (n·h + j + 1)·d    as many as heads
grouped              of head h the block ⌊h / repeats⌋                   key and value heads
transposed           any of these, of columns                            GPT-2's ``Conv1D``
===================  ==================================================  ====================

Whichever it is, what is read has the rows of head 0, then those of head 1, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speechbrain_mam.architectures.names import Match
from speechbrain_mam.architectures.row import Architecture
from speechbrain_mam.errors import MAMError


@dataclass(frozen=True)
class Part:
    """What of a tensor is one projection.

    Arguments
    ---------
    size : int
        Rows of a block, the width of a projection or of a head.
    place, of : int
        Which projection it is, of how many in the tensor.
    blocks : int
        1 where the projections lie on top of each other, the number of heads where they lie head by
        head.
    repeats : int
        How many heads of the query share a block: each is taken so often, one after another, as
        ``repeat_interleave`` does.
    transposed : bool
        Whether outputs are the weight's columns.

    Example
    -------
    >>> import numpy as np
    >>> rows = np.arange(6)  # q, k and v of one head, then of the next
    >>> Part(1, place=1, of=3, blocks=2).take(rows).tolist()
    [1, 4]
    >>> Part(3, blocks=2, repeats=2).take(rows).tolist()
    [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    """

    size: int
    place: int = 0
    of: int = 1
    blocks: int = 1
    repeats: int = 1
    transposed: bool = False

    @property
    def writable(self) -> bool:
        """Whether the projection is there once, as rows: what only a donor has is not."""
        return self.repeats == 1 and not self.transposed

    def take(self, tensor: Any) -> Any:
        """The projection in a tensor or array, whole: ``[out, in]`` or ``[out]``."""
        if self.transposed and tensor.ndim == 2:
            tensor = tensor.T
        rest = tensor.shape[1:]
        blocks = tensor.reshape(self.blocks, self.of, self.size, *rest)[:, self.place]
        if self.repeats > 1:
            blocks = blocks[[i for i in range(self.blocks) for _ in range(self.repeats)]]
        return blocks.reshape(self.blocks * self.repeats * self.size, *rest)

    def view(self, tensor: Any) -> Any:
        """The same memory, ``[blocks, rows, …]``, of what is ``writable``."""
        assert self.writable
        return tensor.unflatten(0, (self.blocks, self.of, self.size))[:, self.place]

    @property
    def rows(self) -> tuple[int, int] | None:
        """The rows (from, up to), where projections lie on top of each other."""
        if self.of == 1 or self.blocks > 1:
            return None
        return self.place * self.size, (self.place + 1) * self.size

    def put(self, tensor: Any, values: Any) -> None:
        """Write the projection where :meth:`take` reads it."""
        view = self.view(tensor)
        view.copy_(values.reshape(view.shape))

    def __str__(self) -> str:
        if self.rows is not None:
            return "[{}{}:{}]{}".format(":, " * self.transposed, *self.rows, "ᵀ" * self.transposed)
        text = "ᵀ" * self.transposed
        if self.blocks > 1 and self.of > 1:
            text += f"[{self.place + 1} of {self.of} in each of {self.blocks} heads]"
        if self.repeats > 1:
            text += f"[each of {self.blocks} heads {self.repeats} times]"
        return text


@dataclass(frozen=True)
class TensorRef:
    """Name and shape of one parameter, live or on disk.

    Where the tensor holds more than one projection, or holds it in another order, ``part`` tells
    what of it is this one, and ``shape`` is that of what is read.
    """

    name: str
    shape: tuple[int, ...]
    part: Part | None = None

    @property
    def rows(self) -> tuple[int, int] | None:
        """The rows (from, up to) of a tensor that holds several projections on top of each other.

        None where it is the whole tensor, or lies in more than one piece.
        """
        return None if self.part is None else self.part.rows

    def __str__(self) -> str:
        return f"{self.name}{self.part or ''}"


def refs_of(
    name: str, shape: tuple[int, ...], match: Match, row: Architecture, heads: int, where: str
) -> dict[str, TensorRef]:
    """What one tensor is to each projection that it holds.

    Arguments
    ---------
    name, shape : str, tuple of int
        The tensor.
    match : Match
        What its name says.
    row : Architecture
        The family.
    heads : int
        Number of attention heads; 0 where nothing tells it.
    where : str
        What the messages call the model.

    Raises
    ------
    MAMError
        If the shape cannot be divided so.
    """
    count = len(match.projections)
    transposed = row.transposed and len(shape) == 2
    shape = shape[::-1] if transposed else shape
    if count == 1:
        part = Part(shape[0], transposed=True) if transposed else None
        return {match.projections[0]: TensorRef(name, shape, part)}
    blocks = heads if match.interleaved else 1
    if not blocks or not shape or shape[0] % (blocks * count):
        held = ", ".join(match.projections)
        expected = f"expected rows for {held}, as many for each"
        if match.interleaved:
            expected = f"which '{row.heads}' ({heads}) does not divide into {held} of each head"
        raise MAMError(f"{where}: '{name}' has shape {list(shape)}, {expected}")
    return {
        projection: TensorRef(
            name,
            (shape[0] // count, *shape[1:]),
            Part(shape[0] // (blocks * count), place, count, blocks, transposed=transposed),
        )
        for place, projection in enumerate(match.projections)
    }


def repeated(
    ref: TensorRef, hidden_size: int, heads: int, told: int | None, key: str, where: str
) -> TensorRef:
    """A key or value projection of fewer heads than the query's, repeated to as many.

    Arguments
    ---------
    ref : TensorRef
        The projection as it is stored.
    hidden_size, heads : int
        Of the query.
    told : int, optional
        What the configuration says under ``key``.
    where : str
        What the messages call the model.

    Raises
    ------
    MAMError
        If the heads do not divide the query's, or are not what the configuration says.

    Example
    -------
    >>> ref = TensorRef("k_proj.weight", (4, 8))
    >>> found = repeated(ref, 8, heads=4, told=2, key="num_key_value_heads", where="it")
    >>> found.shape, str(found)
    ((8, 8), 'k_proj.weight[each of 2 heads 2 times]')
    """
    rows, width = ref.shape[0], hidden_size // heads
    stored = rows // width
    if rows % width or not stored or heads % stored or told not in (None, stored):
        said = "" if told is None else f", of which '{key}' says there are {told}"
        raise MAMError(
            f"{where}: '{ref.name}' has shape {list(ref.shape)}, expected heads of {width} rows "
            f"in a number that divides the query's {heads}{said}"
        )
    if stored == heads:
        return ref
    repeats = heads // stored
    return TensorRef(
        ref.name, (hidden_size, *ref.shape[1:]), Part(width, blocks=stored, repeats=repeats)
    )
