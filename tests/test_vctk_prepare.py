"""VCTK preparation: both layouts, both splits, and every way in which a corpus can be broken."""

import csv
import runpy
import shutil
import sys

import numpy as np
import pytest
import soundfile
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st
from test_hubert_ctc import ALPHABET

from speechbrain_mam import MAMError

sys.path.insert(0, str(REPO / "recipes" / "VCTK"))
from vctk_prepare import held_out_positions, prepare_vctk

AUDIO = {"0.92": "wav48_silence_trimmed", "0.80": "wav48"}
SPLITS = ("train", "valid", "test")
TEXTS = ["a cat", "the dog", "no bird is here", "it's a fine day", "we go", "who is it"]


def save_vctk(folder, speakers=6, utterances=3, version="0.92", rate_hz=16000):
    """A corpus of noise bursts in VCTK's layout, p225 and on; 0.92 has both microphones."""
    rng = np.random.default_rng(0)
    info = ["ID  AGE  GENDER  ACCENTS  REGION COMMENTS"]
    for i in range(speakers):
        speaker = f"p{225 + i}"
        info.append(f"{speaker if version == '0.92' else 225 + i}  23  F    English    Somewhere")
        (folder / AUDIO[version] / speaker).mkdir(parents=True)
        (folder / "txt" / speaker).mkdir(parents=True)
        for j in range(1, utterances + 1):
            name = f"{speaker}_{j:03d}"
            files = [f"{name}_mic1.flac", f"{name}_mic2.flac"]
            for file in files if version == "0.92" else [f"{name}.wav"]:
                samples = 0.1 * rng.standard_normal(int(rate_hz * (0.3 + 0.05 * (j % 4))))
                soundfile.write(folder / AUDIO[version] / speaker / file, samples, rate_hz)
            text = f"{TEXTS[j % len(TEXTS)].capitalize()}, {'abcdefghijkl'[i]}.\n"
            (folder / "txt" / speaker / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "speaker-info.txt").write_text("\n".join(info) + "\n", encoding="utf-8")
    (folder / AUDIO[version] / "log.txt").write_text("a file among the speakers' folders")
    return folder


@pytest.fixture()
def corpus(tmp_path):
    return save_vctk(tmp_path / "vctk")


def prepare(corpus, tmp_path, **options):
    prepare_vctk(corpus, tmp_path / "save", ALPHABET, **options)
    return {
        split: list(csv.DictReader((tmp_path / "save" / f"{split}.csv").open(encoding="utf-8")))
        for split in SPLITS
    }


def speakers_of(rows):
    return [sorted({row["spk_id"] for row in rows[split]}) for split in SPLITS]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_manifests(corpus, tmp_path, caplog):
    rows = prepare(corpus, tmp_path)
    assert [len(rows[split]) for split in SPLITS] == [9, 3, 6]
    assert speakers_of(rows) == [["p225", "p228", "p230"], ["p227"], ["p226", "p229"]]
    first = rows["train"][0]
    assert (first["ID"], first["wrd"], first["spk_id"]) == ("p225_001", "THE DOG A", "p225")
    assert all(row["cluster"] == row["spk_id"] for split in SPLITS for row in rows[split])
    assert first["wav"] == "$data_root/wav48_silence_trimmed/p225/p225_001_mic2.flac"
    assert float(first["duration"]) == pytest.approx(0.35)
    assert warnings(caplog) == []
    prepare(corpus, tmp_path)  # a second time: nothing to do


def test_version_080(tmp_path, caplog):
    corpus = save_vctk(tmp_path / "vctk", version="0.80")
    rows = prepare(corpus, tmp_path)
    assert rows["train"][0]["wav"] == "$data_root/wav48/p225/p225_001.wav"
    assert [len(rows[split]) for split in SPLITS] == [9, 3, 6]
    assert warnings(caplog) == []  # its speaker-info.txt has 225 for p225; it has one microphone


def test_one_microphone_or_the_other(corpus, tmp_path):
    rows = prepare(corpus, tmp_path, mic="mic1")
    wavs = [row["wav"] for split in SPLITS for row in rows[split]]
    assert len(wavs) == 18 and all(wav.endswith("_mic1.flac") for wav in wavs)


def test_the_other_microphone_stands_in_and_is_counted(corpus, tmp_path, caplog):
    for path in (corpus / AUDIO["0.92"] / "p226").glob("*_mic2.flac"):
        path.unlink()
    rows = prepare(corpus, tmp_path)
    by_mic2 = {row["spk_id"]: "_mic2" in row["wav"] for split in SPLITS for row in rows[split]}
    assert by_mic2 == {f"p{i}": i != 226 for i in range(225, 231)}
    assert warnings(caplog) == [
        "utterances without a recording by mic2, the other microphone's is used: 3 "
        "(p226_001, p226_002, p226_003)"
    ]


def test_a_corpus_of_one_microphone_needs_no_warning(corpus, tmp_path, caplog):
    for path in corpus.rglob("*_mic2.flac"):
        path.unlink()
    assert len(prepare(corpus, tmp_path)["test"]) == 6
    assert warnings(caplog) == []


