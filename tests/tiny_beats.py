"""Tiny random BEATs checkpoints and clips for the tests."""

from __future__ import annotations

from pathlib import Path

import torch

from speechbrain_mam.lobes.beats_model import BEATsModel

CFG = {
    "input_patch_size": 16,
    "embed_dim": 8,
    "conv_bias": False,
    "encoder_layers": 3,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_wise_gradient_decay_ratio": 0.6,
    "layer_norm_first": False,
    "deep_norm": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "dropout_input": 0.1,
    "encoder_layerdrop": 0.05,
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 80,
    "gru_rel_pos": True,
    "finetuned_model": False,
}


def tiny_state(seed: int = 1, **overrides) -> dict[str, torch.Tensor]:
    """Random weights; everything that is zero or one in a fresh model is random too."""
    torch.manual_seed(seed)
    model = BEATsModel({**CFG, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.state_dict()


def save_beats(file: Path, seed: int = 1, **overrides) -> Path:
    """A random BEATs as a checkpoint ``{cfg, model}``."""
    torch.save({"cfg": {**CFG, **overrides}, "model": tiny_state(seed, **overrides)}, file)
    return file


def clips(samples: int = 16000) -> torch.Tensor:
    """Noise, a chord, a click in silence, silence, and a loud sine beside a constant."""
    torch.manual_seed(0)
    time = torch.arange(samples) / 16000
    chord = sum(0.2 * torch.sin(2 * torch.pi * hz * time) for hz in (110, 440, 3000))
    click = torch.zeros(samples)
    click[samples // 3] = 0.9
    loud = 0.9 * torch.sin(2 * torch.pi * 1000 * time) + 0.1
    return torch.stack([0.1 * torch.randn(samples), chord, click, torch.zeros(samples), loud])
