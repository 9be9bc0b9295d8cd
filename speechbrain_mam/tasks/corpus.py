"""What every corpus needs before training: manifests, and clean text for speech.

Each error names the utterance and the file. Nothing is written before everything has been checked.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger

from speechbrain_mam.atomic import write_beside, write_text_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.lobes.hubert_ctc import Labels
from speechbrain_mam.tasks.recordings import check_audio
from speechbrain_mam.text_files import read_json

logger = get_logger(__name__)

DONE = "prepared.json"
"""Written last: what the manifests beside it were made from."""

NAMED = 5
"""How many utterances a warning names."""


@dataclass(frozen=True)
class Utterance:
    """One recording with its words. ``wav`` is the path below the data folder.

    ``cluster`` is what its errors have in common with those of others: the speaker, the chapter.
    """

    id: str
    wav: str
    text: str
    speaker: str
    cluster: str | None = None


def normalize_text(text: str, alphabet: Labels, where: str) -> str:
    """Text in the alphabet of a CTC head, one space between words.

    It is the one way from a transcript to a label, for preparations, sweeps, probes and error
    rates: see :meth:`~speechbrain_mam.lobes.alphabet.CTCAlphabet.spell`. Done twice, it changes
    nothing more. Numbers and abbreviations are the corpus's business: a digit that is left is an
    error.

    Raises
    ------
    MAMError
        If nothing is left, or a character that the alphabet lacks. ``where`` names the utterance.

    Example
    -------
    >>> tokens = ["<pad>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    >>> alphabet = CTCAlphabet({token: i for i, token in enumerate(tokens)})
    >>> normalize_text('“Él  didn’t,” she said -- twice.', alphabet, "utterance X")
    "EL DIDN'T SHE SAID TWICE"
    """
    words = alphabet.spell(text)
    if not words:
        raise MAMError(f"{where}: the transcript {text!r} is empty after normalisation")
    if unknown := alphabet.unknown(words):
        raise MAMError(
            f"{where}: the transcript {text!r} has {sorted(unknown)}, which the model's alphabet "
            "lacks; write it in words (or set new_alphabet)"
        )
    return words


def write_manifests(
    splits: Mapping[str, Sequence[Utterance]],
    data_folder: Path,
    save_folder: Path,
    alphabet: CTCAlphabet,
    corpus_id: str,
) -> None:
    """Check every utterance, then write ``{split}.csv`` in SpeechBrain's format.

    The columns are ``ID, duration, wav, spk_id, wrd``, and ``cluster`` where all utterances of a
    split have one; durations are in seconds and paths begin with ``$data_root``. A finished
    preparation of the same corpus is not repeated.

    Arguments
    ---------
    splits : mapping of str to sequence of Utterance
        Utterances by split.
    data_folder, save_folder : Path
        The corpus; where the manifests go.
    alphabet : CTCAlphabet
        What the text is normalised to.
    corpus_id : str
        Changes when the corpus changes: a hash of its transcripts.

    Raises
    ------
    MAMError
        For the first utterance that cannot be used, or if ``save_folder`` holds another corpus.
    """
    identity = {
        "data_folder": str(data_folder.resolve()),
        "corpus": corpus_id,
        "alphabet": "".join(sorted(alphabet.letters)),
        "utterances": {name: len(utterances) for name, utterances in splits.items()},
    }
    if is_prepared(save_folder, identity):
        return
    for name, utterances in splits.items():
        if not utterances:
            raise MAMError(f"'{data_folder}': the {name} split is empty; the corpus is too small")
    rows = {
        name: _checked(utterances, data_folder, alphabet) for name, utterances in splits.items()
    }
    save_tables(rows, save_folder, identity)


def is_prepared(save_folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the manifests of this very preparation are already there.

    Arguments
    ---------
    save_folder : Path
        Where the manifests go.
    identity : mapping of str to object
        What the manifests depend on, as JSON has it: folder, corpus, options, counts.

    Raises
    ------
    MAMError
        If ``save_folder`` holds the manifests of another one.
    """
    done = save_folder / DONE
    if not done.is_file():
        return False
    found = read_json(done)
    if found == identity:
        logger.info("the manifests in %s are up to date", save_folder)
        return True
    raise _another(save_folder, found, [key for key in identity if found.get(key) != identity[key]])


def check_same_data(save_folder: Path, data_folder: Path) -> None:
    """Refuse another corpus for a folder that has been prepared, before anything is written there.

    Raises
    ------
    MAMError
        If ``save_folder`` holds the manifests of another data folder.
    """
    done = save_folder / DONE
    found = read_json(done) if done.is_file() else {}
    if found.get("data_folder", str(data_folder.resolve())) != str(data_folder.resolve()):
        raise _another(save_folder, found, ["data_folder"])


def _another(save_folder: Path, found: Mapping[str, Any], changed: Sequence[str]) -> MAMError:
    return MAMError(
        f"'{save_folder}' was prepared with another {', '.join(changed)} "
        f"({', '.join(str(found.get(key)) for key in changed)}): choose another --output_folder"
    )


def save_tables(
    tables: Mapping[str, Sequence[Mapping[str, str]]],
    save_folder: Path,
    identity: Mapping[str, Any],
    what: str = "utterances",
) -> None:
    """Write ``{name}.csv`` of each table, and last the note that makes :func:`is_prepared` true.

    Arguments
    ---------
    tables : mapping of str to sequence of mapping
        Rows by name; no table is empty, all rows have the same columns, ``duration`` (in seconds)
        among them.
    save_folder : Path
        Where the manifests go; made if it is not there.
    identity : mapping of str to object
        What the manifests depend on.
    what : str
        What a row is, for the log.
    """
    save_folder.mkdir(parents=True, exist_ok=True)
    for name, content in tables.items():

        def write(part: Path, content: Sequence[Mapping[str, str]] = content) -> None:
            with part.open("w", newline="", encoding="utf-8") as stream:
                table = csv.DictWriter(stream, list(content[0]))
                table.writeheader()
                table.writerows(content)

        write_beside(save_folder / f"{name}.csv", write)
        hours = sum(float(row["duration"]) for row in content) / 3600
        logger.info("%s: %d %s, %.2f h", name, len(content), what, hours)
    write_text_beside(save_folder / DONE, json.dumps(identity, indent=2))


def text_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte-order mark, empty ones too.

    A line ends with a line feed, or a carriage return and a line feed. ``str.splitlines`` would
    also end it at a form feed, at U+0085 or at U+2028, which a transcript may hold.

    Raises
    ------
    MAMError
        If it is not UTF-8.

    Example
    -------
    >>> file = getfixture("tmp_path") / "lines.txt"
    >>> _ = file.write_bytes("one\\u2028still one\\r\\ntwo\\n".encode())
    >>> text_lines(file)
    ['one\\u2028still one', 'two', '']
    """
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise MAMError(f"'{file}' is not UTF-8 text: {error}") from error


def name_some(names: Sequence[str]) -> str:
    """How many there are, and the first few of them.

    Example
    -------
    >>> name_some([f"p225_{i:03d}" for i in range(1, 8)])
    '7 (p225_001, p225_002, p225_003, p225_004, p225_005, …)'
    """
    shown = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return f"{len(names)} ({shown})"


def say_of_twins(names: Sequence[str], own: str) -> None:
    """Say once that utterances have several recordings, and which one is used.

    Arguments
    ---------
    names : sequence of str
        The utterances; nothing is said if there are none.
    own : str
        The suffix that wins.
    """
    if names:
        what = f"utterances with several files of one name, the corpus's own {own} is used"
        logger.warning("%s: %s", what, name_some(names))


def warn_of_channels(recordings: int) -> None:
    """Say once how many recordings have several channels, if any has."""
    if recordings:
        logger.warning("%d recordings have several channels: they are mixed down", recordings)


def _checked(
    utterances: Iterable[Utterance], data_folder: Path, alphabet: CTCAlphabet
) -> list[dict[str, str]]:
    rows, mixed_down, utterances = [], 0, list(utterances)
    clustered = all(utterance.cluster is not None for utterance in utterances)
    for utterance in utterances:
        where = f"utterance {utterance.id}"
        words = normalize_text(utterance.text, alphabet, where)
        duration_s, channels = check_audio(data_folder / utterance.wav, where)
        mixed_down += channels > 1
        fields = asdict(utterance)
        rows.append(
            {
                "ID": fields["id"],
                "duration": f"{duration_s:.4f}",
                "wav": f"$data_root/{fields['wav']}",
                "spk_id": fields["speaker"],
                "wrd": words,
                **({"cluster": fields["cluster"]} if clustered else {}),
            }
        )
    warn_of_channels(mixed_down)
    return rows
