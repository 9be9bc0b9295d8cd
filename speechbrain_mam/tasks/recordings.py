"""Whether a recording can be used: one check for every corpus, every manifest and every set.

A file must be there, whole, long enough, and of finite samples, and something must be heard in it
once its channels are mixed down. A recording without any sound is an error, since its transcript or
class says that there is something to hear: as a test it would count errors that no model can avoid,
and training would learn text from nothing. Silence before, after or between sounds is none, so a
clip of ESC-50 that is filled up with zeros is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_mam.errors import MAMError

MIN_DURATION_S = 0.1
"""Shorter recordings hold no word; the front end's receptive field alone is 0.025 s."""

SILENCE = 2 / 32768
"""Lowest to highest sample: two steps of 16 bits. A decoder may leave that much of silence."""

CANCELLED = 1e-3
"""What is left of channels that cancel out each other: −60 dB."""

FLOAT = ("FLOAT", "DOUBLE")
"""Kinds of samples that can be no number."""


def files_by_stem(folder: Path, *suffixes: str) -> tuple[dict[str, Path], list[str]]:
    """One file for each stem, and the stems of which there are several.

    Of several, the one whose suffix comes first wins, whatever order a file system lists them in;
    capitals in a suffix make no difference. Hidden files are a file system's own.

    Arguments
    ---------
    folder : Path
        Where to look, not below; it need not exist.
    *suffixes : str
        ``.flac``, ``.wav``, …, the corpus's own first.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("a.wav", "a.FLAC", "b.wav", "b.txt", "._b.flac"):
    ...     _ = folder.joinpath(name).write_bytes(b"")
    >>> found, doubled = files_by_stem(folder, ".flac", ".wav")
    >>> sorted(path.name for path in found.values()), doubled
    (['a.FLAC', 'b.wav'], ['a'])
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file():
            found.setdefault(path.stem, []).append(path)

    def rank(path: Path) -> tuple[int, bool, str]:
        suffix = path.suffix.lower()
        return suffixes.index(suffix), path.suffix != suffix, path.name

    return (
        {stem: min(paths, key=rank) for stem, paths in found.items()},
        [stem for stem, paths in found.items() if len(paths) > 1],
    )


def check_audio(
    file: Path, where: str, shortest_s: float = MIN_DURATION_S, decode_all: bool = False
) -> tuple[float, int]:
    """Duration in seconds and number of channels of a recording that can be used.

    Arguments
    ---------
    file : Path
        The recording.
    where : str
        The utterance or clip, for the message.
    shortest_s : float
        The least duration.
    decode_all : bool
        Read every sample. Without it, one channel of integers is read until a sound is heard.

    Raises
    ------
    MAMError
        If the file is missing, not audio, cut short, shorter than ``shortest_s``, silent, or has
        samples that are no numbers.
    """
    if not file.is_file():
        raise MAMError(f"{where}: '{file}': no such file")
    try:
        with soundfile.SoundFile(file) as sound:
            frames, rate, channels = sound.frames, sound.samplerate, sound.channels
            # The header alone does not tell whether the end is there.
            whole = frames == 0 or (sound.seek(frames - 1) >= 0 and len(sound.read(1)) == 1)
            if not whole or _riff_is_cut(file) or _ogg_is_cut(file):
                raise MAMError(
                    f"{where}: '{file}' is cut short: its header promises more than it holds"
                )
            if frames / rate < shortest_s:
                raise MAMError(
                    f"{where}: '{file}' lasts {frames / rate:.3f} s, expected at least "
                    f"{shortest_s} s"
                )
            sound.seek(0)
            blocks = sound.blocks(rate, dtype="float32", always_2d=True)
            check_samples(blocks, file, where, decode_all or sound.subtype in FLOAT)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MAMError(f"{where}: '{file}' is not readable audio: {error}") from error
    return frames / rate, channels


def check_samples(
    blocks: Iterable[np.ndarray], file: str | Path, where: str, to_the_end: bool = True
) -> None:
    """Whether all samples are numbers, and something is heard when the channels are mixed down.

    Arguments
    ---------
    blocks : iterable of ndarray
        ``[samples, channels]``, float32, one after the other.
    file : str or Path
        Where they are from.
    where : str
        The utterance or clip.
    to_the_end : bool
        Whether a single channel is read on when a sound was heard.

    Raises
    ------
    MAMError
        If they are not.

    Example
    -------
    >>> wave = np.sin(np.arange(100, dtype="float32"))
    >>> check_samples([wave[:, None]], "a.wav", "utterance a")
    >>> check_samples([np.stack([wave, -wave], axis=1)], "a.wav", "utterance a")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: utterance a: 'a.wav' is silent when its 2 channels are mixed
    down, they cancel out each other (opposite phase): keep one of them
    """
    single, mixed, channels = _Range(), _Range(), 1
    for block in blocks:
        channels = block.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            mean = block if channels == 1 else block.mean(axis=1)
        # The sum of finite channels may be infinite
        if not (np.isfinite(block).all() and np.isfinite(mean).all()):
            raise MAMError(
                f"{where}: '{file}' has samples that are no numbers (NaN or infinite): repair the "
                "recording, or leave it out"
            )
        mixed.add(mean)
        if channels > 1:
            single.add(block)
        elif mixed.width > SILENCE and not to_the_end:
            return
    if mixed.width > max(SILENCE, CANCELLED * single.width):
        return
    if single.width > SILENCE:
        raise MAMError(
            f"{where}: '{file}' is silent when its {channels} channels are mixed down, they cancel "
            "out each other (opposite phase): keep one of them"
        )
    raise MAMError(
        f"{where}: '{file}' is silent: nothing in it is louder than zero; leave it out, or put the "
        "recording in its place"
    )


class _Range:
    """The lowest and the highest sample so far. What never moves is not heard at any level."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, samples: np.ndarray) -> None:
        if samples.size:
            self.low = min(self.low, float(samples.min()))
            self.high = max(self.high, float(samples.max()))

    @property
    def width(self) -> float:
        return max(0.0, self.high - self.low)


def _riff_is_cut(file: Path) -> bool:
    """libsndfile quietly shortens a cut WAV, so its RIFF header is read here."""
    with file.open("rb") as stream:
        head = stream.read(8)
    declared = int.from_bytes(head[4:8], "little") + 8
    streamed = declared >= 0xFFFFFFFF  # written by a pipe that did not know the length
    return head[:4] == b"RIFF" and not streamed and declared > file.stat().st_size + 1


def _ogg_is_cut(file: Path) -> bool:
    """libsndfile takes the last page that is there for the end; the real one says that it is."""
    longest_page = 27 + 255 + 255 * 255
    with file.open("rb") as stream:
        if stream.read(4) != b"OggS":
            return False
        stream.seek(max(0, file.stat().st_size - longest_page))
        rest = stream.read()
    page = rest[rest.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 255
    whole = len(page) >= 27 + segments + sum(page[27 : 27 + segments])
    return not (whole and page[5] & 0x04)
