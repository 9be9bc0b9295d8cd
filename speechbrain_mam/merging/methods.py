"""Merge methods: small pure functions, registered by name.

Each takes the target's and the donor's tensor of one shape and the target's share λ, and keeps one
promise: **λ = 1 is the target**. λ is a number, or a tensor that broadcasts (one λ for each row);
all but the arithmetic is done elsewhere: reading, precision, which tensors.

========================  ==================================================================
``linear``                λ·T + (1 − λ)·D, the paper's
``norm_matched``          the same with D scaled to T's norm (``donor_scale: match_norm``)
``slerp``                 along the great circle from D to T: directions are mixed, not lengths
``multi_path``            T + (1 − λ)·D, with a donor that is trained too
``pretrained``            linear, from a fine-tuned model back towards the one it started from
========================  ==================================================================

Sources: MAM, arXiv 2312.14378 (linear); Shoemake, "Animating rotation with quaternion curves", 1985
(slerp); Zhang et al., "Multimodal Pathway", arXiv 2401.14405 (multi_path, whose λ is 1 − λ here);
Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903 (pretrained).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechbrain_mam.errors import MAMError, one_of

if TYPE_CHECKING:
    from torch import Tensor

# Tensors bring their own methods, so that torch is not imported here: the command line works on
# files and does without it.
MergeFunction = Callable[..., "Tensor"]  # of target, donor and λ


@dataclass(frozen=True)
class MergeMethod:
    """One row of :data:`METHODS`.

    Arguments
    ---------
    name : str
        What the YAML calls it.
    function : callable
        ``function(target, donor, lam)``.
    formula : str
        How a plan writes it.
    donor_scale : str, optional
        The plan's ``donor_scale`` that it brings along.
    trains_donor : bool
        Whether Learnable-MAM trains the donor's tensors too.
    same_family : bool
        Whether target and donor must be of one architecture, depth and width.
    """

    name: str
    function: MergeFunction
    formula: str = "see its documentation"
    donor_scale: str | None = None
    trains_donor: bool = False
    same_family: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether it is λ·T + (1 − λ)·D, for which there are faster ways."""
        return self.function is linear


_OPPOSITE = -0.9995

METHODS: dict[str, MergeMethod] = {}
"""Every method by name. A new one is a function with :func:`merge_method` above it."""


def merge_method(name: str, **options: Any) -> Callable[[MergeFunction], MergeFunction]:
    """Register a function under ``name``; see :class:`MergeMethod` for the options.

    Raises
    ------
    MAMError
        If the name is taken.

    Example
    -------
    >>> @merge_method("larger")
    ... def larger(target, donor, lam):
    ...     return target if lam == 1 else target.where(target.abs() > donor.abs(), donor)
    >>> METHODS.pop("larger").name
    'larger'
    """

    def register(function: MergeFunction) -> MergeFunction:
        if name in METHODS:
            raise MAMError(f"a merge method '{name}' exists; choose another name")
        METHODS[name] = MergeMethod(name, function, **options)
        return function

    return register


def method_named(name: str) -> MergeMethod:
    """The method that the key ``method`` names.

    Raises
    ------
    MAMError
        If there is none; the message lists what there is.
    """
    one_of("method", name, tuple(METHODS))
    return METHODS[name]


_LINEAR = "λ · W_target + (1 − λ) · W_donor"


@merge_method("pretrained", formula=_LINEAR, same_family=True)
@merge_method("norm_matched", formula=_LINEAR, donor_scale="match_norm")
@merge_method("linear", formula=_LINEAR)
def linear(target: Tensor, donor: Tensor, lam: Any, out: Tensor | None = None) -> Tensor:
    """λ · target + (1 − λ) · donor; into the memory of ``out``, where there is one.

    Example
    -------
    >>> import torch
    >>> linear(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), 0.5)
    tensor([2., 4.])
    """
    if out is None:
        return donor.lerp(target, lam)
    import torch  # there is one already, where there is an `out`

    return torch.lerp(donor, target, lam, out=out)


@merge_method("slerp", formula="(sin λω · W_target + sin (1 − λ)ω · W_donor) / sin ω")
def slerp(target: Tensor, donor: Tensor, lam: Any) -> Tensor:
    """(sin λω · target + sin (1 − λ)ω · donor) / sin ω, ω the angle between the flat tensors.

    Where one of them is zero there is no angle, between parallel ones none is needed, and from a
    tensor to its opposite no way is the shortest: it is linear then.

    Example
    -------
    >>> import torch
    >>> halfway = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    >>> torch.allclose(halfway, torch.tensor([0.5, 0.5]).sqrt())
    True
    """
    one, other = target.double(), donor.double()
    norms = one.norm() * other.norm()
    none = (norms == 0).double()
    cosine = ((one * other).sum() + none) / (norms + none)
    # From _OPPOSITE on 1 / sin ω makes noise of rounding errors; at 0 the shares are linear.
    angle = cosine.where(cosine > _OPPOSITE, 1.0).clamp(max=1).arccos() / math.pi  # sinc's unit
    # sin λω / sin ω = λ · sinc(λω) / sinc(ω), which holds at ω = 0 too
    shares = [share * (share * angle).sinc() / angle.sinc() for share in (lam, 1 - lam)]
    return (shares[0] * one + shares[1] * other).to(target.dtype)


@merge_method("multi_path", formula="W_target + (1 − λ) · W_donor", trains_donor=True)
def multi_path(target: Tensor, donor: Tensor, lam: Any) -> Tensor:
    """target + (1 − λ) · donor: the donor is a second path beside the target's own.

    Start it at λ = 1. What arXiv 2401.14405 calls λ, and starts at 0, is 1 − λ.

    Example
    -------
    >>> import torch
    >>> multi_path(torch.tensor([1.0]), torch.tensor([4.0]), 0.75)
    tensor([2.])
    """
    return target + (1 - lam) * donor
