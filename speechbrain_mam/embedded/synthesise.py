"""Text to 16 kHz speech through flite, espeak-ng and festival.

The voices are the rows of ``voices.py``. Every engine is an ordinary program of the system; none is
needed to import this module, and a missing one is an error that says how to install it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import gcd
from pathlib import Path

import numpy as np

from speechbrain_mam.embedded.voices import FLITE_PITCH_HZ, Voice

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
            samples, rate_hz = soundfile.read(path, dtype="float32")
            samples = to_sample_rate(samples, rate_hz)
            peak = float(np.abs(samples).max()) if samples.size else 0.0
            if peak == 0.0:
                raise RuntimeError(f"{voice.name} was silent for: {text!r}")
            waves.append((0.7 / peak * samples).astype(np.float32))
    return waves


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
