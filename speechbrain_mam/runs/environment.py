"""``environment.json``: what a run's figures hang on besides its YAML, noted before any work."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

import speechbrain_mam
from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.lobes.pieces import Pieces
from speechbrain_mam.model_files.read import files_sha256, sha256_of
from speechbrain_mam.results.runs import ENVIRONMENT, UNIMPORTANT
from speechbrain_mam.tasks.task import TaskBrain
from speechbrain_mam.text_files import read_json

logger = get_logger(__name__)

PACKAGES = (
    *("torch", "torchaudio", "transformers", "speechbrain"),
    *("hyperpyyaml", "numpy", "soundfile"),
)


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
