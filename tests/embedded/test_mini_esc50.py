"""The packaged mini ESC-50 corpus: layout, folds, sources; and the sounds that are not in it."""

import csv
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import expanded_corpus
from scipy.signal import stft

from speechbrain_mam.embedded import corpora
from tools.embedded.build_mini_esc50 import HEADER, sources
from tools.embedded.sound_events import CLASSES, EVENTS
from tools.embedded.sound_scenes import recording, texture, training_sounds
from tools.embedded.sound_tools import loudness, reverberate

pytestmark = pytest.mark.slow  # the corpus is expanded
ARCHIVE = Path(corpora.__file__).parent / "data" / "mini_esc50.tar"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return expanded_corpus(tmp_path_factory, "mini_esc50")


@pytest.fixture(scope="module")
def rows(corpus) -> list[dict[str, str]]:
    with (corpus / "meta" / "esc50.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def waves(corpus, rows) -> dict[str, np.ndarray]:
    names = [row["filename"] for row in rows]
    return {name: soundfile.read(corpus / "audio" / name, dtype="float32")[0] for name in names}


def spectrum(wave):
    """Log spectrogram in bands of 250 Hz and steps of 50 ms, ``[33, steps]``."""
    power = np.abs(stft(wave, 16000, nperseg=1600, noverlap=800, boundary=None)[2]) ** 2
    bands = np.add.reduceat(power, np.arange(0, power.shape[0], 25), axis=0)
    return np.log(bands + 1e-7)


def likeness(one, other):
    return np.corrcoef(spectrum(one).ravel(), spectrum(other).ravel())[0, 1]


def test_archive_is_small():
    assert ARCHIVE.stat().st_size <= 6e6


def test_layout_count_and_duration(corpus, rows):
    assert sorted(path.name for path in corpus.iterdir()) == ["README.md", "audio", "meta"]
    assert (corpus / "meta" / "esc50.csv").read_text().splitlines()[0] == HEADER
    names = [row["filename"] for row in rows]
    assert len(names) == len(set(names)) == 400
    assert sorted(path.name for path in (corpus / "audio").iterdir()) == sorted(names)
    infos = [soundfile.info(corpus / "audio" / name) for name in names]
    assert {(i.samplerate, i.channels, i.format, i.subtype, i.frames) for i in infos} == {
        (16000, 1, "WAV", "PCM_16", 80000)
    }


def test_the_table_says_what_the_names_say(rows):
    for row in rows:
        name = "{fold}-{src_file}-{take}-{target}.wav".format(**row)
        assert row["filename"] == name
        assert CLASSES[int(row["target"])] == row["category"]
        assert row["esc10"] == str(int(row["target"]) in (0, 10, 11, 12, 38))


def test_every_class_has_eight_clips_in_every_fold(rows):
    counts = Counter((row["fold"], row["category"]) for row in rows)
    assert counts == {(str(fold), name): 8 for fold in range(1, 6) for name in EVENTS}


def test_folds_and_classes_share_no_source(rows):
    places = defaultdict(set)
    takes = defaultdict(list)
    for row in rows:
        places[row["src_file"]].add((row["fold"], row["target"]))
        takes[row["src_file"]].append(row["take"])
    assert {len(place) for place in places.values()} == {1}
    assert all("".join(sorted(letters)) in "ABCD" for letters in takes.values())
    per_class = Counter(next(iter(place)) for place in places.values())
    assert min(per_class.values()) >= 4
    assert sum(len(letters) > 1 for letters in takes.values()) >= 100


def test_nothing_is_silent_or_clipped_or_there_twice(waves):
    peaks = np.array([np.abs(wave).max() for wave in waves.values()])
    assert peaks.min() > 0.02 and peaks.max() < 1.0
    assert len({wave.tobytes() for wave in waves.values()}) == len(waves)
    for name, wave in waves.items():
        assert wave.std() > 1e-4, name


def test_takes_of_one_recording_are_of_one_level(rows, waves):
    """An event may be farther from one take than from another, but each take has some."""
    for row in rows:
        first = "{fold}-{src_file}-A-{target}.wav".format(**row)
        quieter = loudness(waves[row["filename"]]) / loudness(waves[first])
        assert 0.05 < quieter < 20, row["filename"]


@pytest.mark.parametrize("place", [0, 5, 111, 249])
def test_the_build_is_deterministic_and_made_what_is_packaged(waves, place):
    source = sources()[place]
    clips, again = dict(source.clips()), dict(source.clips())
    assert len(clips) == source.takes
    for name, clip in clips.items():
        assert clip.shape == (80000,) and clip.dtype == np.float32
        np.testing.assert_array_equal(clip, again[name])
        packaged = waves[f"{name}.wav"]
        assert likeness(clip, packaged) > 0.95, name
        others = [wave for other, wave in waves.items() if other[:6] != name[:6]]
        assert max(likeness(wave, packaged) for wave in others[::40]) < 0.95


@pytest.mark.parametrize("name", sorted(EVENTS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_five_seconds_hold_the_sound(name, seed):
    wave = EVENTS[name](np.random.default_rng(seed), 15.0)
    assert wave.shape == (240000,) and np.isfinite(wave).all()
    levels = [loudness(part) for part in wave.reshape(3, -1)]
    assert min(levels) > 0.05 * max(levels) > 0


def test_draws_differ_within_a_class():
    for name in EVENTS:
        one, other = (recording(name, np.random.default_rng(seed), 2.0) for seed in (1, 2))
        assert likeness(one, other) < 0.95


def test_training_sounds_are_endless_reproducible_and_others(waves):
    clips = list(islice(training_sounds(7), 12))
    for clip, again in zip(clips, training_sounds(7), strict=False):
        np.testing.assert_array_equal(clip, again)
    assert all(clip.shape == (80000,) and clip.dtype == np.float32 for clip in clips)
    assert all(0.02 < np.abs(clip).max() <= 1 for clip in clips)
    other = next(training_sounds(8))
    drawn = [*clips, other]
    assert max(likeness(a, b) for i, a in enumerate(drawn) for b in drawn[:i]) < 0.97
    assert max(likeness(a, b) for a in drawn for b in list(waves.values())[::20]) < 0.97


def test_training_sounds_have_any_length_and_textures_no_silence():
    assert next(training_sounds(0, duration_s=2.5)).shape == (40000,)
    for seed in range(10):
        wave = texture(np.random.default_rng(seed), 2.0)
        assert np.isfinite(wave).all() and loudness(wave) > 0


def test_a_room_keeps_the_direct_sound_and_adds_a_tail():
    click = np.zeros(16000)
    click[0] = 1.0
    heard = reverberate(np.random.default_rng(0), click, 0.5, 0.5)
    assert heard[0] == pytest.approx(1.0)
    assert np.sum(heard[1:] ** 2) == pytest.approx(0.25, rel=0.05)
    assert np.sum(heard[4000:] ** 2) < 0.01 * np.sum(heard[1:] ** 2)
