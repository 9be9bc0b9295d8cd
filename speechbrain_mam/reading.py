"""Model files that come from elsewhere: read as data, never as code, with errors that name them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from speechbrain_mam.errors import MAMError
from speechbrain_mam.sources import sha256_of

if TYPE_CHECKING:
    import torch


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    MAMError
        If there is no such file, or it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MAMError(f"'{file}': no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MAMError(f"'{file}' is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise MAMError(f"'{file}': expected a JSON object, found {type(content).__name__}")
    return content


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a ``.safetensors`` file or a PyTorch state dict.

    Raises
    ------
    MAMError
        If the file is cut short or holds something else.
    """
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in load_bin(file).items()}
    try:
        with safe_open(file, framework="np") as stream:
            return {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise MAMError(f"'{file}' is not a whole safetensors file: {error}") from error


@lru_cache(maxsize=1)  # every tensor of a .bin comes with the whole file; mmap keeps it on disk
def load_bin(file: Path) -> dict[str, torch.Tensor]:
    """A PyTorch state dict; see :func:`load_checkpoint`."""
    import torch

    state = load_checkpoint(
        file,
        "load the model with transformers and call save_pretrained(folder), which writes "
        "safetensors",
    )
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise MAMError(f"'{file}' does not hold a state dict (name → tensor)")
    return state


def files_sha256(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, in their order, that of their digests.

    Example
    -------
    >>> files_sha256([Path(__file__)]) == sha256_of(Path(__file__))
    True
    """
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def load_checkpoint(file: Path, remedy: str) -> Any:
    """What ``torch.save`` wrote, as long as that is data: pickled code is refused.

    Arguments
    ---------
    file : Path
        The checkpoint.
    remedy : str
        How to make data of one with code in it; ends the message.

    Raises
    ------
    MAMError
        If the file holds code, or is cut short.
    """
    import torch

    try:
        # Files from before torch 1.6 (bert-large-uncased's) are no zip archives: no mmap for them.
        return torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError as error:
        raise MAMError(
            f"'{file}' holds pickled code and is not read. Convert it where you trust it: {remedy}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise MAMError(f"'{file}' is not a whole PyTorch checkpoint: {error}") from error
