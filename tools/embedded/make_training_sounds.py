"""Makes BEATs-mini's training clips: recorded, synthetic and spoken sounds, alone and mixed.

To run this (``--recordings`` has one folder a package, unpacked, see ``beats_mini/README.md``;
``--whisper`` is Whisper tiny.en, MIT licence, as CTranslate2's ``model.bin``):

> python -m tools.embedded.make_training_sounds --recordings FOLDER \\
      --whisper model.bin --out training_sounds --clips 2000 --seed 1

Each seed writes one ``SEED.pt``: waveforms, their kinds of sound, and what Whisper's encoder makes
of them. ``kinds.txt`` holds the names of the kinds.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from speechbrain_mam.embedded.corpora import mini_corpus
from tools.embedded.beats_mini_files import Recording, recordings
from tools.embedded.beats_mini_model import CLIP_SAMPLES
from tools.embedded.beats_mini_targets import teacher_rows
from tools.embedded.sound_scenes import background, microphone, training_sounds
from tools.embedded.sound_tools import RATE_HZ, Rng, log_uniform, loudness, reverberate
from tools.embedded.whisper_init import WhisperTeacher

logger = logging.getLogger(__name__)

SYNTHETIC, SPEECH = "synthetic", "speech"
#: How often a clip's first sound is a recording, synthetic, or speech.
SHARES = (0.6, 0.25, 0.15)


class Sounds:
    """Recordings by package and label, a few minutes of synthetic sound, and spoken sentences.

    Arguments
    ---------
    recordings : dict
        Package → label → recordings.
    synthetic, speech : list of numpy.ndarray
        Waveforms ``[T]`` at 16 kHz.
    """

    def __init__(
        self,
        recordings: dict[str, dict[str, list[Recording]]],
        synthetic: list[np.ndarray],
        speech: list[np.ndarray],
    ) -> None:
        self.recordings, self.synthetic, self.speech = recordings, synthetic, speech
        self.packages = sorted(recordings)
        # Between one share a package and one share a label: drum kits have hundreds of labels.
        sizes = np.array([len(recordings[name]) ** 0.5 for name in self.packages])
        self.shares = sizes / sizes.sum()
        self.kinds = [SYNTHETIC, SPEECH]
        self.kinds += [f"{name}/{label}" for name in self.packages for label in recordings[name]]
        self.numbers = {kind: i for i, kind in enumerate(self.kinds)}

    def draw(self, rng: Rng) -> tuple[int, np.ndarray]:
        """Number of a random kind, and a sound of it."""
        origin = rng.choice(3, p=SHARES)
        if origin:
            kind, waves = [(SYNTHETIC, self.synthetic), (SPEECH, self.speech)][origin - 1]
            return self.numbers[kind], waves[rng.integers(len(waves))]
        package = str(rng.choice(self.packages, p=self.shares))
        labels = list(self.recordings[package])
        label = labels[rng.integers(len(labels))]
        files = self.recordings[package][label]
        return self.numbers[f"{package}/{label}"], files[rng.integers(len(files))].wave


def load_recordings(folder: Path) -> dict[str, dict[str, list[Recording]]]:
    """Package → label → recordings; a package is a subfolder."""
    packages: dict[str, dict[str, list[Recording]]] = {}
    for package in sorted(path for path in folder.iterdir() if path.is_dir()):
        found: dict[str, list[Recording]] = defaultdict(list)
        for recording in recordings(package):
            found[recording.label].append(recording)
        if found:
            packages[package.name] = dict(sorted(found.items()))
            count = sum(map(len, found.values()))
            logger.info("%s: %d recordings of %d kinds", package.name, count, len(found))
    return packages


def load_speech() -> list[np.ndarray]:
    """The sentences of the mini LJ corpus that its recipe trains on: all but the last 30 %."""
    corpus = mini_corpus("mini_ljspeech")
    with open(corpus / "metadata.csv", newline="", encoding="utf-8") as file:
        names = [row[0] for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE)]
    chosen = names[: int(0.7 * len(names)) : 4]
    return [soundfile.read(corpus / "wavs" / f"{name}.wav", dtype="float32")[0] for name in chosen]


def place(rng: Rng, wave: np.ndarray, samples: int) -> np.ndarray:
    """``samples`` of a sound at another speed: cut at random, or once or repeatedly in silence.

    Example
    -------
    >>> place(np.random.default_rng(0), np.ones(500), 16000).shape
    (16000,)
    """
    speed = np.exp(rng.normal(0, 0.12))
    wave = np.interp(np.arange(0, wave.size - 1, speed), np.arange(wave.size), wave)
    if wave.size >= samples:
        first = int(rng.integers(wave.size - samples + 1))
        return wave[first : first + samples]
    out, repeats = np.zeros(samples), rng.random() < 0.6
    start = 0 if repeats else int(rng.integers(samples - wave.size + 1))
    while start < samples:
        piece = wave[: samples - start]
        out[start : start + piece.size] += piece
        if not repeats:
            break
        start += wave.size + int(log_uniform(rng, 0.02, 1.5) * RATE_HZ)
    return out


def make_clip(
    rng: Rng, sounds: Sounds, samples: int = CLIP_SAMPLES
) -> tuple[np.ndarray, list[int]]:
    """One clip ``[samples]``, and the numbers of the kinds that are in it."""
    kind, wave = sounds.draw(rng)
    kinds, clip = [kind], place(rng, wave, samples)
    if rng.random() < 0.3:
        clip = reverberate(rng, clip, log_uniform(rng, 0.08, 1.2), rng.uniform(0.05, 0.8))[:samples]
    clip = clip / max(loudness(clip), 1e-4)
    if rng.random() < 0.3:
        other, wave = sounds.draw(rng)
        second = place(rng, wave, samples)
        clip += log_uniform(rng, 0.2, 1.0) * second / max(loudness(second), 1e-4)
        kinds.append(other)
    if rng.random() < 0.4:
        behind = background(rng, samples / RATE_HZ)[:samples]
        clip = clip + log_uniform(rng, 0.01, 0.5) * np.resize(behind, samples) / loudness(behind)
    if not np.abs(clip).max() > 1e-3:  # a cut that hit a pause
        return make_clip(rng, sounds, samples)
    if rng.random() < 0.4:
        return microphone(rng, clip), kinds
    return (clip * (10 ** (rng.uniform(-30, -1) / 20) / np.abs(clip).max())).astype("f4"), kinds


def make_clips(rng: Rng, sounds: Sounds) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Endless clips."""
    while True:
        yield make_clip(rng, sounds)


