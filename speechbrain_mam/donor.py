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

from speechbrain_mam.architectures import Architecture
from speechbrain_mam.attention import AttentionIndex, architecture, index_attention
from speechbrain_mam.errors import MAMError
from speechbrain_mam.naming import check_role, choose_tower
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
        return self._attention("target", None)

    def row(self) -> Architecture:
        """The model's family, a row of the table of architectures."""
        model_type = self.config.get("model_type")
        if model_type in (None, "timm_wrapper") and "architecture" in self.config:
            model_type = "timm/" + str(self.config["architecture"]).partition("_")[0]
        return architecture(model_type)

    def number(self, key: str, tower: str | None = None) -> int | None:
        """A number in the configuration, with dots between the steps; None where it is not told."""
        inner = self.config.get(f"{tower}_config")
        found: Any = inner if isinstance(inner, dict) else self.config
        for step in key.split("."):
            found = found.get(step, _UNTOLD) if isinstance(found, dict) else _UNTOLD
        if found is _UNTOLD:
            return None
        if not isinstance(found, int):
            raise MAMError(f"'{self.path}': expected a number as '{key}', got {found!r}")
        return found

    def _attention(self, role: str, tower: str | None) -> AttentionIndex:
        row, where = self.row(), f"'{self.path}'"
        check_role(row, role, where)
        shapes, tower = choose_tower(self.shapes, row, tower, where)
        repeats = self.number(row.repeats) if row.repeats else None
        return index_attention(shapes, row, self.number(row.heads, tower), where, repeats)


class DonorFolder(ModelFolder):
    """A model that is only read. Of several towers, ``tower`` names the one that is meant."""

    tower: str | None = None

    def attention(self) -> AttentionIndex:
        """Where the self-attention of this model, or of its chosen tower, is."""
        return self._attention("donor", self.tower)


def open_donor(source: str | Path, tower: str | None = None) -> DonorFolder:
    """A donor's tensors: of a model folder, or of a single file.

    Arguments
    ---------
    source : str or Path
        Hub name, local folder or file, see :func:`speechbrain_mam.sources.resolve_model`. Beside a
        ``.safetensors`` or ``.onnx`` file lies its ``config.json``; a ``.pt`` is BEATs' checkpoint.
        A folder may hold CTranslate2's ``model.bin``.
    tower : str, optional
        Which encoder of a model that has several, CLIP's ``text`` or ``vision``; behind the name
        and a ``#`` it says the same.

    Example
    -------
    >>> open_donor("speechbrain_mam/hubert-mini").attention().num_layers
    4
    """
    source, tower = _split_tower(source, tower)
    path = resolve_model(source, files=(".safetensors", ".onnx", ".pt"))
    folder: DonorFolder
    if path.suffix == ".onnx":
        from speechbrain_mam.onnx_file import OnnxFile

        folder = OnnxFile(path, known_config(source))
    elif checkpoint := _lonely(path, "*.pt"):
        from speechbrain_mam.beats_file import BEATsFile

        folder = BEATsFile(checkpoint)
    elif binary := _lonely(path, "model.bin"):
        from speechbrain_mam.ctranslate2_file import CTranslate2File

        folder = CTranslate2File(binary)
    else:
        folder = DonorFolder(path.parent, path) if path.is_file() else DonorFolder(path)
        if folder.row().interleaved:
            from speechbrain_mam.interleaved import HeadsTakenApart

            folder = HeadsTakenApart(folder)
    folder.tower = tower
    return folder


def _lonely(path: Path, pattern: str) -> Path | None:
    """A file that is all there is of a model, or a folder's only file of weights."""
    if path.is_file():
        return path if path.match(pattern) else None
    named = [*path.glob("*.safetensors*"), *path.glob("pytorch_model*")]
    files = sorted(path.glob(pattern))
    return files[0] if len(files) == 1 and not named else None


def _split_tower(source: str | Path, tower: str | None) -> tuple[str | Path, str | None]:
    """The name and the tower of ``name#tower``; a folder's own name may have a ``#``."""
    name, mark, behind = str(source).rpartition("#")
    if not mark or Path(source).expanduser().exists():
        return source, tower
    if tower not in (None, behind):
        raise MAMError(f"donor '{source}': 'tower' is '{tower}', the name says '{behind}'")
    return name, behind


class Donor:
    """A text or vision model that attention is taken from: never run, never trained, only read.

    Arguments
    ---------
    source : str or Path
        Hub name, local folder or file, see :func:`open_donor`.
    tower : str, optional
        Which encoder of a model that has several, such as CLIP's ``text`` or ``vision``.
        ``Donor("NAME#text")`` is the same as ``Donor("NAME", tower="text")``.

    Example
    -------
    >>> donor = Donor("speechbrain_mam/hubert-mini")
    >>> list(donor.tensor((0, "query", "weight")).shape), donor.tensor((0, "key", "bias")).dtype
    ([384, 384], torch.float32)
    """

    def __init__(self, source: str | Path, tower: str | None = None):
        self.folder = open_donor(source, tower)
        self.name = str(source) if tower is None else f"{source}#{tower}"
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
