"""The rows of the table of architectures: what each family calls its self-attention.

Names were read off live models and files of transformers 4.57 and 5; where versions differ, a row
has several names.
"""

from __future__ import annotations

from typing import Any

from speechbrain_mam.architectures.row import Architecture

QKV = ("query", "key", "value")


def _names(query: str, key: str, value: str, output: str) -> dict[str, tuple[str, ...]]:
    named = zip((*QKV, "output"), (query, key, value, output), strict=True)
    return {projection: tuple(names.split()) for projection, names in named}


_PROJ = _names("q_proj", "k_proj", "v_proj", "out_proj")

# --- speech and audio

_WAV2VEC2: dict[str, Any] = {
    "layer": r"encoder\.layers\.(?P<layer>\d+)\.attention",
    "names": _PROJ,
    "front": ("feature_extractor", "feature_projection", "encoder.pos_conv_embed"),
}

# On disk, `encoder.layer.0.attention.attention.query` whatever wrote it; a live model of
# transformers 5 says `layers.0.attention.q_proj` (DINOv2: `encoder.layer.0.attention.q_proj`).
_VIT: dict[str, Any] = {
    "layer": r"(?:encoder\.layer|layers)\.(?P<layer>\d+)\.attention",
    "names": _names(
        "attention.query q_proj",
        "attention.key k_proj",
        "attention.value v_proj",
        "output.dense o_proj",
    ),
}

SPEECH = (
    Architecture("HuBERT", ("hubert",), **_WAV2VEC2),
    Architecture("wav2vec 2.0", ("wav2vec2",), **_WAV2VEC2),
    Architecture("WavLM", ("wavlm",), **_WAV2VEC2, reads_weight=True),
    Architecture("UniSpeech", ("unispeech",), **_WAV2VEC2),
    Architecture("UniSpeech-SAT", ("unispeech-sat",), **_WAV2VEC2),
    Architecture("data2vec audio", ("data2vec-audio",), **_WAV2VEC2),
    Architecture(
        "wav2vec2-BERT",
        ("wav2vec2-bert",),
        r"encoder\.layers\.(?P<layer>\d+)\.self_attn",
        _names("linear_q", "linear_k", "linear_v", "linear_out"),
        front=("feature_projection", "encoder.embed_positions"),
    ),
    # Its decoder has a `self_attn` of the same names; an encoder alone has no `encoder.` in front.
    Architecture(
        "Whisper's encoder",
        ("whisper",),
        r"(?<!decoder\.)layers\.(?P<layer>\d+)\.self_attn",
        _PROJ,
        heads="encoder_attention_heads",
        front=("conv1", "conv2"),
    ),
    Architecture(
        "Whisper's encoder (CTranslate2)",
        ("ctranslate2/WhisperSpec",),
        r"encoder\.layer_(?P<layer>\d+)\.self_attention",
        {"output": ("linear_1",)},
        heads="encoder.num_heads",
        fused={"linear_0": QKV},
        roles=("donor",),
    ),
    Architecture("AST", ("audio-spectrogram-transformer",), **_VIT, front=("embeddings",)),
    Architecture(
        "BEATs",
        ("speechbrain/beats",),
        r"encoder\.layers\.(?P<layer>\d+)\.self_attn",
        _PROJ,
        heads="cfg.encoder_attention_heads",
        classes=("speechbrain.lobes.models.beats.BEATs",),
        front=("filter_banks", "patch_embedding", "post_extract_proj", "encoder.pos_conv"),
    ),
)

# `att` is the torch.nn.MultiheadAttention inside of SpeechBrain's; its relative-position and rotary
# attention have an `in_proj_weight` of their own, head by head.
_SPEECHBRAIN: dict[str, Any] = {
    "model_types": (),
    "names": {"output": ("att.out_proj", "out_proj")},
    "fused": {"att.in_proj_": QKV},
    "interleaved": {"in_proj_": QKV},
    "roles": ("target",),
    "hint": "build the encoder with 'attention_type: regularMHA'",
}

