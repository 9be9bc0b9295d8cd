"""ESC-50 data preparation.

Reads the layout of ESC-50 (https://github.com/karolpiczak/ESC-50)::

    meta/esc50.csv    filename,fold,target,category,esc10,src_file,take
    audio/1-100032-A-0.wav

with any number of classes (ESC-10's ten, for example) and any audio format that soundfile reads.
Classes are numbered 0 to n − 1 in the order of ``target`` and keep their names.

Sets, for one test fold of the official five:

* test: the clips of that fold;
* validation: a share of the clips of the other four folds (a fifth by default), where λ and the
  epoch are chosen; the test fold has no part in any choice. Clips of one ``src_file``, which are
  cut from one recording, stay together. The recordings are taken in the order of the SHA-256 of
  ``src_file``, each one that brings no class above its share. If a class is left without any, its
  smallest recording is taken that leaves some of each class to training;
* training: the rest of the other four folds.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from esc50_download import download_esc50
from esc50_meta import FOLDS, META, Clip, class_names, find_meta, read_meta

from speechbrain_mam.errors import MAMError
from speechbrain_mam.tasks.corpus import is_prepared, save_tables, warn_of_channels
from speechbrain_mam.tasks.recordings import check_audio

#: A row of BEATs' patches is 16 frames of 25 ms, one every 10 ms: 0.175 s.
SHORTEST_S = 0.2
#: ESC-50's clips last 5 s. One label stands for all of a clip, the memory of attention grows with
#: the square of its length, and BEATs was trained on clips of 10 s.
LONGEST_S = 10.0


def prepare_esc50(
    data_folder: str | Path,
    save_folder: str | Path,
    fold: int,
    valid: float = 0.2,
    download: bool = False,
) -> None:
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` of one test fold into ``save_folder``.

    The columns are ``ID, duration, wav, fold, cluster, class_id, class_name``; durations are in
    seconds, paths begin with ``$data_root``, and ``cluster`` is the ``src_file``: intervals and
    tests draw all clips of a recording together. Everything is checked before anything is written.

    Arguments
    ---------
    data_folder : str or Path
        The folder with ``meta`` and ``audio``.
    save_folder : str or Path
        Where the manifests go: one folder for each test fold.
    fold : int
        The test fold, 1 to 5.
    valid : float
        Share of each class's clips, in the other folds, that is validation: above 0, at most 0.5.
    download : bool
        Download ESC-50 (CC BY-NC 3.0) into ``data_folder`` if it is not there.

    Raises
    ------
    MAMError
        If the corpus cannot be used; the message names the file, the line, the clip or the class.
    """
    if fold not in FOLDS:
        raise MAMError(f"fold {fold!r}: expected one of ESC-50's folds, 1 to 5")
    if not 0 < valid <= 0.5:
        raise MAMError(f"valid {valid!r}: expected a share above 0 and at most 0.5")
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    if download and not (data_folder / META).is_file():
        download_esc50(data_folder)
    meta = find_meta(data_folder)
    clips = read_meta(meta)
    parts = split_fold(clips, fold, valid)
    identity = {
        "data_folder": str(data_folder.resolve()),
        "corpus": hashlib.sha256(meta.read_bytes()).hexdigest(),
        "fold": fold,
        "valid": valid,
        "clips": {name: len(part) for name, part in parts.items()},
    }
    if is_prepared(save_folder, identity):
        return
    names = class_names(clips)
    numbers = {target: number for number, target in enumerate(names)}
    tables: dict[str, list[dict[str, str]]] = {}
    mixed_down = 0
    for part, members in parts.items():
        tables[part] = []
        for clip in members:
            duration_s, channels = check_clip(data_folder / "audio" / clip.filename, clip)
            mixed_down += channels > 1
            row = {
                "ID": clip.id,
                "duration": f"{duration_s:.4f}",
                "wav": f"$data_root/audio/{clip.filename}",
                "fold": str(clip.fold),
                "cluster": clip.source,
                "class_id": str(numbers[clip.target]),
                "class_name": clip.category,
            }
            tables[part].append(row)
    warn_of_channels(mixed_down)
    save_tables(tables, save_folder, identity, "clips")


def split_fold(clips: Sequence[Clip], fold: int, valid: float) -> dict[str, list[Clip]]:
    """The training, validation and test clips of a test fold, each in the corpus's order.

    Raises
    ------
    MAMError
        If training and validation cannot both have clips of a class: its clips in the other folds
        are of one recording, for example.
    """
    others = [clip for clip in clips if clip.fold != fold]
    total = Counter(clip.target for clip in others)
    wanted = {target: max(1, round(valid * count)) for target, count in total.items()}
    sources: dict[str, Counter[int]] = defaultdict(Counter)
    for clip in others:
        sources[clip.source][clip.target] += 1
    ranked = sorted(sources, key=lambda source: hashlib.sha256(source.encode()).hexdigest())
    held_out: set[str] = set()
    taken: Counter[int] = Counter()

    def take(source: str, most: dict[int, int]) -> None:
        held = sources[source]
        if all(taken[target] + count <= most[target] for target, count in held.items()):
            held_out.add(source)
            taken.update(held)

    for source in ranked:
        take(source, {target: min(wanted[target], total[target] - 1) for target in total})
    names = class_names(clips)
    for target in sorted(total):
        for source in sorted(ranked, key=lambda source: sources[source].total()):
            if not taken[target] and target in sources[source]:
                take(source, {target: count - 1 for target, count in total.items()})
        if not taken[target]:
            raise MAMError(
                f"the class {names[target]} (target {target}): outside fold {fold} its "
                f"{total[target]} clips are of too few recordings (src_file) for training and "
                "validation to share none"
            )
    return {
        "train": [clip for clip in others if clip.source not in held_out],
        "valid": [clip for clip in others if clip.source in held_out],
        "test": [clip for clip in clips if clip.fold == fold],
    }


def check_clip(file: Path, clip: Clip) -> tuple[float, int]:
    """Duration in seconds and number of channels of a clip that can be used.

    Raises
    ------
    MAMError
        If the file is missing, not audio, cut short, silent, not finite, shorter than
        :data:`SHORTEST_S` or longer than :data:`LONGEST_S`.
    """
    where = f"clip {clip.id} ({META}, line {clip.line})"
    stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
    return _listen(file, where, stamp)


@cache  # five folds are the same clips
def _listen(file: Path, where: str, stamp: tuple[int, int]) -> tuple[float, int]:
    duration_s, channels = check_audio(file, where, SHORTEST_S, decode_all=True)
    if duration_s > LONGEST_S:
        raise MAMError(
            f"{where}: '{file}' lasts {duration_s:.1f} s, expected at most {LONGEST_S:.0f} s: cut "
            "it into clips of about 5 s, each with its label"
        )
    return duration_s, channels
