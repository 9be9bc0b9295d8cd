"""A donor's query, key and value, read lazily from disk: no donor model is ever built.

:class:`ModelFolder` reads single tensors of a Hugging Face folder; :class:`Donor` gives those of
its self-attention in float32.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open

from speechbrain_mam.architectures import Architecture
from speechbrain_mam.attention import AttentionIndex, TensorRef, architecture, index_attention
from speechbrain_mam.errors import MAMError
from speechbrain_mam.naming import check_role, choose_tower
from speechbrain_mam.reading import load_bin, read_json, tensors_in
from speechbrain_mam.sources import LONELY, known_config, resolve_model
from speechbrain_mam.stored import check_type, checked
from speechbrain_mam.weight_files import WeightFiles, lonely_file, weight_files

if TYPE_CHECKING:
    import numpy as np
    import torch

# torch alone is half a gigabyte: `speechbrain-mam`, which works on files, does without it, so it
# is imported here only where a tensor is asked for.
TensorKey = tuple[int, str, str]
"""``(layer, projection, kind)``, e.g. ``(3, "query", "weight")``."""

logger = logging.getLogger(__name__)

_UNTOLD = object()


class TensorSource(Protocol):
    """Whatever gives a donor's tensors in float32 (or float64): a file, or a control."""

    def tensor(self, key: TensorKey) -> torch.Tensor:
        """The tensor of ``(layer, projection, kind)``."""
        ...


class ModelFolder:
    """The tensors of a Hugging Face model folder, without the model.

    Reads ``model.safetensors``, where there is none its sharded form
    (``model.safetensors.index.json``), and where there is neither ``pytorch_model.bin`` with
    ``torch.load(weights_only=True)``: a pickle that would run code is refused. The order is
    transformers' own (:mod:`speechbrain_mam.weight_files`).

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
    types : dict of str to str
        Type of every tensor's elements, as PyTorch calls it.
    files : dict of str to Path
        File of every tensor.
    weights : WeightFiles
        Which files were chosen.

    Raises
    ------
    MAMError
        If a file is missing, cut short or not what its name says, or if an index does not fit its
        shards.

    Example
    -------
    >>> folder = ModelFolder(resolve_model("speechbrain_mam/hubert-mini"))
    >>> folder.config["model_type"]
    'hubert'
    """

    def __init__(self, path: Path, file: Path | None = None):
        self.path = path
        self.config: dict[str, Any] = read_json(path / "config.json")
        self.weights = WeightFiles((file,)) if file else weight_files(path, self.config)
        if self.weights.note:
            _say_once(self.weights.note)
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        for file in self.weights.files:
            for name, stored in tensors_in(file).items():
                if name in self.files:
                    raise MAMError(
                        f"'{name}' is in two files of '{path}', '{self.files[name].name}' and "
                        f"'{file.name}': the shards are of two models; copy the folder again"
                    )
                self.files[name], self.shapes[name], self.types[name] = file, *stored
        for name, file in self.weights.places.items():
            if self.files.get(name) != file:
                raise MAMError(
                    f"'{self.weights.index}' says that '{name}' is in '{file.name}', which does not "
                    "hold it: index and shards are of two models; copy the folder again"
                )

    def weight_files(self) -> list[Path]:
        """The files that hold the weights."""
        return list(self.weights.files)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the precision that it is stored in."""
        file = self.files[name]
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stream:
                return stream.get_tensor(name)
        return load_bin(file)[name]

    def values(self, ref: TensorRef) -> torch.Tensor:
        """One tensor, or its rows, as numbers: float32, or float64 where it is stored so.

        Raises
        ------
        MAMError
            If it is of a type that cannot be merged, or not finite.
        """
        where = f"'{self.files[ref.name]}'"
        check_type(self.types[ref.name], ref.name, where)
        tensor = checked(self.read(ref.name), ref.name, where)
        rows = tensor if ref.rows is None else tensor[slice(*ref.rows)]
        return rows if rows.element_size() == 8 else rows.float()

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
        index = index_attention(shapes, row, self.number(row.heads, tower), where, repeats)
        for (_, projection, _), ref in index.tensors.items():
            if projection != "output":  # which most merges leave alone; `values` sees to it
                check_type(self.types[ref.name], ref.name, f"'{self.files[ref.name]}'")
        return index


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
    elif checkpoint := lonely_file(path, LONELY[0]):
        from speechbrain_mam.beats_file import BEATsFile

        folder = BEATsFile(checkpoint)
    elif binary := lonely_file(path, LONELY[1]):
        from speechbrain_mam.ctranslate2_file import CTranslate2File

        folder = CTranslate2File(binary)
    else:
        folder = DonorFolder(path.parent, path) if path.is_file() else DonorFolder(path)
        if folder.row().interleaved:
            from speechbrain_mam.interleaved import HeadsTakenApart

            folder = HeadsTakenApart(folder)
    folder.tower = tower
    return folder


@lru_cache(maxsize=64)
def _say_once(note: str) -> None:
    logger.warning("%s", note)


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
        """One weight ``[hidden, hidden]`` or bias ``[hidden]``, widened to float32.

        What is stored in float64 stays so.

        Raises
        ------
        MAMError
            If it is not stored in floating point, or holds NaN or an infinite value.
        """
        return self.folder.values(self.index.tensors[key])

    def fingerprint(self, keys: Iterable[TensorKey]) -> str:
        """:func:`fingerprint` of these tensors."""
        return fingerprint(self, keys)


def fingerprint(source: TensorSource, keys: Iterable[TensorKey]) -> str:
    """SHA-256 over the given tensors' names, shapes and float32 values.

    A checkpoint keeps it, so that λ is never applied to another donor.
    """
    digest = hashlib.sha256()
    for key in keys:
        add_to_fingerprint(digest, key, source.tensor(key).float().contiguous().cpu().numpy())
    return digest.hexdigest()


def add_to_fingerprint(digest: Any, key: TensorKey, values: np.ndarray) -> None:
    """One tensor's part of :func:`fingerprint`, of float32 values in the tensor's shape."""
    digest.update(repr((key, tuple(values.shape))).encode())
    digest.update(values.astype("<f4", copy=False).tobytes())
