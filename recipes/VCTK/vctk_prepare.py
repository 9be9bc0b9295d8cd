"""VCTK data preparation.

Reads the layout of VCTK 0.92 (https://doi.org/10.7488/ds/2645)::

    wav48_silence_trimmed/p225/p225_001_mic1.flac    txt/p225/p225_001.txt    speaker-info.txt

and that of VCTK 0.80, whose recordings are ``wav48/p225/p225_001.wav``, one microphone only. An
utterance needs a recording and a text; what has only one of them is left out and counted. Where a
recording lies there as ``.flac`` and as ``.wav``, 0.92's own ``.flac`` and 0.80's own ``.wav`` are
used, and the log says so.

The manifests' column ``cluster`` is the speaker: intervals and tests draw whole speakers.

Splits:

``speakers``
    No speaker is in two sets. Of n speakers with text, in the sorted order of their ids, a quarter
    (rounded up, at most 10) are test: every s-th one from the middle of the first s on, where s is
    n divided by their number, rounded down. A sixth (rounded up, at most 10) are validation: those
    that follow the first test speakers. The rest are training. VCTK's neighbours in the order often
    share an accent, so the held-out speakers are spread over it; a speaker at its end, as 0.92's
    s5, moves nobody.
``espnet``
    Every speaker is in all sets: of each one's last ten utterances, in the order of their ids, the
    first five are test and the last five validation. This is the rule of ESPnet's
    ``egs2/vctk/tts1/local/data_prep.sh``, where the sets are called ``eval1`` and ``dev``. ESPnet
    also leaves out utterances without a phone label, and cuts silence by those labels; neither is
    done here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.tasks.corpus import Utterance, name_some, say_of_twins, write_manifests
from speechbrain_mam.tasks.recordings import files_by_stem

logger = get_logger(__name__)

#: Folders of recordings, VCTK 0.92's first.
AUDIO_FOLDERS = {"wav48_silence_trimmed": "VCTK 0.92", "wav48": "VCTK 0.80"}
MICS = ("mic1", "mic2")
SPLITS = ("speakers", "espnet")
MOST_HELD_OUT = 10
ESPNET_HELD_OUT = 5
SUFFIXES = {"wav48_silence_trimmed": (".flac", ".wav"), "wav48": (".wav", ".flac")}
"""Of recordings, the version's own first: it is used where there are both."""


