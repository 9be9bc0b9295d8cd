"""The model that a run tested, built again: its merge, its best checkpoint, its classifier."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechbrain_mam.ctc.units import attach
from speechbrain_mam.errors import MAMError
from speechbrain_mam.learning.linear import MergedModule
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.mam import MAM
from speechbrain_mam.model_files.read import load_checkpoint
from speechbrain_mam.results.fields import get
from speechbrain_mam.tasks.asr import ASR
from speechbrain_mam.tasks.audio_events import CLASSIFIER_FILE, AudioEvents
from speechbrain_mam.tasks.task import TaskBrain
from speechbrain_mam.text_files import read_json


def rebuild(folder: Path, hparams: dict[str, Any], results: Mapping[str, Any]) -> TaskBrain:
    """The Brain with the model as the run tested it."""
    if isinstance(hparams["encoder"], HubertCTC):
        kind: type[TaskBrain] = ASR
    elif "classifier" in hparams["modules"]:
        kind = AudioEvents
    else:
        raise MAMError(f"'{folder / 'hyperparams.yaml'}': its 'modules' have no 'classifier'")
    if isinstance(hparams["encoder"], HubertCTC):
        attach(folder / "save", hparams["encoder"], hparams.get("checkpointer"))
    mam: MAM | None = hparams.get("mam")
    zero_shot = mam is not None and not mam.learnable
    if zero_shot:
        assert mam is not None
        _choose_merge(folder, hparams, mam)
        _check_recorded(folder, "donor", results.get("donor_sha256"), mam.donor_hash)
    # A model that was merged and then trained has the merge in its checkpoint
    inside = zero_shot and hparams.get("merge_into") == "pretrained"
    brain = kind(
        modules=hparams["modules"],
        opt_class=hparams.get("opt_class"),
        hparams=hparams | ({"mam": None} if inside else {}),
        run_opts={"device": "cpu", "precision": "fp32", "eval_precision": "fp32"},
        checkpointer=hparams.get("checkpointer"),
    )
    trained = hparams["number_of_epochs"] > 0
    if not trained:
        recorded = results.get("target_sha256")
        _check_recorded(folder, "target", recorded, hparams["encoder"].files_sha256())
        if kind is AudioEvents:
            _load_classifier(folder, hparams["modules"]["classifier"])
    _recover(folder, brain, trained)
    brain.modules.eval()
    if any(isinstance(module, MergedModule) for module in brain.modules.modules()):
        raise AssertionError("a merge was not folded")
    return brain


def _choose_merge(folder: Path, hparams: Mapping[str, Any], mam: MAM) -> None:
    """The merge of a zero-shot run: what its search chose, or what its YAML says."""
    if not hparams.get("search"):
        return
    file = folder / "sweep.json"
    chosen = get(read_json(file), "chosen", dict, file)
    try:
        layers = list(chosen["layers"]) or "all"
        mam.change(lam=chosen["lam"], layers=layers, donor=chosen["donor"])
    except (KeyError, TypeError) as error:
        raise MAMError(f"'{file}': 'chosen' is no merge (lam, layers, donor)") from error


def _check_recorded(folder: Path, role: str, recorded: str | None, found: str) -> None:
    if recorded is not None and recorded != found:
        raise MAMError(
            f"'{folder}' was run with another {role}: its results.json says sha256 "
            f"{recorded[:12]}…, the {role} that its hyperparams.yaml names now has {found[:12]}…. "
            f"Put the {role} of then in its place"
        )


def _recover(folder: Path, brain: TaskBrain, trained: bool) -> None:
    """The best checkpoint, as a test recovers it: λ is folded in, a fixed merge done again."""
    best = None
    if brain.checkpointer is not None:
        best = brain.checkpointer.find_checkpoint(min_key=brain.metric)
    for damaged, fault in getattr(brain.checkpointer, "faults", {}).items() if not best else ():
        raise MAMError(f"the checkpoint '{damaged}' cannot be used: {fault}")
    if best is None and trained:
        raise MAMError(f"'{folder / 'save'}' holds no checkpoint with a validation {brain.metric}")
    try:
        brain.on_evaluate_start(min_key=brain.metric)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        where = best.path if best is not None else folder / "save"
        reason = str(error).splitlines()[0]
        raise MAMError(f"checkpoint '{where}' cannot be loaded: {reason}") from error


def _load_classifier(folder: Path, classifier: torch.nn.Module) -> None:
    file = folder / "save" / CLASSIFIER_FILE
    if not file.is_file():
        raise MAMError(
            f"'{file}': no such file. Without training, the classifier lies there; run the recipe "
            "once more, which writes it"
        )
    classifier.load_state_dict(load_checkpoint(file, "run the recipe once more"))
