"""A donor's query, key and value, read lazily from disk: no donor model is ever built.

:class:`ModelFolder` reads single tensors of a Hugging Face folder; :class:`Donor` gives those of
its self-attention in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open

from speechbrain_mam.attention import AttentionIndex, architecture, index_attention
from speechbrain_mam.errors import MAMError
from speechbrain_mam.reading import load_bin, read_json, shapes_in
from speechbrain_mam.sources import known_config, resolve_model

if TYPE_CHECKING:
    import torch

# torch alone is half a gigabyte: `speechbrain-mam`, which works on files, does without it, so it
# is imported here only where a tensor is asked for.
TensorKey = tuple[int, str, str]
"""``(layer, projection, kind)``, e.g. ``(3, "query", "weight")``."""

_UNTOLD = object()


class TensorSource(Protocol):
    """Whatever gives a donor's tensors in float32: a file, or a control made of random numbers."""

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """The tensor of ``(layer, projection, kind)``."""
        ...


class ModelFolder:
    """The tensors of a Hugging Face model folder, without the model.

    Reads ``model.safetensors``, its sharded form (``model.safetensors.index.json``) or, where
    there is neither, ``pytorch_model.bin`` with ``torch.load(weights_only=True)``: a pickle that
    would run code is refused.

    Arguments
    ---------
    path : Path
        The folder.
    file : Path, optional
        The one file to read in it, whatever else there is.

    Attributes
    ----------
    config : dict
        ``config.json``.
    shapes : dict of str to tuple of int
        Shape of every tensor.
    files : dict of str to Path
        File of every tensor.

    Raises
    ------
    MAMError
        If a file is missing, cut short or not what its name says.

    Example
    -------
    >>> folder = ModelFolder(resolve_model("speechbrain_mam/hubert-mini"))
    >>> folder.config["model_type"]
    'hubert'
    """

    def __init__(self, path: Path, file: Path | None = None):
        self.path, self._file = path, file
        self.config: dict[str, Any] = read_json(path / "config.json")
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self.weight_files():
            for name, shape in shapes_in(file).items():
                self.files[name], self.shapes[name] = file, shape

    def weight_files(self) -> list[Path]:
        """The files that hold the weights; a shard that an index names must exist."""
        if self._file is not None:
            return [self._file]
        for single, index in (
            ("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ):
            if (self.path / index).is_file():
                weight_map = read_json(self.path / index).get("weight_map")
                if not isinstance(weight_map, dict) or not weight_map:
                    raise MAMError(f"'{self.path / index}' has no 'weight_map' (tensor → shard)")
                shards = sorted(set(weight_map.values()))
                for shard in shards:
                    if not (self.path / shard).is_file():
                        raise MAMError(
                            f"'{self.path / index}' names the shard '{shard}': no such file"
                        )
                return [self.path / shard for shard in shards]
            if (self.path / single).is_file():
                return [self.path / single]
        raise MAMError(
            f"model folder '{self.path}' has no weights: expected model.safetensors, "
            "model.safetensors.index.json, pytorch_model.bin or pytorch_model.bin.index.json"
        )

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the precision that it is stored in."""
        file = self.files[name]
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stream:
                return stream.get_tensor(name)
        return load_bin(file)[name]

    def attention(self) -> AttentionIndex:
        """Where this model's self-attention is."""
        model_type = self.config.get("model_type")
        if model_type in (None, "timm_wrapper") and "architecture" in self.config:
            model_type = "timm/" + str(self.config["architecture"]).partition("_")[0]
        row = architecture(model_type)
        heads: Any = self.config
        for step in row.heads.split("."):
            heads = heads.get(step, _UNTOLD) if isinstance(heads, dict) else _UNTOLD
        if not isinstance(heads, int) and heads is not _UNTOLD:
            raise MAMError(f"'{self.path}': expected a number as '{row.heads}', got {heads!r}")
        heads = None if heads is _UNTOLD else heads
        return index_attention(self.shapes, row, heads, where=f"'{self.path}'")


def open_donor(source: str | Path) -> ModelFolder:
    """A donor's tensors: of a model folder, or of a single ``.safetensors`` or ``.onnx`` file.

    Arguments
    ---------
    source : str or Path
        Hub name, local folder or file, see :func:`speechbrain_mam.sources.resolve_model`. Beside a
        file lies its ``config.json``.

    Example
    -------
    >>> open_donor("speechbrain_mam/hubert-mini").attention().num_layers
    4
    """
    path = resolve_model(source, files=(".safetensors", ".onnx"))
    if path.suffix == ".onnx":
        from speechbrain_mam.onnx_file import OnnxFile

        return OnnxFile(path, known_config(source))
    return ModelFolder(path.parent, path) if path.is_file() else ModelFolder(path)


class Donor:
    """A text or vision model that attention is taken from: never run, never trained, only read.

    Arguments
    ---------
    source : str or Path
        Hub name, local folder or file, see :func:`open_donor`.

    Example
    -------
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> list(donor.tensor((0, "query", "weight")).shape), donor.tensor((0, "key", "bias")).dtype
    ([384, 384], torch.float32)
    """

    def __init__(self, source: str | Path):
        self.name = str(source)
        self.folder = open_donor(source)
        self.index = self.folder.attention()

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """One weight ``[hidden, hidden]`` or bias ``[hidden]``, widened to float32."""
        ref = self.index.tensors[key]
        tensor = self.folder.read(ref.name)
        return (tensor if ref.rows is None else tensor[slice(*ref.rows)]).float()

    def fingerprint(self, keys: Iterable[TensorKey]) -> str:
        """:func:`fingerprint` of these tensors."""
        return fingerprint(self, keys)


def fingerprint(source: TensorSource, keys: Iterable[TensorKey]) -> str:
    """SHA-256 over the given tensors' names, shapes and float32 values.

    A checkpoint keeps it, so that λ is never applied to another donor.
    """
    digest = hashlib.sha256()
    for key in keys:
        tensor = source.tensor(key).contiguous()
        digest.update(repr((key, tuple(tensor.shape))).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
