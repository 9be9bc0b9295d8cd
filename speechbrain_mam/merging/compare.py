"""Two model folders, tensor by tensor: which differ, by how much, and which λ explains it.

    B = λ · A + (1 − λ) · D    has    λ = ⟨B − D, A − D⟩ / ⟨A − D, A − D⟩    by least squares,

and what is left over, ‖B − λ·A − (1 − λ)·D‖ / ‖B − A‖, is near 0 where a linear merge with the
donor D is all that has happened, and near 1 where it explains nothing. One tensor of each model is
in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechbrain_mam.donors.donor import IndexedSource
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.on_disk_with_torch import folder_source
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.merging.prepare import donor_tensors, own_part
from speechbrain_mam.model_files.folder import ModelFolder

CHUNK = 1 << 22
"""Elements that are widened at once."""


@dataclass(frozen=True)
class Share:
    """λ of one projection of a tensor; None where the donor's is the target's own.

    ``unexplained`` is what is left over of the change.
    """

    layer: int
    projection: str
    lam: float | None
    unexplained: float | None


@dataclass(frozen=True)
class Difference:
    """A tensor of both folders whose values or types differ.

    Attributes
    ----------
    changed : float
        The share of its elements that differ.
    relative : float or None
        ‖B − A‖ / ‖A‖; None where it has no number (a norm of 0, NaN, complex).
    largest : float or None
        The largest difference of an element, without sign.
    cast_only : bool
        Whether B is A in another type, and no more.
    shares : tuple of Share
        λ, where a donor was given; several where a tensor holds several projections.
    """

    name: str
    shape: tuple[int, ...]
    types: tuple[str, str]
    changed: float
    relative: float | None
    largest: float | None
    cast_only: bool = False
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` finds, tensors in the order of their names."""

    differences: tuple[Difference, ...]
    equal: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    other_shapes: tuple[str, ...]
    places: dict[str, tuple[int, str]]
    """Layer and projections of the tensors of self-attention."""


