"""What a model folder takes along to a new one: all but its weights."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Collection
from pathlib import Path

from speechbrain_mam.errors import MAMError

OTHER_WEIGHTS = (
    *("model*.safetensors", "*.safetensors.index.json", "pytorch_model*", "training_args.bin"),
    *("tf_model*", "flax_model*", "rust_model*", "openvino_model*", "*.onnx*", "*.h5", "*.msgpack"),
    *("*.pt", "*.pth", "*.ckpt", "*.gguf", "*.tflite"),
)
"""Files of unmerged weights, by name: they must not lie beside the merged ones."""


def carry_along(model: Path, out: Path, weights: Collection[Path] = ()) -> None:
    """Copy all of a model folder but weights and hidden files: configuration, vocabulary, …

    Arguments
    ---------
    model, out : Path
        From where, and to where.
    weights : collection of Path
        Files of weights whose names are not in :data:`OTHER_WEIGHTS`.

    Raises
    ------
    MAMError
        If a file is a link that leads out of the folder: what lies there is not the model's.

    Example
    -------
    >>> import tempfile
    >>> from speechbrain_mam.model_files.find import resolve_model
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     carry_along(resolve_model("speechbrain_mam/hubert-mini"), Path(scratch))
    ...     {"config.json", "vocab.json"} <= {path.name for path in Path(scratch).iterdir()}
    True
    """
    for source in sorted(model.rglob("*")):
        relative = source.relative_to(model)
        hidden = any(part.startswith(".") for part in relative.parts)
        other = any(fnmatch.fnmatch(source.name, pattern) for pattern in OTHER_WEIGHTS)
        if hidden or other or source in weights or not source.is_file():
            continue
        if _leads_out(source, model):
            raise MAMError(
                f"'{source}' is a link that leads out of the model's folder, to "
                f"'{source.resolve()}'; put a copy of the file in its place"
            )
        (out / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / relative)


def _leads_out(file: Path, model: Path) -> bool:
    """Whether a file really lies elsewhere; Hugging Face's cache has its files in ``blobs``."""
    homes = [model.resolve()]
    if model.parent.name == "snapshots":
        homes.append(model.parent.parent.resolve() / "blobs")
    return not any(file.resolve().is_relative_to(home) for home in homes)
