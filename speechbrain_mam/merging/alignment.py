"""Alignment: the donor's heads in the order and the coordinates that fit the target's best.

Attention does not care how its heads are numbered, nor in which basis of a head queries and keys
are written: for any permutation of the heads, and any orthogonal R_h of head h,

    (R_h q) · (R_h k) = q · k

so two models that compute the same may look unlike, and an average of the two be neither. Before a
merge the donor is therefore turned to where it lies nearest to the target, which changes nothing of
what it computes.

``heads``
    The donor's heads are matched to the target's: the assignment with the largest sum of inner
    products of their projections (Hungarian method). Rows of Q, K, V and columns of O go along.
``rotation``
    The same, each pair judged by its best rotation; then each head's Q and K are rotated by
    R_h = UVᵀ, from the singular value decomposition UΣVᵀ = Q_t Q_dᵀ + K_t K_dᵀ (orthogonal
    Procrustes). V and O are not rotated.

A donor with rotary positions keeps its scores under ``heads`` only: they rotate q and k themselves.

Sources: Kuhn, "The Hungarian method", 1955; Schönemann, "A generalized solution of the orthogonal
Procrustes problem", 1966; Ainsworth et al., "Git Re-Basin", arXiv 2209.04836 (matching before
merging); Imfeld et al., "Transformer Fusion with Optimal Transport", arXiv 2310.05719 (of heads).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Layer = Mapping[tuple[str, str], Tensor]
"""One layer's tensors by ``(projection, kind)``: weights ``[hidden, hidden]``, biases
``[hidden]``."""


def align_layer(target: Layer, donor: Layer, heads: int, rotate: bool = False) -> dict:
    """The donor's layer, turned to the target's.

    Arguments
    ---------
    target, donor : mapping
        The same keys in both; ``rotate`` needs the weights of query and key.
    heads : int
        Number of heads, the same in both.
    rotate : bool
        Whether queries and keys are rotated inside their heads.

    Returns
    -------
    dict
        Tensors of the donor's shapes, with the donor's attention scores (of the head that stands in
        each place) and, if ``output`` is among them, the donor's output.

    Example
    -------
    >>> q, k = torch.eye(4), torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> target = {("query", "weight"): q, ("key", "weight"): k}
    >>> donor = {name: weight.roll(2, 0) for name, weight in target.items()}
    >>> aligned = align_layer(target, donor, heads=2)
    >>> all(torch.equal(aligned[name], target[name]) for name in target)
    True
    """
    order = match_heads(target, donor, heads, rotate)
    aligned = {
        key: _by_head(tensor, key, heads)[order].reshape(-1, *tensor.shape[1:])
        if key[0] != "output"
        else (_columns(tensor, order, heads) if key[1] == "weight" else tensor)
        for key, tensor in donor.items()
    }
    if not rotate:
        return aligned
    turn = _rotations(target, aligned, heads)
    for projection in ("query", "key"):
        for kind in ("weight", "bias"):
            if (tensor := aligned.get((projection, kind))) is not None:
                rows = _by_head(tensor, (projection, kind), heads).double()
                turned = (turn @ rows.reshape(heads, rows.shape[1], -1)).reshape(tensor.shape)
                aligned[projection, kind] = turned.to(tensor.dtype)
    return aligned


def match_heads(target: Layer, donor: Layer, heads: int, rotate: bool = False) -> Tensor:
    """Which of the donor's heads stands at each place: ``[heads]``, a permutation.

    Arguments as for :func:`align_layer`. With ``rotate`` queries and keys of a pair of heads count
    with ‖Q_t Q_dᵀ + K_t K_dᵀ‖_* (nuclear norm), their inner product after the best rotation.
    """
    score = torch.zeros(heads, heads, dtype=torch.float64)
    rotated = {"query", "key"} if rotate else set()
    for (projection, kind), ours in target.items():
        if projection == "output":
            if kind == "bias":
                continue  # it belongs to no head
            ours, theirs = ours.t(), donor[projection, kind].t()
        else:
            theirs = donor[projection, kind]
        if projection not in rotated:
            one, other = (
                x.double().reshape(heads, -1) for x in (ours.contiguous(), theirs.contiguous())
            )
            score += one @ other.t()
    if rotate:
        score += torch.linalg.matrix_norm(_products(target, donor, heads), "nuc")
    _, columns = linear_sum_assignment(score.numpy(), maximize=True)
    return torch.as_tensor(columns)


def _products(target: Layer, donor: Layer, heads: int) -> Tensor:
    """Q_t Q_dᵀ + K_t K_dᵀ of each pair of heads, ``[heads, heads, d, d]``; biases are columns."""
    total: Tensor | int = 0
    for projection in ("query", "key"):
        one, other = (_with_bias(layer, projection, heads) for layer in (target, donor))
        total = total + torch.einsum("aic,bjc->abij", one, other)
    assert isinstance(total, Tensor)
    return total


def _rotations(target: Layer, donor: Layer, heads: int) -> Tensor:
    """The rotation of each head, ``[heads, d, d]``, the donor's heads being in their places."""
    places = torch.arange(heads)
    u, _, vh = torch.linalg.svd(_products(target, donor, heads)[places, places])
    return u @ vh


def _with_bias(layer: Layer, projection: str, heads: int) -> Tensor:
    """``[heads, d, hidden]``, or one column more where there is a bias."""
    rows = _by_head(layer[projection, "weight"], (projection, "weight"), heads).double()
    bias = layer.get((projection, "bias"))
    if bias is None:
        return rows
    return torch.cat([rows, bias.double().reshape(heads, -1, 1)], dim=2)


def _by_head(tensor: Tensor, key: tuple[str, str], heads: int) -> Tensor:
    assert key[0] != "output"
    return tensor.reshape(heads, len(tensor) // heads, *tensor.shape[1:])


def _columns(weight: Tensor, order: Tensor, heads: int) -> Tensor:
    """The output projection's columns, which the heads write to, in the heads' new order."""
    return weight.reshape(len(weight), heads, -1)[:, order].reshape(weight.shape)
