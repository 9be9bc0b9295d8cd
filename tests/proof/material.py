"""Tiny random models, some seconds of sound and manifests, as the proof's recipes read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import soundfile
import torch
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.lobes.models.wav2vec import EncoderWrapper, W2VLatentExtractor
from tiny_models import save_bert, save_speech_model, speech_config
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
    WhisperTokenizer,
)

RATE_HZ = 16000
UTTERANCES = 8  # two batches of four: an epoch has two steps
# Every character that 29 outputs stand for.
TEXTS = ("QUICK FOX", "JUMPS BY", "LAZY DOG'S", "VET HERE", "WIN IT")
PHONES = ("sil k w ih k", "jh ah m p s", "l ey z iy sil", "v eh t", "w ih n")
MEANINGS = ("?!", "!? $", "$?", "?? !")  # what is read by `ast.literal_eval` may be no Python
EMOTIONS = ("ang", "hap", "sad", "neu")
SPECIAL = ("endoftext", "startoftranscript", "en", "translate", "transcribe", "startoflm")
SPECIAL += ("startofprev", "nospeech", "notimestamps", "0.00")


def make_parts(folder: Path) -> None:
    """Everything that a row of the table needs, in one folder."""
    folder.mkdir(exist_ok=True)
    for family in ("wavlm", "wav2vec2", "hubert"):
        save_speech_model(folder / family, family)
    save_bert(folder / "bert")
    save_whisper(folder / "whisper")
    save_pretraining(folder / "pretraining")
    save_speechbrain_wav2vec2(folder)
    save_language_model(folder / "lm.ckpt")
    save_sounds(folder)
    save_pieces(folder / "tokenizer.ckpt", TEXTS)
    save_pieces(folder / "meanings.ckpt", MEANINGS)


def speech_like(index: int, seconds: float) -> np.ndarray:
    """Syllables of a voiced sound, at a pitch and with formants of its own."""
    rng = np.random.default_rng(index)
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = 90 + 30 * (index % 4)
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.05 * np.sin(5 * time_s))) / RATE_HZ
    formants_hz = np.array([500, 1500]) * (1 + 0.2 * (index % 4))
    voice = sum(
        np.exp(-(((n * pitch_hz - formants_hz) / 200) ** 2)).sum() * np.sin(n * phase)
        for n in range(1, 25)
    )
    envelope = np.maximum(0, np.sin(2 * np.pi * 3 * time_s))
    return 0.1 * envelope * voice + 0.003 * rng.standard_normal(len(time_s))


def save_sounds(folder: Path) -> None:
    """``data.csv`` and ``data.json``, with the fields of all corpora."""
    rows = [["ID", "duration", "wav", "spk_id", "wrd", "transcript", "semantics"]]
    entries = {}
    for i in range(UTTERANCES):
        wav, seconds, text = folder / f"{i}.wav", 0.4 + 0.05 * (i % 3), TEXTS[i % len(TEXTS)]
        soundfile.write(wav, speech_like(i, seconds), RATE_HZ)
        meaning = MEANINGS[i % len(MEANINGS)]
        rows.append([f"1-2-{i:04d}", seconds, f"$data_root/{i}.wav", "1-2", text, text, meaning])
        entries[f"Ses01_{i}"] = {
            **{"wav": str(wav), "length": seconds, "duration": seconds},
            **{"emo": EMOTIONS[i % len(EMOTIONS)], "phn": PHONES[i % len(PHONES)]},
        }
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")


def save_pieces(file: Path, texts: Sequence[str]) -> None:
    """A SentencePiece tokenizer of the texts' characters, as a pretrainer collects it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(file.with_suffix("")),
        model_type="char",
        vocab_size=32,
        hard_vocab_limit=False,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 2},
    )
    file.with_suffix(".model").rename(file)


def save_whisper(folder: Path) -> None:
    """A Whisper that knows English alone, with a token a byte."""
    torch.manual_seed(3)
    folder.mkdir()
    vocabulary = {byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocabulary, [], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{s}|>" for s in SPECIAL]})
    tokenizer.english_spelling_normalizer = {}
    tokenizer.save_pretrained(folder)
    (folder / "normalizer.json").write_text("{}")
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    end, begin = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in SPECIAL[:2])
    model = WhisperModel(
        WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=16,
            d_model=16,
            max_target_positions=64,
            **{"encoder_layers": 3, "decoder_layers": 1},
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
            **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0},
            **{"pad_token_id": end, "eos_token_id": end, "bos_token_id": end},
            decoder_start_token_id=begin,
        )
    )
    model.save_pretrained(folder)


def save_pretraining(folder: Path) -> None:
    """A wav2vec 2.0 with a quantiser."""
    torch.manual_seed(4)
    config = speech_config(
        "wav2vec2",
        **{"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4},
        num_negatives=4,
    )
    Wav2Vec2ForPreTraining(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def save_language_model(file: Path) -> None:
    """A Transformer over the pieces, for the beam searches of recipes as they are shipped."""
    torch.manual_seed(6)
    options = {"d_model": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 0}
    torch.save(TransformerLM(vocab=32, d_ffn=32, **options).state_dict(), file)


def save_speechbrain_wav2vec2(folder: Path) -> None:
    """SpeechBrain's own, in the two files that its pretrainer collects."""
    torch.manual_seed(5)
    encoder = TransformerEncoder(num_layers=3, nhead=2, d_ffn=32, d_model=16, normalize_before=True)
    wrapper = EncoderWrapper(in_dim=8, embedding_dim=16, latent_encoder=encoder)
    torch.save(wrapper.state_dict(), folder / "latent_encoder.ckpt")
    extractor = W2VLatentExtractor(out_channels=[8] * 7)
    torch.save(extractor.state_dict(), folder / "latent_extractor.ckpt")
