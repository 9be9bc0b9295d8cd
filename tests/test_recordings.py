"""Recordings that cannot be used, in every corpus and in every set, and twins of one name."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from conftest import save_corpus
from test_esc50_prepare import prepare_esc50, save_esc50
from test_hubert_ctc import ALPHABET
from test_ljspeech_prepare import prepare_ljspeech
from test_vctk_prepare import prepare_vctk, save_vctk

from speechbrain_mam import MAMError
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.runs.probe_manifest import manifest_batches
from speechbrain_mam.tasks.asr_data import speech_dataset
from speechbrain_mam.tasks.audio import load_audio
from speechbrain_mam.tasks.recordings import check_audio

RATE = 16000
NOISE = 0.1 * np.random.default_rng(0).standard_normal(8000).astype("float32")


def at(index, value):
    changed = NOISE.copy()
    changed[index] = value
    return changed


UNUSABLE = {
    "NaN": (at(7999, np.nan), "has samples that are no numbers"),
    "all NaN": (NOISE * np.nan, "has samples that are no numbers"),
    "infinite": (at(5, -np.inf), "has samples that are no numbers"),
    "too large for float32": (at(5, 1e300), "has samples that are no numbers"),
    "NaN in one channel": (np.stack([NOISE, at(5, np.nan)], 1), "has samples that are no numbers"),
    "infinite when mixed": (np.stack([at(5, 3e38)] * 2, 1), "has samples that are no numbers"),
    "silent": (0 * NOISE, "is silent: nothing in it is louder than zero"),
    "silent stereo": (np.zeros((8000, 2)), "is silent: nothing in it"),
    "one level": (0 * NOISE + 0.25, "is silent: nothing in it"),
    "opposite phase": (
        np.stack([NOISE, -NOISE], 1),
        "is silent when its 2 channels are mixed down",
    ),
    "nearly opposite": (np.stack([NOISE, -0.999 * NOISE], 1), "is silent when its 2 channels"),
    "four channels": (np.stack([NOISE, -NOISE] * 2, 1), "is silent when its 4 channels"),
}
USABLE = {
    "noise": NOISE,
    "quiet": 1e-3 * NOISE,
    "padded": np.concatenate([np.zeros(8000), NOISE, np.zeros(8000)]),
    "one click": np.where(np.arange(8000) == 4000, 0.5, 0.0),
    "one channel of two": np.stack([NOISE, 0 * NOISE], 1),
    "a delay": np.stack([NOISE, -np.roll(NOISE, 3)], 1),
    "louder than full scale": 20 * NOISE,
}


def write_lj(folder):
    return save_corpus(folder), folder / "wavs" / "XX001-0019.wav", "XX001-0019"


def write_vctk(folder):
    save_vctk(folder)
    return folder, folder / "wav48_silence_trimmed/p226/p226_002_mic2.flac", "p226_002"


def write_vctk_080(folder):
    save_vctk(folder, version="0.80")
    return folder, folder / "wav48/p226/p226_002.wav", "p226_002"


def write_esc(folder):
    return save_esc50(folder), folder / "audio" / "2-110-B-0.wav", "2-110-B-0"


CORPORA = {
    "LJ Speech": (write_lj, lambda f, save: prepare_ljspeech(f, save, ALPHABET)),
    "VCTK 0.92": (write_vctk, lambda f, save: prepare_vctk(f, save, ALPHABET)),
    "VCTK 0.80": (write_vctk_080, lambda f, save: prepare_vctk(f, save, ALPHABET)),
    "ESC-50": (write_esc, lambda f, save: prepare_esc50(f, save, 1)),
}


def put(file, samples):
    # A flac holds integers: a file of floats may still be called so
    kind = "WAV" if np.isnan(samples).any() or np.abs(samples).max() > 1 else None
    floats = {"subtype": "DOUBLE"} if kind or file.suffix == ".wav" else {}
    soundfile.write(file, samples, RATE, format=kind, **floats)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("case", UNUSABLE)
def test_no_preparation_takes_it(corpus, case, tmp_path):
    samples, message = UNUSABLE[case]
    write, prepare = CORPORA[corpus]
    folder, file, name = write(tmp_path / "corpus")
    put(file, samples)
    with pytest.raises(MAMError, match=rf"{name}.*{file.name}' {message}"):
        prepare(folder, tmp_path / "save")
    assert not (tmp_path / "save").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", UNUSABLE)
def test_no_set_and_no_manifest_takes_it(case, tmp_path, hubert_folder):
    """As a manifest of sweep and probe, and where it was changed after the preparation."""
    samples, message = UNUSABLE[case]
    encoder = HubertCTC(hubert_folder)
    put(tmp_path / "u.wav", samples)
    manifest = tmp_path / "m.csv"
    manifest.write_text("ID,duration,wav,wrd\nu7,0.5,$data_root/u.wav,A CAT\n")
    where = rf"utterance u7 of '.*m\.csv': '.*u\.wav' {message}"
    with pytest.raises(MAMError, match=where):
        manifest_batches(encoder, manifest, tmp_path, 1)
    with pytest.raises(MAMError, match=where):
        speech_dataset(manifest, str(tmp_path), encoder)[0]


@pytest.mark.parametrize("case", USABLE)
def test_what_can_be_used(case, tmp_path):
    put(tmp_path / "u.wav", USABLE[case])
    duration_s, channels = check_audio(tmp_path / "u.wav", "utterance u")
    assert duration_s == len(USABLE[case]) / RATE and channels == (USABLE[case].ndim)
    assert load_audio(str(tmp_path / "u.wav"), RATE).shape == (len(USABLE[case]),)


def test_integers_are_read_until_a_sound_is_heard(tmp_path, monkeypatch):
    """A corpus of 44 hours is listened to in seconds."""
    read = []
    blocks = soundfile.SoundFile.blocks

    def counted(self, *args, **kwargs):
        for block in blocks(self, *args, **kwargs):
            read.append(len(block))
            yield block

    monkeypatch.setattr(soundfile.SoundFile, "blocks", counted)
    late = np.concatenate([np.zeros(3 * RATE), np.tile(NOISE, 10)])
    soundfile.write(tmp_path / "u.wav", late, RATE)
    check_audio(tmp_path / "u.wav", "utterance u")
    assert sum(read) == 4 * RATE
    soundfile.write(tmp_path / "u.wav", late, RATE, subtype="FLOAT")
    check_audio(tmp_path / "u.wav", "utterance u")
    assert sum(read) == 4 * RATE + len(late)


def rows(save):
    found = {}
    for split in ("train", "valid", "test"):
        with (save / f"{split}.csv").open(newline="", encoding="utf-8") as stream:
            found |= {row["ID"]: row for row in csv.DictReader(stream)}
    return found


TWINS = {
    "VCTK 0.92": ("p226_002_mic2.wav", "flac"),
    "VCTK 0.80": ("p226_002.flac", "wav"),
    "LJ Speech": ("XX001-0019.flac", "wav"),
    "ESC-50": ("2-110-B-0.flac", "wav"),  # its table names the file
}


@pytest.mark.parametrize("corpus", TWINS)
def test_of_twins_the_corpus_own_wins_and_it_is_said_once(corpus, tmp_path, caplog):
    twin, own = TWINS[corpus]
    write, prepare = CORPORA[corpus]
    folder, file, name = write(tmp_path / "corpus")
    whole = soundfile.info(file).duration
    soundfile.write(file.with_name(twin), NOISE[:4000], RATE)
    prepare(folder, tmp_path / "save")
    row = rows(tmp_path / "save")[name]
    assert row["wav"].endswith(f"{file.name}") and row["wav"].endswith(own)
    assert float(row["duration"]) == pytest.approx(whole, abs=1e-3)
    said = [r.getMessage() for r in caplog.records if "several files" in r.getMessage()]
    assert len(said) == (corpus != "ESC-50")
    assert all(f".{own} is used: 1 ({file.stem})" in line for line in said)


@pytest.mark.parametrize("corpus", ["VCTK 0.92", "VCTK 0.80", "LJ Speech"])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV", ".FLAC"])
def test_one_file_of_any_suffix_is_found(corpus, suffix, tmp_path, caplog):
    write, prepare = CORPORA[corpus]
    folder, file, name = write(tmp_path / "corpus")
    file.unlink()
    other = file.with_suffix(suffix)
    soundfile.write(other, NOISE, RATE, format=suffix[1:].upper())
    prepare(folder, tmp_path / "save")
    assert rows(tmp_path / "save")[name]["wav"].endswith(other.name)
    assert "several files" not in caplog.text


def test_a_text_in_capitals_is_found(tmp_path):
    folder, _, name = write_vctk(tmp_path / "corpus")
    text = folder / "txt" / "p226" / f"{name}.txt"
    text.rename(text.with_suffix(".TXT"))
    prepare_vctk(folder, tmp_path / "save", ALPHABET)
    assert name in rows(tmp_path / "save")


SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"


@pytest.mark.slow
@pytest.mark.parametrize("mark", SEPARATORS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_only_line_feeds_end_a_line(mark, end, start, tmp_path):
    """In LJ Speech's table, VCTK's texts, ESC-50's table and a manifest."""
    folder, _, name = write_lj(tmp_path / "lj")
    lines = (folder / "metadata.csv").read_text().split("\n")
    lines[3] = f"XX001-0003|a{mark}b|one{mark}two"
    (folder / "metadata.csv").write_bytes((start + end.join(lines)).encode())
    prepare_ljspeech(folder, tmp_path / "lj_save", ALPHABET)
    found = rows(tmp_path / "lj_save")
    assert len(found) == 20 and found["XX001-0003"]["wrd"] == "ONE TWO"
    assert found["XX001-0000"]["wrd"] == "A CAT"

    folder, _, name = write_vctk(tmp_path / "vctk")
    text = f"{start}one{mark}two{end}"
    (folder / "txt" / "p226" / f"{name}.txt").write_bytes(text.encode())
    info = f"{start}ID AGE{end}p225 23{mark}p999{end}"
    (folder / "speaker-info.txt").write_bytes(info.encode())
    prepare_vctk(folder, tmp_path / "vctk_save", ALPHABET)
    assert rows(tmp_path / "vctk_save")[name]["wrd"] == "ONE TWO"

    folder, _, name = write_esc(tmp_path / "esc")
    if mark == "\r":
        return  # csv ends a row there, unless it is quoted
    table = (folder / "meta" / "esc50.csv").read_text().replace("helicopter", f"heli{mark}copter")
    (folder / "meta" / "esc50.csv").write_bytes((start + table.replace("\n", end)).encode())
    prepare_esc50(folder, tmp_path / "esc_save", 1)
    names = {row["class_name"] for row in rows(tmp_path / "esc_save").values()}
    assert names == {"dog", "crackling_fire", f"heli{mark}copter"}


def test_speakers_that_a_separator_hides_are_not_promised(tmp_path, caplog):
    folder, _, _ = write_vctk(tmp_path / "vctk")
    (folder / "speaker-info.txt").write_text("ID AGE\np225 23 F English\u2028p999\n")
    prepare_vctk(folder, tmp_path / "save", ALPHABET)
    assert "no folder" not in caplog.text


def test_the_waveform_is_what_it_was(tmp_path):
    soundfile.write(tmp_path / "u.wav", np.stack([NOISE, 0.5 * NOISE], 1), RATE, subtype="FLOAT")
    found = load_audio(str(tmp_path / "u.wav"), RATE)
    assert torch.equal(found, torch.from_numpy(np.stack([NOISE, 0.5 * NOISE])).mean(0))
