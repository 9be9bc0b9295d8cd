"""Makes the mini ESC-50 corpus: ten kinds of synthetic sound in five folds.

To run this:

> python -m tools.embedded.build_mini_esc50

It writes ``data/mini_esc50.tar`` in ESC-50's layout, with Ogg-Opus in the place of WAV.
``corpora.mini_corpus`` expands it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tools.embedded.build_mini_ljspeech import run_builder, to_opus, write_archive
from tools.embedded.sound_events import CLASSES
from tools.embedded.sound_scenes import CLIP_S, CORPUS_SEED, recording
from tools.embedded.sound_tools import RATE_HZ, to_samples

FOLDS = 5
#: Takes of each recording of a class in a fold; a fold has one of these rows, eight clips in all.
TAKES = ((2, 2, 1, 1, 1, 1), (3, 2, 1, 1, 1), (2, 2, 2, 1, 1), (4, 1, 1, 1, 1), (3, 2, 2, 1))
#: Of libsndfile: 0.95 gives Opus about 20 kbit/s.
OPUS_COMPRESSION = 0.95
#: The classes that are ESC-10's too: the column ``esc10``.
ESC10 = frozenset({0, 1, 10, 11, 12, 20, 21, 38, 40, 41})
FIRST_SOURCE = 1001
HEADER = "filename,fold,target,category,esc10,src_file,take"

README = """# The mini ESC-50 corpus

{clips} clips of 5 s, {minutes:.1f} minutes, ten classes, five folds, in ESC-50's layout:
`meta/esc50.csv` (`{header}`) and
`audio/FOLD-SOURCE-TAKE-TARGET.wav` (16 kHz, 16-bit, mono). In the archive each clip is one Ogg-Opus
file; `speechbrain_mam.embedded.corpora.mini_corpus("mini_esc50")` expands it. The numbers and names
of the classes are ESC-50's: {names}.

**Sounds.** Synthetic, all of them: `tools/embedded/sound_events.py` draws the sounds,
`sound_scenes.py` their rooms, backgrounds and microphones. Each of the {sources} recordings
(`src_file`) is a draw of its own, seed [{seed}, `src_file`]; its takes, one to four, are in one
fold. Each fold has eight clips of each class. The corpus is no measure of how well a model hears
real sounds.

**Rate.** 16 kHz, which audio encoders read, and not ESC-50's 44.1 kHz: above 8 kHz there would be
nothing, and every reader would have to resample.

**Licence of the corpus.** Apache-2.0, as the package.

Made by `python -m tools.embedded.build_mini_esc50`.
"""


@dataclass(frozen=True)
class Source:
    """One recording: its number is ``src_file``, and its seed."""

    number: int
    fold: int
    target: int
    takes: int

    def clips(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name, without suffix, and samples ``[80000]`` of each take, in order."""
        rng = np.random.default_rng([CORPUS_SEED, self.number])
        wave = recording(CLASSES[self.target], rng, self.takes * CLIP_S)
        for take, clip in zip("ABCD", wave.reshape(-1, to_samples(CLIP_S)), strict=False):
            yield f"{self.fold}-{self.number}-{take}-{self.target}", clip


@lru_cache(maxsize=1)
def sources() -> tuple[Source, ...]:
    """Every recording of the corpus, by fold and class.

    Example
    -------
    >>> sum(source.takes for source in sources())
    400
    """
    plan = [
        (fold, target, takes)
        for fold in range(1, FOLDS + 1)
        for place, target in enumerate(CLASSES)
        for takes in TAKES[(fold + place) % len(TAKES)]
    ]
    return tuple(Source(FIRST_SOURCE + i, *row) for i, row in enumerate(plan))


def build(path: Path) -> float:
    """Synthesise the corpus into ``path``; returns its length in minutes."""
    lines: list[str] = []
    audio: dict[str, bytes] = {}
    for source in sources():
        for name, clip in source.clips():
            fields = [source.fold, source.target, CLASSES[source.target], source.target in ESC10]
            fields += [source.number, name.split("-")[2]]
            lines.append(",".join([f"{name}.wav", *map(str, fields)]))
            audio[f"audio/{name}.ogg"] = to_opus(clip, RATE_HZ, OPUS_COMPRESSION)
    minutes = len(audio) * CLIP_S / 60
    readme = README.format(
        clips=len(audio),
        minutes=minutes,
        header=HEADER,
        names=", ".join(f"{target} {name}" for target, name in CLASSES.items()),
        sources=len(sources()),
        seed=CORPUS_SEED,
    )
    meta = "\n".join([HEADER, *sorted(lines)]) + "\n"
    heads = {"README.md": readme.encode(), "meta/esc50.csv": meta.encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, heads | audio)
    return minutes


if __name__ == "__main__":
    run_builder("mini_esc50", build)
