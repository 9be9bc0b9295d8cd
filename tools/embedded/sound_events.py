"""Ten kinds of sound, synthesised: each call draws another dog, another bell, another sea.

Simple physical or perceptual models, in NumPy and SciPy alone; those that are noise or close to it
stand here: showers of grains (rain, fire), noise that breathes (sea), firing pulses through an
exhaust (engine). Every function takes a random generator, which draws all parameters, and a
duration in seconds, and returns a dry waveform ``[samples]`` at 16 kHz whose level has no meaning
yet. Any five seconds of it hold the sound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.embedded.sound_calls import (
    chirping_birds,
    church_bells,
    clock_tick,
    dog,
    door_wood_knock,
    siren,
)
from tools.embedded.sound_tools import (
    RATE_HZ,
    Rng,
    add_at,
    band,
    coloured_noise,
    log_uniform,
    onsets,
    phase_of,
    pulses,
    resonate,
    shower,
    slow_curve,
    struck,
    to_samples,
    unit,
)


def rain(rng: Rng, duration_s: float) -> np.ndarray:
    """The hiss of far drops, and near ones that hit a surface and sometimes ring as a bubble."""
    samples = to_samples(duration_s)
    hiss = band(
        coloured_noise(rng, samples, rng.uniform(-7, 1)),
        log_uniform(rng, 100, 1200),
        log_uniform(rng, 3500, 7800),
    )
    hiss *= 1 + rng.uniform(0.02, 0.2) * slow_curve(rng, samples, 0.7)
    surface_hz, dullness_s = log_uniform(rng, 200, 3000), log_uniform(rng, 0.002, 0.02)
    bubbling = rng.uniform(0, 1.5)
    drops = []
    for _ in range(8):
        hit = rng.standard_normal(to_samples(0.03))
        hit *= np.exp(-np.arange(hit.size) / RATE_HZ / log_uniform(rng, 0.0005, 0.004))
        body = struck([surface_hz * rng.uniform(0.7, 1.4)], [dullness_s], [1.0], 0.06, rng)
        bubble = struck(
            [log_uniform(rng, 900, 6000)], [log_uniform(rng, 0.004, 0.02)], [1], 0.08, rng
        )
        drop = np.zeros(to_samples(0.1))
        add_at(drop, 0.0, hit)
        add_at(drop, 0.0, body)
        add_at(drop, rng.uniform(0.002, 0.02), bubbling * bubble)
        drops.append(drop * log_uniform(rng, 0.4, 1.0))
    near = shower(rng, samples, log_uniform(rng, 8, 300), drops, spread=0.7)
    return unit(hiss) + log_uniform(rng, 0.25, 2.5) * unit(near)


def sea_waves(rng: Rng, duration_s: float) -> np.ndarray:
    """Waves that swell, break and run out: the higher, the brighter; foam hisses after them."""
    samples = to_samples(duration_s)
    time = np.arange(samples) / RATE_HZ
    swell = np.full(samples, rng.uniform(0.03, 0.25))
    foam = np.full(samples, rng.uniform(0.02, 0.2))
    period_s, slow = log_uniform(rng, 2.5, 7.5), log_uniform(rng, 0.7, 1.4)
    for start_s in onsets(rng, duration_s + period_s, 0.7 * period_s, 1.3 * period_s):
        since = time - (start_s - 0.5 * period_s)
        rise_s, fall_s = slow * rng.uniform(0.4, 2.0), slow * rng.uniform(1.0, 3.0)
        wave = np.where(
            since < 0, np.exp(-((since / rise_s) ** 2)), np.exp(-np.abs(since) / fall_s)
        )
        late = np.clip((since - 0.2) / 0.8, 0, 1) * np.exp(-np.maximum(since, 0) / (1.4 * fall_s))
        height = rng.uniform(0.4, 1.0)
        swell += height * wave
        foam += height**2 * late
    body = band(coloured_noise(rng, samples, rng.uniform(-8, -3)), 40, log_uniform(rng, 400, 2000))
    surf = band(coloured_noise(rng, samples, rng.uniform(-5, -1)), log_uniform(rng, 200, 900), 7600)
    hiss = band(rng.standard_normal(samples), log_uniform(rng, 1500, 4000), 7800)
    ripple = 1 + 0.15 * slow_curve(rng, samples, 6.0)
    return (
        unit(body) * swell
        + rng.uniform(0.3, 1.2) * unit(surf) * swell**1.8 * ripple
        + rng.uniform(0.05, 0.5) * unit(hiss) * foam
    )


def crackling_fire(rng: Rng, duration_s: float) -> np.ndarray:
    """A low rumble of flames, a little hiss, and crackles in bursts, few of them loud."""
    samples = to_samples(duration_s)
    flames = band(coloured_noise(rng, samples, -6), 30, log_uniform(rng, 150, 600))
    flames *= np.exp(0.5 * slow_curve(rng, samples, log_uniform(rng, 1.5, 8.0)))
    hiss = band(coloured_noise(rng, samples, rng.uniform(-6, 0)), log_uniform(rng, 400, 2500), None)
    hiss *= np.exp(0.3 * slow_curve(rng, samples, 2.0))
    centre_hz = log_uniform(rng, 900, 4500)
    crackles = []
    for _ in range(8):
        length_s = log_uniform(rng, 0.0004, 0.006)
        snap = rng.standard_normal(to_samples(0.04))
        snap *= np.exp(-np.arange(snap.size) / RATE_HZ / length_s)
        peak_hz = min(centre_hz * log_uniform(rng, 0.5, 2.0), 7000)
        crackles.append(unit(snap + 3 * resonate(snap, [peak_hz], [0.3 * peak_hz], [1.0])))
    bursts = np.exp(1.2 * slow_curve(rng, samples, 1.5))
    crackling = bursts * shower(rng, samples, log_uniform(rng, 4, 70), crackles, spread=1.1)
    return (
        log_uniform(rng, 0.1, 1.2) * unit(flames)
        + log_uniform(rng, 0.05, 0.6) * unit(hiss)
        + 1.2 * unit(crackling)
    )


def engine(rng: Rng, duration_s: float) -> np.ndarray:
    """Firing pulses of unequal cylinders through an exhaust, with noise in step; it may rev."""
    samples = to_samples(duration_s)
    time = np.arange(samples) / RATE_HZ
    cylinders = int(rng.choice([1, 2, 3, 4, 6]))
    cycles_hz = log_uniform(rng, 6, 40) * (2.0 if cylinders == 1 else 1.0)
    depth = rng.choice([0.03, 0.03, 0.3]) * rng.uniform(0.3, 1.5)
    curve = cycles_hz * np.exp(depth * slow_curve(rng, samples, log_uniform(rng, 0.2, 0.8)))
    cycle = phase_of(curve * (1 + 0.01 * slow_curve(rng, samples, 25.0)))
    sharpness, fire = log_uniform(rng, 8, 150), np.zeros(samples)
    for cylinder in range(cylinders):
        turn = 2 * np.pi * (cylinder / cylinders + rng.uniform(-0.01, 0.01))
        fire += rng.uniform(0.6, 1.0) * pulses(cycle - turn, sharpness)
    noise = coloured_noise(rng, samples, rng.uniform(-6, -1))
    source = unit(fire - fire.mean()) + rng.uniform(0.1, 1.2) * noise * (fire + 0.1)
    peaks = [log_uniform(rng, 60, 220), log_uniform(rng, 200, 700), log_uniform(rng, 600, 2800)]
    gains = [1.0, rng.uniform(0.2, 1.0), rng.uniform(0.05, 0.7)]
    exhaust = resonate(source, peaks, [0.5 * peak for peak in peaks], gains)
    intake = band(noise, log_uniform(rng, 300, 1500), log_uniform(rng, 2500, 7000))
    whine = np.sin(cycle * int(rng.integers(20, 60))) * rng.uniform(0, 0.1)
    louder = 1 + rng.uniform(0, 0.3) * np.sin(2 * np.pi * time * rng.uniform(0.1, 0.5))
    mixed = unit(exhaust) + log_uniform(rng, 0.02, 0.35) * unit(intake) + whine
    return mixed * louder


#: ESC-50's own numbers and names of these classes.
CLASSES: dict[int, str] = {
    0: "dog",
    10: "rain",
    11: "sea_waves",
    12: "crackling_fire",
    14: "chirping_birds",
    30: "door_wood_knock",
    38: "clock_tick",
    42: "siren",
    44: "engine",
    46: "church_bells",
}
_KINDS = (
    dog,
    rain,
    sea_waves,
    crackling_fire,
    chirping_birds,
    door_wood_knock,
    clock_tick,
    siren,
    engine,
    church_bells,
)
EVENTS: dict[str, Callable[[Rng, float], np.ndarray]] = {kind.__name__: kind for kind in _KINDS}
