"""Model files that come from elsewhere: read as data, never as code, with errors that name them."""

from __future__ import annotations

import pickle
import time
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from speechbrain_mam.architectures.tensor_checks import SHORT_NAMES, type_name
from speechbrain_mam.errors import MAMError

if TYPE_CHECKING:
    import torch


class Stored(NamedTuple):
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    type: str


def tensors_in(file: Path) -> dict[str, Stored]:
    """Shape and type of every tensor in a ``.safetensors`` file or a PyTorch state dict.

    Raises
    ------
    MAMError
        If the file is cut short or holds something else.
    """
    if file.suffix != ".safetensors":
        return {name: stored_as(tensor) for name, tensor in load_bin(file).items()}
    try:
        with safe_open(file, framework="np") as stream:
            slices = ((name, stream.get_slice(name)) for name in stream.keys())  # noqa: SIM118
            return {
                name: Stored(
                    tuple(one.get_shape()), SHORT_NAMES.get(one.get_dtype(), one.get_dtype())
                )
                for name, one in slices
            }
    except SafetensorError as error:
        raise MAMError(
            f"'{file}' is not a whole safetensors file ({error}): copy or download it again"
        ) from error


def stored_as(tensor: torch.Tensor) -> Stored:
    """Shape and type of a tensor.

    Example
    -------
    >>> import torch
    >>> stored_as(torch.zeros(2, 3))
    Stored(shape=(2, 3), type='float32')
    """
    return Stored(tuple(tensor.shape), type_name(tensor))


def state_of(file: Path) -> tuple[int, int, int]:
    """What tells that a file was written anew: it goes into a cache's key with its path."""
    found = file.stat()
    # Within a tick of the clock a second writing has the time of the first: not to be kept then.
    fresh = time.time_ns() - found.st_mtime_ns < 2_000_000_000
    return found.st_mtime_ns, found.st_size, time.monotonic_ns() if fresh else 0


def load_bin(file: Path) -> dict[str, torch.Tensor]:
    """A PyTorch state dict; see :func:`load_checkpoint`."""
    return _load_bin(file, state_of(file))


@lru_cache(maxsize=1)  # every tensor of a .bin comes with the whole file; mmap keeps it on disk
def _load_bin(file: Path, state: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    found = load_checkpoint(
        file,
        "load the model with transformers and call save_pretrained(folder), which writes "
        "safetensors",
    )
    return state_dict(found, f"'{file}'")


def state_dict(found: Any, where: str) -> dict[str, torch.Tensor]:
    """What was found, if it is a state dict of plain tensors.

    Raises
    ------
    MAMError
        If it is something else; ``where`` begins the message.
    """
    import torch

    if not isinstance(found, dict):
        raise MAMError(f"{where} is no state dict (name → tensor), but a {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or not torch.is_tensor(value):
            raise MAMError(
                f"{where} is no state dict (name → tensor): {name!r} is a {type(value).__name__}"
            )
        if value.layout is not torch.strided:
            raise MAMError(
                f"{where}: '{name}' is stored as {value.layout}, expected a dense tensor"
            )
        if value.is_meta:
            raise MAMError(f"{where}: '{name}' is stored without its values (device 'meta')")
    return found


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    return _sha256_of(file, state_of(file))


@lru_cache(maxsize=8)
def _sha256_of(file: Path, state: tuple[int, int, int]) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_sha256(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, in their order, that of their digests.

    Example
    -------
    >>> files_sha256([Path(__file__)]) == sha256_of(Path(__file__))
    True
    """
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def add_tensor(digest: Any, name: str, values: Any) -> None:
    r"""Take a tensor, or an array of NumPy's, into a digest: its name, and the bytes it holds.

    All hashes of tensors are made of it; what a checkpoint and an export keep of the donor is one.

    Example
    -------
    >>> import numpy as np, torch
    >>> digests = sha256(), sha256()
    >>> add_tensor(digests[0], "bias", torch.ones(2))
    >>> add_tensor(digests[1], "bias", np.ones(2, np.float32))
    >>> digests[0].digest() == digests[1].digest() == sha256(b"bias" + 2 * b"\0\0\x80?").digest()
    True
    """
    if hasattr(values, "detach"):
        import torch

        values = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest.update(name.encode())
    digest.update(values.tobytes())


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
    except Exception as error:  # torch's unpickler raises whatever a spoiled stream leads it to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MAMError(f"'{file}' is not a whole PyTorch checkpoint: {reason}") from error
