"""Zero-shot MAM with its evidence, as one stage of a recipe.

The untouched model, the probe, the λ sweep on validation data, the chosen merge on test data, and
all controls beside it. Test data choose nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch import Tensor

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.errors import MAMError
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.runs.yaml_checks import check_ranges
from speechbrain_mam.search.contest import Wanted, contest
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
    suffix,
    sweep_content,
)
from speechbrain_mam.search.identity import circumstances
from speechbrain_mam.search.probe import Probe, probe, ranking_of
from speechbrain_mam.search.race import race_of
from speechbrain_mam.search.sweep import Sweep
from speechbrain_mam.tasks.task import TaskBrain

logger = get_logger(__name__)

KEYS = (
    *("lam_grid", "layer_choices", "donor_models", "controls", "random_draws", "race"),
    *("cache_mb", "cache_folder"),
)
"""What the YAML of a search must have besides a recipe's own keys."""


@dataclass(frozen=True)
class Found:
    """What a search chose.

    Arguments
    ---------
    sweep : Sweep
        Can merge a point into the model.
    best : Point
        The donor's best merge, which may be worse than none.
    controls : dict of str to Point
        The best merge of each control and draw: ``random``, ``random 2``, and so on.
    """

    sweep: Sweep
    best: Point
    controls: dict[str, Point]


def read_search(hparams: Mapping[str, Any], num_layers: int) -> Wanted:
    """The YAML's search keys, for a target of ``num_layers`` layers.

    Raises
    ------
    MAMError
        If the grid is empty, λ is outside [0, 1], a subset names no layer, a control is unknown, or
        ``race`` is neither True nor False.

    Example
    -------
    >>> keys = {"lam_grid": [0.9], "layer_choices": ["last:1", "greedy"], "controls": ["random"]}
    >>> keys |= {"random_draws": 10, "race": True}
    >>> wanted = read_search({**keys, "donor_models": ["bert"]}, num_layers=4)
    >>> wanted.subsets, wanted.greedy
    ({'last:1': (3,)}, True)
    """
    choices = listed("layer_choices", hparams["layer_choices"])
    subsets = [choice for choice in choices if choice != "greedy"]
    controls = parse_controls(hparams["controls"])
    if not isinstance(hparams["race"], bool):
        raise MAMError(f"key 'race': expected True or False, got {hparams['race']!r}")
    check_ranges(hparams, ["random_draws"])
    return Wanted(
        parse_grid(hparams["lam_grid"]),
        # The greedy search starts from the λ that is best in all layers, if nothing else is tried.
        parse_subsets(subsets or (["all"] if choices else []), num_layers),
        "greedy" in choices,
        parse_donors(hparams["donor_models"]),
        # A control that searches its own λ has no controls.
        controls if hparams.get("control", "none") == "none" else [],
        int(hparams["random_draws"]),
        hparams["race"],
    )


def search_of(brain: TaskBrain) -> Wanted:
    """What the YAML of ``brain`` wants searched; each donor is there, and fits the target.

    A recipe asks before its work: a second donor's turn comes when hours have gone into the first.

    Raises
    ------
    MAMError
        As :func:`read_search`; or what is wrong with which donor.
    """
    assert brain.mam is not None
    mam, target = brain.mam, find_attention(brain.mam.target)
    wanted = read_search(vars(brain.hparams), mam.plan.target_layers)
    for name in wanted.donors:
        try:
            make_plan(target, Donor(name).index, donor_name=name, **mam.options)
        except MAMError as error:
            raise MAMError(f"key 'donor_models', '{name}': {error}") from error
    return wanted


def search(brain: TaskBrain, valid: Any, with_controls: bool = True) -> Found:
    """Choose λ, layers and donor on the validation set, and the same for each control.

    Writes ``probe.json`` and ``sweep.json`` into the output folder. The model is left unmerged.

    Arguments
    ---------
    brain : TaskBrain
        With a ``mam`` whose λ is fixed.
    valid : DynamicItemDataset
        The validation set.
    with_controls : bool
        Whether the controls search, too.

    Returns
    -------
    Found

    Raises
    ------
    MAMError
        If the grid is empty, λ is outside [0, 1], or a subset names no layer.
    """
    assert brain.mam is not None
    folder = Path(brain.hparams.output_folder)
    wanted = search_of(brain)
    sweep, batches = _sweep(brain, valid, wanted)
    with closing(sweep.caches):
        found, points, untouched, best = _contests(sweep, brain, batches, wanted, with_controls)
    _write(folder / "probe.json", found.as_dict())
    content = sweep_content(
        "valid", sweep.ids, sweep.units, brain.metric, untouched, points, len(sweep.parts)
    )
    _write(folder / "sweep.json", content)
    _tell(sweep, brain, untouched, points, best, found)
    chosen = {name: scored.point for name, scored in best.items()}
    return Found(sweep, chosen.pop("none"), chosen)