def main() -> None:
    """Read the command line, write one file of clips."""
    parser = argparse.ArgumentParser(description="Make BEATs-mini's training clips.")
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--whisper", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--synthetic", type=int, default=200, help="synthetic sounds of 5 s")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    synthetic = list(islice(training_sounds(args.seed), args.synthetic))
    sounds = Sounds(load_recordings(args.recordings), synthetic, load_speech())
    (args.out / "kinds.txt").write_text("\n".join(sounds.kinds) + "\n", encoding="utf-8")
    teacher = WhisperTeacher(args.whisper)
    rng = np.random.default_rng([52, args.seed])
    waves: list[Tensor] = []
    rows: list[Tensor] = []
    kinds: list[Tensor] = []
    clips = make_clips(rng, sounds)
    while len(waves) < args.clips:
        batch = list(islice(clips, 16))
        wavs = torch.from_numpy(np.stack([clip for clip, _ in batch]))
        rows += list(teacher_rows(teacher, wavs).half())
        waves += list((wavs * 32767).short())
        kinds += [_padded(numbers) for _, numbers in batch]
    path = args.out / f"{args.seed}.pt"
    content = {"wavs": torch.stack(waves), "rows": torch.stack(rows), "kinds": torch.stack(kinds)}
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    logger.info("%s: %d clips", path, len(waves))


def _padded(numbers: list[int]) -> Tensor:
    """One or two numbers as a pair; one number counts twice."""
    return torch.tensor([numbers[0], numbers[-1]])


if __name__ == "__main__":
    main()
