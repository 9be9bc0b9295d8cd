"""HuBERT-mini's start: Whisper tiny.en's encoder, read out of a CTranslate2 file.

Whisper's encoder layers are pre-norm like HuBERT's stable-layer-norm ones, and load one to one; its
key projection has no bias, so HuBERT's is zero. Whisper sees log-mel frames through two
convolutions, HuBERT the waveform: a convolutional front end is regressed onto Whisper's embedded
frames, 50 a second in both. Its positions are the matter of ``whisper_positions.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertEncoderStableLayerNorm

from speechbrain_mam.model_files.ctranslate2_file import read_model

SAMPLE_RATE_HZ = 16000
#: Level at which Whisper hears the unit-variance waveform.
SPEECH_RMS = 0.07


def load_encoder_layers(
    encoder: HubertEncoderStableLayerNorm, weights: dict[str, np.ndarray]
) -> None:
    """Copy Whisper's layers and final norm into a HuBERT stable-layer-norm encoder, in place.

    Arguments
    ---------
    encoder : torch.nn.Module
        A ``HubertEncoderStableLayerNorm`` of the same depth and width.
    weights : dict
        ``read_model``'s variables.

    Raises
    ------
    ValueError
        If depth or shapes do not fit.
    """
    depth = sum(k.endswith("self_attention/linear_0/weight") for k in weights if "encoder/" in k)
    if depth != len(encoder.layers):
        raise ValueError(f"Whisper has {depth} encoder layers, HuBERT {len(encoder.layers)}")

    def copy(module: nn.Module, name: str, parts: tuple[str, str] = ("weight", "bias")) -> None:
        for own, part in zip(("weight", "bias"), parts, strict=True):
            parameter = module.get_parameter(own)
            source = torch.from_numpy(weights[f"encoder/{name}/{part}"].astype(np.float32))
            if source.shape != parameter.shape:
                raise ValueError(
                    f"encoder/{name}: {tuple(source.shape)} onto {tuple(parameter.shape)}"
                )
            parameter.copy_(source)

    norm = ("gamma", "beta")
    with torch.no_grad():
        for i, layer in enumerate(encoder.layers):
            attention = layer.attention
            for part in ("weight", "bias"):
                stacked = weights[f"encoder/layer_{i}/self_attention/linear_0/{part}"]
                thirds = torch.from_numpy(stacked.astype(np.float32)).chunk(3)
                for module, third in zip(
                    (attention.q_proj, attention.k_proj, attention.v_proj), thirds, strict=True
                ):
                    getattr(module, part).copy_(third)
            copy(attention.out_proj, f"layer_{i}/self_attention/linear_1")
            copy(layer.layer_norm, f"layer_{i}/self_attention/layer_norm", norm)
            copy(layer.feed_forward.intermediate_dense, f"layer_{i}/ffn/linear_0")
            copy(layer.feed_forward.output_dense, f"layer_{i}/ffn/linear_1")
            copy(layer.final_layer_norm, f"layer_{i}/ffn/layer_norm", norm)
        copy(encoder.layer_norm, "layer_norm", norm)


class WhisperTeacher(nn.Module):
    """Whisper's encoder, frozen: what the front end and then the whole model are regressed onto.

    Convolutions are used without padding, so that frame ``n`` is centred on sample
    ``320 n + 520``, as HuBERT-mini's.

    Arguments
    ---------
    path : Path
        A CTranslate2 ``model.bin`` of a Whisper model.
    """

    mel: Tensor
    window: Tensor
    conv1_weight: Tensor
    conv1_bias: Tensor
    conv2_weight: Tensor
    conv2_bias: Tensor
    positions: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        spec, self.weights = read_model(path)
        if spec != "WhisperSpec":
            raise ValueError(f"{path}: a {spec}, not a Whisper model")

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(self.weights[f"encoder/{name}"].astype(np.float32))

        mel = torchaudio.functional.melscale_fbanks(
            201, 0.0, 8000.0, 80, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("mel", mel)
        self.register_buffer("window", torch.hann_window(400))
        for conv in ("conv1", "conv2"):
            for part in ("weight", "bias"):
                self.register_buffer(f"{conv}_{part}", tensor(f"{conv}/{part}"))
        positions = tensor("position_encodings/encodings")
        self.register_buffer("positions", positions)
        depth = sum(
            k.endswith("/self_attention/linear_0/weight") and "encoder/" in k[:8]
            for k in self.weights
        )
        config = HubertConfig(
            hidden_size=positions.shape[1],
            num_hidden_layers=depth,
            num_attention_heads=int(self.weights["encoder/num_heads"]),
            intermediate_size=4 * positions.shape[1],
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            layerdrop=0.0,
        )
        config._attn_implementation = "sdpa"
        encoder = HubertEncoderStableLayerNorm(config)
        load_encoder_layers(encoder, self.weights)
        self.layers, self.layer_norm = encoder.layers, encoder.layer_norm
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def embed(self, wavs: Tensor) -> Tensor:
        """Whisper's embedded frames ``[B, N, C]``, positions left out, of ``wavs`` ``[B, T]``."""
        frames = torch.stft(
            SPEECH_RMS * wavs, 400, 160, window=self.window, center=False, return_complex=True
        )
        power = frames.abs().square().transpose(1, 2) @ self.mel
        log = power.clamp(min=1e-10).log10()
        log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0)
        hidden = ((log + 4.0) / 4.0).transpose(1, 2)
        gelu = nn.functional.gelu
        hidden = gelu(nn.functional.conv1d(hidden, self.conv1_weight, self.conv1_bias))
        hidden = gelu(nn.functional.conv1d(hidden, self.conv2_weight, self.conv2_bias, stride=2))
        return hidden.transpose(1, 2)

    @torch.no_grad()
    def encode(self, embedded: Tensor, keep: Tensor) -> Tensor:
        """The encoder's output ``[B, N, C]``; ``keep`` ``[B, N]`` is true on frames of speech."""
        hidden = embedded + self.positions[: embedded.shape[1]]
        mask = keep[:, None, None, :].expand(-1, 1, keep.shape[1], -1)
        for layer in self.layers:
            output = layer(hidden, attention_mask=mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.layer_norm(hidden)


def mel_wavelets(kernel: int) -> Tensor:
    """Windowed waves of 80 mel-spaced frequencies in four phases, ``[320, 1, kernel]``.

    The first convolution starts from these: after a GELU, the sum over the phases is close to the
    magnitude in a mel band.

    Example
    -------
    >>> mel_wavelets(400).shape
    torch.Size([320, 1, 400])
    """
    top = 2595 * np.log10(1 + 7600 / 700)
    mels = torch.linspace(60.0, float(top), 82)
    edges_hz = 700 * (10 ** (mels / 2595) - 1)
    centre_hz = edges_hz[1:-1]
    width_hz = ((edges_hz[2:] - edges_hz[:-2]) / 2).clamp(min=60.0)
    time_s = (torch.arange(kernel) - (kernel - 1) / 2) / SAMPLE_RATE_HZ
    envelope = torch.exp(-0.5 * (time_s * 2.7 * width_hz[:, None]) ** 2)
    envelope = envelope * torch.hann_window(kernel)
    angle = 2 * torch.pi * centre_hz[:, None] * time_s
    waves = torch.cat([envelope * angle.cos(), envelope * angle.sin()])
    waves = waves / waves.norm(dim=1, keepdim=True)
    # Speech falls off by about 6 dB an octave; without this the low bands drown the others.
    waves = waves * (centre_hz / 500).clamp(min=0.5).sqrt().repeat(2)[:, None]
    return torch.cat([waves, -waves])[:, None]
