"""The tensors of a Hugging Face model folder, read one by one: no model is ever built."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from speechbrain_mam.architectures.index import AttentionIndex, TensorRef, index_attention
from speechbrain_mam.architectures.names import check_role, choose_tower
from speechbrain_mam.architectures.registry import Architecture, architecture
from speechbrain_mam.architectures.tensor_checks import check_type, checked
from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.read import load_bin, tensors_in
from speechbrain_mam.model_files.weight_files import WeightFiles, weight_files
from speechbrain_mam.text_files import read_json

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_UNTOLD = object()


class ModelFolder:
    """The tensors of a Hugging Face model folder, without the model.

    Reads ``model.safetensors``, where there is none its sharded form
    (``model.safetensors.index.json``), and where there is neither ``pytorch_model.bin`` with
    ``torch.load(weights_only=True)``: a pickle that would run code is refused. The order is
    transformers' own (:mod:`speechbrain_mam.model_files.weight_files`).

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
    >>> from speechbrain_mam.model_files.find import resolve_model
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
                self.files[name], (self.shapes[name], self.types[name]) = file, stored
        for name, file in self.weights.places.items():
            if self.files.get(name) != file:
                raise MAMError(
                    f"'{self.weights.index}' says that '{name}' is in '{file.name}', which has no "
                    "such tensor: index and shards are of two models; copy the folder again"
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
        """One tensor, or its part, as numbers: float32, or float64 where it is stored so.

        Raises
        ------
        MAMError
            If it is of a type that cannot be merged, or not finite.
        """
        where = f"'{self.files[ref.name]}'"
        check_type(self.types[ref.name], ref.name, where)
        tensor = checked(self.read(ref.name), ref.name, where)
        part = tensor if ref.part is None else ref.part.take(tensor)
        return part if part.element_size() == 8 else part.float()

    def check_weights(self) -> None:
        """Refuse a model with weights or biases that a library would take for numbers they are not.

        Loading integers into a float parameter is no error in PyTorch. Buffers may be integers.
        """
        for name, kind in self.types.items():
            last = name.rpartition(".")[2]
            if "weight" in last or "bias" in last:
                check_type(kind, name, f"'{self.files[name]}'")

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
        """A whole number in the configuration, with dots between the steps; None if not told."""
        found = self._told(key, tower, _UNTOLD)
        if found is _UNTOLD:
            return None
        if not isinstance(found, int):
            raise MAMError(f"'{self.path}': expected a number as '{key}', got {found!r}")
        return found

    def _told(self, key: str, tower: str | None, untold: Any = None) -> Any:
        inner = self.config.get(f"{tower}_config")
        found: Any = inner if isinstance(inner, dict) else self.config
        for step in key.split("."):
            found = found.get(step, untold) if isinstance(found, dict) else untold
        return found

    def _attention(self, role: str, tower: str | None) -> AttentionIndex:
        row, where = self.row(), f"'{self.path}'"
        check_role(row, role, where)
        for key, needed in row.requires.items():
            if (said := self.config.get(key, needed)) != needed:
                raise MAMError(
                    f"{where}: config.json says {key!r} is {said!r}; attention of {row.name} can "
                    f"only be merged with {needed!r}"
                )
        shapes, tower = choose_tower(self.shapes, row, tower, where)
        repeats = self.number(row.repeats) if row.repeats else None
        index = index_attention(
            shapes,
            row,
            self.number(row.heads, tower),
            where,
            repeats,
            told=lambda key: self._told(key, tower),
        )
        width = self.number("hidden_size", tower)
        if width not in (None, index.hidden_size):
            raise MAMError(
                f"{where}: config.json says 'hidden_size' {width}, but "
                f"'{index.tensors[0, 'query', 'weight'].name}' is {index.hidden_size} wide: "
                "configuration and weights are of two models"
            )
        for (_, projection, _), ref in index.tensors.items():
            if projection != "output":  # which most merges leave alone; `values` sees to it
                check_type(self.types[ref.name], ref.name, f"'{self.files[ref.name]}'")
        return index


@lru_cache(maxsize=64)
def _say_once(note: str) -> None:
    logger.warning("%s", note)


class DonorFolder(ModelFolder):
    """A model that is only read. Of several towers, ``tower`` names the one that is meant."""

    tower: str | None = None

    def attention(self) -> AttentionIndex:
        """Where the self-attention of this model, or of its chosen tower, is."""
        return self._attention("donor", self.tower)