def _sweep(brain: TaskBrain, valid: Any, wanted: Wanted) -> tuple[Sweep, list[Any]]:
    """The sweep over the validation set, and its batches."""
    hparams, mam = brain.hparams, brain.mam
    assert mam is not None
    batches = brain.batches(valid)
    manifest = (Path(hparams.save_folder) / "valid.csv").read_text(encoding="utf-8")
    sweep = Sweep(
        mam,
        lambda around: brain.score(batches, around),
        Path(hparams.output_folder) / "sweep",
        data_id=manifest,
        circumstances=circumstances(batches, brain.device, brain.eval_precision)
        | brain.sweep_identity(),
        cache_mb=hparams.cache_mb,
        cache_folder=Path(hparams.cache_folder) if hparams.cache_folder else None,
        progress=not brain.noprogressbar,
        race=race_of(batches, brain.score) if wanted.race else None,
    )
    return sweep, batches


def _contests(
    sweep: Sweep, brain: TaskBrain, batches: list[Any], wanted: Wanted, with_controls: bool
) -> tuple[Probe, list[Scored], Scored, dict[str, Scored]]:
    """The probe, all merges, the untouched model, and the best merge by who took part."""
    mam = brain.mam
    assert mam is not None
    gradients: dict[str, Tensor] = {}
    nothing = Point(1.0, (), wanted.donors[0])
    (untouched,) = sweep.run([nothing])
    sweep.set_to(nothing)
    found = probe(mam.target, mam.plan, mam.source, brain.losses(batches), gradients)

    def ranking(own: Point) -> list[int]:
        sweep.set_to(own)
        return ranking_of(mam.target, mam.plan, mam.source, gradients)

    points: list[Scored] = []
    best: dict[str, Scored] = {}
    for control, draw in (("none", 1), *(wanted.contestants() if with_controls else ())):
        name = suffix(control, draw)
        sweep.title = "λ sweep" if control == "none" else f"control {name}"
        own = replace(nothing, control=control, draw=draw)
        order = found.ranking if control == "none" else partial(ranking, own)
        line = contest(sweep, wanted, untouched, order, control, draw)
        best[name] = choose(line)
        points += line
    return found, points, untouched, best


def search_and_test(brain: TaskBrain, datasets: Mapping[str, Any], method: str) -> dict[str, dict]:
    """:func:`search` on the validation set; test what was chosen for the donor and each control.

    Writes the usual files of each test and ``merge_plan.txt`` of what was chosen. The chosen merge
    is left in the model.

    Arguments
    ---------
    brain : TaskBrain
        With a ``mam`` whose λ is fixed.
    datasets : mapping
        ``valid`` and ``test``.
    method : str
        What the chosen merge's test is called; a control's is ``{method} control {control}``, that
        of its second draw ``{method} control {control} 2``.

    Returns
    -------
    dict
        The metrics of each test.
    """
    found = search(brain, datasets["valid"])
    results = {}
    # The search has emptied its caches: what is kept from here on is of the test set.
    with closing(found.sweep.caches) as caches:
        for control, point in (*found.controls.items(), ("none", found.best)):
            found.sweep.apply(point)
            name = method if control == "none" else f"{method} control {control}"
            with brain.within_each_batch(caches.around(min(point.layers, default=0))):
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
    best: Mapping[str, Scored],
    found: Probe,
) -> None:
    """The search in a few lines of the log."""
    if not if_main_process():
        return
    lines = ["", f"First-order probe on the validation set ({len(sweep.ids)} {brain.units}):"]
    lines += [f"  {line}" for line in str(found).splitlines()]
    lines.append(f"Validation {brain.metric}: unmerged {error_rate(untouched, sweep.units):.2f}")
    ours = [scored for scored in points if scored.point.control == "none"]
    for scored in sorted(ours, key=lambda s: error_rate(s, sweep.units)):
        p = scored.point
        if scored.whole:
            name = f"λ {p.lam:g}, layers {p.subset} ({', '.join(map(str, p.layers))})"
            lines.append(f"  {error_rate(scored, sweep.units):6.2f}  {name}, {p.donor}")
    for name, scored in best.items():
        p, rate = scored.point, error_rate(scored, sweep.units)
        of = "" if name == "none" else f", control {name}: {rate:.2f} on validation data"
        lines.append(f"Tested: λ {p.lam:g} in layers {', '.join(map(str, p.layers))}{of}")
    dropped = sum(not scored.whole for scored in points)
    if dropped:
        lines.append(f"  {dropped} of {len(points)} merges fell behind early and were dropped")
    if choose([untouched, *ours]).point.lam == 1:
        lines.append("  No merge was better than none on validation data.")
    logger.info("\n".join(lines))
