"""Points that are clearly worse on a part of the validation set do not see the rest of it.

The set is evaluated in three parts: a quarter of the batches, another quarter, the rest; each takes
its batches from all over the set, since sets are sorted by length. After the first and the second
part a point is dropped if it is worse than the best one so far, with

    z = Σ d / √(Σ d²) > z(1 − p),        d = its errors − the best one's, utterance by utterance,

at least :data:`LEAST` utterances, and p = :data:`P_DROP`: the sign test that is exact where the
differences are ±1, one-sided, paired. What is dropped is never chosen, and what is not has seen
every utterance: the figures of a choice are those of a search without a race. A simulation
(``tests/test_race.py``) shows how often the choice is another one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

Around = Callable[[int], AbstractContextManager]
"""What is put around the forward pass of batch *i*."""
Score = Callable[[Around], Mapping[str, tuple[int, int]]]
"""Evaluates the model as it is: errors and reference units by utterance (or clip)."""

P_DROP = 0.01
LEAST = 20
_Z = statistics.NormalDist().inv_cdf(1 - P_DROP)


@dataclass(frozen=True)
class Part:
    """Some of a set's batches.

    Arguments
    ---------
    score : callable
        Evaluates the model as it is on them.
    ids : tuple of str
        Their utterances or clips.
    """

    score: Score
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Race:
    """A set in parts, which are evaluated one after the other.

    Arguments
    ---------
    order : tuple of str
        All utterances or clips, in the order of the whole set.
    parts : tuple of Part
        In the order in which they are evaluated.
    """

    order: tuple[str, ...]
    parts: tuple[Part, ...]


def race_of(
    batches: Sequence[Any], score: Callable[[Iterable[Any], Around], Mapping[str, tuple[int, int]]]
) -> Race:
    """The parts of some batches: a quarter, a quarter, a half; fewer, where there are few batches.

    Arguments
    ---------
    batches : sequence
        Each has its utterances' ``id``.
    score : callable
        Evaluates the model as it is on some batches; the second argument is put around each pass.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> batches = [SimpleNamespace(id=[f"u{i}"]) for i in range(8)]
    >>> [part.ids for part in race_of(batches, lambda batches, around: {}).parts]
    [('u0', 'u4'), ('u2', 'u6'), ('u1', 'u3', 'u5', 'u7')]
    """
    numbers = range(len(batches))
    chosen = [numbers[0::4], numbers[2::4], [i for i in numbers if i % 2]]

    def part(of: Sequence[int]) -> Part:
        def evaluate(around: Around) -> Mapping[str, tuple[int, int]]:
            return score([batches[i] for i in of], lambda j: around(of[j]))

        return Part(evaluate, tuple(name for i in of for name in batches[i].id))

    order = tuple(name for batch in batches for name in batch.id)
    return Race(order, tuple(part(of) for of in chosen if len(of)))


def clearly_worse(
    errors: Sequence[Sequence[int]], leaders: Sequence[Sequence[int]] = ()
) -> set[int]:
    """Which of some points are to be dropped, by their place.

    Arguments
    ---------
    errors : sequence of sequence of int
        Of each point, on the same utterances.
    leaders : sequence of sequence of int
        Of points that are not to be dropped, and that a point may be worse than.

    Example
    -------
    >>> clearly_worse([[0] * 30, [1] * 30, [0] * 25 + [1] * 5])
    {1}
    >>> clearly_worse([[1] * 30], leaders=[[0] * 30]), clearly_worse([[0] * 9, [1] * 9])
    ({0}, set())
    """
    everyone = np.array([*errors, *leaders], dtype=float)
    if everyone.shape[1] < LEAST:
        return set()
    differences = everyone[: len(errors)] - everyone[everyone.sum(1).argmin()]
    # where nothing differs: 0, not 0 / 0
    spread = np.sqrt((differences**2).sum(1)).clip(min=1)
    return {int(i) for i in np.flatnonzero(differences.sum(1) / spread > _Z)}
