"""What makes a recipe's own YAML as small as its stand-in: overrides, by the names of the rows.

A checkout of SpeechBrain has the YAMLs. Their augmentation, schedulers, searches and dynamic
batches stay as they are. AISHELL-1's is not among them: it downloads noises. Those of the two diffs
are tried by ``tests/test_diffs.py``.
"""

from __future__ import annotations

_CSV = {f"{part}_csv": "{parts}/data.csv" for part in ("train", "valid", "test")}
_CSV |= {"skip_prep": "True"}
_CSVS = {**_CSV, "test_csv": "[{parts}/data.csv]"}
_FULL = {"precision": "fp32"}
_WHISPER = {
    **_FULL,
    **{"whisper_hub": "{parts}/whisper", "eval_precision": "fp32", "max_decode_ratio": "0.003"},
    **{"batch_size": "4", "test_batch_size": "4", "test_beam_size": "2"},
    "grad_accumulation_factor": "1",
}
_LIBRISPEECH_WHISPER = {**_CSVS, **_WHISPER}
_TRANSFORMER = {
    **_CSVS,
    **{"d_model": "16", "nhead": "2", "num_encoder_layers": "3", "num_decoder_layers": "1"},
    **{"d_ffn": "32", "output_neurons": "32", "test_beam_size": "2", "valid_search_interval": "1"},
    **{"valid_beam_size": "2", "max_batch_length_train": "2", "num_bucket": "2"},
    **{"lm_model": "{{d_model: 16, nhead: 2, num_encoder_layers: 1, d_ffn: 32}}"},
    **{"pretrained_lm_tokenizer_path": "{parts}", "max_decode_ratio": "0.5", "num_workers": "0"},
}

SHIPPED: dict[str, dict[str, str]] = {
    "CommonVoice, CTC with WavLM": {
        **_CSV,
        **_FULL,
        **{"wav2vec2_hub": "{parts}/wavlm", "wav2vec_output_dim": "16", "dnn_neurons": "16"},
        **{"num_workers": "0", "test_dataloader_options": "{{batch_size: 4, num_workers: 0}}"},
        **{"output_neurons": "29", "warmup_steps": "1"},
        **{"max_batch_length_train": "2", "num_bucket": "2"},
    },
    "CommonVoice, Whisper": {**_CSV, **_WHISPER, "language": "en"},
    "LibriSpeech, Whisper": _LIBRISPEECH_WHISPER,
    "LibriSpeech, Whisper, LoRA in every linear layer": _LIBRISPEECH_WHISPER,
    "LibriSpeech, Whisper, LoRA beside MAM": _LIBRISPEECH_WHISPER,
    "LibriSpeech, Transformer": _TRANSFORMER,
    "LibriSpeech, Conformer": _TRANSFORMER,
    "LibriSpeech, CTC with SpeechBrain's wav2vec 2.0": {
        **_CSVS,
        **{"wav2vec2_hub": "{parts}", "wav2vec_output_dim": "16", "dnn_neurons": "16"},
        "extractor": "{{out_channels: [8, 8, 8, 8, 8, 8, 8]}}",
        "encoder": "{{d_model: 16, num_layers: 3, nhead: 2, d_ffn: 32}}",
        "encoder_wrapper": "{{in_dim: 8, embedding_dim: 16}}",
        **{"batch_size": "4", "num_workers": "0"},
    },
    "LibriSpeech, CTC with WavLM, learned downsampling": {
        **_CSVS,
        **{"wav2vec2_hub": "{parts}/wavlm", "enc": "{{input_shape: [null, null, 16]}}"},
        **{"dnn_neurons": "16", "batch_size": "4"},
    },
    "TIMIT, phonemes with wav2vec 2.0": {
        **{f"{part}_annotation": "{parts}/data.json" for part in ("train", "valid", "test")},
        **{f"{part}_dataloader_opts": "{{num_workers: 0}}" for part in ("train", "valid", "test")},
        **{"skip_prep": "True", "wav2vec2_hub": "{parts}/wav2vec2", "batch_size": "4"},
        **{"enc": "{{input_shape: [null, null, 16]}}", "dnn_neurons": "16", "dec_neurons": "16"},
        **{"output_neurons": "20", "beam_size": "2"},
    },
    "SLURP, meaning with HuBERT": {
        **{f"csv_{part}": "{parts}/data.csv" for part in ("train", "valid", "test")},
        "pretrainer": "{{paths: {{tokenizer: {parts}/meanings.ckpt}}}}",
        **{"skip_prep": "True", "wav2vec2_hub": "{parts}/hubert", "batch_size": "4"},
        **{"encoder_dim": "16", "output_neurons": "8", "dec_neurons": "16"},
        **{"slu_beam_size": "2", "max_decode_ratio": "0.5"},
    },
    "CommonVoice, wav2vec 2.0 pre-training": {
        **_CSV,
        **{"wav2vec2_hub": "{parts}/pretraining", "avoid_if_shorter_than": "0.1"},
        **{"mask_length": "4", "batch_size": "4", "num_workers": "0"},
        "grad_accumulation_factor": "1",
    },
}
