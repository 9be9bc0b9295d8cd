"""Makes the mini VCTK corpus: ten voices, sixty sentences each of the project's own grammar.

To run this (flite and espeak-ng are needed):

> python -m tools.embedded.build_mini_vctk

It writes ``data/mini_vctk.tar`` in VCTK 0.92's layout, with Ogg-Opus in the place of FLAC.
``corpora.mini_corpus`` expands it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tools.embedded.build_mini_ljspeech import (
    corpus_sentences,
    run_builder,
    to_opus,
    write_archive,
)
from tools.embedded.grammar import sentences
from tools.embedded.synthesise import SAMPLE_RATE_HZ, synthesise
from tools.embedded.voices import MINI_VCTK_VOICES

UTTERANCES = 60
"""Of each speaker."""
SEED = 92
#: As in VCTK; ``synthesise`` speaks at 16 kHz, so nothing is above 8 kHz.
RATE_HZ = 48000
#: Of libsndfile: 0.955 gives Opus about 20 kbit/s.
OPUS_COMPRESSION = 0.955
LONGEST_S = 6.0
#: More sentences of the grammar than HuBERT-mini's training speech holds.
TRAINING_TEXTS = 10_000

README = """# The mini VCTK corpus

{speakers} speakers, {count} different sentences, {minutes:.1f} minutes, in the layout of VCTK 0.92:
`wav48_silence_trimmed/SPEAKER/SPEAKER_NNN_mic1.flac` (48 kHz, mono, one microphone),
`txt/SPEAKER/SPEAKER_NNN.txt` and `speaker-info.txt`. In the archive each utterance is one Ogg-Opus
file; `speechbrain_mam.embedded.corpora.mini_corpus("mini_vctk")` expands it.

**Text.** From `tools/embedded/grammar.py`, seed {seed}; no sentence is taken from
elsewhere. Unlike VCTK, no two speakers read the same sentence. None is in the mini LJ corpus.

**Speech.** Synthetic: p901 is flite's voice `rms`, the others are variants of espeak-ng 1.51 in
different accents, at different rates and pitches (last column of `speaker-info.txt`: engine, voice,
rate and pitch in percent of its own). HuBERT-mini was trained on p901's voice, on none of the other
nine, and on none of these sentences. The speech was made at 16 kHz: above 8 kHz there is nothing.
espeak-ng is a program under GPL-3.0, flite one under a BSD-like licence; these cover the programs
and their data, not the speech they render.

**Licence of the corpus.** Apache-2.0, as the package.

Made by `python -m tools.embedded.build_mini_vctk`.
"""


@lru_cache(maxsize=1)
def vctk_sentences() -> tuple[str, ...]:
    """Sentences that neither the mini LJ corpus nor HuBERT-mini's training speech holds.

    Example
    -------
    >>> len(set(vctk_sentences())) >= UTTERANCES * len(MINI_VCTK_VOICES)
    True
    """
    from tools.embedded.make_training_speech import texts_of

    taken = {sentence.normalised for sentence in corpus_sentences()}
    taken |= set(texts_of("grammar", TRAINING_TEXTS, Path()))
    # Spares take the place of sentences that turn out too long when spoken.
    drawn = sentences(2 * UTTERANCES * len(MINI_VCTK_VOICES), seed=SEED, shortest=4, longest=9)
    return tuple(s.normalised for s in drawn if s.normalised not in taken)


def build(path: Path) -> float:
    """Speak the corpus into ``path``; returns its length in minutes."""
    from scipy.signal import resample_poly

    texts = iter(vctk_sentences())
    files: dict[str, bytes] = {}
    info = ["ID  AGE  GENDER  ACCENTS  REGION COMMENTS"]
    duration_s = 0.0
    for speaker, voice in MINI_VCTK_VOICES.items():
        info.append(f"{speaker}  NA  NA  NA  NA  {voice.name}")
        spoken = 0
        while spoken < UTTERANCES:
            batch = [next(texts) for _ in range(UTTERANCES - spoken)]
            for text, wave in zip(batch, synthesise(voice, batch), strict=True):
                if wave.size > LONGEST_S * SAMPLE_RATE_HZ:
                    continue
                spoken += 1
                name = f"{speaker}_{spoken:03d}"
                wave48 = resample_poly(wave, RATE_HZ // SAMPLE_RATE_HZ, 1)
                opus = to_opus(wave48, RATE_HZ, OPUS_COMPRESSION)
                files[f"wav48_silence_trimmed/{speaker}/{name}_mic1.ogg"] = opus
                files[f"txt/{speaker}/{name}.txt"] = f"{text}\n".encode()
                duration_s += wave.size / SAMPLE_RATE_HZ
    readme = README.format(
        speakers=len(MINI_VCTK_VOICES),
        count=UTTERANCES * len(MINI_VCTK_VOICES),
        minutes=duration_s / 60,
        seed=SEED,
    )
    heads = {"README.md": readme.encode(), "speaker-info.txt": ("\n".join(info) + "\n").encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, heads | files)
    return duration_s / 60


if __name__ == "__main__":
    run_builder("mini_vctk", build)
