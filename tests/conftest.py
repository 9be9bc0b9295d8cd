"""How the tests run, and what they share; the models are in ``tiny_models.py``."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads it then
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is: each worker has one core

import processes
import pytest
import thorough
from filelock import FileLock
from hypothesis import HealthCheck, settings

from speechbrain_mam.embedded.corpora import mini_corpus

REPO = Path(__file__).resolve().parent.parent
SINGLE = tuple(name for name in thorough.TESTS if "::" in name)

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

OF_TINY_MODELS = {
    *("FAMILIES", "TOKENS", "build_speech_model", "save_bert", "save_corpus", "save_speech_model"),
    "speech_config",
}


def __getattr__(name: str):
    """Builders of ``tiny_models``, imported when a test asks for one.

    That imports torch and transformers, seconds which the process that only deals out the tests
    would have its workers wait for.
    """
    if name not in OF_TINY_MODELS:
        raise AttributeError(name)
    return getattr(importlib.import_module("tiny_models"), name)


def pytest_addoption(parser):
    parser.addoption(
        "--no-fork",
        action="store_true",
        help="run each recipe as a process of its own, not in a fork of a warm one",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """A file or two are done before a second worker has imported torch: they need none."""
    given = config.invocation_params.args
    if not any(str(word).startswith(("-n", "--numprocesses")) for word in given):
        files = [word.partition("::")[0].endswith(".py") for word in config.args]
        if all(files) and len(files) <= 2:
            config.option.numprocesses = 0


def pytest_configure(config):
    processes.forks_allowed &= not config.getoption("--no-fork")
    gc.disable()  # until all is imported


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest first, so that no worker is left alone with them at the end."""
    for item in items:
        whole_file = item.location[0] in thorough.TESTS
        slow = item.get_closest_marker("slow") is not None
        if item.nodeid.startswith(thorough.NIGHTLY):
            item.add_marker("nightly")
        elif (whole_file and slow) or item.nodeid.startswith(SINGLE):
            item.add_marker("thorough")
        if item.location[0] in thorough.SLOW or any(
            item.get_closest_marker(name) for name in ("thorough", "nightly", "faults", "recipes")
        ):
            item.add_marker("slow")  # `-m "not slow"` on the command line takes addopts' place
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    give_lazy_modules_a_file()


def pytest_collection_finish():
    """What the imports made stays: each collection of garbage would go through it again."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup():
    """A test may have brought more of them."""
    give_lazy_modules_a_file()


def give_lazy_modules_a_file():
    """Hypothesis asks each module for its file, which would import SpeechBrain's lazy ones."""
    for module in list(sys.modules.values()):
        if type(module).__name__ in ("LazyModule", "DeprecatedModuleRedirect"):
            vars(module).setdefault("__file__", None)


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills once a session, for the tests of all workers to read."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)
    folder, finished = shared / name, shared / f"{name}.finished"
    with FileLock(shared / f"{name}.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of it, where `make` has failed
            make(folder)
            finished.touch()
    return folder


def expanded_corpus(tmp_path_factory, name: str) -> Path:
    """A mini corpus of the package's, alone in its cache; expanding takes seconds."""

    def expand(cache: Path) -> None:
        mini_corpus(name, cache=cache)

    return mini_corpus(name, cache=made_once(tmp_path_factory, f"corpus_{name}", expand))


@pytest.fixture(scope="session")
def hubert_folder(tmp_path_factory) -> Path:
    from tiny_models import save_speech_model

    return made_once(tmp_path_factory, "hubert", save_speech_model)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    from tiny_models import save_bert

    return made_once(tmp_path_factory, "bert", save_bert)


@pytest.fixture()
def corpus(tmp_path) -> Path:
    from tiny_models import save_corpus

    return save_corpus(tmp_path / "corpus")


@pytest.fixture(scope="session")
def unmodified(tmp_path_factory) -> Path:
    """A folder that holds SpeechBrain's ``recipes``, as they are in its source distribution."""
    from proof.release import Unreachable, unpack

    if checkout := os.environ.get("SPEECHBRAIN_RECIPES"):
        assert (Path(checkout) / "recipes").is_dir(), "SPEECHBRAIN_RECIPES is no checkout"
        return Path(checkout)
    try:
        return made_once(tmp_path_factory, "speechbrain_recipes", unpack)
    except Unreachable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real recordings in the corpora's layouts; the folder is named by an environment variable."""
    folder = os.environ.get("SPEECHBRAIN_MAM_REAL_DATA")
    if not folder:
        pytest.skip("SPEECHBRAIN_MAM_REAL_DATA is not set: no real recordings")
    return Path(folder)