@pytest.mark.parametrize("empty_folder", [False, True])
def test_a_speaker_without_text_is_skipped_and_named(corpus, tmp_path, caplog, empty_folder):
    shutil.rmtree(corpus / "txt" / "p226")
    if empty_folder:
        (corpus / "txt" / "p226").mkdir()
    rows = prepare(corpus, tmp_path)
    # The rule counts speakers with text: five of them.
    assert speakers_of(rows) == [["p225", "p230"], ["p228"], ["p227", "p229"]]
    assert warnings(caplog) == ["p226 has no text: skipped (3 utterances)"]


def test_audio_without_text_and_text_without_audio(tmp_path, caplog):
    corpus = save_vctk(tmp_path / "vctk", utterances=9)
    for j in range(1, 8):
        (corpus / "txt" / "p225" / f"p225_00{j}.txt").unlink()
    for path in (corpus / AUDIO["0.92"] / "p229").glob("p229_002_*"):
        path.unlink()
    rows = prepare(corpus, tmp_path)
    assert [row["ID"] for row in rows["train"]][:2] == ["p225_008", "p225_009"]
    assert "p229_002" not in {row["ID"] for row in rows["test"]}
    assert sum(len(rows[split]) for split in SPLITS) == 6 * 9 - 8
    assert warnings(caplog) == [
        "utterances with text but no recording, left out: 1 (p229_002)",
        "utterances with a recording but no text, left out: 7 "
        "(p225_001, p225_002, p225_003, p225_004, p225_005, …)",
    ]


def test_a_missing_speaker_is_named(corpus, tmp_path, caplog):
    with (corpus / "speaker-info.txt").open("a") as stream:
        stream.write("p376  22  M    Indian\n")
    shutil.rmtree(corpus / AUDIO["0.92"] / "p230")
    (corpus / "txt" / "p300").mkdir()
    rows = prepare(corpus, tmp_path)
    assert speakers_of(rows)[0] == ["p225", "p229"]
    folder = corpus / AUDIO["0.92"]
    assert warnings(caplog) == [f"no folder in '{folder}' for the speakers p230, p300, p376"]


def test_hidden_files_are_none_of_the_corpus(corpus, tmp_path, caplog):
    (corpus / AUDIO["0.92"] / "p225" / "._p225_001_mic1.flac").write_bytes(b"a file system's own")
    (corpus / "txt" / ".cache").mkdir()
    assert len(prepare(corpus, tmp_path)["train"]) == 9
    assert warnings(caplog) == []


def test_sentences_that_training_shares_with_test_are_counted(corpus, tmp_path, caplog):
    (corpus / "txt" / "p229" / "p229_002.txt").write_text("The dog, A.")
    prepare(corpus, tmp_path)
    assert warnings(caplog) == [
        "test utterances with a sentence that is in the training set too: 1 of 6"
    ]


def test_not_a_vctk_folder(corpus, tmp_path):
    def refused(folder, message):
        with pytest.raises(MAMError, match=message):
            prepare_vctk(folder, tmp_path / "save", ALPHABET)
        assert not (tmp_path / "save").exists()

    refused(tmp_path / "nowhere", r"--data_folder '.*nowhere': no such folder")
    neither = r"holds neither 'wav48_silence_trimmed' \(VCTK 0.92\) nor 'wav48' \(VCTK 0.80\)"
    refused(tmp_path, rf"{neither}; did you mean '{corpus}'\?")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", rf"'.*empty' {neither}$")
    shutil.rmtree(corpus / "txt")
    refused(corpus, r"txt': no such folder; expected VCTK's transcripts")
    (corpus / "txt").mkdir()
    refused(corpus, r"'.*vctk': no recording has its text; expected wav48_silence_trimmed/SPEAKER")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"utterance p229_002: the transcript '' is empty"),
        (b" -\n", "utterance p229_002: the transcript '-' is empty"),
        (b"45 dollars", r"utterance p229_002.*\['4', '5'\]"),
        ("Привет".encode(), "utterance p229_002.*alphabet"),
        (b"caf\xe9", r"utterance p229_002: '.*p229_002\.txt' is not UTF-8 text"),
    ],
)
def test_broken_text(corpus, tmp_path, content, message):
    (corpus / "txt" / "p229" / "p229_002.txt").write_bytes(content)
    with pytest.raises(MAMError, match=message):
        prepare(corpus, tmp_path)
    assert not (tmp_path / "save").exists()


