"""LJ Speech preparation: splits, text, and every way in which a corpus can be broken."""

import csv
import sys

import numpy as np
import pytest
import soundfile
from conftest import REPO, save_corpus
from test_hubert_ctc import ALPHABET

from speechbrain_mam import MAMError
from speechbrain_mam.tasks.corpus import normalize_text

sys.path.insert(0, str(REPO / "recipes" / "LJSpeech"))
from ljspeech_prepare import prepare_ljspeech, split_sizes


def prepare(corpus, tmp_path):
    prepare_ljspeech(corpus, tmp_path / "save", ALPHABET)
    return {
        split: list(csv.DictReader((tmp_path / "save" / f"{split}.csv").open(encoding="utf-8")))
        for split in ("train", "valid", "test")
    }


def replace_line(corpus, number, line):
    lines = (corpus / "metadata.csv").read_text().splitlines()
    lines[number - 1] = line
    (corpus / "metadata.csv").write_text("\n".join(lines))


def test_manifests(corpus, tmp_path):
    rows = prepare(corpus, tmp_path)
    assert [len(rows[split]) for split in rows] == [13, 3, 4]
    everything = rows["train"] + rows["valid"] + rows["test"]
    assert [row["ID"] for row in everything] == [f"XX001-{i:04d}" for i in range(20)]
    assert rows["train"][3]["wrd"] == "IT'S A FINE DAY"
    assert rows["train"][0]["wav"] == "$data_root/wavs/XX001-0000.wav"
    assert float(rows["train"][1]["duration"]) == pytest.approx(0.55)
    prepare(corpus, tmp_path)  # a second time: nothing to do


def test_chapters_are_clusters_where_a_set_has_enough(corpus, tmp_path):
    """Of fewer than bound a difference, or where an id names none, utterances are on their own."""
    rows = prepare(corpus, tmp_path)
    assert not any("cluster" in row for split in rows.values() for row in split)
    lines = (corpus / "metadata.csv").read_text().splitlines()
    for i, line in enumerate(lines):
        name, rest = line.split("|", 1)
        new = f"XX00{i // 2}-{i:04d}" if i != 14 else "free"
        (corpus / "wavs" / f"{name}.wav").rename(corpus / "wavs" / f"{new}.wav")
        lines[i] = f"{new}|{rest}"
    (corpus / "metadata.csv").write_text("\n".join(lines))
    rows = prepare(corpus, tmp_path / "again")
    assert [row["cluster"] for row in rows["train"]] == [f"XX00{i // 2}" for i in range(13)]
    # An id without a chapter, in the validation set; the test set is of two chapters
    assert not any("cluster" in row for split in ("valid", "test") for row in rows[split])


def test_splits():
    assert split_sizes(13100) == {"train": 12600, "valid": 250, "test": 250}
    assert split_sizes(214) == {"train": 139, "valid": 32, "test": 43}


def test_another_corpus_in_the_same_folder_is_refused(corpus, tmp_path):
    prepare(corpus, tmp_path)
    other = save_corpus(tmp_path / "other", utterances=21)
    with pytest.raises(MAMError, match=r"prepared with another data_folder.*--output_folder"):
        prepare(other, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("XX001-0002|only two", r"line 3: expected 'id\|transcript\|normalised transcript'"),
        ("XX001-0001|Twice.|Twice.", "line 3: the utterance XX001-0001 stands there twice"),
        ("../XX001-0002|Up.|Up.", "line 3: the utterance '../XX001-0002' is no name in wavs/"),
        (r"a\\..\\b|Up.|Up.", "line 3: the utterance .* is no name in wavs/"),
        ("XX001-0002|-|—", "utterance XX001-0002: the transcript '—' is empty"),
        ("XX001-0002|45|45 dollars", r"utterance XX001-0002.*\['4', '5'\]"),
        ("XX001-0002|x|Привет", "utterance XX001-0002.*alphabet"),
    ],
)
def test_broken_metadata(corpus, tmp_path, line, message):
    replace_line(corpus, 3, line)
    with pytest.raises(MAMError, match=message):
        prepare(corpus, tmp_path)
    assert not (tmp_path / "save").exists()


