"""What every corpus needs before training: sound audio, manifests, and clean text for speech.

Each error names the utterance and the file. Nothing is written before everything has been checked.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile
from speechbrain.utils.logger import get_logger

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.hubert_ctc import CTCAlphabet
from speechbrain_mam.plots import write_beside

logger = get_logger(__name__)

MIN_DURATION_S = 0.1
"""Shorter recordings hold no word; the front end's receptive field alone is 0.025 s."""

DONE = "prepared.json"
"""Written last: what the manifests beside it were made from."""

@dataclass(frozen=True)
class Utterance:
    """One recording with its words. ``wav`` is the path below the data folder."""

    id: str
    wav: str
    text: str
    speaker: str


def normalize_text(text: str, alphabet: CTCAlphabet, where: str) -> str:
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


def check_audio(file: Path, where: str, shortest_s: float = MIN_DURATION_S) -> tuple[float, int]:
    """Duration in seconds and number of channels of a readable recording.

    Raises
    ------
    MAMError
        If the file is missing, not audio, cut short, or shorter than ``shortest_s``.
    """
    if not file.is_file():
        raise MAMError(f"{where}: '{file}': no such file")
    try:
        with soundfile.SoundFile(file) as sound:
            frames, rate, channels = sound.frames, sound.samplerate, sound.channels
            # The header alone does not tell whether the end is there.
            whole = frames == 0 or (sound.seek(frames - 1) >= 0 and len(sound.read(1)) == 1)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MAMError(f"{where}: '{file}' is not readable audio: {error}") from error
    if not whole or _riff_is_cut(file) or _ogg_is_cut(file):
        raise MAMError(f"{where}: '{file}' is cut short: its header promises more than it holds")
    if frames / rate < shortest_s:
        raise MAMError(
            f"{where}: '{file}' lasts {frames / rate:.3f} s, expected at least {shortest_s} s"
        )
    return frames / rate, channels


def _riff_is_cut(file: Path) -> bool:
    """libsndfile quietly shortens a cut WAV, so its RIFF header is read here."""
    with file.open("rb") as stream:
        head = stream.read(8)
    declared = int.from_bytes(head[4:8], "little") + 8
    streamed = declared >= 0xFFFFFFFF  # written by a pipe that did not know the length
    return head[:4] == b"RIFF" and not streamed and declared > file.stat().st_size + 1


def _ogg_is_cut(file: Path) -> bool:
    """libsndfile takes the last page that is there for the end; the real one says that it is."""
    longest_page = 27 + 255 + 255 * 255
    with file.open("rb") as stream:
        if stream.read(4) != b"OggS":
            return False
        stream.seek(max(0, file.stat().st_size - longest_page))
        rest = stream.read()
    page = rest[rest.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 255
    whole = len(page) >= 27 + segments + sum(page[27 : 27 + segments])
    return not (whole and page[5] & 0x04)


def write_manifests(
    splits: Mapping[str, Sequence[Utterance]],
    data_folder: Path,
    save_folder: Path,
    alphabet: CTCAlphabet,
    corpus_id: str,
) -> None:
    """Check every utterance, then write ``{split}.csv`` in SpeechBrain's format.

    The columns are ``ID, duration, wav, spk_id, wrd``; durations are in seconds and paths begin
    with ``$data_root``. A finished preparation of the same corpus is not repeated.

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
    found = json.loads(done.read_text(encoding="utf-8"))
    if found == identity:
        logger.info("the manifests in %s are up to date", save_folder)
        return True
    changed = [key for key in identity if found.get(key) != identity[key]]
    raise MAMError(
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
    note = json.dumps(identity, indent=2)
    write_beside(save_folder / DONE, lambda part: part.write_text(note, encoding="utf-8"))


def warn_of_channels(recordings: int) -> None:
    """Say once how many recordings have several channels, if any has."""
    if recordings:
        logger.warning("%d recordings have several channels: they are mixed down", recordings)


def _checked(
    utterances: Iterable[Utterance], data_folder: Path, alphabet: CTCAlphabet
) -> list[dict[str, str]]:
    rows, mixed_down = [], 0
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
            }
        )
    warn_of_channels(mixed_down)
    return rows