def prepare_vctk(
    data_folder: str | Path,
    save_folder: str | Path,
    alphabet: CTCAlphabet,
    mic: str = "mic2",
    split: str = "speakers",
) -> None:
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` into ``save_folder``.

    Arguments
    ---------
    data_folder : str or Path
        The folder with ``wav48_silence_trimmed`` or ``wav48``, and ``txt``.
    save_folder : str or Path
        Where the manifests go.
    alphabet : CTCAlphabet
        The alphabet of the CTC head.
    mic : str
        ``"mic1"`` or ``"mic2"``; the other one stands in where its file is missing.
    split : str
        ``"speakers"`` or ``"espnet"``, see above.

    Raises
    ------
    MAMError
        If the corpus cannot be used; the message names the folder or the utterance.
    """
    for flag, value, known in (("mic", mic, MICS), ("split", split, SPLITS)):
        if value not in known:
            raise MAMError(f"--vctk_{flag} {value!r}: expected {' or '.join(known)}")
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    utterances = read_utterances(data_folder, mic)
    parts = split_by_speaker(utterances) if split == "speakers" else split_as_espnet(utterances)
    for name, part in parts.items():
        speakers = sorted({utterance.speaker for utterance in part})
        few = len(speakers) <= MOST_HELD_OUT
        logger.info("speakers of %s: %s", name, ", ".join(speakers) if few else len(speakers))
    trained = {utterance.text.casefold() for utterance in parts["train"]}
    if known := sum(utterance.text.casefold() in trained for utterance in parts["test"]):
        what = "test utterances with a sentence that is in the training set too"
        logger.warning("%s: %d of %d", what, known, len(parts["test"]))
    content = "\n".join(f"{u.id}|{u.wav}|{u.text}" for u in utterances)
    digest = hashlib.sha256(content.encode()).hexdigest()
    write_manifests(parts, data_folder, save_folder, alphabet, f"{split}-{mic}-{digest[:16]}")


def read_utterances(data_folder: Path, mic: str = "mic2") -> list[Utterance]:
    """All utterances with recording and text, sorted by speaker and id.

    What is missing is said in one line a kind, which names the first few.

    Raises
    ------
    MAMError
        If the folder is not VCTK's, or no utterance has both.
    """
    audio, texts = data_folder / audio_folder(data_folder), data_folder / "txt"
    if not texts.is_dir():
        raise MAMError(
            f"'{texts}': no such folder; expected VCTK's transcripts, txt/SPEAKER/SPEAKER_NNN.txt"
        )
    speakers, with_text = _folders(audio), _folders(texts)
    _warn_of_speakers(data_folder, audio, speakers, with_text)
    utterances: list[Utterance] = []
    silent: list[str] = []
    unwritten: list[str] = []
    other_mic: list[str] = []
    doubled: list[str] = []
    for speaker in speakers:
        files, several = files_by_stem(audio / speaker, *SUFFIXES[audio.name])
        recordings = _by_microphone(files)
        written, _ = files_by_stem(texts / speaker, ".txt")
        if not written:
            logger.warning("%s has no text: skipped (%d utterances)", speaker, len(recordings))
            continue
        silent += sorted(written.keys() - recordings.keys())
        unwritten += sorted(recordings.keys() - written.keys())
        doubled += several
        for name in sorted(written.keys() & recordings.keys()):
            takes = recordings[name]
            if mic not in takes and "" not in takes:
                other_mic.append(name)
            file = takes[mic] if mic in takes else takes[min(takes)]
            wav = file.relative_to(data_folder).as_posix()
            text = _read(written[name], name)
            utterances.append(Utterance(name, wav, text, speaker, cluster=speaker))
    _warn(silent, "with text but no recording, left out")
    _warn(unwritten, "with a recording but no text, left out")
    if not utterances:
        raise MAMError(
            f"'{data_folder}': no recording has its text; expected "
            f"{audio.name}/SPEAKER/SPEAKER_NNN… and txt/SPEAKER/SPEAKER_NNN.txt"
        )
    if len(other_mic) == len(utterances):
        logger.info("no utterance has a recording by %s: the other microphone's are used", mic)
    else:
        _warn(other_mic, f"without a recording by {mic}, the other microphone's is used")
    say_of_twins(doubled, SUFFIXES[audio.name][0])
    if repeated := len(utterances) - len({utterance.id for utterance in utterances}):
        raise MAMError(f"'{data_folder}': {repeated} utterance names stand there for two speakers")
    return utterances


def audio_folder(data_folder: Path) -> str:
    """Name of the folder of recordings, which tells VCTK's version.

    Raises
    ------
    MAMError
        If there is none.
    """
    if not data_folder.is_dir():
        raise MAMError(f"--data_folder '{data_folder}': no such folder")
    for name in AUDIO_FOLDERS:
        if (data_folder / name).is_dir():
            return name
    expected = " nor ".join(f"'{name}' ({version})" for name, version in AUDIO_FOLDERS.items())
    below = [f.parent for name in AUDIO_FOLDERS for f in sorted(data_folder.glob(f"*/{name}"))]
    hint = f"; did you mean '{below[0]}'?" if below else ""
    raise MAMError(f"--data_folder '{data_folder}' holds neither {expected}{hint}")


def held_out_positions(speakers: int) -> tuple[list[int], list[int]]:
    """Positions of the validation and of the test speakers in the sorted order.

    Example
    -------
    >>> held_out_positions(6), held_out_positions(10)
    (([2], [1, 4]), ([2, 5], [1, 4, 7]))
    >>> held_out_positions(109)[1]
    [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    """
    tests = min(MOST_HELD_OUT, -(-speakers // 4))
    stride = speakers // tests
    test = [stride // 2 + i * stride for i in range(tests)]
    valid = [position + 1 for position in test[: min(MOST_HELD_OUT, -(-speakers // 6))]]
    return valid, test


def split_by_speaker(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """The speaker-disjoint split.

    Raises
    ------
    MAMError
        If there are fewer than three speakers.
    """
    speakers = sorted({utterance.speaker for utterance in utterances})
    if len(speakers) < 3:
        raise MAMError(
            f"the corpus has {len(speakers)} speakers with text ({', '.join(speakers)}), expected "
            "at least 3 for sets that share none; --vctk_split espnet shares them"
        )
    valid, test = held_out_positions(len(speakers))
    part_of = dict.fromkeys(speakers, "train")
    part_of |= {speakers[i]: "valid" for i in valid} | {speakers[i]: "test" for i in test}
    return {
        name: [utterance for utterance in utterances if part_of[utterance.speaker] == name]
        for name in ("train", "valid", "test")
    }


def split_as_espnet(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """ESPnet's split, in which all sets share the speakers.

    Raises
    ------
    MAMError
        If a speaker has too few utterances.
    """
    parts: dict[str, list[Utterance]] = {"train": [], "valid": [], "test": []}
    for speaker, group in groupby(utterances, key=attrgetter("speaker")):
        spoken = list(group)
        if len(spoken) <= 2 * ESPNET_HELD_OUT:
            raise MAMError(
                f"speaker {speaker} has {len(spoken)} utterances with text; --vctk_split espnet "
                f"expects more than {2 * ESPNET_HELD_OUT} of each speaker"
            )
        parts["train"] += spoken[: -2 * ESPNET_HELD_OUT]
        parts["test"] += spoken[-2 * ESPNET_HELD_OUT : -ESPNET_HELD_OUT]
        parts["valid"] += spoken[-ESPNET_HELD_OUT:]
    return parts


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _by_microphone(files: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """Utterance → microphone → file; VCTK 0.80 names no microphone."""
    takes: dict[str, dict[str, Path]] = {}
    for stem, path in files.items():
        name, _, mic = stem.rpartition("_")
        name, mic = (name, mic) if mic in MICS else (stem, "")
        takes.setdefault(name, {})[mic] = path
    return takes


def _read(file: Path, name: str) -> str:
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise MAMError(f"utterance {name}: '{file}' is not UTF-8 text: {error}") from error


def _warn(names: Sequence[str], what: str) -> None:
    if names:
        logger.warning("utterances %s: %s", what, name_some(names))


def _warn_of_speakers(
    data_folder: Path, audio: Path, speakers: Sequence[str], with_text: Sequence[str]
) -> None:
    """Name the speakers whom ``speaker-info.txt`` or ``txt`` promise and who have no folder."""
    promised = set(with_text)
    info = data_folder / "speaker-info.txt"
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").split("\n")
        ids = {line.split()[0] for line in lines if line.strip()} - {"ID"}
        # VCTK 0.80 writes 225 for p225.
        promised |= {f"p{name}" if name.isdecimal() else name for name in ids}
    if missing := sorted(promised - set(speakers)):
        logger.warning("no folder in '%s' for the speakers %s", audio, ", ".join(missing))
