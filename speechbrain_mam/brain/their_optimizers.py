"""λ has an optimizer of its own, so it is taken out of a recipe's, whenever the recipe makes them.

A recipe keeps an optimizer out of its dictionary to freeze it, or to step it by itself. That of
AISHELL-1's Transformer makes another one in the middle of its training, of all parameters: with λ
in it, λ would be stepped twice, and its state would not fit the optimizer of a resumed training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class TheirOptimizers:
    """The optimizers of a recipe that λ is not in.

    Arguments
    ---------
    own : Optimizer
        λ's own.
    stepped : set
        Gets the word ``theirs`` at each step of another one.

    Example
    -------
    >>> lam, weight = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    >>> own, other = (torch.optim.SGD(held, lr=0.1) for held in ([lam], [lam, weight]))
    >>> TheirOptimizers(own, set()).take_lam_out([own, other, "no optimizer"])
    >>> [len(optimizer.param_groups[0]["params"]) for optimizer in (own, other)]
    [1, 1]
    """

    def __init__(self, own: torch.optim.Optimizer, stepped: set[str]):
        self._lams = {id(lam): lam for group in own.param_groups for lam in group["params"]}
        self._stepped = stepped
        self._known = {id(own): own}  # the values keep them alive, or another had the same id

    def take_lam_out(self, found: Iterable[Any]) -> None:
        """Take λ out of those of the objects that are optimizers and have not been seen before."""
        for optimizer in found:
            if not isinstance(optimizer, torch.optim.Optimizer) or id(optimizer) in self._known:
                continue
            self._known[id(optimizer)] = optimizer
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in self._lams]
            for lam in self._lams.values():
                optimizer.state.pop(lam, None)
            optimizer.register_step_post_hook(lambda *_: self._stepped.add("theirs"))
