"""Small classification tasks: log-mel frames of clips, and splits in which nobody is heard twice.

``digits``
    single spoken digits in the Free Spoken Digit Dataset's layout, ``DIGIT_SPEAKER_TAKE.flac``;
    each seed trains on all speakers but one, and is validated on that one;
``digits_whisper``
    the same as Whisper hears them, for an encoder of its shape;
``connected_digits``
    three to seven digits in a row in VCTK's layout, for the same encoder with CTC;
``esc10``
    clips in ESC-50's layout; each seed holds one of the five folds out;
``mini_esc50``
    the package's embedded corpus in that layout, for a fresh clone without any data.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import soundfile
import torch
from speechbrain.lobes.features import Fbank
from torch import Tensor
from transformers import WhisperFeatureExtractor

from speechbrain_mam.embedded.corpora import mini_corpus
from speechbrain_mam.errors import MAMError
from speechbrain_mam.tasks.audio import load_audio

MELS = 40
FRAME_S = 0.01


@dataclass(frozen=True)
class Clip:
    """A recording, its class (or classes, in order), and whom it is of: a speaker, or a fold."""

    file: Path
    label: int | tuple[int, ...]
    source: str


@dataclass(frozen=True)
class Task:
    """What is classified, and in what form.

    Arguments
    ---------
    read : callable
        From a folder to its clips.
    rate_hz : int
        To which recordings are brought.
    stack : int
        How many frames of 10 ms make one token.
    tokens : int
        How many tokens a clip has; longer ones are cut, shorter ones padded with silence.
    classes : int
        How many there are.
    valid_each : int
        Validation clips of each class.
    minutes : float
        Of training clips, where nothing else is said.
    encoder : str
        Of :mod:`study_encoders`.
    depth, d_ffn : int
        Its layers, and the width of their feed-forward parts, where nothing else is said.
    ctc : bool
        Whether a clip has several labels, of which no time is known.
    """

    read: Callable[[Path], list[Clip]]
    rate_hz: int
    stack: int
    tokens: int
    classes: int = 10
    valid_each: int = 8
    minutes: float = 15.0
    encoder: str = "pre_norm"
    depth: int = 3
    d_ffn: int = 384
    ctc: bool = False

    @property
    def features(self) -> int:
        """Of a token."""
        return self.stack * MELS


@dataclass(frozen=True)
class Split:
    """Tokens ``[clips, tokens, stack · mels]`` and labels, normalised on ``train``.

    Labels are ``[clips]``; with CTC ``[clips, longest]``, filled up with −1.
    """

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    held_out: str
    minutes: float


def read_digits(folder: Path) -> list[Clip]:
    """``DIGIT_SPEAKER_TAKE`` with any suffix of an audio file."""
    clips = []
    for file in sorted(folder.glob("[0-9]_*_*.*")):
        digit, speaker, _ = file.stem.split("_")
        clips.append(Clip(file, int(digit), speaker))
    return clips


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST_S = 4.0


def read_connected(folder: Path) -> list[Clip]:
    """Utterances of digits in VCTK's layout; those of more than :data:`LONGEST_S` are left out."""
    clips = []
    for file in sorted(folder.glob("wav48_silence_trimmed/*/*_mic1.flac")):
        speaker, stem = file.parent.name, file.stem.removesuffix("_mic1")
        text = (folder / "txt" / speaker / f"{stem}.txt").read_text(encoding="utf-8")
        try:
            labels = tuple(DIGITS.index(word) for word in text.split())
        except ValueError as error:
            raise MAMError(f"'{file}': its text is '{text.strip()}', not digits alone") from error
        if soundfile.info(file).duration <= LONGEST_S:
            clips.append(Clip(file, labels, speaker))
    return clips


