"""Sounds with a pitch or a beat: barks, songs and sirens, and what is struck.

Voices are sources through resonances, songs and sirens swept tones, bells, clocks and doors struck
modes. See :mod:`tools.embedded.sound_events` for what each function takes and returns.
"""

from __future__ import annotations

import numpy as np

from tools.embedded.sound_tools import (
    RATE_HZ,
    Rng,
    add_at,
    band,
    log_uniform,
    onsets,
    phase_of,
    pulses,
    resonate,
    reverberate,
    slow_curve,
    struck,
    to_samples,
    unit,
)


def dog(rng: Rng, duration_s: float) -> np.ndarray:
    """Barks: a rough voice whose pitch jumps up and falls, through a mouth that opens and shuts."""
    pitch_hz = log_uniform(rng, 160, 650)
    size = (pitch_hz / 330) ** 0.4
    formants = [size * rng.uniform(*span) for span in ((420, 900), (1050, 1900), (2200, 3600))]
    widths = [rng.uniform(80, 200), rng.uniform(120, 300), rng.uniform(200, 500)]
    gains = [1.0, rng.uniform(0.3, 1.0), rng.uniform(0.1, 0.6)]
    length_s, breath = log_uniform(rng, 0.07, 0.28), rng.uniform(0.1, 0.8)
    rise, sharpness = rng.uniform(0.15, 0.9), rng.uniform(1.5, 9)
    together = int(rng.integers(1, 6))
    pause_s, rest_s = rng.uniform(0.12, 0.5), rng.uniform(0.5, 2.0)
    out = np.zeros(to_samples(duration_s))
    start_s = rng.uniform(-0.1, 1.0)
    while start_s < duration_s:
        for _ in range(int(rng.integers(1, together + 1))):
            time = np.linspace(0, 1, to_samples(length_s * rng.uniform(0.8, 1.25)))
            arch = np.sin(np.pi * time ** rng.uniform(0.45, 0.75))
            shake = 1 + 0.03 * slow_curve(rng, time.size, 60.0)
            phase = phase_of(pitch_hz * rng.uniform(0.93, 1.07) * (1 + rise * arch) * shake)
            voice = pulses(phase, sharpness) * (1 + 0.5 * np.sin(phase / 2))
            voice = unit(voice - voice.mean()) + breath * rng.standard_normal(time.size)
            voice *= arch**0.7 * np.minimum(1, 12 * time)
            mouth = [formant * rng.uniform(0.93, 1.07) for formant in formants]
            bark = resonate(voice, mouth, widths, gains) + 0.02 * voice
            add_at(out, start_s, bark * rng.uniform(0.5, 1.0))
            start_s += time.size / RATE_HZ + pause_s * rng.uniform(0.7, 1.4)
        start_s += rest_s * rng.uniform(0.6, 1.4)
    return out


def chirping_birds(rng: Rng, duration_s: float) -> np.ndarray:
    """Songs of one to three birds: phrases of short swept whistles, each bird with its own."""
    out = np.zeros(to_samples(duration_s))
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        centre_hz = log_uniform(rng, 2200, 5200)
        overtone = rng.choice([0.0, rng.uniform(0.05, 0.35)])
        syllables = []
        for _ in range(int(rng.integers(1, 5))):
            time = np.linspace(0, 1, to_samples(log_uniform(rng, 0.025, 0.25)))
            sweep = rng.uniform(-0.45, 0.45) * (time - 0.5) + rng.uniform(-0.25, 0.25) * (
                np.sin(np.pi * time)
            )
            buzz_hz = rng.choice([0.0, rng.uniform(25, 120)])
            seconds = time * time.size / RATE_HZ
            sweep = sweep + rng.uniform(0, 0.08) * np.sin(2 * np.pi * buzz_hz * seconds)
            curve = centre_hz * log_uniform(rng, 0.8, 1.25) * np.exp(sweep)
            phase = phase_of(np.minimum(curve, 7600))
            whistle = np.sin(phase) + overtone * np.sin(2 * phase) * (curve < 3700)
            syllables.append(whistle * np.sin(np.pi * time) ** rng.uniform(0.6, 2.0))
        gap_s, rest_s = log_uniform(rng, 0.02, 0.3), rng.uniform(0.3, 2.0)
        repeats, gain = int(rng.integers(1, 9)), log_uniform(rng, 0.3, 1.0)
        start_s = rng.uniform(-0.2, 1.2)
        while start_s < duration_s:
            for syllable in rng.permutation(len(syllables)):
                for _ in range(int(rng.integers(1, repeats + 1))):
                    add_at(out, start_s, gain * rng.uniform(0.6, 1.0) * syllables[syllable])
                    start_s += syllables[syllable].size / RATE_HZ + gap_s * rng.uniform(0.8, 1.2)
            start_s += rest_s * rng.uniform(0.5, 1.6)
    return out


