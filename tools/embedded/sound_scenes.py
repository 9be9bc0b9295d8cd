"""Recordings of synthetic sounds: a place, a background, a distance and a microphone for each.

:func:`recording` is what the mini ESC-50 corpus is cut from. :func:`training_sounds` gives endless
other clips, without labels, for self-supervised training. Corpus and training are disjoint by seed:
the first number of each seed tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tools.embedded.sound_events import EVENTS
from tools.embedded.sound_tools import (
    RATE_HZ,
    Rng,
    add_at,
    band,
    coloured_noise,
    log_uniform,
    loudness,
    phase_of,
    resonate,
    reverberate,
    shower,
    slow_curve,
    struck,
    to_samples,
    unit,
)

CORPUS_SEED, TRAINING_SEED = 50, 51
CLIP_S = 5.0


def recording(
    name: str, rng: Rng, duration_s: float, snr_db: tuple[float, float] = (6.0, 36.0)
) -> np.ndarray:
    """One recording of a kind of sound: dry sound, room, background, microphone, gain.

    Arguments
    ---------
    name : str
        A key of :data:`~tools.embedded.sound_events.EVENTS`.
    rng : numpy.random.Generator
        Draws everything.
    duration_s : float
        In seconds.
    snr_db : tuple of float
        The range of the sound's level above its background, both measured where they are loudest.

    Returns
    -------
    numpy.ndarray
        ``[samples]``, float32 in [−1, 1], 16 kHz.

    Example
    -------
    >>> recording("dog", np.random.default_rng(0), 1.0).shape
    (16000,)
    """
    sound = EVENTS[name](rng, duration_s)
    sound = reverberate(rng, sound, log_uniform(rng, 0.08, 1.5), rng.uniform(0.05, 0.8))
    behind = background(rng, duration_s)
    if rng.random() < 0.1:
        other = str(rng.choice(sorted(EVENTS.keys() - {name})))
        far = reverberate(rng, EVENTS[other](rng, duration_s), rng.uniform(0.8, 2.0), 3.0)
        behind = behind + log_uniform(rng, 0.2, 0.7) * far / max(loudness(far), 1e-6)
    level = 10 ** (-rng.uniform(*snr_db) / 20)
    mixed = sound / max(loudness(sound), 1e-6) + level * behind / loudness(behind)
    return microphone(rng, mixed)


def background(rng: Rng, duration_s: float) -> np.ndarray:
    """What is always there: hiss, wind, far traffic, mains hum, people far away; some of these."""
    samples = to_samples(duration_s)
    out = 0.3 * coloured_noise(rng, samples, rng.uniform(-8, -2))
    for kind in rng.choice(5, int(rng.integers(0, 3)), replace=False):
        if kind == 0:
            gusts = np.exp(0.8 * slow_curve(rng, samples, 0.6))
            part = gusts * band(coloured_noise(rng, samples, -9), 30, log_uniform(rng, 150, 900))
        elif kind == 1:
            part = band(coloured_noise(rng, samples, -6), 40, log_uniform(rng, 200, 900))
            part *= np.exp(0.4 * slow_curve(rng, samples, 0.2))
        elif kind == 2:
            mains = rng.choice([50.0, 60.0]) * np.arange(1, 9)
            time = np.arange(samples) / RATE_HZ
            part = np.zeros(samples)
            for overtone, mains_hz in enumerate(mains, start=1):
                part += rng.uniform(0, 1) / overtone * np.sin(2 * np.pi * mains_hz * time)
        elif kind == 3:
            part = murmur(rng, samples)
        else:
            hiss = band(rng.standard_normal(samples), log_uniform(rng, 800, 4000), None)
            part = hiss * (1 + 0.1 * slow_curve(rng, samples, 1.0))
        out += log_uniform(rng, 0.2, 1.5) * unit(part)
    return out


def murmur(rng: Rng, samples: int) -> np.ndarray:
    """Voices too far away to be understood: resonances that move at the pace of syllables."""
    out = np.zeros(samples)
    for _ in range(int(rng.integers(2, 5))):
        pitch = log_uniform(rng, 90, 260) * np.exp(0.15 * slow_curve(rng, samples, 2.0))
        voice = np.exp(4 * (np.cos(phase_of(pitch)) - 1)) + 0.1 * rng.standard_normal(samples)
        loud = np.clip(slow_curve(rng, samples, rng.uniform(2.5, 5.0)), 0, None)
        peaks = [log_uniform(rng, 300, 800), log_uniform(rng, 900, 2200)]
        out += resonate(voice - voice.mean(), peaks, [120, 200], [1.0, 0.5]) * loud
    return reverberate(rng, out, 1.2, 2.0)


def microphone(rng: Rng, wave: np.ndarray) -> np.ndarray:
    """A microphone's band and tilt, and a gain: peaks between −22 and −3 dB."""
    wave = band(wave, log_uniform(rng, 20, 120), log_uniform(rng, 5500, 7900))
    corner_hz, tilt = log_uniform(rng, 300, 3000), rng.uniform(-0.3, 0.5)
    wave = wave + tilt * band(wave, corner_hz, None, order=1)
    if rng.random() < 0.1:
        peak = np.abs(wave).max()
        wave = np.tanh(wave / peak * rng.uniform(1.5, 4.0))  # overdriven
    return (wave * (10 ** (rng.uniform(-22, -3) / 20) / np.abs(wave).max())).astype(np.float32)


