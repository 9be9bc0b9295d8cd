"""The packaged mini VCTK corpus: layout, size, and that its test set is new to everyone."""

import csv
import re
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import REPO, expanded_corpus
from test_hubert_ctc import ALPHABET

from speechbrain_mam.embedded import corpora
from tools.embedded.build_mini_ljspeech import corpus_sentences
from tools.embedded.build_mini_vctk import TRAINING_TEXTS, vctk_sentences
from tools.embedded.make_training_speech import texts_of
from tools.embedded.voices import (
    BRISK_VOICES,
    ESPEAK_VARIANTS,
    ESPEAK_VOICES,
    FESTIVAL_VOICES,
    FLITE_VOICES,
    MINI_LJ_VOICE,
    MINI_VCTK_VOICES,
    PIPER_VOICES,
    UNHEARD_ESPEAK_VARIANTS,
)

sys.path.insert(0, str(REPO / "recipes" / "VCTK"))
from vctk_prepare import held_out_positions, prepare_vctk

pytestmark = pytest.mark.slow  # the corpus is expanded
ARCHIVE = Path(corpora.__file__).parent / "data" / "mini_vctk.tar"
TRAINED = {*BRISK_VOICES, *ESPEAK_VOICES, *FESTIVAL_VOICES, *FLITE_VOICES, *PIPER_VOICES}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return expanded_corpus(tmp_path_factory, "mini_vctk")


@pytest.fixture(scope="module")
def texts(corpus) -> dict[str, str]:
    return {
        path.stem: path.read_text(encoding="utf-8").strip()
        for path in sorted(corpus.glob("txt/*/*.txt"))
    }


def rows_of(corpus, save_folder, **options):
    prepare_vctk(corpus, save_folder, ALPHABET, **options)
    return {
        split: list(csv.DictReader((save_folder / f"{split}.csv").open(encoding="utf-8")))
        for split in ("train", "valid", "test")
    }


def test_archive_is_small():
    assert ARCHIVE.stat().st_size <= 6e6


def test_layout_count_and_duration(corpus, texts):
    assert sorted(path.name for path in corpus.iterdir()) == [
        *("README.md", "speaker-info.txt", "txt", "wav48_silence_trimmed")
    ]
    recordings = sorted(corpus.glob("wav48_silence_trimmed/*/*"))
    assert [path.name for path in recordings] == [f"{name}_mic1.flac" for name in texts]
    assert all(re.fullmatch(r"p9\d\d_\d{3}", name) for name in texts)
    assert len(texts) == 60 * len(MINI_VCTK_VOICES)
    infos = [soundfile.info(path) for path in recordings]
    assert {(i.samplerate, i.channels, i.format, i.subtype) for i in infos} == {
        (48000, 1, "FLAC", "PCM_16")
    }
    assert all(0.8 <= info.duration <= 6.0 for info in infos)
    assert 25 <= sum(info.duration for info in infos) / 60 <= 32


def test_speaker_info_names_every_voice(corpus):
    lines = (corpus / "speaker-info.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].split()[0] == "ID"
    found = {line.split()[0]: line.split()[-1] for line in lines[1:]}
    assert found == {speaker: voice.name for speaker, voice in MINI_VCTK_VOICES.items()}


def test_at_least_eight_voices_most_of_them_unheard():
    unheard = {s for s, voice in MINI_VCTK_VOICES.items() if voice not in TRAINED}
    assert len(MINI_VCTK_VOICES) >= 8
    assert len(unheard) >= 6
    variants = {MINI_VCTK_VOICES[speaker].voice.split("+")[-1] for speaker in unheard}
    assert variants == set(UNHEARD_ESPEAK_VARIANTS)
    assert not variants & {*ESPEAK_VARIANTS, MINI_LJ_VOICE.voice.split("+")[-1]}
    speakers = sorted(MINI_VCTK_VOICES)
    valid, test = held_out_positions(len(speakers))
    assert {speakers[i] for i in valid + test} <= unheard


def test_sets_are_large_enough_and_share_no_speaker(corpus, tmp_path):
    rows = rows_of(corpus, tmp_path / "save")
    assert [len(rows[split]) for split in rows] == [300, 120, 180]
    speakers = [{row["spk_id"] for row in rows[split]} for split in rows]
    assert [len(spoken) for spoken in speakers] == [5, 2, 3]
    assert len(set.union(*speakers)) == len(MINI_VCTK_VOICES)


@pytest.mark.parametrize("split", ["speakers", "espnet"])
def test_no_sentence_is_in_two_sets(corpus, tmp_path, split):
    rows = rows_of(corpus, tmp_path / "save", split=split)
    sentences = [{row["wrd"] for row in rows[name]} for name in rows]
    assert sum(len(said) for said in sentences) == len(set.union(*sentences)) == 600


def test_sentences_are_new(texts):
    said = set(texts.values())
    assert said <= set(vctk_sentences())
    assert not said & {sentence.normalised for sentence in corpus_sentences()}
    assert not said & set(texts_of("grammar", TRAINING_TEXTS, Path()))
    assert not any(re.search(r"\d", text) for text in said)


def test_the_other_corpus_is_as_before(tmp_path_factory):
    corpus = expanded_corpus(tmp_path_factory, "mini_ljspeech")
    assert sorted(path.name for path in corpus.iterdir()) == ["README.md", "metadata.csv", "wavs"]
    assert {path.suffix for path in (corpus / "wavs").iterdir()} == {".wav"}
