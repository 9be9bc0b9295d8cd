"""A donor's query, key and value, read lazily from disk: no donor model is ever built.

Single tensors of a folder are read by :class:`~speechbrain_mam.model_files.folder.ModelFolder`;
:class:`Donor` gives those of its self-attention in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from speechbrain_mam.model_files.folder import ModelFolder as ModelFolder
from speechbrain_mam.model_files.open_donor import open_donor
from speechbrain_mam.model_files.read import add_tensor

if TYPE_CHECKING:
    import numpy as np
    import torch

    from speechbrain_mam.architectures.index import AttentionIndex

# torch alone is half a gigabyte: `speechbrain-mam`, which works on files, does without it, so it
# is imported here only where a tensor is asked for.
TensorKey = tuple[int, str, str]
"""``(layer, projection, kind)``, e.g. ``(3, "query", "weight")``."""


class TensorSource(Protocol):
    """Whatever gives a donor's tensors in float32 (or float64): a file, or a control."""

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """The tensor of ``(layer, projection, kind)``."""
        ...


class IndexedSource(TensorSource, Protocol):
    """A source that says where its tensors are: a donor, or an open folder."""

    name: str
    index: AttentionIndex


class Donor:
    """A text or vision model that attention is taken from: never run, never trained, only read.

    Arguments
    ---------
    source : str or Path
        Hub name, local folder or file, see :func:`open_donor`.
    tower : str, optional
        Which encoder of a model that has several, such as CLIP's ``text`` or ``vision``.
        ``Donor("NAME#text")`` is the same as ``Donor("NAME", tower="text")``.

    Example
    -------
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> list(donor.tensor((0, "query", "weight")).shape), donor.tensor((0, "key", "bias")).dtype
    ([384, 384], torch.float32)
    """

    def __init__(self, source: str | Path, tower: str | None = None):
        self.folder = open_donor(source, tower)
        self.name = str(source) if tower is None else f"{source}#{tower}"
        self.index = self.folder.attention()

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """One weight ``[hidden, hidden]`` or bias ``[hidden]``, widened to float32.

        What is stored in float64 stays so.

        Raises
        ------
        MAMError
            If it is not stored in floating point, or holds NaN or an infinite value.
        """
        return self.folder.values(self.index.tensors[key])

    def fingerprint(self, keys: Iterable[TensorKey]) -> str:
        """:func:`fingerprint` of these tensors."""
        return fingerprint(self, keys)


def fingerprint(source: TensorSource, keys: Iterable[TensorKey]) -> str:
    """SHA-256 over the given tensors' names, shapes and float32 values.

    A checkpoint keeps it, so that λ is never applied to another donor.
    """
    digest = hashlib.sha256()
    for key in keys:
        add_to_fingerprint(digest, key, source.tensor(key).float().cpu().numpy())
    return digest.hexdigest()


def add_to_fingerprint(digest: Any, key: TensorKey, values: np.ndarray) -> None:
    """One tensor's part of :func:`fingerprint`, of float32 values in the tensor's shape."""
    add_tensor(digest, repr((key, tuple(values.shape))), values.astype("<f4", copy=False))


def as_list(
    donor: str | Path | Donor | Sequence[str | Path | Donor],
) -> tuple[list[str | Path | Donor], bool]:
    """The donors, and whether there is a list of them."""
    return ([donor], False) if isinstance(donor, str | Path | Donor) else (list(donor), True)