def texture(rng: Rng, duration_s: float) -> np.ndarray:
    """A sound that no class names: moving noise, gliding tones, grains or struck bodies, or two.

    Example
    -------
    >>> texture(np.random.default_rng(0), 1.0).shape
    (16000,)
    """
    samples = to_samples(duration_s)
    out = np.zeros(samples)
    for kind in rng.choice(4, int(rng.integers(1, 3)), replace=False):
        if kind == 0:
            noise = coloured_noise(rng, samples, rng.uniform(-12, 3))
            peaks = [log_uniform(rng, 80, 6500) for _ in range(3)]
            widths = [peak * log_uniform(rng, 0.03, 1.0) for peak in peaks]
            part = 0.2 * noise + resonate(noise, peaks, widths, rng.uniform(0, 3, 3).tolist())
            depth, pace_hz = rng.uniform(0, 1.5), log_uniform(rng, 0.2, 30)
            part *= np.exp(depth * slow_curve(rng, samples, pace_hz))
        elif kind == 1:
            pace_hz = log_uniform(rng, 0.2, 12)
            glide = np.exp(rng.uniform(0, 0.5) * slow_curve(rng, samples, pace_hz))
            phase = phase_of(np.clip(log_uniform(rng, 60, 3500) * glide, 30, 7500))
            part = np.tanh(log_uniform(rng, 0.3, 6) * np.sin(phase))
            part *= np.clip(slow_curve(rng, samples, pace_hz) + rng.uniform(-0.5, 2), 0, None)
        elif kind == 2:
            grains = []
            for _ in range(5):
                grain = coloured_noise(rng, to_samples(log_uniform(rng, 0.002, 0.15)), -3)
                grains.append(grain * np.hanning(grain.size) ** rng.uniform(0.3, 3))
            part = shower(rng, samples, log_uniform(rng, 2, 400), grains, rng.uniform(0.2, 1.2))
        else:
            part = np.zeros(samples)
            for _ in range(int(rng.integers(1, 4))):
                modes = [log_uniform(rng, 70, 7000) for _ in range(8)]
                decays = [log_uniform(rng, 0.004, 0.6) for _ in range(8)]
                body = struck(modes, decays, rng.uniform(0.1, 1, 8).tolist(), 1.5, rng)
                for start_s in rng.uniform(-0.5, duration_s, int(rng.integers(2, 12))):
                    add_at(part, float(start_s), rng.uniform(0.3, 1) * body)
        out += log_uniform(rng, 0.3, 1.0) * unit(part)
    return out


def training_sounds(seed: int, duration_s: float = CLIP_S) -> Iterator[np.ndarray]:
    """Endless random clips without labels, none of them the corpus's.

    Of ten clips, five are a :func:`recording` of one kind of sound, two and a half mixtures of two
    or three kinds, two and a half a :func:`texture` of no kind.

    Arguments
    ---------
    seed : int
        Another seed, other clips: give each worker its own.
    duration_s : float
        Length of a clip in seconds.

    Yields
    ------
    numpy.ndarray
        ``[samples]``, float32 in [−1, 1], 16 kHz.

    Example
    -------
    >>> clip = next(training_sounds(0, duration_s=0.5))
    >>> clip.shape, clip.dtype
    ((8000,), dtype('float32'))
    """
    names = sorted(EVENTS)
    number = 0
    while True:
        rng = np.random.default_rng([TRAINING_SEED, seed, number])
        number += 1
        kind = rng.random()
        if kind < 0.5:
            yield recording(str(rng.choice(names)), rng, duration_s)
            continue
        if kind < 0.75:
            some = rng.choice(names, int(rng.integers(2, 4)), replace=False)
            parts = [EVENTS[str(name)](rng, duration_s) for name in some]
        else:
            parts = [texture(rng, duration_s)]
        mixed = np.zeros(to_samples(duration_s))
        for part in [*parts, background(rng, duration_s)]:
            mixed += log_uniform(rng, 0.1, 1.0) * part / max(loudness(part), 1e-6)
        mixed = reverberate(rng, mixed, log_uniform(rng, 0.08, 1.5), rng.uniform(0.05, 0.8))
        yield microphone(rng, mixed)
