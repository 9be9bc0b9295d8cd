"""A finished run's output folder, with the model as it was tested."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.error import YAMLError

from speechbrain_mam.ctc.beam_search import Decoding
from speechbrain_mam.errors import MAMError
from speechbrain_mam.export.data_only import data_only
from speechbrain_mam.export.rebuild import rebuild
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.mam import MAM
from speechbrain_mam.merging.methods import METHODS
from speechbrain_mam.results.decoding import decoding_of, differing_decoders
from speechbrain_mam.results.runs import read_run
from speechbrain_mam.tasks.asr import ASR
from speechbrain_mam.tasks.audio_events import AudioEvents
from speechbrain_mam.tasks.audio_events_data import class_names
from speechbrain_mam.tasks.task import TaskBrain
from speechbrain_mam.text_files import check_aliases, read_json, read_text


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
    decoding : Decoding, optional
        Of speech: how its test decoded.
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
    decoding: Decoding | None = None

    @property
    def is_speech(self) -> bool:
        """Whether it recognises speech; else it classifies audio events."""
        return isinstance(self.encoder, HubertCTC)

    @property
    def is_start(self) -> bool:
        """Whether its training began with a donor's attention, and had no λ."""
        mam: MAM | None = self.hparams.get("mam")
        return mam is not None and mam.is_start

    @property
    def formula(self) -> str:
        """What a merged run's method makes of W_target and W_donor."""
        return METHODS[self.hparams["mam"].options["method"]].formula

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
        brain = rebuild(folder, hparams, results)
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
    return read_json(folder / "results.json")


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
    text = read_text(file)
    check_aliases(text, f"'{file}'")
    found = data_only(text, file)
    for key in ("encoder", "classifier", "modules", "mam"):
        if key in found.left_out:
            raise MAMError(
                f"'{file}': '{key}' would call {found.left_out[key][0]}; what a run folder names "
                "is not executed. The models that can be exported are this package's recipes': "
                "HubertCTC, or BEATsEncoder with a classifier"
            )
    overrides: dict[str, Any] = {"save_folder": save}
    if "\ncheckpointer: !new:" in found.text:
        overrides["checkpointer"] = {"checkpoints_dir": save}
    state = torch.get_rng_state()
    try:
        hparams = load_hyperpyyaml(found.text, overrides)
    except MAMError as error:
        raise MAMError(f"'{file}': {error}") from error
    except Exception as error:  # of HyperPyYAML, or of one of the allowed calls
        told = str(error) if isinstance(error, YAMLError) else " ".join(map(str, error.args))
        reason = " ".join(told.split()) or type(error).__name__
        raise MAMError(f"'{file}' cannot be loaded: {reason}") from error
    finally:
        torch.set_rng_state(state)  # the YAML seeds everything
    for key, kinds in (("encoder", (HubertCTC, BEATsEncoder)), ("modules", dict)):
        if not isinstance(hparams.get(key), kinds):
            kind = type(hparams[key]).__name__ if key in hparams else "nothing"
            raise MAMError(
                f"'{file}': '{key}' is {kind}; the models that can be exported are this "
                "package's recipes': HubertCTC, or BEATsEncoder with a classifier"
            )
    checkpointer = hparams.get("checkpointer")
    if checkpointer is not None:  # what has no part in the model was left out
        checkpointer.read_only = True
        objects = checkpointer.recoverables
        checkpointer.recoverables = {name: o for name, o in objects.items() if o is not None}
    # No Brain is to write its plan into the run's folder once more
    return hparams | {"output_folder": ""}


def _tested(
    folder: Path, hparams: Mapping[str, Any], brain: TaskBrain, results: Mapping[str, Any]
) -> FinishedRun:
    mam: MAM | None = hparams.get("mam")
    encoder = hparams["encoder"]
    lambdas: Mapping[str, float] = results.get("lambdas") or {}
    if mam is not None and not lambdas and not mam.is_start:
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
        decoding=_decoding(folder, brain, results) if isinstance(brain, ASR) else None,
    )


def _decoding(folder: Path, brain: ASR, results: Mapping[str, Any]) -> Decoding:
    """The decoder of the run's test, by what its YAML says, checked against what it noted."""
    noted = decoding_of(results, folder / "results.json")
    if changed := differing_decoders(noted, brain.decoding.described()):
        raise MAMError(
            f"'{folder}' was tested with another decoder than its hyperparams.yaml gives now: "
            f"{changed}. Put the language model of then in its place"
        )
    return brain.decoding


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
