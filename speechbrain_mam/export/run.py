"""A finished run's output folder, with the model as it was tested."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from hyperpyyaml import load_hyperpyyaml

from speechbrain_mam.asr import ASR
from speechbrain_mam.audio_events import CLASSIFIER_FILE, AudioEvents
from speechbrain_mam.audio_events_data import class_names
from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.mam import MAM
from speechbrain_mam.merged_linear import MergedModule
from speechbrain_mam.reading import load_checkpoint
from speechbrain_mam.report.fields import get, load
from speechbrain_mam.report.runs import read_run
from speechbrain_mam.task import TaskBrain


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run tested, and what is known of it.

    Arguments
    ---------
    folder : Path
        The run's output folder.
    method : str
        Name of the test whose model this is.
    hparams : mapping
        What its ``hyperparams.yaml`` gives.
    encoder : HubertCTC or BEATsEncoder
        The model, merged or folded into plain layers, in evaluation mode.
    classifier : torch.nn.Module, optional
        Of audio events, SpeechBrain's ``Linear``.
    classes : tuple of str
        Of audio events, in the order of the classifier's outputs.
    target, donor : str or None
        As the YAML names them; without a merge there is no donor.
    target_sha256, donor_sha256 : str or None
        Of the target's weight files, and of the donor's tensors that were mixed in.
    control : str
        The control that stood in the donor's place, or ``none``.
    lambdas : mapping of str to float
        λ by layer (or as fine as it was learned).
    results : mapping
        ``results.json``.
    """

    folder: Path
    method: str
    hparams: Mapping[str, Any]
    encoder: HubertCTC | BEATsEncoder
    classifier: torch.nn.Module | None
    classes: tuple[str, ...]
    target: str
    donor: str | None
    target_sha256: str
    donor_sha256: str | None
    control: str
    lambdas: Mapping[str, float]
    results: Mapping[str, Any] = field(repr=False)

    @property
    def is_speech(self) -> bool:
        """Whether it recognises speech; else it classifies audio events."""
        return isinstance(self.encoder, HubertCTC)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The figures of its own test."""
        return self.results["results"][self.method]


def open_run(folder: Path) -> FinishedRun:
    """The model that a finished run tested, out of its hyperparameters and its best checkpoint.

    Nothing in the folder is changed.

    Arguments
    ---------
    folder : Path
        The output folder; of an audio-event run, that of one test fold.

    Raises
    ------
    MAMError
        If the run is not finished, its checkpoint is missing or damaged, its target or donor is
        missing or another one, or its model is none that can be exported.
    """
    results = _read_results(folder)
    with quiet():
        hparams = _read_hparams(folder)
        brain = _build(folder, hparams, results)
        return _tested(folder, hparams, brain, results)


def _read_results(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise MAMError(f"'{folder}': no such folder; expected the output folder of a finished run")
    folds = sorted(file.parent.name for file in folder.glob("fold_[1-5]/results.json"))
    if folds:
        raise MAMError(
            f"'{folder}' holds the runs of test folds, each with a model of its own: export one of "
            f"{', '.join(str(folder / fold) for fold in folds)}"
        )
    read_run(folder)  # checks every field and the utterances' files
    for name in ("hyperparams.yaml", "save"):
        if not (folder / name).exists():
            raise MAMError(f"'{folder}' holds no {name}: not the output folder of a recipe")
    return load(folder / "results.json")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries’ notes on what they load and write."""
    level = logging.root.manager.disable
    bars = transformers.utils.logging.is_progress_bar_enabled()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)
        transformers.utils.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _read_hparams(folder: Path) -> dict[str, Any]:
    """The YAML as the run recorded it; where the folder lies now is where its files are."""
    file, save = folder / "hyperparams.yaml", str(folder / "save")
    text = file.read_text(encoding="utf-8")
    overrides: dict[str, Any] = {"save_folder": save}
    if "\ncheckpointer:" in text:
        overrides["checkpointer"] = {"checkpoints_dir": save}
    if "\ntensorboard_logger:" in text:
        overrides["tensorboard_logger"] = {"use": False}  # it would write into the run's folder
    state = torch.get_rng_state()
    try:
        hparams = load_hyperpyyaml(text, overrides)
    except MAMError as error:
        raise MAMError(f"'{file}': {error}") from error
    except (ImportError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(part) for part in error.args)
        raise MAMError(f"'{file}' cannot be loaded: {reason}") from error
    finally:
        torch.set_rng_state(state)  # the YAML seeds everything
    for key, kinds in (("encoder", (HubertCTC, BEATsEncoder)), ("modules", dict)):
        if not isinstance(hparams.get(key), kinds):
            found = type(hparams[key]).__name__ if key in hparams else "nothing"
            raise MAMError(
                f"'{file}': '{key}' is {found}; the models that can be exported are this "
                "package's recipes': HubertCTC, or BEATsEncoder with a classifier"
            )
    # No Brain is to write its plan into the run's folder once more
    return hparams | {"output_folder": ""}


def _build(folder: Path, hparams: dict[str, Any], results: Mapping[str, Any]) -> TaskBrain:
    """The Brain with the model as the run tested it."""
    if isinstance(hparams["encoder"], HubertCTC):
        kind: type[TaskBrain] = ASR
    elif "classifier" in hparams["modules"]:
        kind = AudioEvents
    else:
        raise MAMError(f"'{folder / 'hyperparams.yaml'}': its 'modules' have no 'classifier'")
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
    chosen = get(load(file), "chosen", dict, file)
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


def _tested(
    folder: Path, hparams: Mapping[str, Any], brain: TaskBrain, results: Mapping[str, Any]
) -> FinishedRun:
    mam: MAM | None = hparams.get("mam")
    encoder = hparams["encoder"]
    lambdas: Mapping[str, float] = results.get("lambdas") or {}
    if mam is not None and not lambdas:
        lambdas = _fixed_lambdas(mam)
    return FinishedRun(
        folder=folder,
        method=results["method"],
        hparams=hparams,
        encoder=encoder,
        classifier=hparams["modules"].get("classifier"),
        classes=tuple(class_names(folder / "save")) if isinstance(brain, AudioEvents) else (),
        target=str(hparams.get("speech_model") or hparams.get("beats_checkpoint")),
        donor=mam.donor.name if mam is not None else None,
        target_sha256=results.get("target_sha256") or encoder.files_sha256(),
        donor_sha256=mam.donor_hash if mam is not None else None,
        control=results["control"],
        lambdas=lambdas,
        results=results,
    )


def _fixed_lambdas(mam: MAM) -> dict[str, float]:
    """λ of each layer; by projection where those differ."""
    found: dict[int, dict[str, float]] = {}
    for entry in mam.plan.entries:
        found.setdefault(entry.layer, {})[entry.projection] = entry.lam
    shown: dict[str, float] = {}
    for layer, by_projection in found.items():
        if len(set(by_projection.values())) == 1:
            shown[f"layer {layer}"] = next(iter(by_projection.values()))
        else:
            shown |= {f"layer {layer} {name}": lam for name, lam in by_projection.items()}
    return shown
