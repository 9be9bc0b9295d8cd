"""Run a recipe's script as it is, evaluate twice where it evaluates once, and note what is there.

    python witness.py NOTES.json train.py hparams.yaml [overrides]

What is noted of each evaluation: the loss, whether λ is folded, and how far each tensor of the
target is from what the checkpoint and the formula say it must be.
"""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import speechbrain as sb
import torch
import yaml
from speechbrain.utils import checkpoints
from torch import Tensor

from speechbrain_mam import MAM
from speechbrain_mam.testing.formula import DonorTensors, merged_by_formula
from speechbrain_mam.testing.settings import Setting

NOTES: dict[str, Any] = {"evaluations": [], "averaged": 0, "loaded_later": False}
START: dict[str, Tensor] = {}
LOSSES: list[float] = []
TARGETS: list[torch.nn.Module] = []


def note_the_start(apply: Any) -> Any:
    """The target's tensors, before anything is merged and after it."""

    def noted(mam: MAM) -> None:
        first = not START
        if first:
            TARGETS.append(mam.target)
            START.update({k: v.detach().clone() for k, v in mam.target.state_dict().items()})
        apply(mam)
        if first:
            now = mam.target.state_dict()
            NOTES["kept_at_start"] = all(torch.equal(now[k], v) for k, v in START.items())
            NOTES["tensors"] = len({entry.target for entry in mam.plan.entries})

    return noted


def note_loading(load: Any) -> Any:
    """Whether a pretrainer loads into the target after the merge."""

    def noted(pretrainer: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = load(pretrainer, *args, **kwargs)
        if TARGETS:
            now = TARGETS[0].state_dict()
            NOTES["loaded_later"] |= any(not torch.equal(now[k], v) for k, v in START.items())
            START.update({k: now[k].detach().clone() for k in START})
        return loaded

    return noted


def note_losses(evaluate_batch: Any) -> Any:
    """Each batch's loss: `evaluate` counts those of an earlier test in its average, see below."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        loss = evaluate_batch(*args, **kwargs)
        LOSSES.append(float(loss))
        return loss

    return noted


def note_averaging(average: Any) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        NOTES["averaged"] += 1
        return average(*args, **kwargs)

    return noted


def evaluated_twice(evaluate: Any) -> Any:
    """The evaluation and another one, from the same random numbers."""

    def twice(brain: Any, test_set: Any, *args: Any, **kwargs: Any) -> Any:
        keys = {name: kwargs[name] for name in ("min_key", "max_key") if name in kwargs}
        for _ in range(2):
            before = {path.name for path in brain.checkpointer.checkpoints_dir.iterdir()}
            for seed in (torch.manual_seed, np.random.seed, random.seed):
                seed(0)
            LOSSES.clear()
            loss = evaluate(brain, test_set, *args, **kwargs)
            after = {path.name for path in brain.checkpointer.checkpoints_dir.iterdir()}
            noted = {"losses": list(LOSSES), "saved": before != after, **compared(brain, keys)}
            NOTES["evaluations"].append(noted)
        return loss

    return twice


def compared(brain: Any, keys: dict[str, str]) -> dict[str, Any]:
    """The folded target next to the checkpoint that it was recovered from."""
    mam, found = brain.mam, brain.checkpointer
    checkpoint = found.find_checkpoint(**keys) or found.find_checkpoint()
    saved = saved_target(mam.target, brain.checkpointer.recoverables, checkpoint.paramfiles)
    content = yaml.safe_load(checkpoint.paramfiles["mam"].read_text(encoding="utf-8"))
    now = mam.target.state_dict()
    own = {name: saved.get(name, START[name]).clone() for name in now}
    lams = [torch.tensor(lam) for lam in content["lam"]]
    merged = merged_by_formula(DonorTensors.of(mam, own), own, lams, Setting())
    return {
        "folded": mam.is_folded,
        "lam_left": [k for k, _ in brain.modules.named_parameters() if k.endswith("lam")],
        "lam": content["lam"],
        "in_checkpoint": len(set(saved) & set(now)),
        "trained": any(not torch.equal(own[name], START[name]) for name in merged),
        "off_formula": max(float((now[k] - v).abs().max()) for k, v in merged.items()),
        "off_own": min(float((now[k] - own[k]).abs().max()) for k in merged if "weight" in k),
        "others_differ": [
            k for k in now if k in saved and k not in merged and not torch.equal(now[k], own[k])
        ],
        "optimizer": type(getattr(brain, "optimizer", None)).__name__,
    }


def saved_target(target: Any, recoverables: dict, files: dict) -> dict[str, Tensor]:
    """The target's tensors in a checkpoint, by the target's names."""
    for name, module in recoverables.items():
        for path, part in module.named_modules() if isinstance(module, torch.nn.Module) else ():
            inside = [where for where, found in target.named_modules() if found is part]
            if part is target or inside:
                state = torch.load(files[name], weights_only=True, map_location="cpu")
                if part is target:
                    cut = len(path) + bool(path)
                    return {k[cut:]: v for k, v in state.items() if k.startswith(path)}
                return {f"{inside[0]}.{k}": v for k, v in state.items()}
    raise LookupError("the target is in no checkpoint")


if __name__ == "__main__":
    notes, *sys.argv = sys.argv[1:]
    MAM.apply = note_the_start(MAM.apply)  # type: ignore[method-assign]
    sb.Brain.evaluate = evaluated_twice(sb.Brain.evaluate)
    sb.Brain.evaluate_batch = note_losses(sb.Brain.evaluate_batch)
    checkpoints.average_checkpoints = note_averaging(checkpoints.average_checkpoints)
    pretrainer = sb.utils.parameter_transfer.Pretrainer
    pretrainer.load_collected = note_loading(pretrainer.load_collected)
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    Path(notes).write_text(json.dumps(NOTES), encoding="utf-8")
