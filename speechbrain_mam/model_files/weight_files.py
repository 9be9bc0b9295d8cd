"""Which files of a model folder hold its weights, in transformers' own order.

``model.safetensors``, then ``model.safetensors.index.json`` with its shards, then
``pytorch_model.bin``, then its index; before all of them what ``transformers_weights`` in
``config.json`` names. A folder that is written twice, whole and in shards, keeps both, and whoever
takes the other one merges the model of another day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from speechbrain_mam.errors import MAMError
from speechbrain_mam.text_files import read_json

INDEX = ".index.json"
ORDER = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, the first one first; the index of each comes right after it."""


@dataclass(frozen=True)
class WeightFiles:
    """What :func:`weight_files` finds.

    Attributes
    ----------
    files : tuple of Path
        The weights: one file, or the shards.
    index : Path, optional
        The index that names the shards.
    places : mapping
        For each tensor the shard that the index says it is in; empty without an index.
    aside : Path, optional
        An index that is left aside, since the whole file is there too.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    places: Mapping[str, Path] = field(default_factory=dict)
    aside: Path | None = None

    @property
    def note(self) -> str:
        """What a user should know of the choice; empty where there was none."""
        if self.aside is None:
            return ""
        return (
            f"'{self.files[0]}' and '{self.aside}' are both there: the former is read, as "
            "transformers does, and the shards are not; remove whichever is out of date"
        )


def weight_files(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """The files that hold the weights of a model folder.

    Arguments
    ---------
    folder : Path
        With ``config.json`` and the weights.
    config : mapping
        The former's content.

    Raises
    ------
    MAMError
        If there are none, if an index is none, or if it names a shard that is missing or lies
        outside of the folder.

    Example
    -------
    >>> import speechbrain_mam
    >>> folder = Path(speechbrain_mam.__file__).parent / "embedded" / "hubert_mini"
    >>> [file.name for file in weight_files(folder, {}).files]
    ['model.safetensors']
    """
    named = config.get("transformers_weights")
    if named is not None:
        if not isinstance(named, str) or not named.endswith(
            (".safetensors", f".safetensors{INDEX}")
        ):
            raise MAMError(
                f"'{folder / 'config.json'}': 'transformers_weights' is {named!r}, expected the "
                "name of a .safetensors file or of its index"
            )
        file = _inside(folder, named, folder / "config.json")
        return _shards(folder, file) if named.endswith(INDEX) else WeightFiles((file,))
    for name in ORDER:
        single, index = folder / name, folder / f"{name}{INDEX}"
        if single.is_file():
            return WeightFiles((single,), aside=index if index.is_file() else None)
        if index.is_file():
            return _shards(folder, index)
    expected = " or ".join(f"{name}, {name}{INDEX}" for name in ORDER)
    raise MAMError(f"model folder '{folder}' has no weights: expected {expected}")


def lonely_file(path: Path, pattern: str) -> Path | None:
    """A file that is all there is of a model, or a folder's only file of weights.

    Example
    -------
    >>> import speechbrain_mam
    >>> embedded = Path(speechbrain_mam.__file__).parent / "embedded"
    >>> lonely_file(embedded / "beats_mini", "*.pt").suffix, lonely_file(embedded, "*.pt")
    ('.pt', None)
    """
    if path.is_file():
        return path if path.match(pattern) else None
    named = [*path.glob("*.safetensors*"), *path.glob("pytorch_model*")]
    files = sorted(file for file in path.glob(pattern) if file.is_file())
    return files[0] if len(files) == 1 and not named else None


def what_is_missing(folder: Path, lonely: tuple[str, ...] = ()) -> str:
    """What a folder lacks to be a model; empty where it lacks nothing.

    Arguments
    ---------
    folder : Path
        Any folder.
    lonely : tuple of str
        Patterns of single files that are a model by themselves.

    Example
    -------
    >>> what_is_missing(Path("/"))
    'config.json'
    """
    if any(lonely_file(folder, pattern) for pattern in lonely):
        return ""
    if not (folder / "config.json").is_file():
        return "config.json"
    try:
        weight_files(folder, read_json(folder / "config.json"))
    except MAMError as error:
        return "the weights" if "has no weights" in str(error) else f"something: {error}"
    return ""


def _shards(folder: Path, index: Path) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MAMError(f"'{index}' has no 'weight_map' (tensor → shard)")
    shards = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise MAMError(
                f"'{index}': expected the name of a shard for '{tensor}', found {shard!r}"
            )
        if shard not in shards:
            shards[shard] = _inside(folder, shard, index)
    places = {tensor: shards[shard] for tensor, shard in weight_map.items()}
    return WeightFiles(tuple(shards[shard] for shard in sorted(shards)), index, places)


def _inside(folder: Path, name: str, where: Path) -> Path:
    """A file that another one names; it must lie in the same folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise MAMError(f"'{where}' names '{name}', which lies outside of the folder")
    if not (folder / name).is_file():
        raise MAMError(f"'{where}' names the shard '{name}': no such file")
    return folder / name
