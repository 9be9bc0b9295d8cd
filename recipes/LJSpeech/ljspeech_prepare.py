"""LJ Speech data preparation.

Reads the layout of LJ Speech 1.1 (https://keithito.com/LJ-Speech-Dataset/): ``metadata.csv`` with
``id|transcript|normalised transcript`` lines, and ``wavs/id.wav``. The normalised column, in which
numbers and abbreviations are written out, is normalised to the alphabet of the model.

Splits, in the order of ``metadata.csv``:

* LJ Speech itself (5,000 utterances or more): the last 250 are test, the 250 before them
  validation, the rest training;
* a smaller corpus in its layout: the last 20 % are test, the 15 % before them validation, so that a
  confidence interval over test utterances means something.

Where the ids of a set name six chapters or more, ``LJ001-0001``, the manifest's column ``cluster``
is the chapter: intervals and tests then draw whole chapters. Fewer bound no difference, and all are
by one speaker: there each utterance stands for itself, as in the test set of LJ Speech itself,
which is of one chapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.results.resampling import FEWEST_BOUNDED
from speechbrain_mam.tasks.corpus import Utterance, say_of_twins, text_lines, write_manifests
from speechbrain_mam.tasks.recordings import files_by_stem

logger = get_logger(__name__)

FULL_SIZE = 5000
HELD_OUT = 250
SUFFIXES = (".wav", ".flac")
"""Of recordings; where there are both, LJ Speech's own ``.wav`` is used."""


def prepare_ljspeech(
    data_folder: str | Path, save_folder: str | Path, alphabet: CTCAlphabet
) -> None:
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` into ``save_folder``.

    Arguments
    ---------
    data_folder : str or Path
        The folder with ``metadata.csv`` and ``wavs``.
    save_folder : str or Path
        Where the manifests go.
    alphabet : CTCAlphabet
        The alphabet of the CTC head.

    Raises
    ------
    MAMError
        If the corpus cannot be used; the message names the file and the line or utterance.
    """
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    if not data_folder.is_dir():
        raise MAMError(f"--data_folder '{data_folder}': no such folder")
    metadata = data_folder / "metadata.csv"
    utterances = read_metadata(metadata)
    sizes = split_sizes(len(utterances))
    splits, start = {}, 0
    for name, size in sizes.items():
        splits[name] = with_chapters(utterances[start : start + size])
        start += size
    corpus_id = hashlib.sha256(metadata.read_bytes()).hexdigest()
    write_manifests(splits, data_folder, save_folder, alphabet, corpus_id)


def read_metadata(metadata: Path) -> list[Utterance]:
    """The utterances of a ``metadata.csv``, in its order."""
    if not metadata.is_file():
        raise MAMError(f"'{metadata}': no such file; expected LJ Speech's metadata.csv")
    utterances: list[Utterance] = []
    seen: set[str] = set()
    recordings, doubled = files_by_stem(metadata.parent / "wavs", *SUFFIXES)
    for number, line in enumerate(text_lines(metadata), start=1):
        if not line.strip():
            continue
        fields = line.split("|")
        if len(fields) != 3 or not fields[0].strip():
            raise MAMError(
                f"'{metadata}', line {number}: expected 'id|transcript|normalised transcript', "
                f"found {line[:60]!r}"
            )
        name = fields[0].strip()
        if ".." in Path(name).parts or "\\" in name:
            raise MAMError(
                f"'{metadata}', line {number}: the utterance {name!r} is no name in wavs/; its "
                "recording would lie outside the corpus"
            )
        if name in seen:
            raise MAMError(f"'{metadata}', line {number}: the utterance {name} stands there twice")
        seen.add(name)
        file = recordings[name].name if name in recordings else f"{name}.wav"
        # "LJ001-0001": one speaker, so the part before the dash is a book, not a person
        utterances.append(Utterance(name, f"wavs/{file}", fields[2], speaker=name[:2]))
    if not utterances:
        raise MAMError(f"'{metadata}' is empty: it names no utterance")
    say_of_twins([name for name in doubled if name in seen], SUFFIXES[0])
    return utterances


def with_chapters(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Utterances in clusters by chapter, where every id names one and there are enough of them.

    Example
    -------
    >>> names = [f"LJ00{chapter}-0001" for chapter in range(6)]
    >>> found = [Utterance(name, f"{name}.wav", "a", "LJ") for name in names]
    >>> [utterance.cluster for utterance in with_chapters(found)]
    ['LJ000', 'LJ001', 'LJ002', 'LJ003', 'LJ004', 'LJ005']
    >>> {utterance.cluster for utterance in with_chapters(found[1:])}
    {None}
    """
    chapters = [utterance.id.partition("-")[0] * ("-" in utterance.id) for utterance in utterances]
    if not all(chapters) or len(set(chapters)) < FEWEST_BOUNDED:
        return list(utterances)
    return [replace(u, cluster=chapter) for u, chapter in zip(utterances, chapters, strict=True)]


def split_sizes(total: int) -> dict[str, int]:
    """Number of utterances in each split, in the corpus's order.

    Example
    -------
    >>> split_sizes(13100), split_sizes(600)
    ({'train': 12600, 'valid': 250, 'test': 250}, {'train': 390, 'valid': 90, 'test': 120})
    """
    if total >= FULL_SIZE:
        test = valid = HELD_OUT
    else:
        test, valid = round(0.20 * total), round(0.15 * total)
    return {"train": total - test - valid, "valid": valid, "test": test}