def compare(
    a: ModelFolder,
    b: ModelFolder,
    donor: ModelFolder | None = None,
    rotate: str = "none",
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Compare the tensors of two model folders.

    Arguments
    ---------
    a, b : ModelFolder
        Before and after: a target, and what became of it.
    donor : ModelFolder, optional
        What may have been mixed in.
    rotate, seed
        The basis it was turned to, as for :func:`~speechbrain_mam.merging.on_disk.merge_folders`.
    **options
        Of :func:`~speechbrain_mam.merging.planner.make_plan`: ``layer_map``, ``align``,
        ``donor_scale``, ``width``, as they were for the merge.

    Raises
    ------
    MAMError
        If they have no tensor in common, or the donor does not fit A.

    Example
    -------
    >>> from speechbrain_mam.model_files.find import resolve_model
    >>> folder = ModelFolder(resolve_model("speechbrain_mam/hubert-mini"))
    >>> found = compare(folder, folder)
    >>> found.differences, len(found.equal) == len(folder.shapes)
    ((), True)
    """
    both = [name for name in sorted(a.shapes) if name in b.shapes]
    if not both:
        raise MAMError(
            f"'{a.path}' and '{b.path}' have no tensor in common: '{min(a.shapes, default='')}', "
            f"'{min(b.shapes, default='')}'; compare models of one class"
        )
    found, equal, others = [], [], []
    for name in both:
        if a.shapes[name] != b.shapes[name]:
            others.append(name)
        elif (difference := _difference(name, a, b)) is None:
            equal.append(name)
        else:
            found.append(difference)
    if donor is not None:
        source = folder_source(donor, rotate, seed)
        shares = _shares(a, b, source, {one.name for one in found}, options)
        found = [Difference(**{**vars(one), "shares": shares.get(one.name, ())}) for one in found]
    return Comparison(
        tuple(found),
        tuple(equal),
        tuple(sorted(set(a.shapes) - set(b.shapes))),
        tuple(sorted(set(b.shapes) - set(a.shapes))),
        tuple(others),
        _places(a),
    )


def _difference(name: str, a: ModelFolder, b: ModelFolder) -> Difference | None:
    one, other = a.read(name).reshape(-1), b.read(name).reshape(-1)
    if one.dtype == other.dtype and _same_bits(one, other):
        return None
    changed, squares, own, largest = 0, 0.0, 0.0, 0.0
    numbers = not (one.is_complex() or other.is_complex())
    for start in range(0, len(one), CHUNK):
        x, y = (part[start : start + CHUNK] for part in (one, other))
        if not numbers:
            changed += int((x != y).sum())
            continue
        x, y = x.double(), y.double()
        gap = y - x
        changed += int(((gap != 0) & ~(x.isnan() & y.isnan())).sum())
        squares += float(gap.square().sum())
        own += float(x.square().sum())
        largest = float(torch.maximum(gap.abs().max(), torch.tensor(largest, dtype=gap.dtype)))
    return Difference(
        name,
        a.shapes[name],
        (a.types[name], b.types[name]),
        changed / max(len(one), 1),
        _ratio(squares, own) if numbers else None,
        largest if numbers and math.isfinite(largest) else None,
        one.dtype != other.dtype and numbers and _same_bits(one.to(other.dtype), other),
    )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Also of NaN, and of −0 and 0, which are not the same."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _ratio(squares: float, whole: float) -> float | None:
    ratio = math.sqrt(squares / whole) if whole > 0 else math.nan
    return ratio if math.isfinite(ratio) else None


def _shares(
    a: ModelFolder, b: ModelFolder, donor: IndexedSource, names: set[str], options: dict[str, Any]
) -> dict[str, tuple[Share, ...]]:
    """λ of each tensor that differs and that the donor has a counterpart of."""
    target, theirs = a.attention(), donor.index
    letters = "qkvo" if target.has("output") and theirs.has("output") else "qkv"
    plan: MergePlan = make_plan(target, theirs, lam=0.5, projections=letters, **options)

    def read(name: str) -> Tensor:
        return a.read(name).double()

    found: dict[str, tuple[Share, ...]] = {}
    for entry, tensor in donor_tensors(plan, donor, read):
        if entry.target in names:
            own, new = own_part(entry, read(entry.target)), own_part(entry, b.read(entry.target))
            lam, left = least_squares(own, new.double(), tensor.double())
            share = Share(entry.layer, entry.projection, lam, left)
            found[entry.target] = (*found.get(entry.target, ()), share)
    return found


def least_squares(own: Tensor, new: Tensor, donor: Tensor) -> tuple[float | None, float | None]:
    """λ of ``new ≈ λ · own + (1 − λ) · donor``, and what is unexplained, over the change.

    Example
    -------
    >>> own, donor = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    >>> least_squares(own, 0.75 * own + 0.25 * donor, donor)
    (0.75, 0.0)
    >>> least_squares(own, own + 1, own)
    (None, None)
    """
    apart = own - donor
    whole = float(apart.square().sum())
    if not (whole > 0 and math.isfinite(whole)):
        return None, None
    lam = float(((new - donor) * apart).sum()) / whole
    left = float((new - donor - lam * apart).square().sum())
    return (lam if math.isfinite(lam) else None), _ratio(left, float((new - own).square().sum()))


def _places(folder: ModelFolder) -> dict[str, tuple[int, str]]:
    """Which tensors are projections of self-attention; none of a family that is not known."""
    try:
        index = folder.attention()
    except MAMError:
        return {}
    places: dict[str, tuple[int, str]] = {}
    for name, layer, projection in _projections(index.tensors):
        known = places.get(name, (layer, ""))[1]
        places[name] = (layer, f"{known} {projection}".strip())
    return places


def _projections(tensors: Any) -> Iterator[tuple[str, int, str]]:
    for (layer, projection, _), ref in tensors.items():
        yield ref.name, layer, projection