SPEECHBRAIN = (
    Architecture(
        "SpeechBrain's Transformer",
        layer=r"layers\.(?P<layer>\d+)\.self_att",
        heads="layers.0.self_att.att.num_heads",
        classes=("speechbrain.lobes.models.transformer.Transformer.TransformerEncoder",),
        **_SPEECHBRAIN,
    ),
    Architecture(
        "SpeechBrain's Conformer",
        layer=r"layers\.(?P<layer>\d+)\.mha_layer",
        heads="layers.0.mha_layer.att.num_heads",
        classes=(
            "speechbrain.lobes.models.transformer.Conformer.ConformerEncoder",
            "speechbrain.lobes.models.transformer.Branchformer.BranchformerEncoder",
        ),
        **_SPEECHBRAIN,
    ),
)

# --- text

_BERT: dict[str, Any] = {
    "layer": r"encoder\.layer\.(?P<layer>\d+)\.attention",
    "names": _names("self.query", "self.key", "self.value", "output.dense"),
}

TEXT = (
    Architecture("BERT", ("bert",), **_BERT),
    Architecture("RoBERTa", ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"), **_BERT),
    Architecture("data2vec text", ("data2vec-text",), **_BERT),
    Architecture("ELECTRA", ("electra",), **_BERT),
    Architecture(
        "DistilBERT",
        ("distilbert",),
        r"transformer\.layer\.(?P<layer>\d+)\.attention",
        _names("q_lin", "k_lin", "v_lin", "out_lin"),
        heads="n_heads",
    ),
    Architecture(
        "ALBERT",
        ("albert",),
        r"encoder\.albert_layer_groups\.(?P<group>\d+)\.albert_layers\.(?P<layer>\d+)\.attention",
        _names("query", "key", "value", "dense"),
        repeats="num_hidden_layers",
        roles=("donor",),
    ),
    Architecture(
        "DeBERTa",
        ("deberta",),
        r"encoder\.layer\.(?P<layer>\d+)\.attention",
        {"output": ("output.dense",)},
        interleaved={"self.in_proj": QKV},
        biases={"query": "self.q_bias", "value": "self.v_bias"},
        roles=("donor",),
    ),
    Architecture(
        "DeBERTa v2/v3",
        ("deberta-v2",),
        r"encoder\.layer\.(?P<layer>\d+)\.attention",
        _names("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
    ),
    Architecture(
        "MPNet",
        ("mpnet",),
        r"encoder\.layer\.(?P<layer>\d+)\.attention\.attn",
        _names("q", "k", "v", "o"),
    ),
    Architecture(
        "ModernBERT",
        ("modernbert",),
        r"layers\.(?P<layer>\d+)\.attn",
        {"output": ("Wo",)},
        fused={"Wqkv": QKV},
    ),
)

# --- vision, and text with vision

_TWO_TOWERS: dict[str, Any] = {
    "layer": r"encoder\.layers\.(?P<layer>\d+)\.self_attn",
    "names": _PROJ,
    "towers": {"text": "text_model", "vision": "vision_model"},
}

VISION = (
    Architecture("ViT", ("vit", "deit", "dinov2", "dinov2_with_registers"), **_VIT),
    Architecture("BEiT", ("beit",), **_VIT),
    Architecture("data2vec vision", ("data2vec-vision",), **_VIT),
    Architecture(
        "DINOv3",
        ("dinov3_vit",),
        r"layer\.(?P<layer>\d+)\.attention",
        _names("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    Architecture(
        "ViT (timm)",
        ("timm/vit", "timm/deit", "timm/deit3", "timm/flexivit"),
        r"blocks\.(?P<layer>\d+)\.attn",
        {"output": ("proj",)},
        heads="model_args.num_heads",
        fused={"qkv": QKV},
        # timm's configuration tells no number of heads. Heads are 64 wide, but for So400m's (1152),
        # huge's (1280), giant's (1408) and gigantic's (1664), which have 16 of them
        heads_of_width={
            **{64 * heads: heads for heads in (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 24)},
            **dict.fromkeys((1152, 1280, 1408, 1664), 16),
        },
    ),
    # A published configuration may leave out what is the default: 8 or 12 heads, 64 wide.
    Architecture(
        "CLIP",
        ("clip", "clip_text_model", "clip_vision_model"),
        **_TWO_TOWERS,
        heads_of_width={512: 8, 768: 12},
    ),
    Architecture(
        "SigLIP",
        (
            *("siglip", "siglip_text_model", "siglip_vision_model"),
            *("siglip2", "siglip2_text_model", "siglip2_vision_model"),
        ),
        **_TWO_TOWERS,
        heads_of_width={768: 12},
    ),
)

ROWS = (*SPEECH, *SPEECHBRAIN, *TEXT, *VISION)
