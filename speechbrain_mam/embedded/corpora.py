"""What ships with the package: the mini corpora, expanded at first use, and HuBERT-mini.

Light to import: neither torch nor an audio library before something is expanded.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain_mam.atomic import new_folder, only_here

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent


def cache_folder() -> Path:
    """Where corpora are expanded.

    ``$SPEECHBRAIN_MAM_CACHE``, else ``$XDG_CACHE_HOME/speechbrain_mam``, else
    ``~/.cache/speechbrain_mam``.
    """
    own = os.environ.get("SPEECHBRAIN_MAM_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "speechbrain_mam"


def hubert_mini() -> Path:
    """The packaged HuBERT-mini, a folder for ``HubertForCTC.from_pretrained``.

    Raises
    ------
    FileNotFoundError
        If the installation lacks it.

    Example
    -------
    >>> hubert_mini().name
    'hubert_mini'
    """
    folder = _HERE / "hubert_mini"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder}: the packaged model is missing; reinstall the package")
    return folder


def packaged_language_model(name: str) -> Path | None:
    """The n-gram model of a packaged corpus's training texts, where there is one (ARPA).

    Example
    -------
    >>> packaged_language_model("mini_vctk").name, packaged_language_model("mini_esc50")
    ('mini_vctk.arpa', None)
    """
    file = _HERE / "data" / f"{name}.arpa"
    return file if file.is_file() else None


def packaged_corpora() -> list[str]:
    """The names that :func:`mini_corpus` knows.

    Example
    -------
    >>> packaged_corpora()
    ['mini_esc50', 'mini_ljspeech', 'mini_vctk']
    """
    return sorted(archive.stem for archive in (_HERE / "data").glob("*.tar"))


def mini_corpus(name: str = "mini_ljspeech", cache: Path | None = None) -> Path:
    """A mini corpus in its real counterpart's layout.

    The packaged archive is expanded at first use, beside and then renamed: two processes may do it
    at once, and an interrupted one leaves nothing that looks complete. The folder's name holds the
    archive's hash, so another version of the package expands anew.

    Arguments
    ---------
    name : str
        Name of an archive in the package: ``mini_ljspeech``, ``mini_vctk`` or ``mini_esc50``.
    cache : Path, optional
        Where to expand; ``cache_folder()`` by default.

    Returns
    -------
    Path
        LJ Speech's layout: a folder with ``metadata.csv`` (``id|raw|normalised``) and
        ``wavs/ID.wav`` (16 kHz, 16-bit, mono). VCTK 0.92's: ``speaker-info.txt``,
        ``wav48_silence_trimmed/SPEAKER/ID_mic1.flac`` (48 kHz, 16-bit, mono) and
        ``txt/SPEAKER/ID.txt``. ESC-50's: ``meta/esc50.csv`` and
        ``audio/FOLD-SOURCE-TAKE-TARGET.wav`` (16 kHz, 16-bit, mono).

    Raises
    ------
    ValueError
        If there is no such corpus.
    OSError
        If the cache cannot be written.
    """
    archive = _HERE / "data" / f"{name}.tar"
    if not archive.is_file():
        known = ", ".join(packaged_corpora())
        raise ValueError(f"No packaged corpus is called {name!r}; there are: {known}")
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:12]
    cache = cache_folder() if cache is None else Path(cache)
    folder = cache / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with only_here(folder, wait=True):  # of several processes one expands it
        if not folder.is_dir():
            with new_folder(folder) as part:
                _expand(content, part)
            logger.info("Expanded the corpus %s to %s", name, folder)
    return folder


def _expand(content: bytes, folder: Path) -> None:
    """Write the archive's texts to ``folder``, and its Opus files as their corpus has them.

    An archive without folders is LJ Speech's: each becomes ``wavs/ID.wav``. Any other has its
    corpus's own folders, and in the place of Opus WAV in ``audio`` (ESC-50), else FLAC (VCTK).
    """
    utterances: list[tuple[Path, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            path = folder / member.name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"the archive has a file with the name {member.name!r}")
            opus = path.suffix == ".ogg"
            if opus and path.parent == folder:
                path = folder / "wavs" / f"{path.stem}.wav"
            elif opus:
                path = path.with_suffix(".wav" if path.parent.name == "audio" else ".flac")
            path.parent.mkdir(parents=True, exist_ok=True)
            if opus:
                utterances.append((path, file.read()))
            else:
                path.write_bytes(file.read())
    # Decoding runs outside Python's lock, so threads are enough.
    with ThreadPoolExecutor() as pool:
        list(pool.map(_decode, utterances))


def _decode(utterance: tuple[Path, bytes]) -> None:
    """Write one Ogg-Opus utterance as a 16-bit file, in the format that its suffix names."""
    import soundfile

    path, content = utterance
    samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="int16")
    soundfile.write(path, samples, rate_hz, subtype="PCM_16")
