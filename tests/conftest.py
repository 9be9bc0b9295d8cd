"""Tiny random models and corpora for the tests; nothing here needs a network."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads it then
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is: each worker has one core

import numpy as np
import processes
import pytest
import soundfile
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)

from speechbrain_mam.embedded.corpora import mini_corpus

REPO = Path(__file__).resolve().parent.parent

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
FAMILIES = {
    "hubert": (HubertConfig, HubertForCTC),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC),
    "wavlm": (WavLMConfig, WavLMForCTC),
}


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    give_lazy_modules_a_file()


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


def speech_config(family: str = "hubert", **overrides):
    """A speech encoder's configuration, 16 wide, that frames 16 kHz audio every 20 ms."""
    options = {
        "vocab_size": len(TOKENS),
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (8, 8, 16),
        "conv_kernel": (10, 8, 4),
        "conv_stride": (10, 8, 4),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "pad_token_id": 0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.0,
        "apply_spec_augment": False,
    }
    return FAMILIES[family][0](**{**options, **overrides})


def build_speech_model(family: str = "hubert", **overrides):
    """A random speech model with CTC head."""
    torch.manual_seed(1)
    return FAMILIES[family][1](speech_config(family, **overrides)).eval()


def save_speech_model(folder: Path, family: str = "hubert", **overrides) -> Path:
    """The same as a Hugging Face folder with vocabulary and feature extractor."""
    build_speech_model(family, **overrides).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(TOKENS)}))
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


def save_bert(folder: Path, seed: int = 2, **overrides) -> Path:
    """A random BERT as a Hugging Face folder."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
    model = BertModel(BertConfig(**{**options, **overrides}))
    for parameter in model.parameters():  # a fresh BERT's biases are zero: they would prove nothing
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def save_corpus(folder: Path, utterances: int = 20, rate_hz: int = 16000) -> Path:
    """A corpus of noise bursts in LJ Speech's layout."""
    (folder / "wavs").mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["a cat", "the dog", "no bird is here", "it's a fine day", "we go", "who is it"]
    lines = []
    for i in range(utterances):
        name = f"XX001-{i:04d}"
        samples = 0.1 * rng.standard_normal(int(rate_hz * (0.5 + 0.05 * (i % 7))))
        soundfile.write(folder / "wavs" / f"{name}.wav", samples, rate_hz)
        text = words[i % len(words)]
        lines.append(f"{name}|{text.title()}.|{text.title()}.")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def expanded_corpus(tmp_path_factory, name: str) -> Path:
    """A mini corpus of the package's, alone in its cache; expanding takes seconds."""

    def expand(cache: Path) -> None:
        mini_corpus(name, cache=cache)

    return mini_corpus(name, cache=made_once(tmp_path_factory, f"corpus_{name}", expand))


@pytest.fixture(scope="session")
def hubert_folder(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "hubert", save_speech_model)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "bert", save_bert)


@pytest.fixture()
def corpus(tmp_path) -> Path:
    return save_corpus(tmp_path / "corpus")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real recordings in the corpora's layouts; the folder is named by an environment variable."""
    folder = os.environ.get("SPEECHBRAIN_MAM_REAL_DATA")
    if not folder:
        pytest.skip("SPEECHBRAIN_MAM_REAL_DATA is not set: no real recordings")
    return Path(folder)
