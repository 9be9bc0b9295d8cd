"""Test folds of one system taken together: mean and spread, pooled error, confusions, classes."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_mam.atomic import write_beside, write_text_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.report import write_report
from speechbrain_mam.report.confusion import plot_confusions
from speechbrain_mam.results.fields import get
from speechbrain_mam.text_files import read_json

logger = get_logger(__name__)

FOLDS = (1, 2, 3, 4, 5)
SHARED = ("method", "seed", "control", "donor", "equivalence_margin")

Clips = dict[str, dict[str, Any]]


def parse_folds(choice: str) -> list[int]:
    """``all``, or some of 1 to 5 with commas between.

    Raises
    ------
    MAMError
        If there is another fold among them, one twice, or none.

    Example
    -------
    >>> parse_folds("all"), parse_folds("3,1")
    ([1, 2, 3, 4, 5], [3, 1])
    """
    if choice == "all":
        return list(FOLDS)
    names = [name.strip() for name in choice.split(",")]
    known = {str(fold): fold for fold in FOLDS}
    if not set(names) <= set(known) or len(set(names)) != len(names):
        raise MAMError(f"--folds '{choice}': expected all, or some of 1 to 5, as in 1,3")
    return [known[name] for name in names]


def pool_folds(results_folder: str, method: str) -> None:
    """Write and log what is true of all finished folds together.

    Into the results' folder go ``results.json`` and ``utterances_{test}.json``, as a run of all
    these clips would have written them, ``confusion.png``, and a report where there is a search.

    Arguments
    ---------
    results_folder : str
        Holds ``fold_1`` to ``fold_5``, or some of them.
    method : str
        The test whose confusions are drawn.

    Raises
    ------
    MAMError
        If the folds there are not of one system.
    """
    folder = Path(results_folder)
    runs = {
        int(file.parent.name.removeprefix("fold_")): read_json(file)
        for file in sorted(folder.glob("fold_[1-5]/results.json"))
    }
    _check_same_system(folder, runs)
    tests = [name for name in runs[min(runs)]["results"] if _in_all(name, runs.values())]
    clips = {name: _clips(folder, runs, name) for name in tests}
    first = next(iter(runs.values()))
    content: dict[str, Any] = {key: first.get(key) for key in SHARED}
    content["folds"] = sorted(runs)
    content["results"] = {name: _pooled(found, runs, name) for name, found in clips.items()}
    content["lambdas"] = _mean_lambdas(list(runs.values()))
    for name, found in clips.items():
        stats = content["results"][name]
        _write_json(
            folder / f"utterances_{name.replace(' ', '_')}.json",
            {"stats": stats, "utterances": found},
        )
    _write_json(folder / "results.json", content)
    drawn = [name for name in ("untouched", method) if name in clips]
    picture = plot_confusions(*_confusions({name: clips[name] for name in drawn}))
    write_beside(folder / "confusion.png", lambda part: part.write_bytes(picture))
    lines = ["", *fold_table(runs, clips), *_class_changes(clips, method)]
    if content["lambdas"]:
        lines.append("Learned λ (the target's share), mean over folds:")
        lines += [f"  {name:<24}{value:.4f}" for name, value in content["lambdas"].items()]
    lines.append(f"Confusion matrices: {folder / 'confusion.png'}")
    if any((folder / f"fold_{fold}" / "sweep.json").is_file() for fold in runs):
        write_report([folder], folder / "report", force=True)
        lines.append(f"The report: {folder / 'report' / 'report.html'}")
    logger.info("\n".join(lines))


def _check_same_system(folder: Path, runs: Mapping[int, Mapping[str, Any]]) -> None:
    if not runs:
        raise MAMError(f"'{folder}' holds no results of a fold")
    first = min(runs)
    for fold, run in runs.items():
        for key in SHARED:
            found = [one.get(key) for one in (runs[first], run)]
            if found[0] != found[1]:
                raise MAMError(
                    f"'{folder}': fold {first} is of {key} {found[0]!r}, but fold {fold} "
                    f"of {found[1]!r}; remove one, or choose another output_folder"
                )


def _in_all(name: str, runs: Iterable[Mapping[str, Any]]) -> bool:
    return all(name in run["results"] for run in runs)


def _clips(folder: Path, runs: Mapping[int, Any], name: str) -> Clips:
    file_name = f"utterances_{name.replace(' ', '_')}.json"
    found: Clips = {}
    for fold in runs:
        file = folder / f"fold_{fold}" / file_name
        found |= get(read_json(file), "utterances", dict, file)
    return found


def _pooled(clips: Clips, runs: Mapping[int, Any], name: str) -> dict[str, float]:
    error = 100 * sum(clip["errors"] for clip in clips.values()) / len(clips)
    of_fold = Counter(clip["fold"] for clip in clips.values())
    loss = sum(run["results"][name]["loss"] * of_fold[fold] for fold, run in runs.items())
    return {"loss": loss / len(clips), "error": error, "accuracy": 100 - error}


def _mean_lambdas(runs: list[Mapping[str, Any]]) -> dict[str, float]:
    names = runs[0]["lambdas"]
    return {name: statistics.fmean(run["lambdas"][name] for run in runs) for name in names}


def _confusions(systems: Mapping[str, Clips]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Clips of each class (row) by the class they were given (column), and the classes."""
    found = [
        clip[side]
        for clips in systems.values()
        for clip in clips.values()
        for side in ("ref", "hyp")
    ]
    names = sorted(set(found))
    at = {name: i for i, name in enumerate(names)}
    counts = {system: np.zeros((len(names), len(names))) for system in systems}
    for system, clips in systems.items():
        for clip in clips.values():
            counts[system][at[clip["ref"]], at[clip["hyp"]]] += 1
    return counts, names


def fold_table(runs: Mapping[int, Any], clips: Mapping[str, Clips]) -> list[str]:
    """Error of every test on every fold, mean ± s.d. over folds, and pooled."""
    width = 2 + max(map(len, clips))
    heads = "".join(f"{f'fold {fold}':>9}" for fold in sorted(runs))
    lines = [f"Test error, %:{'':<{max(0, width - 12)}}{heads}{'mean ± s.d.':>16}{'pooled':>9}"]
    for name, found in clips.items():
        errors = [runs[fold]["results"][name]["error"] for fold in sorted(runs)]
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        mean = f"{statistics.fmean(errors):.2f}{spread}"
        pooled = 100 * sum(clip["errors"] for clip in found.values()) / len(found)
        cells = "".join(f"{error:>9.2f}" for error in errors)
        lines.append(f"  {name:<{max(width, 12)}}{cells}{mean:>16}{pooled:>9.2f}")
    return lines


def _class_changes(clips: Mapping[str, Clips], method: str) -> list[str]:
    """Errors by class, untouched → method, for the classes where they changed."""
    if not {"untouched", method} <= set(clips):
        return []
    before, after = (
        Counter(clip["ref"] for clip in clips[name].values() if clip["errors"])
        for name in ("untouched", method)
    )
    total = Counter(clip["ref"] for clip in clips[method].values())
    lines = [f"Errors by class, untouched → {method}, where they differ:"]
    for name in sorted(total, key=lambda name: after[name] - before[name]):
        if after[name] != before[name]:
            lines.append(f"  {name:<24}{before[name]} → {after[name]} of {total[name]}")
    return lines


def _write_json(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_text_beside(file, text)
