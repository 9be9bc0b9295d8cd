"""Absolute positions inside HuBERT's positional convolution."""

import pytest
import torch
from transformers import HubertConfig, HubertForCTC

from tools.embedded.whisper_positions import (
    POSITION_OFFSET,
    hold_positions,
    place_positions,
)


@pytest.fixture
def model() -> HubertForCTC:
    torch.manual_seed(0)
    config = HubertConfig(
        **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 32, "conv_dim": (8,), "conv_kernel": (400,)},
        **{"conv_stride": (320,), "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        **{"num_conv_pos_embeddings": 64, "num_conv_pos_embedding_groups": 2, "vocab_size": 32},
        **{"mask_time_prob": 0.2, "feat_proj_dropout": 0.0},
    )
    return HubertForCTC(config).eval()


def test_positions_are_exact_whatever_the_frames(model):
    positions = torch.sin(torch.arange(40)[:, None] / torch.linspace(1, 30, 32))
    embedded = torch.randn(500, 32) * torch.linspace(0.01, 1, 32)
    constant = place_positions(model, positions, embedded)
    assert constant.tolist() == [0, 16]
    projection = model.hubert.feature_projection.projection
    frames = projection(torch.randn(2, 30, 8))
    with torch.no_grad():
        placed = model.hubert.encoder.pos_conv_embed(frames)
    expected = (positions[:30] + POSITION_OFFSET).expand(2, -1, -1)
    torch.testing.assert_close(placed, expected, atol=1e-4, rtol=0)


def test_training_leaves_positions_alone(model):
    constant = place_positions(model, torch.rand(40, 32), torch.randn(500, 32))
    hold_positions(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    wavs = torch.randn(2, 16000)
    model.train()(wavs, labels=torch.tensor([[5, 6, 7], [8, 9, 5]])).loss.backward()
    optimizer.step()
    after = model.state_dict()
    weight, bias = (f"hubert.feature_projection.projection.{part}" for part in ("weight", "bias"))
    assert not after[weight][constant].any()
    assert not torch.equal(after[weight], before[weight])
    still = [name for name in after if "pos_conv" in name or "masked_spec" in name]
    assert still and all(torch.equal(after[name], before[name]) for name in still)
    # AdamW's decay may scale the constant, nothing else moves it.
    torch.testing.assert_close(after[bias][constant], before[bias][constant], rtol=2e-3, atol=0)
