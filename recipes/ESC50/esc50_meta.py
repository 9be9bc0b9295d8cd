"""ESC-50's table of clips, ``meta/esc50.csv``, read and checked."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_mam.errors import MAMError

logger = get_logger(__name__)

COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
FOLDS = (1, 2, 3, 4, 5)
META = "meta/esc50.csv"


@dataclass(frozen=True)
class Clip:
    """One row of ``meta/esc50.csv``; ``line`` is where it stands there."""

    id: str
    filename: str
    fold: int
    target: int
    category: str
    source: str
    line: int


def find_meta(data_folder: Path) -> Path:
    """The table of the clips.

    Raises
    ------
    MAMError
        If the folder is not ESC-50's.
    """
    if not data_folder.is_dir():
        raise MAMError(f"--data_folder '{data_folder}': no such folder")
    for needed in (META, "audio"):
        if not (data_folder / needed).exists():
            below = [file.parent.parent for file in sorted(data_folder.glob(f"*/{META}"))]
            hint = f"; did you mean '{below[0]}'?" if below else ""
            raise MAMError(
                f"--data_folder '{data_folder}' has no {needed}; expected ESC-50's layout, "
                f"{META} and audio/{hint}"
            )
    return data_folder / META


def read_meta(meta: Path) -> list[Clip]:
    """The clips of an ``esc50.csv``, in its order.

    Raises
    ------
    MAMError
        If a line is malformed, a clip stands there twice, or a class lacks clips in a fold.
    """
    try:
        with meta.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, fields) for fields in reader if fields]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MAMError(f"'{meta}' is not a CSV table in UTF-8: {error}") from error
    if not lines or not set(COLUMNS) <= set(lines[0][1]):
        found = ",".join(lines[0][1])[:80] if lines else "an empty file"
        raise MAMError(f"'{meta}': expected the header {','.join(COLUMNS)}, found {found!r}")
    header = lines[0][1]
    clips: dict[str, Clip] = {}
    for number, fields in lines[1:]:
        where = f"'{meta}', line {number}"
        if len(fields) != len(header):
            raise MAMError(f"{where}: expected {len(header)} fields, found {len(fields)}")
        clip = _clip(dict(zip(header, map(str.strip, fields), strict=True)), where, number)
        if clip.id in clips:
            raise MAMError(f"{where}: the clip {clip.id} stands there twice")
        clips[clip.id] = clip
    if not clips:
        raise MAMError(f"'{meta}' names no clip")
    _check_classes(list(clips.values()), meta)
    return list(clips.values())


def _clip(row: dict[str, str], where: str, line: int) -> Clip:
    name = row["filename"]
    if not name or name != Path(name).name or "\\" in name:
        raise MAMError(f"{where}: expected the name of a file in audio/, found {name!r}")
    for column, known in (("fold", "1 to 5"), ("target", "a number from 0 on")):
        value = row[column]
        # isdecimal alone would let other scripts' digits pass.
        if not (value.isascii() and value.isdecimal() and len(value) < 10) or (
            column == "fold" and int(value) not in FOLDS
        ):
            raise MAMError(f"{where}, {name}: {column} {value!r}, expected {known}")
    for column in ("category", "src_file"):
        if not row[column]:
            raise MAMError(f"{where}, {name}: the column {column} is empty")
    fold, target = int(row["fold"]), int(row["target"])
    return Clip(Path(name).stem, name, fold, target, row["category"], row["src_file"], line)


def _check_classes(clips: Sequence[Clip], meta: Path) -> None:
    """One name for one target, clips of each class in each fold, and no recording in two folds."""
    names: dict[int, Clip] = {}
    targets: dict[str, Clip] = {}
    folds_of: dict[int, set[int]] = defaultdict(set)
    folds_of_source: dict[str, set[int]] = defaultdict(set)
    for clip in clips:
        for first in (
            names.setdefault(clip.target, clip),
            targets.setdefault(clip.category, clip),
        ):
            if (first.target, first.category) != (clip.target, clip.category):
                raise MAMError(
                    f"'{meta}', line {clip.line}: the class {clip.target} {clip.category}, but "
                    f"line {first.line} has {first.target} {first.category}"
                )
        folds_of[clip.target].add(clip.fold)
        folds_of_source[clip.source].add(clip.fold)
    for target, found in sorted(folds_of.items()):
        if lacking := sorted(set(FOLDS) - found):
            raise MAMError(
                f"'{meta}': the class {names[target].category} (target {target}) has no clip in "
                f"fold {', '.join(map(str, lacking))}; expected clips of each class in each fold"
            )
    if spread := sorted(source for source, found in folds_of_source.items() if len(found) > 1):
        logger.warning(
            "%d recordings (src_file) have clips in several folds, so that test clips are not "
            "new: %s",
            len(spread),
            ", ".join(spread[:5]) + (", …" if len(spread) > 5 else ""),
        )


def class_names(clips: Sequence[Clip]) -> dict[int, str]:
    """The classes, target → name, in the order of their numbers.

    Example
    -------
    >>> fire = Clip("1-7-A-12", "1-7-A-12.wav", 1, 12, "crackling_fire", "7", line=2)
    >>> dog = Clip("1-8-A-0", "1-8-A-0.wav", 1, 0, "dog", "8", line=3)
    >>> class_names([fire, dog])
    {0: 'dog', 12: 'crackling_fire'}
    """
    return dict(sorted({clip.target: clip.category for clip in clips}.items()))
