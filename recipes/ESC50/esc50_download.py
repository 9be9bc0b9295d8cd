"""Download of ESC-50: its archive on GitHub, about 600 MB, CC BY-NC 3.0 (K. J. Piczak)."""

from __future__ import annotations

import csv
import io
import shutil
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from speechbrain.utils.logger import get_logger

from speechbrain_mam.atomic import new_folder
from speechbrain_mam.errors import MAMError

logger = get_logger(__name__)

ARCHIVE_URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
TIMEOUT_S = 60.0
MAX_BYTES, MAX_FILES = 4 << 30, 20_000
"""Unpacked; ESC-50 is 0.9 GB in about 2,000 files."""
#: What urllib and zipfile raise; URLError and a time-out are OSErrors, a bad URL is a ValueError.
UNUSABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    HTTPException,
    zipfile.BadZipFile,
    zlib.error,
)
KEPT = ("audio", "meta")
"""Folders of the archive; the texts beside them (licence, README) are kept too."""


def download_esc50(data_folder: Path, url: str = ARCHIVE_URL) -> None:
    """Download ESC-50 and unpack it to ``data_folder``: all of it or nothing.

    The archive and its content go to a folder beside, which is renamed when every check has passed:
    the length that the server announced, the checksum of every file, and that each clip that
    ``meta/esc50.csv`` names is there.

    Arguments
    ---------
    data_folder : Path
        Where ESC-50 goes. It is made; it may be there if it is empty.
    url : str
        The archive: a zip with one folder, in which ``meta`` and ``audio`` are.

    Raises
    ------
    MAMError
        If ``data_folder`` holds something else, or the archive cannot be had or is not ESC-50's.
    """
    if data_folder.exists() and (not data_folder.is_dir() or any(data_folder.iterdir())):
        raise MAMError(
            f"'{data_folder}' holds something else than ESC-50: download it to a new folder"
        )
    logger.info("Downloading ESC-50 (about 600 MB, CC BY-NC 3.0) from %s", url)
    try:
        with new_folder(data_folder) as corpus:
            archive = corpus / "archive.zip"
            _fetch(url, archive)
            _unpack(archive, corpus)
            archive.unlink()
            _check(corpus)
            if data_folder.exists():
                data_folder.rmdir()
    except MAMError as error:
        raise MAMError(f"'{url}': {error}; nothing was kept") from error
    except UNUSABLE as error:
        raise MAMError(
            f"ESC-50 could not be downloaded from '{url}' to '{data_folder}': {error}; download "
            "it by hand, unpack it, and give its folder as --data_folder"
        ) from error
    logger.info("ESC-50 is in %s", data_folder)


def _fetch(url: str, file: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, file.open("wb") as stream:
        announced = response.headers.get("Content-Length")
        shutil.copyfileobj(response, stream, 1 << 20)
    if announced is not None and file.stat().st_size != int(announced):
        raise MAMError(f"{file.stat().st_size} of {announced} bytes arrived")


def _unpack(archive: Path, corpus: Path) -> None:
    """Unpack the files that are ESC-50's, without the folder that GitHub puts around them."""
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        # The announced sizes are what zipfile reads at most.
        if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_BYTES:
            raise MAMError(
                f"the archive unpacks to more than {MAX_FILES} files or {MAX_BYTES >> 30} GB"
            )
        for member in members:
            parts = PurePosixPath(member.filename).parts[1:]
            if member.is_dir() or not (len(parts) == 1 or (len(parts) == 2 and parts[0] in KEPT)):
                continue
            if ".." in parts or "\\" in member.filename:
                raise MAMError(f"the archive has a file with the name {member.filename!r}")
            file = corpus.joinpath(*parts)
            if file == archive:
                raise MAMError(f"the archive holds another one, {member.filename!r}")
            file.parent.mkdir(parents=True, exist_ok=True)
            # Reading to the end compares the checksum.
            with content.open(member) as source, file.open("wb") as stream:
                shutil.copyfileobj(source, stream)


def _check(corpus: Path) -> None:
    meta = corpus / "meta" / "esc50.csv"
    if not meta.is_file():
        raise MAMError("the archive has no meta/esc50.csv")
    rows = csv.DictReader(io.StringIO(meta.read_text(encoding="utf-8-sig")))
    names = [row.get("filename") or "" for row in rows]
    missing = [name for name in names if not name or not (corpus / "audio" / name).is_file()]
    if missing or not names:
        raise MAMError(f"of {len(names)} clips the archive lacks {len(missing)}: {missing[:3]}")
