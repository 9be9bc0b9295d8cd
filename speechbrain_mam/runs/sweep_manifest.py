"""The λ sweep of a recogniser on a manifest of speech, without a recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch

from speechbrain_mam.errors import one_of
from speechbrain_mam.mam import MAM
from speechbrain_mam.runs.probe_manifest import Recogniser, manifest_batches
from speechbrain_mam.search.grid import (
    SWEEP_CONTROLS,
    Point,
    Scored,
    choose,
    error_rate,
    parse_grid,
    parse_subsets,
    points_of,
    sweep_content,
)
from speechbrain_mam.search.sweep import Around, Sweep


@dataclass(frozen=True)
class SweepTable:
    """What :func:`sweep_manifest` found.

    Arguments
    ---------
    ids : tuple of str
        The utterances.
    words : tuple of int
        Reference words of each.
    untouched : Scored
        The target as it is, λ = 1.
    points : tuple of Scored
        Every merge, controls last.
    """

    ids: tuple[str, ...]
    words: tuple[int, ...]
    untouched: Scored
    points: tuple[Scored, ...]

    @property
    def best(self) -> Scored:
        """The best merge, which may be worse than none."""
        return self._best_of("none")

    @property
    def untouched_was_better(self) -> bool:
        """Whether no merge made fewer errors than the untouched model."""
        return choose([self.untouched, self.best]).point.lam == 1

    def as_dict(self) -> dict[str, Any]:
        """As ``sweep.json`` of a recipe's search, for the report and for programs."""
        return sweep_content("manifest", self.ids, self.words, "WER", self.untouched, self.points)

    def __str__(self) -> str:
        lines = [
            f"{len(self.ids)} utterances, {sum(self.words)} words",
            f"{'λ':>6}  {'WER %':>6}  {'errors':>6}  layers",
            self._line(self.untouched, "untouched"),
        ]
        best = [self._best_of(control) for control in {s.point.control for s in self.points}]
        for scored in self.points:
            point = scored.point
            what = f"{point.subset} ({', '.join(map(str, point.layers))})"
            if point.control != "none":
                what += f", control {point.control}"
            lines.append(self._line(scored, what, any(scored is one for one in best)))
        each = " and each control's" if len(best) > 1 else ""
        lines.append(f"* the best merge{each}, of equal ones the gentlest")
        if self.untouched_was_better:
            lines.append("No merge was better than none.")
        return "\n".join(lines)

    def _best_of(self, control: str) -> Scored:
        return choose(s for s in self.points if s.point.control == control)

    def _line(self, scored: Scored, what: str, best: bool = False) -> str:
        rate = error_rate(scored, self.words)
        mark = " *" if best else ""
        return f"{scored.point.lam:>6g}  {rate:>6.2f}  {sum(scored.errors):>6}  {what}{mark}"


def sweep_manifest(
    target: str,
    donor: str,
    manifest: Path,
    grid: float | str | Iterable[float],
    layers: Sequence[str] = ("all",),
    controls: Sequence[str] = (),
    data_folder: Path | None = None,
    batch_size: int = 8,
    device: str | None = None,
    precision: str = "fp32",
    progress: bool = False,
    **options: Any,
) -> SweepTable:
    """Word errors of a CTC recogniser at every λ of a grid, in every choice of layers.

    Arguments
    ---------
    grid : float, str or iterable of float
        λ, the target's share.
    layers : sequence of str
        Choices of layers: ``all``, ``first:k``, ``last:k``, ranges.
    controls : sequence of str
        Controls in the donor's place, each over the whole grid in every choice of layers.
    target, donor, manifest, data_folder, batch_size, device, precision, progress
        As for :func:`speechbrain_mam.runs.probe_manifest.probe_manifest`.
    **options
        ``projections``, ``layer_map``, ``bias``, ``donor_scale``, ``method``, ``align``, ``width``
        of :func:`speechbrain_mam.merging.planner.make_plan`.

    Raises
    ------
    MAMError
        If a file is missing, λ is outside [0, 1], a control is unknown, or the merge does not fit.
    """
    lams = parse_grid(grid)
    for control in controls:
        one_of("controls", control, SWEEP_CONTROLS)
    recogniser = Recogniser.load(target, device, precision)
    mam = MAM(recogniser.encoder, donor, lam=lams[0], learnable=False, **options)
    subsets = parse_subsets(layers, mam.plan.target_layers)
    batches = list(manifest_batches(recogniser.encoder, manifest, data_folder, batch_size))
    with tempfile.TemporaryDirectory() as scratch:

        def score(around: Around) -> dict[str, tuple[int, int]]:
            return _score(recogniser, batches, around)

        sweep = Sweep(mam, score, Path(scratch), progress=progress)
        untouched, *points = sweep.run([Point(1.0, (), donor), *points_of(lams, subsets, [donor])])
        for control in controls:
            sweep.title = f"control {control}"
            # The same points to choose from: each has λ and layers of its own
            points += sweep.run(points_of(lams, subsets, [donor], control))
        return SweepTable(tuple(sweep.ids), tuple(sweep.units), untouched, tuple(points))


def _score(
    recogniser: Recogniser, batches: Sequence[Any], around: Around
) -> dict[str, tuple[int, int]]:
    """Word errors and words of every utterance, by the model as it is now."""
    errors = sb.utils.metric_stats.ErrorRateStats()
    alphabet = recogniser.encoder.alphabet
    for i, batch in enumerate(batches):
        with torch.no_grad(), around(i):
            batch, log_probs, lens = recogniser(batch)
        best = sb.decoders.ctc_greedy_decode(log_probs, lens, alphabet.blank_index)
        texts = [alphabet.decode(indices).split() for indices in best]
        errors.append(batch.id, texts, [words.split() for words in batch.wrd])
    return {s["key"]: (s["num_edits"], s["num_ref_tokens"]) for s in errors.scores}
