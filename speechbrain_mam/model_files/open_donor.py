"""A donor's tensors, whatever kind of file they lie in."""

from __future__ import annotations

from pathlib import Path

from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.find import LONELY, known_config, resolve_model
from speechbrain_mam.model_files.folder import DonorFolder
from speechbrain_mam.model_files.weight_files import lonely_file


def open_donor(source: str | Path, tower: str | None = None) -> DonorFolder:
    """A donor's tensors: of a model folder, or of a single file.

    Arguments
    ---------
    source : str or Path
        Hub name, local folder or file, see
        :func:`speechbrain_mam.model_files.find.resolve_model`. Beside a ``.safetensors`` or
        ``.onnx`` file lies its ``config.json``; a ``.pt`` is BEATs' checkpoint. A folder
        may hold CTranslate2's ``model.bin``.
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
        from speechbrain_mam.model_files.onnx_file import OnnxFile

        folder = OnnxFile(path, known_config(source))
    elif checkpoint := lonely_file(path, LONELY[0]):
        from speechbrain_mam.model_files.beats_file import BEATsFile

        folder = BEATsFile(checkpoint)
    elif binary := lonely_file(path, LONELY[1]):
        from speechbrain_mam.model_files.ctranslate2_file import CTranslate2File

        folder = CTranslate2File(binary)
    else:
        folder = DonorFolder(path.parent, path) if path.is_file() else DonorFolder(path)
    folder.tower = tower
    return folder


def _split_tower(source: str | Path, tower: str | None) -> tuple[str | Path, str | None]:
    """The name and the tower of ``name#tower``; a folder's own name may have a ``#``."""
    name, mark, behind = str(source).rpartition("#")
    if not mark or Path(source).expanduser().exists():
        return source, tower
    if tower not in (None, behind):
        raise MAMError(f"donor '{source}': 'tower' is '{tower}', the name says '{behind}'")
    return name, behind
