"""What a kept figure belongs to: the model, its settings, the batches and where they were run."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping

import torch
import transformers
from speechbrain.dataio.batch import PaddedBatch
from torch import nn

from speechbrain_mam.model_files.read import add_tensor
from speechbrain_mam.version import __version__

NO_SETTINGS = ("training", "name_or_path")
"""What is noted in a module and changes nothing that a model in evaluation mode computes."""


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a model's tensors and their names.

    Example
    -------
    >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> weights_sha256(one) == weights_sha256(one), weights_sha256(one) == weights_sha256(other)
    (True, False)
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        add_tensor(digest, name, tensor)
    return digest.hexdigest()


def settings_sha256(model: nn.Module) -> str:
    """SHA-256 of what decides a model's figures and is no tensor: scales, sizes, its alphabet.

    Of every module its kind, and its attributes that are numbers, texts or frozen records.

    Example
    -------
    >>> a, b = nn.LayerNorm(4, eps=1e-5), nn.LayerNorm(4, eps=1e-6)
    >>> settings_sha256(a) == settings_sha256(a.eval()), settings_sha256(a) == settings_sha256(b)
    (True, False)
    """
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        plain = {
            name: _in_order(value)
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in NO_SETTINGS and _is_plain(value)
        }
        digest.update(repr((path, type(module).__name__, sorted(plain.items()))).encode())
    return digest.hexdigest()


def _in_order(value: object) -> object:
    """The value; of a record that holds sets, its fields with the sets sorted.

    A set of texts is in another order in each process, and a sweep is taken up by another one.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    sets = {
        name: sorted(v, key=repr) for name, v in fields.items() if isinstance(v, set | frozenset)
    }
    return fields | sets if sets else value


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float | str) or dataclasses.is_dataclass(value)


def batches_sha256(batches: Iterable[PaddedBatch]) -> str:
    """SHA-256 of what is in the batches, and of how it is dealt to them.

    Example
    -------
    >>> def batch(*items):
    ...     return PaddedBatch([{"id": str(i), "sig": torch.tensor([i])} for i in items])
    >>> batches_sha256([batch(1.0, 2.0)]) == batches_sha256([batch(1.0), batch(2.0)])
    False
    """
    digest = hashlib.sha256()
    for batch in batches:
        for value in batch:
            for part in value if hasattr(value, "lengths") else [value]:
                if isinstance(part, torch.Tensor):
                    add_tensor(digest, repr((part.dtype, tuple(part.shape))), part)
                else:
                    digest.update(repr(part).encode())
    return digest.hexdigest()


def circumstances(
    batches: Iterable[PaddedBatch], device: str | torch.device, precision: str
) -> dict[str, str]:
    """What figures hang on besides the model, by what it is: for a sweep that is taken up again.

    Arguments
    ---------
    batches : iterable of PaddedBatch
        What is evaluated. Size and order of a batch move an error rate, as padding does.
    device : str or torch.device
        Where. One GPU is taken for another of its kind.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.

    Example
    -------
    >>> sorted(circumstances([], "cpu", "fp32"))[:3]
    ['batches', 'device', 'precision']
    """
    kind = torch.device(device).type
    return {
        "batches": batches_sha256(batches),
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else kind,
        "precision": precision,
        "version of torch": torch.__version__,
        "version of transformers": transformers.__version__,
        "version of speechbrain_mam": __version__,
    }


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is another now; with its values where they can be read.

    Example
    -------
    >>> differences({"precision": "fp32"}, {"precision": "bf16"})
    ["precision ('fp32', now 'bf16')"]
    """
    changed = [name for name in now if before.get(name) != now[name]]
    return [
        name
        if re.fullmatch(r"[0-9a-f]{64}", now[name])
        else f"{name} ('{before.get(name, 'not noted')}', now '{now[name]}')"
        for name in changed
    ]
