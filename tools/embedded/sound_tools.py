"""The parts that synthetic sounds are made of: noises, slow curves, struck modes, rooms.

A waveform is a float array ``[samples]`` at :data:`RATE_HZ`. What is random is drawn from the
generator that is passed in and from nothing else, so a seed makes a sound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.interpolate import CubicSpline
from scipy.signal import butter, lfilter, oaconvolve, sosfilt

RATE_HZ = 16000
"""What audio encoders such as BEATs read; nothing above 8 kHz would reach them."""

Rng = np.random.Generator


def to_samples(duration_s: float) -> int:
    """Number of samples in a duration.

    Example
    -------
    >>> to_samples(0.5)
    8000
    """
    return round(duration_s * RATE_HZ)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A random number whose logarithm is uniform: right for frequencies, times and rates."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def unit(wave: np.ndarray) -> np.ndarray:
    """The waveform at a root mean square of 1; silence stays silence."""
    level = np.sqrt(np.mean(wave**2)) if wave.size else 0.0
    return wave / level if level > 0 else wave


def loudness(wave: np.ndarray) -> float:
    """Root mean square of the loudest twentieth of the 50 ms frames.

    That of the whole would call a single knock in five seconds quiet.

    Example
    -------
    >>> wave = np.zeros(RATE_HZ)
    >>> wave[:1600] = 0.5
    >>> loudness(wave)
    0.5
    """
    frame = to_samples(0.05)
    frames = wave[: wave.size // frame * frame].reshape(-1, frame)
    levels = np.sort(np.sqrt(np.mean(frames**2, axis=1)))
    return float(levels[-max(1, levels.size // 20) :].mean())


def coloured_noise(rng: Rng, samples: int, slope_db: float) -> np.ndarray:
    """Noise whose spectrum changes by ``slope_db`` an octave above 40 Hz; its level is 1.

    Example
    -------
    >>> noise = coloured_noise(np.random.default_rng(0), 16000, -6.0)
    >>> noise.shape, round(float(np.mean(noise**2)), 6)
    ((16000,), 1.0)
    """
    size = next_fast_len(samples, real=True)
    spectrum = rfft(rng.standard_normal(size))
    frequencies = np.maximum(rfftfreq(size, 1 / RATE_HZ), 40.0)
    spectrum *= frequencies ** (slope_db / 20 / np.log10(2))
    return unit(irfft(spectrum, size)[:samples])


def band(
    wave: np.ndarray, low_hz: float | None = None, high_hz: float | None = None, order: int = 2
) -> np.ndarray:
    """What lies between two frequencies; None leaves that side open."""
    edges = [
        (edge, side)
        for edge, side in ((low_hz, "highpass"), (high_hz, "lowpass"))
        if edge is not None and 0 < edge < 0.49 * RATE_HZ
    ]
    for edge, side in edges:
        wave = sosfilt(butter(order, edge, side, fs=RATE_HZ, output="sos"), wave)
    return wave


def resonate(
    wave: np.ndarray, peaks_hz: Sequence[float], widths_hz: Sequence[float], gains: Sequence[float]
) -> np.ndarray:
    """Parallel two-pole resonators, each with about unit gain at its peak."""
    out = np.zeros_like(wave)
    for peak, width, gain in zip(peaks_hz, widths_hz, gains, strict=True):
        if peak < 0.47 * RATE_HZ:
            radius = np.exp(-np.pi * width / RATE_HZ)
            feedback = [1.0, -2 * radius * np.cos(2 * np.pi * peak / RATE_HZ), radius**2]
            out += gain * lfilter([1 - radius, 0.0, -(1 - radius)], feedback, wave)
    return out


def slow_curve(rng: Rng, samples: int, rate_hz: float) -> np.ndarray:
    """A smooth random curve around 0 with a spread of 1 that turns about ``rate_hz`` a second."""
    points = max(4, int(2 * rate_hz * samples / RATE_HZ) + 3)
    curve = CubicSpline(np.arange(points), rng.standard_normal(points))
    return curve(np.linspace(0.5, points - 1.5, samples))


def struck(
    frequencies_hz: Sequence[float],
    decays_s: Sequence[float],
    gains: Sequence[float],
    duration_s: float,
    rng: Rng,
) -> np.ndarray:
    """A struck body: a sum of dying sinusoids; ``decays_s`` are the times to 1/e.

    Example
    -------
    >>> struck([440.0], [0.1], [1.0], 0.5, np.random.default_rng(0)).shape
    (8000,)
    """
    time = np.arange(to_samples(duration_s)) / RATE_HZ
    out = np.zeros(time.size)
    for frequency, decay, gain in zip(frequencies_hz, decays_s, gains, strict=True):
        if frequency < 0.48 * RATE_HZ:
            # Nothing is left after seven decay times.
            part = time[: to_samples(7 * decay)]
            phase = rng.uniform(0, 2 * np.pi)
            sines = np.sin(2 * np.pi * frequency * part + phase)
            out[: part.size] += gain * np.exp(-part / decay) * sines
    return out


def pulses(phase: np.ndarray, sharpness: float) -> np.ndarray:
    """Smooth pulses, one each turn of ``phase`` (radians); sharper ones have more harmonics."""
    return np.exp(sharpness * (np.cos(phase) - 1))


def phase_of(frequency_hz: np.ndarray) -> np.ndarray:
    """The phase, in radians, of an oscillator that follows a frequency curve."""
    return 2 * np.pi * np.cumsum(frequency_hz) / RATE_HZ


def add_at(wave: np.ndarray, start_s: float, event: np.ndarray) -> None:
    """Add an event in place; what lies outside is cut."""
    start = to_samples(start_s)
    first, last = max(start, 0), min(start + event.size, wave.size)
    if first < last:
        wave[first:last] += event[first - start : last - start]


def onsets(rng: Rng, duration_s: float, shortest_s: float, longest_s: float) -> list[float]:
    """Times of events that follow one another after between ``shortest_s`` and ``longest_s``."""
    times = [float(rng.uniform(0, shortest_s))]
    while times[-1] < duration_s:
        times.append(times[-1] + float(rng.uniform(shortest_s, longest_s)))
    return times[:-1]


def shower(
    rng: Rng,
    samples: int,
    rate_hz: float,
    grains: Sequence[np.ndarray],
    spread: float,
) -> np.ndarray:
    """Grains at random times, ``rate_hz`` a second in all; the log of their gains varies."""
    out = np.zeros(samples)
    for grain in grains:
        count = int(rng.poisson(rate_hz * samples / RATE_HZ / len(grains)))
        hits = np.zeros(samples)
        np.add.at(
            hits, rng.integers(0, samples, count), np.exp(spread * rng.standard_normal(count))
        )
        out += oaconvolve(hits, grain)[:samples]
    return out


def reverberate(rng: Rng, wave: np.ndarray, decay_s: float, wet: float) -> np.ndarray:
    """The waveform in a room: a few early reflections, then noise that dies.

    Arguments
    ---------
    rng : numpy.random.Generator
        Draws the room.
    wave : numpy.ndarray
        The dry waveform, ``[samples]``.
    decay_s : float
        Reverberation time: seconds until the tail is 60 dB down. High frequencies die sooner.
    wet : float
        Level of the reflections against the direct sound.
    """
    time = np.arange(max(to_samples(decay_s), 64)) / RATE_HZ
    tail = rng.standard_normal(time.size)
    dull = band(tail, None, 1500.0, order=1)
    tail = dull * 10 ** (-3 * time / decay_s) + (tail - dull) * 10 ** (-5 * time / decay_s)
    tail[: to_samples(0.004)] = 0
    for delay_s in rng.uniform(0.002, 0.03, 6):
        add_at(tail, float(delay_s), np.array([rng.choice([-3.0, 3.0])]))
    tail *= wet / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return oaconvolve(wave, tail)[: wave.size]
