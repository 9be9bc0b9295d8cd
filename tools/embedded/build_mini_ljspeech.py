"""Makes the mini LJ corpus: one voice, about 600 sentences of the project's own grammar.

To run this (espeak-ng is needed):

> python -m tools.embedded.build_mini_ljspeech

It writes ``data/mini_ljspeech.tar``: ``metadata.csv`` as in LJ Speech (id, raw, normalised),
``README.md``, and one Ogg-Opus file an utterance. ``corpora.mini_corpus`` expands it.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from tools.embedded.grammar import Sentence, sentences
from tools.embedded.synthesise import SAMPLE_RATE_HZ, synthesise
from tools.embedded.voices import MINI_LJ_VOICE

SENTENCES = 600
SEED = 1
#: Of libsndfile: 0.9 gives Opus about 31 kbit/s.
OPUS_COMPRESSION = 0.9
LONGEST_S = 6.0

README = """# The mini LJ corpus

{count} different sentences, {minutes:.1f} minutes, one voice, in LJ Speech's layout: `metadata.csv`
holds `id|raw|normalised`, and each utterance is one Ogg-Opus file of 16 kHz mono speech.
`speechbrain_mam.embedded.corpora.mini_corpus()` expands it to `wavs/ID.wav` (16-bit PCM).

**Text.** From `tools/embedded/grammar.py`, seed {seed}; no sentence is taken from
elsewhere. Numbers and abbreviations are as written in column 2 and as spoken in column 3.

**Speech.** Synthetic: espeak-ng 1.51, American English, variant `f4` (a woman's voice) at 1.05
times its usual rate. espeak-ng is a program under GPL-3.0; that licence covers the program and its
data, not the speech it renders. HuBERT-mini has heard other variants of espeak-ng, but neither this
one nor these sentences.

**Licence of the corpus.** Apache-2.0, as the package.

Made by `python -m tools.embedded.build_mini_ljspeech`.
"""


@lru_cache(maxsize=1)
def corpus_sentences() -> tuple[Sentence, ...]:
    """The sentences that the corpus is drawn from; no model of ours trains on any of them.

    Example
    -------
    >>> len(corpus_sentences()) >= 600
    True
    """
    # Spares take the place of sentences that turn out too long when spoken.
    return tuple(sentences(SENTENCES + 60, seed=SEED, shortest=4, longest=11))


def to_opus(
    wave: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ, compression: float = OPUS_COMPRESSION
) -> bytes:
    """Ogg-Opus bytes of a waveform ``[T]``, which libsndfile decodes at the same rate again."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, wave, rate_hz, format="OGG", subtype="OPUS", compression_level=compression
    )
    return buffer.getvalue()


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    """Write ``files`` (name → bytes) to a tar without times or owners.

    Beside first and then renamed, so that an interrupted run leaves no half archive.
    """
    part = path.with_suffix(".part")
    with tarfile.open(part, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    part.replace(path)


def build(path: Path) -> float:
    """Speak the corpus into ``path``; returns its length in minutes."""
    drawn = corpus_sentences()
    waves = synthesise(MINI_LJ_VOICE, [sentence.normalised for sentence in drawn])
    lines: list[str] = []
    audio: dict[str, bytes] = {}
    duration_s = 0.0
    for sentence, wave in zip(drawn, waves, strict=True):
        if wave.size > LONGEST_S * SAMPLE_RATE_HZ or len(lines) == SENTENCES:
            continue
        utterance = f"ML001-{len(lines) + 1:04d}"
        lines.append(f"{utterance}|{sentence.raw}|{sentence.normalised}\n")
        audio[f"{utterance}.ogg"] = to_opus(wave)
        duration_s += wave.size / SAMPLE_RATE_HZ
    readme = README.format(count=len(lines), minutes=duration_s / 60, seed=SEED)
    texts = {"README.md": readme.encode(), "metadata.csv": "".join(lines).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, texts | audio)
    return duration_s / 60


def run_builder(name: str, build: Callable[[Path], float]) -> None:
    """Read ``--out``, the packaged archive by default, and build a corpus into it."""
    parser = argparse.ArgumentParser(description=f"Make the corpus {name}.")
    default = Path(__file__).parent / "data" / f"{name}.tar"
    parser.add_argument("--out", type=Path, default=default)
    path = parser.parse_args().out
    minutes = build(path)
    print(f"{path}: {minutes:.1f} minutes, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_builder("mini_ljspeech", build)