def clock_tick(rng: Rng, duration_s: float) -> np.ndarray:
    """Ticks at an even pace, two alternating; each is a few clicks of the escapement in a case."""
    period_s = log_uniform(rng, 0.2, 1.0)
    uneven = rng.uniform(0, 0.12)
    centre_hz, case_hz = log_uniform(rng, 2000, 5000), log_uniform(rng, 250, 900)
    case, ringing_s = log_uniform(rng, 0.1, 0.8), log_uniform(rng, 0.002, 0.012)
    ticks = []
    for _ in range(2):
        tick = np.zeros(to_samples(0.12))
        for click in range(int(rng.integers(1, 4))):
            modes = [centre_hz * log_uniform(rng, 0.5, 1.6) for _ in range(5)]
            ring = struck(modes, [ringing_s] * 5, rng.uniform(0.3, 1.0, 5).tolist(), 0.08, rng)
            body = struck([case_hz, 2.3 * case_hz], [0.012, 0.006], [case, 0.5 * case], 0.08, rng)
            snap = rng.standard_normal(48) * np.exp(-np.arange(48) / log_uniform(rng, 4, 16))
            add_at(ring, 0.0, snap)
            add_at(tick, click * rng.uniform(0.006, 0.02), rng.uniform(0.4, 1.0) * (ring + body))
        ticks.append(tick)
    out = np.zeros(to_samples(duration_s))
    start_s = rng.uniform(0, period_s)
    for beat in range(int(duration_s / period_s) + 1):
        offset_s = uneven * period_s * (beat % 2) + rng.normal(0, 0.001)
        add_at(out, start_s + beat * period_s + offset_s, ticks[beat % 2] * rng.uniform(0.85, 1.0))
    return out


#: Partials of a church bell against its nominal, and how loud each is: hum, prime, tierce, quint…
BELL_PARTIALS = (0.25, 0.5, 0.6, 0.75, 1.0, 1.25, 1.33, 1.5, 2.0, 2.66, 3.37)
BELL_GAINS = (0.5, 0.6, 0.8, 0.3, 1.0, 0.3, 0.3, 0.5, 0.45, 0.25, 0.15)


def church_bells(rng: Rng, duration_s: float) -> np.ndarray:
    """One to four bells in turn or at random; each partial is two close ones, which beat."""
    nominal_hz = log_uniform(rng, 600, 2200)
    hum_s = log_uniform(rng, 0.7, 4.0)
    bells = []
    for step in rng.choice([0, 2, 4, 5, 7, 9, 12], int(rng.integers(1, 5)), replace=False):
        partials, decays, gains = [], [], []
        for ratio, gain in zip(BELL_PARTIALS, BELL_GAINS, strict=True):
            partial_hz = nominal_hz * 2 ** (-step / 12) * ratio * rng.uniform(0.985, 1.015)
            for side in (-0.5, 0.5):
                partials.append(partial_hz + side * rng.uniform(0.2, 2.5))
                decays.append(hum_s * (0.25 / ratio) ** rng.uniform(0.5, 0.9))
                gains.append(gain * rng.uniform(0.3, 1.0))
        bell = struck(partials, decays, gains, 5.0, rng)
        clapper = rng.standard_normal(400) * np.exp(-np.arange(400) / 80)
        add_at(bell, 0.0, rng.uniform(0.2, 1.5) * clapper)
        bells.append(bell)
    pace_s = log_uniform(rng, 0.35, 2.6)
    out = np.zeros(to_samples(duration_s))
    for number, start_s in enumerate(onsets(rng, duration_s + 2, 0.95 * pace_s, 1.05 * pace_s)):
        in_turn = number % len(bells) if rng.random() < 0.8 else int(rng.integers(len(bells)))
        # From two seconds before the beginning: a recording starts while bells are ringing.
        add_at(out, start_s - 2, rng.uniform(0.5, 1.0) * bells[in_turn])
    return out


