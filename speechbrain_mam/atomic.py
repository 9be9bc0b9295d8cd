"""Folders that come whole or not at all, and what a model folder takes along to a new one."""

from __future__ import annotations

import fnmatch
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speechbrain_mam.errors import MAMError

OTHER_WEIGHTS = (
    *("model*.safetensors", "*.safetensors.index.json", "pytorch_model*", "training_args.bin"),
    *("tf_model*", "flax_model*", "rust_model*", "openvino_model*", "*.onnx*", "*.h5", "*.msgpack"),
    *("*.pt", "*.pth", "*.ckpt", "*.gguf", "*.tflite"),
)
"""Files of unmerged weights, by name: they must not lie beside the merged ones."""


def check_output(out: Path, force: bool, **sources: Path) -> Path:
    """Where the merged model may be written.

    Arguments
    ---------
    out : Path
        The folder that is asked for.
    force : bool
        Whether an existing folder may be replaced.
    **sources : Path
        The folders that are read (``target=…, donor=…``) and must stay.

    Returns
    -------
    Path
        ``out``, absolute and without links.

    Raises
    ------
    MAMError
        If ``out`` is, holds or lies in one of the sources, is a file, is not empty (without
        ``force``), or holds the home folder or the working directory.
    """
    out = out.resolve()
    for role, source in sources.items():
        source = source.resolve()
        for at_fault, relation in (
            (out == source, "is"),
            (out in source.parents, "holds"),
            (source in out.parents, "lies inside"),
        ):
            if at_fault:
                raise MAMError(f"--out '{out}' {relation} the {role}'s folder; choose another one")
    if out.exists() and not out.is_dir():
        raise MAMError(f"--out '{out}' is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise MAMError(f"--out '{out}' exists and is not empty; --force replaces it")
        for place in (Path.cwd(), Path(os.path.expanduser("~")).resolve()):
            if out == place or out in place.parents:
                raise MAMError(f"--out '{out}' holds '{place}' and is not replaced")
    return out


@contextmanager
def new_folder(out: Path, force: bool = False) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` if the block ends well, and else is removed.

    Arguments
    ---------
    out : Path
        As :func:`check_output` returned it.
    force : bool
        Replace ``out`` where it exists. It is moved away only once the new one is complete.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     with new_folder(Path(scratch) / "a" / "b") as folder:
    ...         _ = (folder / "file").write_text("whole")
    ...     [path.name for path in Path(scratch).rglob("*")]
    ['a', 'b', 'file']
    """
    parents = [parent for parent in out.parents if not parent.exists()]
    unique = f".{out.name}.{secrets.token_hex(4)}"
    staging, aside = out.with_name(f"{unique}.partial"), out.with_name(f"{unique}.old")
    try:
        staging.mkdir(parents=True)
        yield staging
        if force and out.exists():
            out.rename(aside)
        try:
            staging.rename(out)
        except OSError:
            if aside.exists():
                aside.rename(out)
            raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in parents:
            with suppress(OSError):
                parent.rmdir()
        raise
    if aside.exists():
        shutil.rmtree(aside)


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


def write_text_beside(file: Path, text: str) -> None:
    """A text in UTF-8, by :func:`write_beside`."""
    write_beside(file, lambda part: part.write_text(text, encoding="utf-8"))


def write_beside(file: Path, write) -> None:
    """Call ``write(part)`` on a name beside ``file`` and rename: never a half-written file."""
    part = file.with_name(f".{file.name}.part")
    try:
        write(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
