"""Manifests as people have them: the same labels and the same errors, or one line that says why."""

import csv
import re
from contextlib import nullcontext

import pytest

from speechbrain_mam import MAMError
from speechbrain_mam.embedded.corpora import mini_corpus
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.runs.probe_manifest import Recogniser, manifest_batches
from speechbrain_mam.runs.sweep_manifest import _score
from speechbrain_mam.search.place import place
from speechbrain_mam.tasks.asr_data import speech_dataset


@pytest.fixture(scope="module")
def encoder():
    return HubertCTC("speechbrain_mam/hubert-mini", trainable="none").eval()


@pytest.fixture(scope="module")
def spoken():
    """Two utterances: name and text, as LJ Speech has it, capitals and punctuation among it."""
    root = mini_corpus("mini_ljspeech")
    lines = (root / "metadata.csv").read_text(encoding="utf-8").splitlines()[-2:]
    return root, [(name, text) for name, _, text in (line.split("|") for line in lines)]


def clean(text):
    return " ".join(re.sub(r"[^A-Za-z' ]", " ", text).split()).upper()


def write(file, spoken, text=clean, start="", **options):
    root, utterances = spoken
    with file.open("w", newline="", encoding="utf-8") as stream:
        stream.write(start)
        table = csv.writer(stream, **options)
        table.writerow(["ID", "duration", "wav", "wrd"])
        for name, words in utterances:
            table.writerow([name, "2.0", f"$data_root/wavs/{name}.wav", text(words)])
    return root, file


def labels_and_errors(encoder, root, manifest):
    dataset = speech_dataset(manifest, str(root), encoder)
    labels = {item["id"]: (item["wrd"], item["tokens"].tolist()) for item in dataset}
    batches = list(manifest_batches(encoder, manifest, root, 2))
    recogniser = Recogniser(encoder, place("cpu"))
    return labels, _score(recogniser, batches, lambda _: nullcontext())


WAYS = {
    "as LJ Speech has it": {"text": str},
    "lower case": {"text": lambda t: clean(t).lower()},
    "title case": {"text": lambda t: clean(t).title()},
    "punctuation": {"text": lambda t: f"“{clean(t).lower()}” — yes?".replace(" — yes?", " …!")},
    "double spaces": {"text": lambda t: f"  {clean(t).replace(' ', '  ')} "},
    "tabs, U+2028, no-break spaces": {
        "text": lambda t: clean(t).replace(" ", "\t\u2028\u00a0\x85"),
    },
    "letters that the alphabet lacks": {
        "text": lambda t: clean(t).replace("O", "ö").replace("E", "É").replace("A", "Å"),
    },
    "other apostrophes": {"text": lambda t: clean(t).replace("'", "′")},
    "invisible characters": {"text": lambda t: "\ufeff" + "\u200b\u00ad".join(clean(t)) + "\u200e"},
    "a byte-order mark": {"start": "\ufeff"},
    "all quoted": {"quoting": csv.QUOTE_ALL},
    "Windows line ends": {"lineterminator": "\r\n"},
    "Unix line ends": {"lineterminator": "\n"},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_written(way, tmp_path, spoken, encoder):
    expected = labels_and_errors(encoder, *write(tmp_path / "clean.csv", spoken))
    labels, _ = expected
    assert sorted(words for words, _ in labels.values()) == sorted(clean(t) for _, t in spoken[1])
    assert labels_and_errors(encoder, *write(tmp_path / "m.csv", spoken, **WAYS[way])) == expected


ROW = "u1,2.0,{wav},A CAT"
FAULTS = {
    "unknown letters": ("ID,duration,wav,wrd\nu1,2.0,{wav},Привет", r"utterance u1 of .*alphabet"),
    "digits": ("ID,duration,wav,wrd\nu1,2.0,{wav},room 12", r"utterance u1 of .*\['1', '2'\]"),
    "no text": ("ID,duration,wav,wrd\nu1,2.0,{wav}, ... ", r"utterance u1 of .*is empty after"),
    "no column": ("ID,duration,wav\nu1,2.0,{wav}", r"has no column wrd; expected ID, duration"),
    "no row": ("ID,duration,wav,wrd\n", "has no utterance"),
    "an empty file": ("", "has no column ID, duration, wav, wrd"),
    "an ID twice": (f"ID,duration,wav,wrd\n{ROW}\n{ROW}", "line 3: the ID u1 stands there twice"),
    "no ID": ("ID,duration,wav,wrd\n,2.0,{wav},A CAT", "line 2: the ID is empty"),
    "too few fields": ("ID,duration,wav,wrd\nu1,2.0,{wav}", "line 2: expected as many fields"),
    "too many": (f"ID,duration,wav,wrd\n{ROW},B", "line 2: expected as many fields"),
    "a word for a duration": ("ID,duration,wav,wrd\nu1,two,{wav},A", "line 2: duration 'two', exp"),
    "no duration": (
        "ID,duration,wav,wrd\nu1,nan,{wav},A",
        "line 2: duration 'nan', exp",
    ),
    "another variable": ("ID,duration,wav,wrd\nu1,2,$root/a.wav,A", r"\$root stands for nothing"),
    "no cluster": ("ID,duration,wav,wrd,cluster\nu1,2,{wav},A,", "line 2: the cluster is empty"),
    "no such file": ("ID,duration,wav,wrd\nu1,2,$data_root/a.wav,A", "utterance u1 of .*no such"),
    "an open quote": ('ID,duration,wav,wrd\nu1,2.0,{wav},"A CAT', "is not a CSV table in UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said(fault, tmp_path, spoken, encoder):
    text, message = FAULTS[fault]
    root, utterances = spoken
    manifest = tmp_path / "m.csv"
    wav = f"{root}/wavs/{utterances[0][0]}.wav"
    manifest.write_text(text.replace("{wav}", wav), encoding="utf-8")
    with pytest.raises(MAMError, match=message):
        manifest_batches(encoder, manifest, root, 1)


def test_clusters_are_optional(tmp_path, spoken, encoder):
    root, manifest = write(tmp_path / "m.csv", spoken)
    assert "cluster" not in speech_dataset(manifest, str(root), encoder)[0]
    header, *rows = manifest.read_text(encoding="utf-8").splitlines()
    lines = [f"{header},cluster", *(f"{row},p{i}" for i, row in enumerate(rows))]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    found = [item["cluster"] for item in speech_dataset(manifest, str(root), encoder)]
    assert found == ["p0", "p1"]


def test_not_utf8(tmp_path, encoder):
    (tmp_path / "m.csv").write_bytes(b"ID,duration,wav,wrd\nu1,2,a.wav,caf\xe9\n")
    with pytest.raises(MAMError, match="is not a CSV table in UTF-8"):
        manifest_batches(encoder, tmp_path / "m.csv", tmp_path, 1)


def test_a_dollar_in_a_transcript_is_no_variable(tmp_path, spoken, encoder):
    root, manifest = write(tmp_path / "m.csv", spoken, lambda t: f"$data {clean(t)}")
    assert speech_dataset(manifest, str(root), encoder)[0]["wrd"].startswith("DATA ")