def door_wood_knock(rng: Rng, duration_s: float) -> np.ndarray:
    """Two to six knocks at a time on a panel: a few damped low modes and the knuckle's contact."""
    lowest_hz, damping_s = log_uniform(rng, 80, 320), log_uniform(rng, 0.008, 0.05)
    ratios = np.cumprod(np.concatenate([[1.0], rng.uniform(1.15, 1.7, 6)]))
    gains = rng.uniform(0.2, 1.0, 7) / ratios ** rng.uniform(0.3, 1.1)
    contact, hardness = rng.uniform(0.05, 0.8), log_uniform(rng, 6, 40)
    pace_s, rest_s = log_uniform(rng, 0.11, 0.42), rng.uniform(0.5, 2.4)
    most = int(rng.integers(2, 7))
    out = np.zeros(to_samples(duration_s))
    start_s = rng.uniform(0, 1.2)
    while start_s < duration_s:
        for _ in range(int(rng.integers(2, most + 1))):
            where = gains * rng.uniform(0.6, 1.4, 7)
            decays = damping_s / ratios**0.5
            knock = struck((lowest_hz * ratios).tolist(), decays.tolist(), where.tolist(), 0.3, rng)
            touch = rng.standard_normal(300) * np.exp(-np.arange(300) / hardness)
            add_at(knock, 0.0, contact * touch)
            add_at(out, start_s, rng.uniform(0.5, 1.0) * knock)
            start_s += pace_s * rng.uniform(0.85, 1.15)
        start_s += rest_s * rng.uniform(0.6, 1.4)
    return out


def siren(rng: Rng, duration_s: float) -> np.ndarray:
    """A horn's tone that wails, yelps or alternates; it comes nearer or goes."""
    samples = to_samples(duration_s)
    time = np.arange(samples) / RATE_HZ
    low_hz = log_uniform(rng, 400, 850)
    width = rng.uniform(0.25, 1.1)
    kind = rng.choice(["wail", "yelp", "two tones"])
    period_s = {
        "wail": log_uniform(rng, 2.0, 9.0),
        "yelp": log_uniform(rng, 0.18, 0.6),
        "two tones": log_uniform(rng, 0.5, 1.6),
    }[str(kind)]
    turn = (time / period_s + rng.uniform()) % 1
    peak = rng.uniform(0.3, 0.7)
    height = np.where(turn < peak, turn / peak, (1 - turn) / (1 - peak)) ** rng.uniform(0.6, 1.4)
    if kind == "two tones":
        width *= 0.45
        height = 0.5 + 0.5 * np.tanh(40 * np.sin(2 * np.pi * turn))
    passing = np.cumsum(slow_curve(rng, samples, 0.3)) / samples
    phase = phase_of(low_hz * np.exp(width * height + rng.uniform(0, 0.08) * passing))
    drive = log_uniform(rng, 0.4, 5)
    tone = np.tanh(drive * (np.sin(phase) + rng.uniform(0, 0.5) * np.sin(2 * phase))) / np.tanh(
        drive
    )
    horn = resonate(
        tone, [log_uniform(rng, 700, 1800), 2800], [900, 1500], [1.0, rng.uniform(0, 0.8)]
    )
    far = np.exp(rng.uniform(0, 0.5) * slow_curve(rng, samples, 0.3))
    street = reverberate(rng, horn + 0.2 * tone, rng.uniform(0.5, 2.0), rng.uniform(0.1, 0.8))
    return band(street, None, log_uniform(rng, 2000, 7500)) * far
