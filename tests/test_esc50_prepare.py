"""ESC-50 preparation: folds, sets, and every way in which a corpus can be broken."""

import csv
import re
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile
from conftest import REPO, expanded_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_mam import MAMError

sys.path.insert(0, str(REPO / "recipes" / "ESC50"))
import esc50_prepare
from esc50_meta import COLUMNS, Clip, read_meta
from esc50_prepare import prepare_esc50, split_fold

SPLITS = ("train", "valid", "test")
CLASSES = {0: "dog", 12: "crackling_fire", 40: "helicopter"}
HEADER = ",".join(COLUMNS)


def save_esc50(folder, suffix=".wav", rate_hz=8000, sources=3, takes=2):
    """Noise bursts in ESC-50's layout: 3 classes × 5 folds × 3 recordings × 2 takes of 0.4 s."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rng = np.random.default_rng(0)
    lines, number = [HEADER], 100
    for fold in range(1, 6):
        for target, name in CLASSES.items():
            for _ in range(sources):
                number += 1
                for take in "ABCD"[:takes]:
                    file = f"{fold}-{number}-{take}-{target}{suffix}"
                    samples = 0.1 * rng.standard_normal(int(0.4 * rate_hz))
                    soundfile.write(folder / "audio" / file, samples, rate_hz)
                    lines.append(f"{file},{fold},{target},{name},{target < 41},{number},{take}")
    write_meta(folder, lines)
    return folder


def write_meta(folder, lines):
    (folder / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def meta_lines(folder):
    return (folder / "meta" / "esc50.csv").read_text(encoding="utf-8").splitlines()


@pytest.fixture()
def corpus(tmp_path):
    return save_esc50(tmp_path / "esc50")


def prepare(corpus, tmp_path, fold=1, **options):
    save = tmp_path / f"fold{fold}"
    prepare_esc50(corpus, save, fold, **options)
    return {
        split: list(csv.DictReader((save / f"{split}.csv").open(encoding="utf-8")))
        for split in SPLITS
    }


def refused(corpus, tmp_path, message, **options):
    with pytest.raises(MAMError, match=message):
        prepare(corpus, tmp_path, **options)
    assert list(tmp_path.glob("fold*")) == []


def source_of(row):
    return row["ID"].split("-")[1]


def messages(caplog, level="WARNING"):
    return [record.getMessage() for record in caplog.records if record.levelname == level]


def test_manifests(corpus, tmp_path, caplog):
    rows = prepare(corpus, tmp_path, fold=2)
    assert [len(rows[split]) for split in SPLITS] == [60, 12, 18]
    first = rows["test"][0]
    assert all(row["cluster"] == source_of(row) for split in SPLITS for row in rows[split])
    columns = ["ID", "duration", "wav", "fold", "cluster", "class_id", "class_name"]
    assert list(first) == columns
    assert first["wav"] == f"$data_root/audio/{first['ID']}.wav"
    assert (first["ID"], first["fold"]) == ("2-110-A-0", "2")
    assert float(first["duration"]) == pytest.approx(0.4)
    assert messages(caplog) == []
    prepare(corpus, tmp_path, fold=2)  # a second time: nothing to do


def test_classes_are_numbered_in_the_order_of_their_targets(corpus, tmp_path):
    rows = prepare(corpus, tmp_path)
    for split in SPLITS:
        classes = {(row["class_id"], row["class_name"]) for row in rows[split]}
        assert classes == {("0", "dog"), ("1", "crackling_fire"), ("2", "helicopter")}
        assert all(
            CLASSES[int(row["ID"].split("-")[3])] == row["class_name"] for row in rows[split]
        )


def test_each_clip_is_tested_once_in_five_folds(corpus, tmp_path):
    tested = []
    for fold in range(1, 6):
        rows = prepare(corpus, tmp_path, fold=fold)
        assert {row["fold"] for row in rows["test"]} == {str(fold)}
        assert all(row["fold"] != str(fold) for row in rows["train"] + rows["valid"])
        everything = [row["ID"] for split in SPLITS for row in rows[split]]
        assert len(everything) == len(set(everything)) == 90
        tested += [row["ID"] for row in rows["test"]]
    assert len(tested) == len(set(tested)) == 90


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_validation_is_stratified_and_shares_no_recording(corpus, tmp_path, share):
    rows = prepare(corpus, tmp_path, valid=share)
    assert not {source_of(row) for row in rows["train"]} & {source_of(row) for row in rows["valid"]}
    counts = Counter(row["class_name"] for row in rows["valid"])
    assert counts == dict.fromkeys(CLASSES.values(), {0.1: 2, 0.2: 4, 0.5: 12}[share])


def test_the_validation_part_is_the_documented_one(corpus, tmp_path):
    """Another rule would change published numbers unnoticed."""
    rows = prepare(corpus, tmp_path)
    chosen = sorted({source_of(row) for row in rows["valid"]})
    assert chosen == ["115", "120", "122", "125", "128", "135"]


def test_another_fold_or_share_in_the_same_folder_is_refused(corpus, tmp_path):
    prepare_esc50(corpus, tmp_path / "save", 1)
    with pytest.raises(MAMError, match=r"prepared with another fold.*\(1\).*--output_folder"):
        prepare_esc50(corpus, tmp_path / "save", 2)
    with pytest.raises(MAMError, match=r"prepared with another valid.*\(0\.2,"):
        prepare_esc50(corpus, tmp_path / "save", 1, valid=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_other_formats(tmp_path, suffix):
    rows = prepare(save_esc50(tmp_path / "esc50", suffix, rate_hz=16000), tmp_path)
    assert rows["train"][0]["wav"].endswith(suffix)
    assert float(rows["train"][0]["duration"]) == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("fold", [0, 6, -1, "1", None])
def test_a_fold_that_is_none(corpus, tmp_path, fold):
    refused(corpus, tmp_path, f"fold {fold!r}: expected one of ESC-50's folds, 1 to 5", fold=fold)


@pytest.mark.parametrize("share", [0, 0.51, -0.1, 1, float("nan")])
def test_a_share_that_is_none(corpus, tmp_path, share):
    refused(corpus, tmp_path, "expected a share above 0 and at most 0.5", valid=share)


def test_not_an_esc50_folder(corpus, tmp_path):
    refused(tmp_path / "nowhere", tmp_path, r"--data_folder '.*nowhere': no such folder")
    hint = rf"has no meta/esc50\.csv; expected ESC-50's layout.*; did you mean '{corpus}'\?"
    refused(tmp_path, tmp_path, hint)
    (corpus / "audio").rename(corpus / "wavs")
    refused(corpus, tmp_path, r"'.*esc50' has no audio; expected ESC-50's layout, .*audio/$")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (HEADER, "", r"expected the header filename,fold,.*found '1-101-A-0\.wav,1,0,dog"),
        ("src_file,take", "source,take", r"expected the header .*found 'filename,.*source,take'"),
        (",1,0,dog,True,101,B", ",1,0,dog", r"line 3: expected 7 fields, found 4"),
        (",1,0,dog,True,101,B", ",1,0,dog,True,101,B,x", r"line 3: expected 7 fields, found 8"),
        (",1,0,dog,True,101,B", ",7,0,dog,True,101,B", r"line 3, 1-101-B-0\.wav: fold '7', exp"),
        (",1,0,dog,True,101,B", ",1.0,0,dog,True,101,B", r"line 3, .*: fold '1\.0', expected 1 to"),
        (",1,0,dog,True,101,B", ",1,-1,dog,True,101,B", r"line 3, .*: target '-1', expected a num"),
        (",1,0,dog,True,101,B", ",1,0,,True,101,B", r"line 3, .*: the column category is empty"),
        (",1,0,dog,True,101,B", ",1,0,dog,True,,B", r"line 3, .*: the column src_file is empty"),
        (",1,0,dog,True,101,B", ",1,0,cat,True,101,B", r"line 3: the class 0 cat, but line 2 has"),
        (",1,0,dog,True,101,B", ",1,3,dog,True,101,B", r"line 3: the class 3 dog, but line 2 has"),
        ("1-101-B-0.wav", "../1-101-B-0.wav", r"line 3: expected the name of a file in audio/"),
        ("1-101-B-0.wav", "", r"line 3: expected the name of a file in audio/, found ''"),
        ("1-101-B-0.wav", "1-101-A-0.wav", r"line 3: the clip 1-101-A-0 stands there twice"),
        ("1-101-B-0.wav", "1-101-A-0.ogg", r"line 3: the clip 1-101-A-0 stands there twice"),
        ("1-101-B-0.wav", '"1-101-B-0.wav', r"is not a CSV table in UTF-8"),
    ],
)
def test_malformed_tables(corpus, tmp_path, old, new, message):
    text = "\n".join(meta_lines(corpus))
    assert old in text
    write_meta(corpus, text.replace(old, new, 1).strip("\n").split("\n"))
    refused(corpus, tmp_path, rf"meta/esc50\.csv'.*{message}")


def test_empty_and_undecodable_tables(corpus, tmp_path):
    meta = corpus / "meta" / "esc50.csv"
    meta.write_bytes(b"")
    refused(corpus, tmp_path, "expected the header .*, found 'an empty file'")
    meta.write_text(HEADER + "\n\n")
    refused(corpus, tmp_path, "names no clip")
    meta.write_bytes(HEADER.encode() + b"\n\xff\xfe")
    refused(corpus, tmp_path, "not a CSV table in UTF-8")


def test_other_columns_byte_order_mark_and_line_ends_do_no_harm(corpus, tmp_path):
    lines = [f"{i},{line}" for i, line in enumerate(meta_lines(corpus))]
    lines[0] = f"\ufeffnumber,{HEADER}"
    (corpus / "meta" / "esc50.csv").write_bytes("\r\n".join([*lines, "", ""]).encode())
    assert len(prepare(corpus, tmp_path)["test"]) == 18


def test_a_class_without_clips_in_a_fold(corpus, tmp_path):
    write_meta(corpus, [line for line in meta_lines(corpus) if ",3,12," not in line])
    message = r"the class crackling_fire \(target 12\) has no clip in fold 3; expected clips of"
    refused(corpus, tmp_path, message)  # whichever fold is the test fold
    refused(corpus, tmp_path, message, fold=3)


def test_recordings_in_several_folds_are_named(corpus, tmp_path, caplog):
    lines = [line.replace(",True,110,", ",True,101,") for line in meta_lines(corpus)]
    write_meta(corpus, lines)
    prepare(corpus, tmp_path)
    assert messages(caplog) == [
        "1 recordings (src_file) have clips in several folds, so that test clips are not new: 101"
    ]


def test_a_class_of_one_recording_outside_the_test_fold(corpus, tmp_path):
    lines = [re.sub(r"(,[2-5],0,dog,True),\d+,", r"\1,77,", line) for line in meta_lines(corpus)]
    write_meta(corpus, lines)
    refused(corpus, tmp_path, r"the class dog \(target 0\): outside fold 1 its 24 clips are of too")


def put(corpus, samples, rate_hz=8000, name="2-110-B-0.wav", **options):
    soundfile.write(corpus / "audio" / name, samples, rate_hz, **options)


WHERE = r"clip 2-110-B-0 \(meta/esc50\.csv, line 21\): '.*2-110-B-0\.wav'"
NOISE = 0.1 * np.random.default_rng(1).standard_normal(8000)
INFINITE = np.where(np.arange(8000) == 5000, np.inf, NOISE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(40000), "is silent"),
        (np.stack([NOISE, -NOISE], axis=1), "is silent"),  # nothing is left when mixed down
        (NOISE[:1000], r"lasts 0\.125 s, expected at least 0\.2 s"),
        (NOISE[:0], r"lasts 0\.000 s, expected at least 0\.2 s"),
        (np.tile(NOISE, 60), r"lasts 60\.0 s, expected at most 10 s: cut it into clips of about 5"),
        (INFINITE, "has samples that are no numbers"),
        (NOISE * np.nan, "has samples that are no numbers"),
    ],
)
def test_clips_that_cannot_be_used(corpus, tmp_path, samples, message):
    put(corpus, samples, subtype="FLOAT")
    # As a test clip, and as one of the others.
    refused(corpus, tmp_path, rf"{WHERE} {message}", fold=2)
    refused(corpus, tmp_path, rf"{WHERE} {message}", fold=1)


def test_lengths_that_are_just_right(corpus, tmp_path):
    put(corpus, np.tile(NOISE, 10))
    put(corpus, NOISE[:1600], name="2-110-A-0.wav")
    rows = {row["ID"]: row for row in prepare(corpus, tmp_path, fold=2)["test"]}
    assert rows["2-110-B-0"]["duration"] == "10.0000"
    assert rows["2-110-A-0"]["duration"] == "0.2000"


def test_a_quiet_clip_and_one_with_a_silent_beginning_are_not_silent(corpus, tmp_path):
    put(corpus, np.concatenate([np.zeros(32000), NOISE]))
    put(corpus, 1e-3 * NOISE, name="2-110-A-0.wav", subtype="FLOAT")
    assert len(prepare(corpus, tmp_path, fold=2)["test"]) == 18


def test_a_missing_clip(corpus, tmp_path):
    (corpus / "audio" / "2-110-B-0.wav").unlink()
    refused(corpus, tmp_path, rf"{WHERE}: no such file")


def test_what_is_not_audio(corpus, tmp_path):
    (corpus / "audio" / "2-110-B-0.wav").write_bytes(b"this is text, not audio")
    refused(corpus, tmp_path, rf"{WHERE} is not readable audio")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_truncated_clips(tmp_path, suffix, kept):
    corpus = save_esc50(tmp_path / "esc50", suffix, rate_hz=16000)
    put(corpus, np.tile(NOISE, 4), rate_hz=16000, name=f"2-110-B-0{suffix}")
    file = corpus / "audio" / f"2-110-B-0{suffix}"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    refused(
        corpus, tmp_path, rf"clip 2-110-B-0 .*'.*2-110-B-0\{suffix}' is (cut short|not readable)"
    )


def test_a_clip_that_is_replaced_is_listened_to_again(corpus, tmp_path):
    prepare(corpus, tmp_path, fold=2)
    put(corpus, np.tile(NOISE, 2))
    rows = prepare(corpus, tmp_path, fold=1)
    found = {row["ID"]: row["duration"] for row in rows["train"] + rows["valid"]}
    assert found["2-110-B-0"] == "2.0000"
    put(corpus, np.zeros(16001))
    with pytest.raises(MAMError, match="is silent"):
        prepare(corpus, tmp_path, fold=3)


def test_stereo_is_mixed_down_and_said_once(corpus, tmp_path, caplog):
    for name in ("2-110-A-0.wav", "2-110-B-0.wav", "3-119-A-0.wav"):
        put(corpus, np.stack([NOISE, NOISE], axis=1), name=name)
    prepare(corpus, tmp_path)
    assert messages(caplog) == ["3 recordings have several channels: they are mixed down"]


def test_an_interrupted_preparation_is_done_again(corpus, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(esc50_prepare, "save_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, tmp_path)
    assert list(tmp_path.glob("fold*")) == []
    assert len(prepare(corpus, tmp_path)["train"]) == 60


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=2, max_size=40),
    st.integers(1, 5),
    st.floats(0.01, 0.5),
)
def test_sets_of_any_corpus(sources, fold, share):
    """Recordings of one to five clips of random classes, two of each class in every other fold."""
    sources = sources + [(target, 1) for target in range(4) for _ in range(2)]
    clips = [
        Clip(f"{i}-{j}", f"{i}-{j}.wav", fold % 5 + 1, target, f"class {target}", str(i), 0)
        for i, (target, count) in enumerate(sources)
        for j in range(count)
    ]
    tests = [Clip(f"t{i}", f"t{i}.wav", fold, i, f"class {i}", f"t{i}", 0) for i in range(4)]
    parts = split_fold([*clips, *tests], fold, share)
    assert parts["test"] == tests
    assert sorted(c.id for c in parts["train"] + parts["valid"]) == sorted(c.id for c in clips)
    assert not {c.source for c in parts["train"]} & {c.source for c in parts["valid"]}
    total = Counter(clip.target for clip in clips)
    held = Counter(clip.target for clip in parts["valid"])
    for target in range(4):
        assert 1 <= held[target] <= max(1, round(share * total[target]))


@pytest.mark.slow
def test_the_mini_corpus_can_be_prepared(tmp_path, tmp_path_factory):
    """Each clip is read; about 1 s."""
    corpus = expanded_corpus(tmp_path_factory, "mini_esc50")
    for fold in range(1, 6):
        rows = prepare(corpus, tmp_path, fold=fold)
        assert [len(rows[split]) for split in SPLITS] == [260, 60, 80]
        counts = Counter(row["class_id"] for row in rows["valid"])
        assert counts == {str(number): 6 for number in range(10)}


@pytest.mark.slow
@pytest.mark.real
def test_esc10_can_be_prepared(real_data, tmp_path, caplog):
    corpus = real_data / "esc10"
    assert len(read_meta(corpus / "meta" / "esc50.csv")) == 400
    for fold in range(1, 6):
        rows = prepare(corpus, tmp_path, fold=fold)
        assert len(rows["test"]) == 80 and len(rows["train"]) + len(rows["valid"]) == 320
        counts = Counter(row["class_id"] for row in rows["valid"])
        # A fifth of 32; five where the next recording's takes are too many.
        assert len(counts) == 10 and set(counts.values()) <= {5, 6}
        assert not {source_of(r) for r in rows["train"]} & {source_of(r) for r in rows["valid"]}
    durations = [float(row["duration"]) for split in SPLITS for row in rows[split]]
    assert min(durations) > 3.5 and max(durations) < 7.5
    assert messages(caplog) == []
