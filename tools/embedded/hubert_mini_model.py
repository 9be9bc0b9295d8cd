"""HuBERT-mini's shape, alphabet and files, and greedy decoding."""

from __future__ import annotations

import copy
import json
import os
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import HubertConfig, HubertForCTC

from tools.embedded.whisper_init import mel_wavelets

#: wav2vec 2.0's layout: blank, three specials, the word separator, then letters and apostrophe.
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase, "'")
BLANK, WORD_SEPARATOR = 0, "|"

#: Depth and heads of the two directions: Whisper tiny.en's encoder, and MiniLM's geometry.
GEOMETRY: dict[str, dict[str, int]] = {
    "whisper": {
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        # Whisper's positions for the first 5 s, see ``whisper_positions``. Groups of fewer than 16
        # channels are computed wrongly by oneDNN in bfloat16 (torch 2.14, CPU with AMX).
        "num_conv_pos_embeddings": 512,
        "num_conv_pos_embedding_groups": 24,
    },
    "scratch": {
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_conv_pos_embeddings": 64,
        "num_conv_pos_embedding_groups": 16,
    },
}


def make_model(init: str) -> HubertForCTC:
    """An untrained HuBERT-mini.

    50 frames a second: a first convolution of 25 ms windows every 10 ms, then three small ones.

    Arguments
    ---------
    init : str
        A key of ``GEOMETRY``; only the shape, no weights of Whisper are loaded here.

    Raises
    ------
    ValueError
        If there is no such geometry.
    """
    if init not in GEOMETRY:
        raise ValueError(f"init must be one of {', '.join(GEOMETRY)}, not {init!r}")
    options: dict[str, Any] = dict(
        vocab_size=len(VOCABULARY),
        hidden_size=384,
        intermediate_size=1536,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        conv_dim=(320, 320, 384, 384),
        conv_kernel=(400, 1, 3, 3),
        conv_stride=(160, 1, 1, 2),
        # SpecAugment and noise regularise; drawing dropout masks took 7 % of a CPU step.
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.05,
        layerdrop=0.0,
        apply_spec_augment=True,
        mask_time_prob=0.05,
        mask_time_length=10,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=BLANK,
        bos_token_id=1,
        eos_token_id=2,
    )
    options |= GEOMETRY[init]
    config = HubertConfig(**options)
    model = HubertForCTC(config)
    first = model.hubert.feature_extractor.conv_layers[0].conv
    with torch.no_grad():
        first.weight.copy_(mel_wavelets(config.conv_kernel[0]))
        first.bias.zero_()
    return model


def to_labels(text: str) -> list[int]:
    """Vocabulary indices of upper-case ``text``.

    Example
    -------
    >>> to_labels("A B'")
    [5, 4, 6, 31]
    """
    return [VOCABULARY.index(WORD_SEPARATOR if c == " " else c) for c in text]


def to_text(labels: Sequence[int]) -> str:
    """Greedy CTC: repeats merged, blanks and specials dropped.

    Example
    -------
    >>> to_text([0, 5, 5, 0, 5, 4, 4, 6, 0])
    'AA B'
    """
    merged = [a for i, a in enumerate(labels) if i == 0 or a != labels[i - 1]]
    letters = "".join(VOCABULARY[a] for a in merged if a > 3)
    return " ".join(letters.replace(WORD_SEPARATOR, " ").split())


def normalise(wavs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit variance over each waveform's own samples.

    Arguments
    ---------
    wavs : torch.Tensor
        ``[B, T]``, zero-padded.
    lengths : torch.Tensor
        ``[B]``, relative, as SpeechBrain gives them.

    Returns
    -------
    tuple of torch.Tensor
        Normalised ``[B, T]`` with zero padding, and the mask ``[B, T]`` (1 on samples, long).
    """
    samples = (lengths * wavs.shape[1]).round().long()
    mask = (torch.arange(wavs.shape[1]) < samples[:, None]).long()
    count = samples[:, None]
    mean = (wavs * mask).sum(1, keepdim=True) / count
    centred = (wavs - mean) * mask
    deviation = (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
    return centred / deviation, mask


@torch.no_grad()
def transcribe(model: HubertForCTC, wave: np.ndarray) -> str:
    """What ``model`` hears in a 16 kHz waveform ``[T]``."""
    wavs, mask = normalise(torch.as_tensor(wave, dtype=torch.float32)[None], torch.ones(1))
    return to_text(model(wavs, attention_mask=mask).logits[0].argmax(-1).tolist())


def export(model: HubertForCTC, folder: Path) -> None:
    """Write ``model`` as a Hugging Face folder with fp16 weights.

    The folder's other files (model card, training log) stay. Each file is written beside and
    renamed.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    # A copy, not a new model: without masks in training, that one would have no mask embedding.
    copy.deepcopy(model).half().save_pretrained(part)
    config = json.loads((part / "config.json").read_text())
    # The weights are stored in half precision and computed with in single.
    config |= {"dtype": "float32", "architectures": ["HubertForCTC"], "mask_time_prob": 0.05}
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    texts: dict[str, dict] = {
        "config.json": config,
        "vocab.json": {token: i for i, token in enumerate(VOCABULARY)},
        "special_tokens_map.json": specials,
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            **specials,
            "word_delimiter_token": WORD_SEPARATOR,
            "do_lower_case": False,
            "replace_word_delimiter_char": " ",
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": 16000,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": True,
            "return_attention_mask": True,
        },
    }
    for name, content in texts.items():
        (part / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(path, folder / path.name)
    part.rmdir()
