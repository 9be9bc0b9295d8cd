"""Greedy decoding, beam search and a language model side by side, and the latter as a rival.

A text donor is to bring linguistic knowledge. So does an n-gram in the search, at no cost in
training: a merge is worth what it gains beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechbrain_mam.report.document import Block, Heading, Table, Text
from speechbrain_mam.report.text import interval, p_value, percent_change, points, rate_bounds
from speechbrain_mam.results.comparisons import compare, mean_and_sd, verdict
from speechbrain_mam.results.counts import ErrorCounts, error_rate, pool, rate_interval
from speechbrain_mam.results.decoding import BEAM_LM, GREEDY, TITLES
from speechbrain_mam.results.statistics import Comparison
from speechbrain_mam.results.systems import System, reference_of

Counts = Mapping[int | None, ErrorCounts]


def decoders_table(systems: Sequence[System], main: str, n_resamples: int) -> Table | None:
    """The main error rate of every system by every decoder that all its tests report.

    Arguments
    ---------
    systems : sequence of System
        As :func:`~speechbrain_mam.results.systems.group` gives them.
    main : str
        The name of the decoder that the other tables are about.
    n_resamples : int
        Draws of clusters.

    Returns
    -------
    Table or None
        ``None`` where there is one decoder only.
    """
    names = decoders_of(systems, main)
    if len(names) < 2:
        return None
    metric = systems[0].task.main
    header = ["system", "seeds"]
    for name in names:
        header += [f"{metric} %, {TITLES[name]}", "95 %"]
    rows = []
    for system in systems:
        row = [system.name, str(len(system.evaluations))]
        for name in names:
            counts = counts_of(system, name, main)
            mean, sd = mean_and_sd([error_rate(one) for one in counts.values()])
            bounds = rate_interval(pool(list(counts.values())), n_resamples)
            row.append(f"{mean:.2f}" + (f" ± {sd:.2f}" if sd is not None else ""))
            row.append(rate_bounds(bounds))
        rows.append(row)
    return Table(header, rows, frozenset(range(1, len(header))))


@dataclass(frozen=True)
class Rival:
    """What is compared (after) with what (against), and what came out."""

    after: str
    against: str
    found: Comparison
    trained: bool


def rivals_of(systems: Sequence[System], main: str, n_resamples: int) -> list[Rival]:
    """Of each merge and what it started from: what the merge gains, what the language model does.

    Nothing where there is no merge, or no language model.
    """
    if main != BEAM_LM or GREEDY not in decoders_of(systems, main):
        return []
    rivals = []
    for system in systems:
        before = reference_of(system, systems)
        if not system.merged or before is None:
            continue
        plain, rescored = (counts_of(before, name, main) for name in (GREEDY, BEAM_LM))
        merged, both = (counts_of(system, name, main) for name in (GREEDY, BEAM_LM))
        base, with_lm = before.name, f"{before.name} + LM"
        trained = system.trained or before.trained
        for after, against, one, other in (
            (system.name, base, plain, merged),
            (with_lm, base, plain, rescored),
            (system.name, with_lm, rescored, merged),
            (f"{system.name} + LM", with_lm, rescored, both),
        ):
            rivals.append(Rival(after, against, compare(one, other, n_resamples), trained))
    return rivals


def rivals_table(rivals: Sequence[Rival], metric: str) -> Table:
    """The comparisons of :func:`rivals_of`, corrected with all others of the report."""
    rows = []
    for one in rivals:
        found = one.found
        seeds = interval(found.seeds) if found.seeds is not None else ""
        row = [one.after, one.against, verdict(found, one.trained), percent_change(found)]
        rows.append([*row, points(found), p_value(found.p), p_value(found.p_corrected), seeds])
    header = ["what", "against", "verdict", metric, f"{metric} points [95 %]", "p", "p, Holm"]
    return Table([*header, f"{metric}, seeds' 95 %"], rows, frozenset(range(3, 8)))


def decoders_section(
    systems: Sequence[System], main: str, n_resamples: int, rivals: Sequence[Rival]
) -> list[Block]:
    """Both tables, with what they say."""
    table = decoders_table(systems, main, n_resamples)
    if table is None:
        return []
    blocks: list[Block] = [
        Heading("Decoders"),
        Text(f"The other tables are of the last decoder here, {TITLES[main]}, for every system."),
        table,
    ]
    if not rivals:
        return blocks
    note = (
        "Names without LM are greedy, those with it a beam search with the n-gram. A donor's "
        "linguistic knowledge has to beat what the n-gram brings to the model without a merge, or "
        "to add to it."
    )
    table = rivals_table(rivals, systems[0].task.main)
    return [*blocks, Heading("A language model as a rival"), Text(note), table]


def decoders_of(systems: Sequence[System], main: str) -> list[str]:
    """The decoders that every test reports, the simplest first."""
    tests = [found.decoders for system in systems for found in system.evaluations.values()]
    return [*(name for name in TITLES if all(name in found for found in tests)), main]


def counts_of(system: System, name: str, main: str) -> Counts:
    """A system's main errors by one decoder, by seed."""
    metric = system.task.main
    if name == main:
        return system.counts(metric)
    return {seed: found.decoders[name][metric] for seed, found in system.evaluations.items()}
