"""``environment.json``: what a run's figures hang on besides its YAML, noted before any work.

A run that is started again goes on with its own training: a checkpoint is loaded as it is, and
after ``--fresh encoder`` in the folder of a run with ``fresh: attention`` the figures would be
those of the former training under the name of another. :func:`check_same_training` refuses that.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAMLError
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

import speechbrain_mam
from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.pieces import Pieces
from speechbrain_mam.model_files.read import files_sha256, sha256_of
from speechbrain_mam.results.runs import ENVIRONMENT, UNIMPORTANT
from speechbrain_mam.runs.yaml_files import keys_of
from speechbrain_mam.tasks.task import TaskBrain
from speechbrain_mam.text_files import read_json

logger = get_logger(__name__)

PACKAGES = (
    *("torch", "torchaudio", "transformers", "speechbrain"),
    *("hyperpyyaml", "numpy", "soundfile"),
)

BEGINNING = ("method", "seed", "fresh", "fresh_seed", "merge_into")
"""Keys that say how a training begins."""
MERGE = (
    *("lam", "layers", "projections", "layer_map", "bias", "donor_scale", "merge_method", "align"),
    *("width", "rotate", "control", "control_seed"),
    *("search", "lam_grid", "layer_choices", "donor_models"),
)
"""Those of a merge that is in the weights that were trained, searched for or not."""


def environment_of(brain: TaskBrain) -> dict[str, str]:
    """Versions, hashes of models, manifests and code, the command, and where it is computed.

    Arguments
    ---------
    brain : TaskBrain
        With its models; its ``save_folder`` holds the manifests.
    """
    hparams, mam = brain.hparams, brain.mam
    gpu = torch.device(brain.device).type == "cuda"
    found = {"python": platform.python_version()}
    found |= {name: metadata.version(name) for name in PACKAGES}
    found["torch"] = torch.__version__  # with its build, for CPU or a CUDA
    found["speechbrain_mam"] = speechbrain_mam.__version__
    found["package_sha256"] = package_sha256()
    if hasattr(hparams.encoder, "files_sha256"):
        found["target_sha256"] = hparams.encoder.files_sha256()
    alphabet = getattr(hparams.encoder, "alphabet", None)
    if isinstance(alphabet, Pieces):
        found["sentencepiece"] = metadata.version("sentencepiece")
        found["tokenizer_sha256"] = sha256_of(alphabet.file)
    if mam is not None:
        found["donor_sha256"] = mam.donor_hash
    for manifest in sorted(Path(hparams.save_folder).glob("*.csv")):
        found[f"{manifest.name}_sha256"] = sha256_of(manifest)
    found["device"] = torch.cuda.get_device_name(brain.device) if gpu else _processor()
    found |= {"precision": str(brain.precision), "eval_precision": str(brain.eval_precision)}
    found["ranks"] = str(torch.distributed.get_world_size() if brain.distributed_launch else 1)
    found["threads"] = str(torch.get_num_threads())
    return found | {"command": shlex.join(sys.argv)}


def package_sha256() -> str:
    """SHA-256 of this package's code, as it is on the disk.

    Example
    -------
    >>> len(package_sha256())
    64
    """
    return files_sha256(sorted(Path(speechbrain_mam.__file__).parent.rglob("*.py")))


def _processor() -> str:
    """A CPU and what PyTorch makes of it: its vector instructions decide the last digits."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def write_environment(brain: TaskBrain) -> None:
    """Note the environment in the output folder; say it if a run goes on in another one."""
    if not if_main_process():
        return
    file = Path(brain.hparams.output_folder) / ENVIRONMENT
    now = environment_of(brain)
    before: Mapping[str, str] = read_json(file) if file.is_file() else now
    changed = [
        f"{key} ({before.get(key)}, now {value})"
        for key, value in now.items()
        if key not in UNIMPORTANT and before.get(key) != value
    ]
    if changed:
        logger.warning(
            "this run was begun in another environment: %s. Its figures may differ from those of "
            "a run that was not interrupted",
            ", ".join(changed),
        )
    write_text_beside(file, json.dumps(now, indent=2, ensure_ascii=False) + "\n")


def check_same_training(hparams: Mapping[str, Any]) -> None:
    """Refuse a run that would go on with another training, before it writes anything.

    What may change from one start to the next (epochs, rates, precision, decoding) may differ.

    Arguments
    ---------
    hparams : mapping
        What the YAML gives: the run that is about to begin.

    Raises
    ------
    MAMError
        Names the key that differs, or says that it is another target or donor.
    """
    folder = Path(hparams["output_folder"])
    save = hparams.get("save_folder")
    if save is None or not any(Path(save).glob("CKPT*")):
        return
    merged = _is_trained_merged(hparams)
    former = _former_keys(folder / "hyperparams.yaml")
    for key in (*BEGINNING, *(MERGE if merged else ())):
        if key in former and key in hparams:
            then, now = former[key], hparams[key]
            if _plain(then) != _plain(now):
                raise MAMError(
                    f"key '{key}': the training in '{folder}' began with '{then}', now it is "
                    f"'{now}'. Use the former value, or another --output_folder"
                )
    noted = read_json(file) if (file := folder / ENVIRONMENT).is_file() else {}
    encoder: Any = hparams.get("encoder")
    mam: Any = hparams.get("mam")
    models: dict[str, Callable[[], str]] = {}
    if hasattr(encoder, "files_sha256"):
        models["target"] = encoder.files_sha256
    if merged:
        models["donor"] = lambda: mam.donor_hash
    for role, digest in models.items():
        if noted.get(f"{role}_sha256") not in (None, now := digest()):
            raise MAMError(
                f"the training in '{folder}' began with another {role} (sha256 "
                f"{noted[f'{role}_sha256'][:12]}…) than '{_named(role, hparams)}' ({now[:12]}…). "
                "Use that one, or another --output_folder"
            )


def _named(role: str, hparams: Mapping[str, Any]) -> str:
    keys = ("donor_model",) if role == "donor" else ("speech_model", "beats_checkpoint")
    return str(next((hparams[key] for key in keys if key in hparams), role))


def _former_keys(file: Path) -> Mapping[str, Any]:
    """Of the run before; SpeechBrain may have been killed while it wrote them.

    Without the last one, which may be half of what it was: it is never one of a beginning.
    """
    try:
        return dict(list(keys_of(file).items())[:-1]) if file.is_file() else {}
    except (MAMError, YAMLError, ValueError):
        logger.warning("'%s' cannot be read; it is written anew", file)
        return {}


def _is_trained_merged(hparams: Mapping[str, Any]) -> bool:
    """Whether what a checkpoint holds was trained with the merge in it."""
    return hparams.get("mam") is not None and hparams.get("merge_into") in (None, "pretrained")


def _plain(value: Any) -> Any:
    """A key's value, whether it comes from a file or from the command line: 0.9 is '0.9'."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
