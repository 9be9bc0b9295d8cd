"""The synthetic voices, as data: which ones HuBERT-mini hears, and which it never does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Voice:
    """One way of speaking.

    Arguments
    ---------
    engine : str
        ``"flite"``, ``"espeak-ng"``, ``"festival"`` or ``"piper"``.
    voice : str
        The engine's own name of the voice.
    speed : float
        Speaking rate, 1 = the engine's own.
    pitch : float
        Mean pitch, 1 = the voice's own (not festival). Piper's formants move with it: another
        speaker.

    Example
    -------
    >>> Voice("flite", "slt", speed=1.1).name
    'flite-slt-s110-p100'
    """

    engine: str
    voice: str
    speed: float = 1.0
    pitch: float = 1.0

    @property
    def name(self) -> str:
        """A file-name-safe name, different for different rows."""
        spoken = self.voice.replace("+", "_")
        return f"{self.engine}-{spoken}-s{self.speed * 100:.0f}-p{self.pitch * 100:.0f}"


#: Mean pitch of flite's voices in Hz; a row's ``pitch`` multiplies it.
FLITE_PITCH_HZ = {"kal16": 105.0, "slt": 170.0, "rms": 95.0, "awb": 120.0}

FLITE_VOICES = tuple(
    Voice("flite", voice, speed, pitch)
    for voice in ("kal16", "slt", "rms", "awb")
    for speed, pitch in ((1.0, 1.0), (0.87, 1.0), (1.15, 1.0), (1.0, 0.85), (1.05, 1.2))
)

#: Diphone voices at the brisk rates of read speech.
BRISK_VOICES = (
    *(Voice("festival", "kal_diphone", speed) for speed in (1.05, 1.2, 1.3)),
    *(Voice("flite", "kal16", 1.25, pitch) for pitch in (0.9, 1.0, 1.15)),
    *(Voice("flite", voice, 1.25) for voice in ("rms", "awb")),
)

#: A neural voice, the nearest to a person; ``pitch`` makes other sizes of speaker of it.
PIPER_VOICES = tuple(
    Voice("piper", "en_US-joe-medium", speed, pitch)
    for speed, pitch in (
        *((1.0, 1.0), (0.9, 0.94), (1.15, 1.06), (1.25, 1.0), (1.0, 0.88)),
        *((0.95, 1.15), (1.1, 1.24), (1.2, 1.34), (1.0, 1.3), (1.1, 0.82)),
    )
)

FESTIVAL_VOICES = tuple(
    Voice("festival", voice, speed)
    for voice in ("kal_diphone", "cmu_us_slt_arctic_hts")
    for speed in (0.9, 1.0, 1.12)
)

#: ``en`` is British English; espeak-ng 1.51 ignores a variant after its other name, ``en-gb``.
ESPEAK_ACCENTS = (
    *("en-us", "en-us-nyc", "en", "en-gb-x-rp"),
    *("en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"),
)

ESPEAK_VARIANTS = (
    *("adam", "Alex", "Alicia", "Andrea", "Annie", "antonio", "belinda", "benjamin", "boris"),
    *("caleb", "Denis", "Diogo", "ed", "edward", "Gene", "Gustave", "Henrique", "Hugo", "Iven"),
    *("Jacky", "john", "Lee", "Marco", "Mario", "max", "Michael", "miguel", "Mike", "pablo"),
    *("paul", "pedro", "quincy", "rob", "sandro", "shelby", "steph", "travis", "victor"),
    *("f1", "f2", "f3", "f5", "m1", "m2", "m4", "m6", "m7", "m8", "klatt", "klatt2", "klatt4"),
)

#: Kept out of every training set, for corpora of speakers that HuBERT-mini has not heard.
UNHEARD_ESPEAK_VARIANTS = (
    *("linda", "steph2", "anika", "m3", "m5", "Andy", "david", "robert", "marcelo"),
)

ESPEAK_VOICES = tuple(
    Voice("espeak-ng", f"{ESPEAK_ACCENTS[i * 3 % 8]}+{variant}", speed, pitch)
    for i, variant in enumerate(ESPEAK_VARIANTS)
    for speed, pitch in ((0.8, 0.9), (0.95, 1.15), (1.1, 1.0))
)

UNHEARD_ESPEAK_VOICES = tuple(
    Voice("espeak-ng", f"{ESPEAK_ACCENTS[i % 3]}+{variant}", 0.9)
    for i, variant in enumerate(UNHEARD_ESPEAK_VARIANTS)
)

#: The voice of the mini LJ corpus, kept out of every training set.
MINI_LJ_VOICE = Voice("espeak-ng", "en-us+f4", 1.05)

#: Unheard too, and unlike the trained voices: harder, for evaluation only.
HARD_VOICE = Voice("festival", "ked_diphone", 1.2)

#: The speakers of the mini VCTK corpus, in the order of their ids. Only the first has been heard,
#: and the recipe's split trains on it.
MINI_VCTK_VOICES = {
    "p901": Voice("flite", "rms"),
    "p902": Voice("espeak-ng", "en+linda"),
    "p903": Voice("espeak-ng", "en-us-nyc+steph2"),
    "p904": Voice("espeak-ng", "en-us+Andy", 1.1, 1.1),
    "p905": Voice("espeak-ng", "en-gb-scotland+robert", 1.05),
    "p906": Voice("espeak-ng", "en-us+david", 0.95, 1.1),
    "p907": Voice("espeak-ng", "en+marcelo", 0.85),
    "p908": Voice("espeak-ng", "en-029+m5", 0.95),
    "p909": Voice("espeak-ng", "en-gb-scotland+m3", 0.95),
    "p910": Voice("espeak-ng", "en-gb-x-rp+anika", 0.9),
}
