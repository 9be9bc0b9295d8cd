"""Where a model lies on this disk, without asking a network."""

from __future__ import annotations

from pathlib import Path

from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.find import WHEELS, look_here


def find_offline(name: str, files: tuple[str, ...] = (".safetensors", ".onnx")) -> Path | None:
    """What :func:`~speechbrain_mam.model_files.find.resolve_model` gives, or None if it would ask the Hub.

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
