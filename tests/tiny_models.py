"""Tiny random models and corpora for the tests; nothing here needs a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
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

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
FAMILIES = {
    "hubert": (HubertConfig, HubertForCTC),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC),
    "wavlm": (WavLMConfig, WavLMForCTC),
}


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
