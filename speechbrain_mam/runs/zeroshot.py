"""Zero-shot MAM with its evidence, as one stage of a recipe.

The untouched model, the probe, the λ sweep on validation data, the chosen merge on test data, and
all controls beside it. Test data choose nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.search.grid import (
    Point,
    Scored,
    choose,
    error_rate,
    listed,
    parse_controls,
    parse_donors,
    parse_grid,
    parse_subsets,
    points_of,
    sweep_content,
)
from speechbrain_mam.search.identity import circumstances
from speechbrain_mam.search.probe import Probe, probe
from speechbrain_mam.search.sweep import Sweep, greedy
from speechbrain_mam.tasks.task import TaskBrain

logger = get_logger(__name__)

KEYS = ("lam_grid", "layer_choices", "donor_models", "controls", "cache_mb", "cache_folder")
"""What the YAML of a search must have besides a recipe's own keys."""


@dataclass(frozen=True)
class Wanted:
    """What a search tries, checked."""

    grid: list[float]
    subsets: dict[str, tuple[int, ...]]
    greedy: bool
    donors: list[str]
    controls: list[str]


def read_search(hparams: Mapping[str, Any], num_layers: int) -> Wanted:
    """The YAML's search keys, for a target of ``num_layers`` layers.

    Raises
    ------
    MAMError
        If the grid is empty, λ is outside [0, 1], a subset names no layer, or a control is unknown.

    Example
    -------
    >>> keys = {"lam_grid": [0.9], "layer_choices": ["last:1", "greedy"], "controls": ["random"]}
    >>> wanted = read_search({**keys, "donor_models": ["bert"]}, num_layers=4)
    >>> wanted.subsets, wanted.greedy
    ({'last:1': (3,)}, True)
    """
    choices = listed("layer_choices", hparams["layer_choices"])
    subsets = [choice for choice in choices if choice != "greedy"]
    controls = parse_controls(hparams["controls"])
    return Wanted(
        parse_grid(hparams["lam_grid"]),
        # The greedy search starts from the λ that is best in all layers, if nothing else is tried.
        parse_subsets(subsets or (["all"] if choices else []), num_layers),
        "greedy" in choices,
        parse_donors(hparams["donor_models"]),
        # A control that searches its own λ has no controls.
        controls if hparams.get("control", "none") == "none" else [],
    )


def search(brain: TaskBrain, valid: Any, with_controls: bool = True) -> tuple[Sweep, Point]:
    """Choose λ, layers and donor on the validation set.

    Writes ``probe.json`` and ``sweep.json`` into the output folder. The model is left unmerged.

    Arguments
    ---------
    brain : TaskBrain
        With a ``mam`` whose λ is fixed.
    valid : DynamicItemDataset
        The validation set.
    with_controls : bool
        Whether the controls are swept beside the choice.

    Returns
    -------
    tuple
        The sweep, and the best merge, which may be worse than none.

    Raises
    ------
    MAMError
        If the grid is empty, λ is outside [0, 1], or a subset names no layer.
    """
    hparams, mam = brain.hparams, brain.mam
    assert mam is not None
    folder = Path(hparams.output_folder)
    wanted = read_search(vars(hparams), mam.plan.target_layers)
    grid, donors = wanted.grid, wanted.donors
    controls = wanted.controls if with_controls else []

    batches = brain.batches(valid)
    manifest = (Path(hparams.save_folder) / "valid.csv").read_text(encoding="utf-8")
    sweep = Sweep(
        mam,
        lambda around: brain.score(batches, around),
        folder / "sweep",
        data_id=manifest,
        circumstances=circumstances(batches, brain.device, brain.eval_precision)
        | brain.sweep_identity(),
        cache_mb=hparams.cache_mb,
        cache_folder=Path(hparams.cache_folder) if hparams.cache_folder else None,
        progress=not brain.noprogressbar,
    )
    untouched, *points = sweep.run(
        [Point(1.0, (), donors[0]), *points_of(grid, wanted.subsets, donors)]
    )
    sweep.set_to(Point(1.0, (), donors[0]))
    found = probe(mam.target, mam.plan, mam.source, brain.losses(batches))
    _write(folder / "probe.json", found.as_dict())
    if wanted.greedy:
        first = choose(points).point
        points += greedy(sweep, found.ranking(), first.lam, first.donor)
    # The best subset with every λ, whichever way it was found
    best = choose(points).point
    points += sweep.run(points_of(grid, {best.subset: best.layers}, [best.donor]))
    # A greedy subset may be among the others; the first name stays.
    points = list({scored.point.key: scored for scored in reversed(points)}.values())[::-1]
    best = choose(points).point
    for control in controls:
        sweep.title = f"control {control}"
        points += sweep.run(points_of(grid, {best.subset: best.layers}, [best.donor], control))
    chosen = choose([untouched, *(s for s in points if s.point.control == "none")]).point
    content = sweep_content("valid", sweep.ids, sweep.units, brain.metric, untouched, points)
    _write(folder / "sweep.json", content)
    _tell(sweep, brain, untouched, points, best, chosen, found)
    return sweep, best


def search_and_test(brain: TaskBrain, datasets: Mapping[str, Any], method: str) -> dict[str, dict]:
    """:func:`search` on the validation set; test the choice and its controls.

    Writes the usual files of each test and ``merge_plan.txt`` of what was chosen. The chosen merge
    is left in the model.

    Arguments
    ---------
    brain : TaskBrain
        With a ``mam`` whose λ is fixed.
    datasets : mapping
        ``valid`` and ``test``.
    method : str
        What the chosen merge's test is called; a control's is ``{method} control {control}``.

    Returns
    -------
    dict
        The metrics of each test.
    """
    sweep, best = search(brain, datasets["valid"])
    assert brain.mam is not None
    controls = read_search(vars(brain.hparams), brain.mam.plan.target_layers).controls
    results = {}
    for control in (*controls, "none"):
        sweep.apply(Point(best.lam, best.layers, best.donor, control))
        name = method if control == "none" else f"{method} control {control}"
        results[name] = brain.test(datasets["test"], name)
    brain.write_plan()
    return {method: results.pop(method), **results}


def _write(file: Path, content: dict[str, Any]) -> None:
    if if_main_process():
        write_text_beside(file, json.dumps(content, indent=1, ensure_ascii=False))


def _tell(
    sweep: Sweep,
    brain: TaskBrain,
    untouched: Scored,
    points: list[Scored],
    best: Point,
    chosen: Point,
    found: Probe,
) -> None:
    """The search in a few lines of the log."""
    if not if_main_process():
        return
    lines = ["", f"First-order probe on the validation set ({len(sweep.ids)} {brain.units}):"]
    lines += [f"  {line}" for line in str(found).splitlines()]
    lines.append(f"Validation {brain.metric}: unmerged {error_rate(untouched, sweep.units):.2f}")
    for scored in sorted(points, key=lambda s: sum(s.errors)):
        p = scored.point
        if p.control == "none":
            name = f"λ {p.lam:g}, layers {p.subset} ({', '.join(map(str, p.layers))})"
            lines.append(f"  {error_rate(scored, sweep.units):6.2f}  {name}, {p.donor}")
    lines.append(f"Tested: λ {best.lam:g} in layers {', '.join(map(str, best.layers))}")
    if chosen.lam == 1:
        lines.append("  No merge was better than none on validation data.")
    logger.info("\n".join(lines))