def read_events(folder: Path) -> list[Clip]:
    """ESC-50's ``meta/esc50.csv`` and ``audio``; its targets are numbered from 0 on."""
    with (folder / "meta" / "esc50.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    labels = {target: i for i, target in enumerate(sorted({int(row["target"]) for row in rows}))}
    return [
        Clip(folder / "audio" / row["filename"], labels[int(row["target"])], row["fold"])
        for row in rows
    ]


TASKS = {
    "digits": Task(read_digits, 8000, stack=7, tokens=8, valid_each=10, minutes=1.0),
    "digits_whisper": Task(
        read_digits,
        16000,
        stack=1,
        tokens=64,
        valid_each=10,
        minutes=1.0,
        encoder="whisper",
        depth=4,
        d_ffn=1536,
    ),
    "connected_digits": Task(
        read_connected,
        16000,
        stack=1,
        tokens=round(100 * LONGEST_S),
        valid_each=6,
        minutes=5.0,
        encoder="whisper",
        depth=4,
        d_ffn=1536,
        ctc=True,
    ),
    "esc10": Task(read_events, 16000, stack=20, tokens=25),
    "mini_esc50": Task(read_events, 16000, stack=20, tokens=12),
}


def clips_of(name: str, data: Path | None) -> list[Clip]:
    """The clips of a task, in a fixed order.

    Raises
    ------
    MAMError
        If there is no such folder, or nothing of the task in it.
    """
    if name == "mini_esc50":
        data = mini_corpus(name)
    if data is None or not data.is_dir():
        raise MAMError(f"--task {name}: give its folder with --data; '{data}' is none")
    clips = TASKS[name].read(data)
    if not clips:
        raise MAMError(f"--data '{data}': no clip of the task '{name}'")
    return clips


@lru_cache(maxsize=4096)
def frames_of(clip: Clip, task: Task) -> Tensor:
    """Log-mel frames ``[frames, mels]`` of a clip, one in 10 ms, without its own mean.

    The mean of a clip's logarithms is its microphone and its room, more than what is said.
    Whisper's are its own, of 80 mels and 64 frames: what is shorter has silence behind it.
    """
    signal = load_audio(str(clip.file), task.rate_hz)
    if task.encoder == "whisper":
        wanted = task.tokens * task.rate_hz // 100
        padded = torch.nn.functional.pad(signal[:wanted], (0, max(0, wanted - len(signal))))
        told = {"sampling_rate": task.rate_hz, "truncation": False, "padding": "do_not_pad"}
        mels = _whisper()(padded.numpy(), return_tensors="pt", **told).input_features
        return mels[0].T.contiguous()  # type: ignore[no-any-return]
    fbank = _fbank(task.rate_hz)
    with torch.no_grad():
        found: Tensor = fbank(signal[None])[0]
    return found - found.mean(0)


@lru_cache(maxsize=4)
def _fbank(rate_hz: int) -> Fbank:
    return Fbank(sample_rate=rate_hz, n_mels=MELS, n_fft=400 * rate_hz // 16000 * 2)


@lru_cache(maxsize=1)
def _whisper() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80)


@lru_cache(maxsize=4096)
def seconds_of(clip: Clip, task: Task) -> float:
    """How long a clip is."""
    if task.encoder == "whisper":
        return float(soundfile.info(clip.file).duration)
    return len(frames_of(clip, task)) * FRAME_S


def split(clips: list[Clip], task: Task, seed: int, minutes: float) -> Split:
    """So many minutes of training clips and the validation clips of what is held out, by seed.

    Each class gets its turn, so that classes are as equal as the minutes allow.
    """
    draw = random.Random(seed)
    sources = sorted({clip.source for clip in clips})
    held_out = sources[seed % len(sources)]
    heard = [clip for clip in clips if clip.source != held_out]
    unheard = [clip for clip in clips if clip.source == held_out]
    chosen, seconds = [], 0.0
    for clip in _in_turn(heard, draw):
        if seconds >= 60 * minutes:
            break
        chosen.append(clip)
        seconds += seconds_of(clip, task)
    valid = _in_turn(unheard, draw)[: task.valid_each * task.classes]
    flat = torch.cat([frames_of(clip, task) for clip in chosen])
    scale = flat.std(0).clamp(min=1e-3) if task.encoder == "pre_norm" else torch.ones(80)
    train, held = (
        (
            torch.stack([_tokens(frames_of(clip, task) / scale, task) for clip in part]),
            _labels([clip.label for clip in part]),
        )
        for part in (chosen, valid)
    )
    return Split(train, held, held_out, seconds / 60)


def _labels(labels: list[int | tuple[int, ...]]) -> Tensor:
    rows = [torch.tensor(label) for label in labels]
    if rows[0].ndim == 0:
        return torch.stack(rows)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def _in_turn(clips: list[Clip], draw: random.Random) -> list[Clip]:
    """All clips in a random order, one of each class (of each first digit) after the other."""
    by_label: dict[int, list[Clip]] = {}
    for clip in draw.sample(clips, len(clips)):
        first = clip.label if isinstance(clip.label, int) else clip.label[0]
        by_label.setdefault(first, []).append(clip)
    longest = max(map(len, by_label.values()))
    return [
        by_label[label][i]
        for i in range(longest)
        for label in sorted(by_label)
        if i < len(by_label[label])
    ]


def _tokens(frames: Tensor, task: Task) -> Tensor:
    """``[tokens, stack · mels]``; the quietest frame of the clip fills it up."""
    wanted = task.tokens * task.stack
    padded = frames[frames.mean(1).argmin()].repeat(wanted, 1)
    padded[: len(frames)] = frames[:wanted]
    return padded.reshape(task.tokens, -1)
