"""Makes HuBERT-mini's training speech: synthetic voices, two kinds of text, generated noise.

To run this (flite, espeak-ng, festival, Piper's voice and WordNet's database are needed; none of it
ships):

> python -m tools.embedded.make_training_speech --out training_speech

Half of the text comes from the mini corpus's own grammar (with another seed, and without any
sentence of the corpus), half is open vocabulary: WordNet's definitions and examples. Every part is
a SpeechBrain CSV (``ID, duration, wav, words, voice``):

open.csv, grammar.csv
    Training, by the voices of ``voices.py``.
brisk.csv
    Training, both kinds of text by diphone voices at the rate of read speech.
neural.csv
    Training, both kinds of text by Piper's neural voice.
dev_heard.csv, dev_unheard.csv
    Other sentences by those voices, and by espeak-ng variants that are never trained on.
noise.csv
    White and pink noise, and babble of six training utterances.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from tools.embedded.synthesise import SAMPLE_RATE_HZ, synthesise_files
from tools.embedded.voices import (
    BRISK_VOICES,
    ESPEAK_VOICES,
    FESTIVAL_VOICES,
    FLITE_VOICES,
    PIPER_VOICES,
    UNHEARD_ESPEAK_VOICES,
    Voice,
)

#: Share of the utterances that each group of voices speaks. The HTS voice costs ten times the
#: others to synthesise, so it speaks little.
SHARES: tuple[tuple[float, tuple[Voice, ...]], ...] = (
    (0.46, FLITE_VOICES),
    (0.14, FESTIVAL_VOICES[:3]),
    (0.05, FESTIVAL_VOICES[3:]),
    (0.35, ESPEAK_VOICES),
)
FIELDS = ("ID", "duration", "wav", "words", "voice")


def to_alphabet(text: str) -> str:
    """Upper-case letters, apostrophes and single spaces: what the recogniser writes.

    Example
    -------
    >>> to_alphabet("Don't stop, twenty-five!")
    "DON'T STOP TWENTY FIVE"
    """
    return " ".join(re.sub(r"[^A-Z' ]+", " ", text.upper()).split())


def wordnet_sentences(folder: Path) -> Iterator[str]:
    """WordNet's definitions and examples of 3 to 14 plain words.

    Arguments
    ---------
    folder : Path
        Where ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv`` are.

    Raises
    ------
    FileNotFoundError
        If they are not there.
    """
    for part in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{part}"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no WordNet database (apt install wordnet-base)")
        for line in path.read_text(encoding="utf-8").splitlines():
            for piece in line.partition(" | ")[2].split(";"):
                piece = piece.strip().strip('"').replace("-", " ")
                words = piece.split()
                plain = re.fullmatch(r"[A-Za-z]['A-Za-z, ]+[.!?]?", piece)
                if plain and 3 <= len(words) <= 14 and max(map(len, words)) <= 14:
                    yield piece


def _draw_voice(rng: random.Random) -> Voice:
    (group,) = rng.choices([g for _, g in SHARES], [s for s, _ in SHARES])
    return rng.choice(group)


def speak_part(out: Path, name: str, texts: Sequence[str], voices: Sequence[Voice]) -> float:
    """Speak ``texts`` and write ``NAME.csv``; returns the part's length in hours."""
    (out / name).mkdir(parents=True, exist_ok=True)
    items = [
        (voice, text, out / name / f"{name}-{i:05d}.wav")
        for i, (text, voice) in enumerate(zip(texts, voices, strict=True))
    ]
    duration_s = synthesise_files(items)
    with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for voice, text, path in items:
            seconds = f"{duration_s[path]:.3f}"
            writer.writerow((path.stem, seconds, path, to_alphabet(text), voice.name))
    return sum(duration_s.values()) / 3600


