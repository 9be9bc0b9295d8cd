"""Where a model lies on this disk, without asking a network."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from speechbrain_mam.errors import MAMError
from speechbrain_mam.sources import EMBEDDED_MODELS, WHEELS, resolve_model


def find_offline(name: str, files: tuple[str, ...] = (".safetensors", ".onnx")) -> Path | None:
    """What :func:`~speechbrain_mam.sources.resolve_model` gives, or None if it would ask the Hub.

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
    if not (Path(name).expanduser().exists() or name in EMBEDDED_MODELS or _in_cache(name)):
        wheel = WHEELS.get(name)
        if wheel is None:
            return None
        try:
            metadata.distribution(wheel.distribution)
        except metadata.PackageNotFoundError:
            return None
    try:
        return resolve_model(name, files)
    except MAMError:
        if name in WHEELS:
            raise
        return None


def _in_cache(name: str) -> bool:
    with suppress(LocalEntryNotFoundError, FileNotFoundError, HFValidationError):
        snapshot_download(name, local_files_only=True)
        return True
    return False