def test_missing_and_empty(tmp_path, corpus):
    with pytest.raises(MAMError, match="no such folder"):
        prepare_ljspeech(tmp_path / "nowhere", tmp_path / "save", ALPHABET)
    (corpus / "metadata.csv").write_text("\n\n")
    with pytest.raises(MAMError, match=r"metadata\.csv' is empty"):
        prepare(corpus, tmp_path)
    (corpus / "metadata.csv").unlink()
    with pytest.raises(MAMError, match=r"metadata\.csv': no such file"):
        prepare(corpus, tmp_path)


def test_too_small_a_corpus(tmp_path):
    corpus = save_corpus(tmp_path / "two", utterances=2)
    with pytest.raises(MAMError, match="the valid split is empty; the corpus is too small"):
        prepare(corpus, tmp_path)


def test_broken_audio(corpus, tmp_path):
    wav = corpus / "wavs" / "XX001-0004.wav"
    content = wav.read_bytes()
    breakages = {
        "'.*XX001-0004.wav': no such file": None,
        "is cut short: its header promises more": content[: len(content) // 2],
        "is not readable audio": b"this is text, not audio",
        r"lasts 0\.000 s, expected at least": "empty",
    }
    for message, broken in breakages.items():
        if broken is None:
            wav.unlink()
        elif broken == "empty":
            soundfile.write(wav, np.zeros(0), 16000)
        else:
            wav.write_bytes(broken)
        with pytest.raises(MAMError, match=f"utterance XX001-0004: .*{message}"):
            prepare(corpus, tmp_path)
        assert not (tmp_path / "save").exists()


def test_a_cut_flac_is_found(tmp_path):
    from speechbrain_mam.tasks.corpus import check_audio

    file = tmp_path / "a.flac"
    soundfile.write(file, np.random.default_rng(0).standard_normal(32000) * 0.1, 16000)
    assert check_audio(file, "utterance a") == (2.0, 1)
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(MAMError, match="utterance a"):
        check_audio(file, "utterance a")


def test_stereo_is_mixed_down_and_said_once(corpus, tmp_path, caplog):
    for i in (1, 2):
        stereo = np.random.default_rng(i).standard_normal((8000, 2)) * 0.1
        soundfile.write(corpus / "wavs" / f"XX001-000{i}.wav", stereo, 16000)
    with caplog.at_level("WARNING"):
        prepare(corpus, tmp_path)
    said = [record.getMessage() for record in caplog.records if "mixed down" in record.getMessage()]
    assert said == ["2 recordings have several channels: they are mixed down"]
    from speechbrain_mam.tasks.audio import load_audio

    assert load_audio(str(corpus / "wavs" / "XX001-0001.wav"), 16000).shape == (8000,)


def test_resampling(tmp_path):
    from speechbrain_mam.tasks.audio import load_audio

    time = np.arange(22050) / 22050
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 22050)
    signal = load_audio(str(tmp_path / "tone.wav"), 16000)
    assert signal.shape == (16000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(signal.numpy() - expected)[200:-200].max() < 5e-3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Printing, in the only sense;", "PRINTING IN THE ONLY SENSE"),
        (
            "the “Gutenberg” Bible — about 1455".replace("1455", "then"),
            "THE GUTENBERG BIBLE ABOUT THEN",
        ),
        ("Müller's café & son", "MULLER'S CAFE AND SON"),
        ("rock ' roll 'twas", "ROCK ROLL 'TWAS"),
        ("[a] well-known (fact)", "A WELL KNOWN FACT"),
    ],
)
def test_text(text, expected):
    assert normalize_text(text, ALPHABET, "utterance X") == expected


@pytest.mark.real
def test_the_real_prompts_can_be_prepared(real_data, tmp_path):
    rows = prepare(real_data / "prompts_ljspeech", tmp_path)
    assert [len(rows[split]) for split in rows] == [139, 32, 43]
