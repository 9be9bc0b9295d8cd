"""Recorded sounds out of unpacked packages: audio files, and two containers that hold such files.

Free games, educational programs and synthesisers carry recordings under free licences. A recording
gets a label from its place and name: ``dog2.wav`` and ``dog3.wav`` of one folder are one kind of
sound.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

logger = logging.getLogger(__name__)

RATE_HZ = 16000
LONGEST_S, SHORTEST_S = 30.0, 0.03
AUDIO = (".wav", ".ogg", ".oga", ".flac", ".mp3", ".opus", ".aiff", ".au")
#: Folders whose files differ in what is said, sung or played, and not in the kind of sound.
ONE_KIND = re.compile(r"voices?|speech|music|lang|loops", re.IGNORECASE)
_DIRECTORY, _ZLIB, _ZSTD = 2, 1, 4


@dataclass(frozen=True)
class Recording:
    """A recording's label, and its samples ``[T]``, float32 at 16 kHz with peak 1."""

    label: str
    wave: np.ndarray


def label_of(path: str) -> str:
    """The kind of sound that a file's place and name tell.

    Example
    -------
    >>> label_of("game/sounds/Dog_bark-02.wav"), label_of("game/voices/British/amazing.ogg")
    ('sounds/dog bark', 'british')
    """
    *folders, name = Path(path).parts
    folder = folders[-1].lower() if folders else ""
    if any(ONE_KIND.search(part) for part in folders[-3:]):
        return folder
    words = re.sub(r"[^a-z]+", " ", Path(name).stem.lower()).split()
    return f"{folder}/{' '.join(word for word in words if len(word) > 1)}"


def recordings(folder: Path) -> Iterator[Recording]:
    """Every recording under ``folder`` that can be read, its first 30 s.

    Arguments
    ---------
    folder : Path
        Audio files in any subfolders, Qt's resource files (``.rcc``) and OpenTTD's sound files
        (``.cat``).
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix.lower() in AUDIO:
            members: Iterator[tuple[str, bytes]] = iter([(str(path), path.read_bytes())])
        elif path.suffix == ".rcc":
            members = qt_resources(path.read_bytes())
        elif path.suffix == ".cat":
            members = openttd_sounds(path.read_bytes())
        else:
            continue
        for name, content in members:
            if Path(name).suffix.lower() in AUDIO:
                wave = _decode(name, content)
                if wave is not None:
                    yield Recording(label_of(name), wave)


def _decode(name: str, content: bytes) -> np.ndarray | None:
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate_hz = file.samplerate
            samples = file.read(int(LONGEST_S * rate_hz), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, ValueError) as error:
        logger.warning("%s is left out: %s", name, error)
        return None
    wave = samples.mean(1)
    common = gcd(RATE_HZ, rate_hz)
    wave = resample_poly(wave, RATE_HZ // common, rate_hz // common).astype(np.float32)
    peak = float(np.abs(wave).max()) if wave.size else 0.0
    if wave.size < SHORTEST_S * RATE_HZ or not peak > 1e-3:
        return None
    loud = np.flatnonzero(np.abs(wave) > 1e-3 * peak)
    return wave[loud[0] : loud[-1] + 1] / peak


def qt_resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file of a Qt resource file; those packed with Zstandard are left out.

    Example
    -------
    >>> list(qt_resources(b"no such file"))
    []
    """
    if content[:4] != b"qres":
        return
    version, tree, data, names = struct.unpack_from(">4I", content, 4)
    node_bytes = 14 if version == 1 else 22

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name_at, flags = struct.unpack_from(">IH", content, tree + node * node_bytes)
        length = struct.unpack_from(">H", content, names + name_at)[0]
        start = names + name_at + 6
        path = folder + (
            "/" + content[start : start + 2 * length].decode("utf-16-be") if node else ""
        )
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">2I", content, tree + node * node_bytes + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags & _ZSTD:
            at = data + struct.unpack_from(">I", content, tree + node * node_bytes + 10)[0]
            size = struct.unpack_from(">I", content, at)[0]
            packed = content[at + 4 : at + 4 + size]
            yield path, zlib.decompress(packed[4:]) if flags & _ZLIB else packed

    yield from walk(0, "")


def openttd_sounds(content: bytes) -> Iterator[tuple[str, bytes]]:
    """One name for all, and the WAV bytes, of the sounds of an OpenTTD sound file."""
    at = 0
    while (at := content.find(b"RIFF", at)) >= 0:
        size = struct.unpack_from("<I", content, at + 4)[0] + 8
        yield "openttd/sound.wav", content[at : at + size]
        at += size
