"""All comparisons of a report: made, corrected together for their number, and judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.comparisons import ONE_DRAW, compare, direction, verdict
from speechbrain_mam.results.resampling import N_RESAMPLES
from speechbrain_mam.results.runs import FINETUNE, RANDOM, UNTOUCHED
from speechbrain_mam.results.statistics import Comparison
from speechbrain_mam.results.systems import System, find, reference_of

Pair = tuple[System, System]


@dataclass(frozen=True, eq=False)
class Row:
    """A system compared with another one, by metric; the verdict is that of the main one."""

    system: System
    against: System
    comparisons: Mapping[str, Comparison]
    verdict: str
    primary: bool = False

    @property
    def main(self) -> Comparison:
        """The comparison that the verdict is about."""
        return self.comparisons[self.system.task.main]


@dataclass(frozen=True, eq=False)
class Family:
    """The comparisons of a report, after Holm's correction.

    Arguments
    ---------
    against : mapping of str to list of Row
        By name of the reference: every other system against it.
    controls : list of Row
        Every merge against each of its controls.
    further : list of Comparison
        Those that the caller gave, corrected with the others.
    primary : Row or None
        The one comparison that is not corrected.
    corrected : int
        How many others were.
    """

    against: Mapping[str, list[Row]]
    controls: list[Row]
    further: list[Comparison]
    primary: Row | None
    corrected: int

    @property
    def rows(self) -> list[Row]:
        """All that have a verdict on the main metric, in the order of the tables."""
        return [*(row for rows in self.against.values() for row in rows), *self.controls]


def compare_all(
    systems: Sequence[System],
    n_resamples: int = N_RESAMPLES,
    primary: str | None = None,
    margin: float | None = None,
    further: Sequence[Comparison] = (),
) -> Family:
    """Every system against the untouched and the fine-tuned model; merges against their controls.

    The main metric's p is corrected by :func:`holm` over all of them but the primary comparison.
    One draw of a control has no verdict, and is no part of it.

    Arguments
    ---------
    systems : sequence of System
        As :func:`~speechbrain_mam.results.systems.group` gives them.
    n_resamples : int
        Draws of clusters.
    primary : str, optional
        The system whose comparison with its random control, or without one with what it started
        from, is the primary one; by default the first merge that has a random control, a trained
        one before others.
    margin : float, optional
        Points within which systems count as equivalent.
    further : sequence of Comparison
        Others with a verdict in the same report.

    Raises
    ------
    MAMError
        If there is no system ``primary``, or nothing that it is compared with.
    """
    references = [s for s in (find(systems, UNTOUCHED), find(systems, FINETUNE)) if s is not None]
    against = {reference.name: _with(reference, systems) for reference in references}
    merges = [system for system in systems if system.merged]
    controls = [(control, merge) for merge in merges for control in merge.controls(systems)]
    pairs = [*(pair for of_one in against.values() for pair in of_one), *controls]
    chosen = _primary(pairs, systems, primary)

    found = [_compare(*pair, n_resamples) for pair in pairs]
    mains = [one[pair[1].task.main] for one, pair in zip(found, pairs, strict=True)]
    every = [replace(one, margin=margin) for one in (*mains, *further)]
    tested = [
        i for i, one in enumerate(every)
        if direction(one) != ONE_DRAW and not (i < len(pairs) and pairs[i] == chosen)
    ]  # fmt: skip
    p_holm = {i: one.p for i, one in enumerate(every)}
    p_holm |= zip(tested, holm([every[i].p for i in tested]), strict=True)
    every = [replace(one, p_holm=p_holm[i]) for i, one in enumerate(every)]

    of_pair = dict(zip(_names(pairs), every, strict=False))
    rows = {}
    for pair, comparisons in zip(pairs, found, strict=True):
        before, after = pair
        main = of_pair[before.name, after.name]
        random = next((c for c in after.controls(systems) if c.control == RANDOM), None)
        control = of_pair[random.name, after.name] if after.merged and random else None
        said = verdict(
            main,
            after.trained or before.trained,
            None if before in after.controls(systems) else control,
            drawn=after.drawn,
        )
        rows[before.name, after.name] = Row(
            after, before, {**comparisons, after.task.main: main}, said, pair == chosen
        )
    return Family(
        {name: [rows[key] for key in _names(of_one)] for name, of_one in against.items()},
        [rows[key] for key in _names(controls)],
        every[len(pairs) :],
        rows[chosen[0].name, chosen[1].name] if chosen is not None else None,
        len(tested),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for the number of comparisons, by Holm's step-down rule (1979).

    The k-th smallest of m is multiplied by m − k + 1, and none is below a smaller one's result:
    the chance of any false verdict among them is at most 5 %, whatever they have in common.

    Example
    -------
    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = least
    return found


def _with(reference: System, systems: Sequence[System]) -> list[Pair]:
    return [
        (reference, system)
        for system in systems
        if system is not reference
        and system.method != UNTOUCHED
        # Whether a merge without training beats a fine-tuned model is nobody's question.
        and (system.trained or reference.method == UNTOUCHED)
    ]


def _primary(pairs: Sequence[Pair], systems: Sequence[System], name: str | None) -> Pair | None:
    randoms = [pair for pair in pairs if pair[1].merged and pair[0] in pair[1].controls(systems)]
    randoms = [pair for pair in randoms if pair[0].control == RANDOM]
    if name is None:
        return next(iter(sorted(randoms, key=lambda pair: not pair[1].trained)), None)
    system = next((system for system in systems if system.name == name), None)
    if system is None:
        known = ", ".join(f"'{system.name}'" for system in systems)
        raise MAMError(f"--primary '{name}': no such system; expected one of {known}")
    own = [pair for pair in pairs if pair[1] is system]
    before = reference_of(system, systems)
    preferred = [pair for pair in own if pair in randoms] or [p for p in own if p[0] is before]
    if not own:
        raise MAMError(f"--primary '{name}': these runs have nothing to compare it with")
    return (preferred or own)[0]


def _names(pairs: Iterable[Pair]) -> list[tuple[str, str]]:
    return [(before.name, after.name) for before, after in pairs]


def _compare(before: System, after: System, n_resamples: int) -> dict[str, Comparison]:
    draws = before.drawn and after.merged
    return {
        name: compare(before.counts(name), after.counts(name), n_resamples, draws)
        for name in after.task.names
    }