def test_broken_audio(corpus, tmp_path):
    flac = corpus / AUDIO["0.92"] / "p229" / "p229_002_mic2.flac"
    content = flac.read_bytes()
    for message, broken in {
        "is not readable audio": b"this is text, not audio",
        "": content[: len(content) // 2],
    }.items():
        flac.write_bytes(broken)
        with pytest.raises(
            MAMError, match=rf"utterance p229_002: '.*p229_002_mic2\.flac'.*{message}"
        ):
            prepare(corpus, tmp_path)
        assert not (tmp_path / "save").exists()


def test_two_speakers_with_the_same_names(corpus, tmp_path):
    for path in [*corpus.rglob("p226/p226_*")]:
        path.rename(path.with_name(path.name.replace("p226", "p225")))
    with pytest.raises(MAMError, match="3 utterance names stand there for two speakers"):
        prepare(corpus, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mic": "mic3"}, "--vctk_mic 'mic3': expected mic1 or mic2"),
        ({"split": "random"}, "--vctk_split 'random': expected speakers or espnet"),
        ({"split": "espnet"}, "speaker p225 has 3 utterances with text; --vctk_split espnet exp"),
    ],
)
def test_options_that_cannot_be(corpus, tmp_path, options, message):
    with pytest.raises(MAMError, match=message):
        prepare(corpus, tmp_path, **options)
    assert not (tmp_path / "save").exists()


def test_too_few_speakers(tmp_path):
    corpus = save_vctk(tmp_path / "two", speakers=2)
    with pytest.raises(MAMError, match=r"2 speakers with text \(p225, p226\), expected at least 3"):
        prepare(corpus, tmp_path)


def test_another_split_in_the_same_folder_is_refused(tmp_path):
    corpus = save_vctk(tmp_path / "vctk", utterances=12)
    prepare(corpus, tmp_path)
    with pytest.raises(MAMError, match=r"prepared with another corpus.*--output_folder"):
        prepare(corpus, tmp_path, split="espnet")


def test_espnets_split(tmp_path):
    corpus = save_vctk(tmp_path / "vctk", speakers=2, utterances=12)
    rows = prepare(corpus, tmp_path, split="espnet")
    assert speakers_of(rows) == [["p225", "p226"]] * 3
    names = {
        split: [int(r["ID"][-3:]) for r in rows[split] if r["spk_id"] == "p226"] for split in rows
    }
    assert names == {"train": [1, 2], "test": [3, 4, 5, 6, 7], "valid": [8, 9, 10, 11, 12]}


def test_held_out_speakers_of_vctk_and_of_small_corpora():
    assert held_out_positions(3) == ([2], [1])
    assert held_out_positions(6) == ([2], [1, 4])
    assert held_out_positions(10) == ([2, 5], [1, 4, 7])
    valid, test = held_out_positions(108)
    assert test == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    assert valid == [position + 1 for position in test]
    assert held_out_positions(109) == (valid, test)  # 0.92 has one more, at the end


@given(st.integers(3, 300))
def test_held_out_speakers_of_any_number(speakers):
    valid, test = held_out_positions(speakers)
    held_out = {*valid, *test}
    assert len(held_out) == len(valid) + len(test) < speakers
    assert min(held_out) >= 0 and max(held_out) < speakers
    assert valid and 6 * len(test) >= min(speakers, 60)


def test_the_recipes_own_options_leave_the_command_line():
    options = runpy.run_path(str(REPO / "recipes" / "VCTK" / "train.py"))["vctk_options"]
    taken, rest = options(["a.yaml", "--vctk_split", "espnet", "--lam", "-0.5", "--vctk=1"])
    assert (taken.vctk_split, taken.vctk_mic) == ("espnet", "mic2")
    assert rest == ["a.yaml", "--lam", "-0.5", "--vctk=1"]


@pytest.mark.parametrize(
    ("recipe", "argv", "says"),
    [
        ("VCTK", ["--vctk_split", "speaker"], "--vctk_split: invalid choice: 'speaker'"),
        ("VCTK", ["--vctk_mic", "mic3"], "--vctk_mic: invalid choice: 'mic3'"),
        ("VCTK", ["--vctk_mic"], "--vctk_mic: expected one argument"),
        ("ESC50", ["--folds"], "--folds: expected one argument"),
        ("ESC50", ["--output_folder"], "--output_folder: expected one argument"),
    ],
)
def test_a_recipes_own_option_is_refused_in_one_line(recipe, argv, says, monkeypatch):
    """Where the command line is read: there is no folder of the run yet."""
    monkeypatch.syspath_prepend(str(REPO / "recipes" / recipe))
    read = runpy.run_path(str(REPO / "recipes" / recipe / "train.py"))
    options = read["vctk_options" if recipe == "VCTK" else "fold_options"]
    with pytest.raises(MAMError) as refused:
        options(["a.yaml", *argv])
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.real
def test_the_real_digits_can_be_prepared(real_data, tmp_path, caplog):
    rows = prepare(real_data / "digits_vctk", tmp_path, mic="mic1")
    assert [len(rows[split]) for split in SPLITS] == [305, 102, 201]
    assert speakers_of(rows) == [["s1", "s4", "s6"], ["s3"], ["s2", "s5"]]
    assert rows["test"][0]["wrd"] == "SEVEN SEVEN THREE"
    from speechbrain_mam.tasks.audio import load_audio

    first = rows["test"][0]
    signal = load_audio(first["wav"].replace("$data_root", str(real_data / "digits_vctk")), 16000)
    assert signal.shape[0] == pytest.approx(16000 * float(first["duration"]), abs=2)