def make_noise(out: Path, speech: Sequence[Path], files: int = 20, seconds: float = 8.0) -> None:
    """Write ``files`` wavs each of white noise, pink noise and babble, and ``noise.csv``."""
    rng = np.random.default_rng(7)
    length = int(seconds * SAMPLE_RATE_HZ)
    (out / "noise").mkdir(exist_ok=True)
    rows = []
    for kind in ("white", "pink", "babble"):
        for i in range(files):
            wave = rng.standard_normal(length)
            if kind == "pink":
                spectrum = np.fft.rfft(wave)
                wave = np.fft.irfft(spectrum / np.sqrt(np.arange(spectrum.size) + 1.0), length)
            elif kind == "babble":
                chosen = rng.choice(len(speech), 6, replace=False)
                wave = np.sum([np.resize(soundfile.read(speech[c])[0], length) for c in chosen], 0)
            path = out / "noise" / f"{kind}-{i:02d}.wav"
            soundfile.write(path, 0.5 * wave / np.abs(wave).max(), SAMPLE_RATE_HZ)
            rows.append((path.stem, f"{seconds:.3f}", path, "wav", ""))
    with open(out / "noise.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("ID", "duration", "wav", "wav_format", "wav_opts"), *rows])


def texts_of(kind: str, count: int, wordnet: Path) -> list[str]:
    """``count`` different sentences of a kind, ``"open"`` or ``"grammar"``."""
    if kind == "open":
        found = sorted(set(wordnet_sentences(wordnet)))
        return random.Random(11).sample(found, count)
    from tools.embedded.build_mini_ljspeech import corpus_sentences
    from tools.embedded.grammar import sentences

    held_out = {to_alphabet(s.normalised) for s in corpus_sentences()}
    drawn = (s.normalised for s in sentences(2 * count, seed=20_000))
    return [text for text in drawn if to_alphabet(text) not in held_out][:count]


def main() -> None:
    """Read the command line and make what it asks for."""
    parser = argparse.ArgumentParser(description="Make HuBERT-mini's training speech.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--open", type=int, default=5000, help="open-vocabulary utterances")
    parser.add_argument("--grammar", type=int, default=4500, help="utterances of the grammar")
    parser.add_argument("--brisk", type=int, default=2000, help="utterances, 3 in 4 of the grammar")
    parser.add_argument("--neural", type=int, default=3000, help="utterances, half of the grammar")
    parser.add_argument("--dev", type=int, default=120, help="dev utterances a kind of text")
    args = parser.parse_args()
    out = args.out.resolve()
    rng = random.Random(5)
    dev: list[str] = []
    brisk: list[str] = []
    neural: list[str] = []
    for kind, count, extra in (
        ("open", args.open, args.brisk // 4),
        ("grammar", args.grammar, args.brisk - args.brisk // 4),
    ):
        texts = texts_of(kind, count + args.dev + extra + args.neural // 2, args.wordnet)
        hours = speak_part(out, kind, texts[:count], [_draw_voice(rng) for _ in range(count)])
        print(f"{kind}: {count} utterances, {hours:.2f} h")
        dev += texts[count : count + args.dev]
        brisk += texts[count + args.dev : count + args.dev + extra]
        neural += texts[count + args.dev + extra :]
    for name, texts, voices in (("brisk", brisk, BRISK_VOICES), ("neural", neural, PIPER_VOICES)):
        hours = speak_part(out, name, texts, [rng.choice(voices) for _ in texts])
        print(f"{name}: {len(texts)} utterances, {hours:.2f} h")
    rng.shuffle(dev)
    heard, unheard = dev[: len(dev) // 2], dev[len(dev) // 2 :]
    speak_part(out, "dev_heard", heard, [_draw_voice(rng) for _ in heard])
    speak_part(out, "dev_unheard", unheard, [rng.choice(UNHEARD_ESPEAK_VOICES) for _ in unheard])
    make_noise(out, sorted((out / "open").glob("*.wav")))


if __name__ == "__main__":
    main()
