"""A tiny random target of every row of the table, and two donors for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speechbrain.lobes.models.transformer.Branchformer import BranchformerEncoder
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch import nn

from speechbrain_mam.architectures.registry import ARCHITECTURES
from speechbrain_mam.lobes.beats_model import BEATsModel
from speechbrain_mam.testing.families import FAMILIES, HEADS, LAYERS, WIDTH, randomise


class Target(NamedTuple):
    """A model that can be merged, and a forward pass of it."""

    name: str
    row: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module], Any]


def _built(cls: type[nn.Module], **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(11)
        model = cls(**options).eval()
        randomise(model)
        return model

    return build


def _frames(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(1, 6, WIDTH, generator=generator)
    return model(frames.to(next(model.parameters()).dtype))[0]


def _frames_with_positions(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(3)
    dtype = next(model.parameters()).dtype
    frames, positions = (torch.randn(1, n, WIDTH, generator=generator).to(dtype) for n in (6, 11))
    # its softmax is in float32 whatever it is stored in, so that half precision needs autocast
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        return model(frames, pos_embs=positions)[0]


def _wave(model: nn.Module) -> Any:
    wav = torch.randn(1, 8000, generator=torch.Generator().manual_seed(3))
    return model(wav, torch.ones(1))


_ENCODER = {"num_layers": LAYERS, "nhead": HEADS, "d_model": WIDTH, "dropout": 0.0}
_CONFORMER = {**_ENCODER, "kernel_size": 3}
_REGULAR = {"attention_type": "regularMHA"}
_BEATS = {
    **{"input_patch_size": 16, "embed_dim": 8, "conv_bias": False, "encoder_layers": LAYERS},
    **{"encoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": 8, "encoder_attention_heads": HEADS},
    **{"activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True},
    **{"encoder_layerdrop": 0.0, "conv_pos": 8, "conv_pos_groups": 2, "num_buckets": 32},
    **{"relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 80},
}
OTHERS = (
    Target("SpeechBrain's Transformer", "SpeechBrain's Transformer",
           _built(TransformerEncoder, d_ffn=8, normalize_before=True, **_ENCODER), _frames),
    Target("SpeechBrain's Conformer", "SpeechBrain's Conformer",
           _built(ConformerEncoder, d_ffn=8, **_CONFORMER, **_REGULAR), _frames),
    Target("SpeechBrain's Branchformer", "SpeechBrain's Conformer",
           _built(BranchformerEncoder, csgu_linear_units=8, **_CONFORMER, **_REGULAR), _frames),
    Target("SpeechBrain's Conformer, RelPosMHAXL", "SpeechBrain's RelPosMHAXL",
           _built(ConformerEncoder, d_ffn=8, attention_type="RelPosMHAXL", **_CONFORMER),
           _frames_with_positions),
    Target("SpeechBrain's Conformer, RoPEMHA", "SpeechBrain's RoPEMHA",
           _built(ConformerEncoder, d_ffn=8, attention_type="RoPEMHA", **_CONFORMER), _frames),
    Target("BEATs", "BEATs", _built(BEATsModel, cfg=_BEATS), _wave),
)  # fmt: skip
_ROLES = {row.name: row.roles for row in ARCHITECTURES}

TARGETS = (
    *(
        Target(f"{family.row}: {family}", family.row, family.build, family.run)
        for family in FAMILIES
        if "target" in _ROLES[family.row] and family.tower is None
    ),
    *OTHERS,
)


def save_donors(folder: Path) -> list[str]:
    """Two random BERTs as wide as the targets."""
    bert = next(family for family in FAMILIES if family.row == "BERT")
    saved = []
    for seed in (21, 22):
        bert.build(seed).save_pretrained(folder / str(seed))  # type: ignore[operator]
        saved.append(str(folder / str(seed)))
    return saved
