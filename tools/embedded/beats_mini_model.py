"""BEATs-mini's shape, its patches and its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from speechbrain.lobes.models.beats import BEATsConfig
from torch import Tensor, nn

from speechbrain_mam.lobes.beats_model import BEATsModel
from speechbrain_mam.lobes.fbank import FRAME_SAMPLES, SHIFT_SAMPLES

PATCH, BINS, MEL_PATCHES = 16, 128, 8
CLIP_ROWS = 13
CLIP_SAMPLES = FRAME_SAMPLES + (PATCH * CLIP_ROWS - 1) * SHIFT_SAMPLES
"""A training clip: 13 rows of patches, 2.1 s."""
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582

CFG: dict[str, Any] = vars(BEATsConfig()) | {
    "input_patch_size": PATCH,
    "embed_dim": 192,
    "encoder_layers": 4,
    "encoder_embed_dim": 384,
    "encoder_ffn_embed_dim": 1536,
    "encoder_attention_heads": 6,
    # Four rows of patches, and 24 channels a group: oneDNN needs at least 16 in bfloat16.
    "conv_pos": 32,
    "conv_pos_groups": 16,
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "num_buckets": 128,
    "max_distance": 256,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "finetuned_model": False,
}


def make_model(cfg: dict[str, Any] = CFG) -> BEATsModel:
    """An untrained BEATs of BEATs-mini's shape."""
    model = BEATsModel(cfg)
    for layer in (parts(model).patch_embedding, parts(model).post_extract_proj):
        nn.init.orthogonal_(layer.weight.data.flatten(1))
    mark_bands(model)
    return model


EMPTY_BIN = 3
"""Of 128 mel filters on 257 frequencies, the fourth covers none: its log is constant."""
MARKED_GROUPS = 4


@torch.no_grad()
def mark_bands(model: BEATsModel) -> None:
    """Let a patch know its mel band from the first step on, in place.

    BEATs has relative positions only, and the same weights for every band. But the lowest band has
    an empty filter. A patch feature finds it, and in some groups the positional convolution copies
    it j patches up into channel j: a one-hot code of the band.
    """
    part = parts(model)
    contrast = torch.zeros(PATCH, PATCH)
    contrast[:, EMPTY_BIN - 1 : EMPTY_BIN + 2] = torch.tensor([0.5, -1.0, 0.5])
    part.patch_embedding.weight[0, 0] = contrast / contrast.norm()
    conv: Any = part.encoder.pos_conv[0]
    weight, group = conv.weight.clone(), conv.out_channels // conv.groups
    for first in range(0, MARKED_GROUPS * group, group):
        part.post_extract_proj.weight[first] = 0.0
        part.post_extract_proj.weight[first, 0] = 0.3
        for band in range(MEL_PATCHES):
            weight[first + 1 + band] = 0.0
            weight[first + 1 + band, 0, conv.padding[0] - band] = 1.0
    conv.weight = weight


def parts(model: nn.Module) -> Any:
    """``model``, untyped: SpeechBrain's BEATs sets its modules by name."""
    return model


def to_patches(fbank: Tensor) -> Tensor:
    """Filter banks ``[B, frames, 128]`` as patches ``[B, rows · 8, 256]`` in BEATs' order.

    Example
    -------
    >>> to_patches(torch.zeros(1, 40, 128)).shape
    torch.Size([1, 16, 256])
    """
    rows = fbank.shape[1] // PATCH
    patches = fbank[:, : rows * PATCH].reshape(len(fbank), rows, PATCH, MEL_PATCHES, PATCH)
    return patches.transpose(2, 3).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor) -> Tensor:
    """The filter banks of :func:`to_patches`."""
    rows = patches.shape[1] // MEL_PATCHES
    blocks = patches.reshape(len(patches), rows, MEL_PATCHES, PATCH, PATCH)
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


def encode(model: BEATsModel, fbank: Tensor, depth: int | None = None) -> Tensor:
    """Features ``[B, rows · 8, D]`` of normalised filter banks without padding.

    Arguments
    ---------
    model : BEATsModel
        Without padding, its own ``extract_features`` gives the same.
    fbank : Tensor
        ``[B, frames, 128]``.
    depth : int, optional
        How many of the layers to use, all by default.
    """
    part = parts(model)
    features = part.patch_embedding(fbank[:, None]).flatten(2).transpose(1, 2)
    features = part.post_extract_proj(part.layer_norm(features))
    near = part.encoder.pos_conv(features.transpose(1, 2)).transpose(1, 2)
    features, bias = part.encoder.layer_norm(features + near).transpose(0, 1), None
    for layer in part.encoder.layers[:depth]:
        features, _, bias = layer(features, pos_bias=bias)
    return features.transpose(0, 1)


@torch.no_grad()
def pass_through(model: BEATsModel, first: int) -> None:
    """Let the layers from ``first`` on add nothing to what they get, in place.

    A model that was trained without them goes on from where it was.
    """
    for layer in parts(model).encoder.layers[first:]:
        for last in (layer.self_attn.out_proj, layer.fc2):
            last.weight.zero_()
            last.bias.zero_()


def export(model: BEATsModel, path: Path) -> None:
    """Write ``{cfg, model}`` as BEATs' authors do, weights in half precision; renamed last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
    cfg = {**vars(parts(model).cfg), "layer_wise_gradient_decay_ratio": 1.0}
    part = path.with_suffix(".part")
    torch.save({"cfg": cfg, "model": state}, part)
    os.replace(part, path)
