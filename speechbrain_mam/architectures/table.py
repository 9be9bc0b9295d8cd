"""The rows of the table of architectures: what each family calls its self-attention.

Models of text are in :mod:`speechbrain_mam.architectures.text_rows`. Names were read off live
models and files of transformers 4.57 and 5; where versions differ, a row has several names.
"""

from __future__ import annotations

from typing import Any

from speechbrain_mam.architectures.row import PROJ, QKV, Architecture, named
from speechbrain_mam.architectures.text_rows import DECODERS, ENCODERS, TEXT

# --- speech and audio

_WAV2VEC2: dict[str, Any] = {
    "layer": r"encoder\.layers\.(?P<layer>\d+)\.attention",
    "names": PROJ,
    "front": ("feature_extractor", "feature_projection", "encoder.pos_conv_embed"),
}

_PARAKEET: dict[str, Any] = {
    "layer": r"layers\.(?P<layer>\d+)\.self_attn",
    "names": named("q_proj", "k_proj", "v_proj", "o_proj"),
    "front": ("subsampling", "encode_positions"),
}

# On disk, `encoder.layer.0.attention.attention.query` whatever wrote it; a live model of
# transformers 5 says `layers.0.attention.q_proj` (DINOv2: `encoder.layer.0.attention.q_proj`).
_VIT: dict[str, Any] = {
    "layer": r"(?:encoder\.layer|layers)\.(?P<layer>\d+)\.attention",
    "names": named(
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
        named("linear_q", "linear_k", "linear_v", "linear_out"),
        front=("feature_projection", "encoder.embed_positions"),
    ),
    Architecture(
        "wav2vec2-Conformer",
        ("wav2vec2-conformer",),
        r"encoder\.layers\.(?P<layer>\d+)\.self_attn",
        named("linear_q", "linear_k", "linear_v", "linear_out"),
        front=(*_WAV2VEC2["front"], "encoder.embed_positions"),
    ),
    Architecture(
        "SEW",
        ("sew",),
        r"encoder\.layers\.(?P<layer>\d+)\.attention",
        PROJ,
        front=(*_WAV2VEC2["front"], "layer_norm", "encoder.pool"),
    ),
    Architecture(
        "Moonshine's encoder",
        ("moonshine",),
        r"(?<!decoder\.)layers\.(?P<layer>\d+)\.self_attn",
        named("q_proj", "k_proj", "v_proj", "o_proj"),
        heads="encoder_num_attention_heads",
        front=("conv1", "conv2", "conv3", "groupnorm"),
    ),
    Architecture(
        "Parakeet",
        ("parakeet_ctc",),
        **_PARAKEET,
        heads="encoder_config.num_attention_heads",
    ),
    Architecture("Parakeet's encoder", ("parakeet_encoder",), **_PARAKEET),
    # Its decoder has a `self_attn` of the same names; an encoder alone has no `encoder.` in front.
    Architecture(
        "Whisper's encoder",
        ("whisper",),
        r"(?<!decoder\.)layers\.(?P<layer>\d+)\.self_attn",
        PROJ,
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
        PROJ,
        heads="cfg.encoder_attention_heads",
        classes=("speechbrain.lobes.models.beats.BEATs",),
        front=("filter_banks", "patch_embedding", "post_extract_proj", "encoder.pos_conv"),
    ),
)

# --- SpeechBrain's own encoders, which are told apart by the attention inside

_TRANSFORMER = "speechbrain.lobes.models.transformer.Transformer.TransformerEncoder"
_CONFORMER = "speechbrain.lobes.models.transformer.Conformer.ConformerEncoder"
_BRANCHFORMER = "speechbrain.lobes.models.transformer.Branchformer.BranchformerEncoder"

# `att` is the torch.nn.MultiheadAttention inside of SpeechBrain's.
_REGULAR: dict[str, Any] = {
    "model_types": (),
    "names": {"output": ("att.out_proj",)},
    "heads": "att.num_heads",
    "attention": ("speechbrain.nnet.attention.MultiheadAttention",),
    "fused": {"att.in_proj_": QKV},
    "roles": ("target",),
}

# Where query, key and value are one tensor, as in self-attention, `in_proj_weight` is head by head.
# Scores are divided by the root of the model's width. Biases of positions stay the target's.
_BY_HEAD: dict[str, Any] = {
    "model_types": (),
    "layer": r"layers\.(?P<layer>\d+)\.(?:self_att|mha_layer)",
    "names": {"output": ("out_proj",)},
    "heads": "num_heads",
    "classes": (_TRANSFORMER, _CONFORMER, _BRANCHFORMER),
    "interleaved": {"in_proj_": QKV},
    "scale": "model",
    "roles": ("target",),
}

SPEECHBRAIN = (
    Architecture(
        "SpeechBrain's Transformer",
        layer=r"layers\.(?P<layer>\d+)\.self_att",
        classes=(_TRANSFORMER,),
        **_REGULAR,
    ),
    Architecture(
        "SpeechBrain's Conformer",
        layer=r"layers\.(?P<layer>\d+)\.mha_layer",
        classes=(_CONFORMER, _BRANCHFORMER),
        **_REGULAR,
    ),
    Architecture(
        "SpeechBrain's RelPosMHAXL",
        attention=("speechbrain.nnet.attention.RelPosMHAXL",),
        **_BY_HEAD,
    ),
    Architecture(
        "SpeechBrain's RoPEMHA",
        attention=("speechbrain.nnet.attention.RoPEMHA",),
        **_BY_HEAD,
    ),
)

WITHOUT_ATTENTION = {
    "speechbrain.nnet.hypermixing.HyperMixing": (
        "is SpeechBrain's HyperMixing, which mixes frames without query, key and value: there is "
        "nothing that a merge could replace. Build the encoder with 'attention_type: RelPosMHAXL', "
        "'RoPEMHA' or 'regularMHA'"
    ),
}
"""Classes that stand where attention would, and what a message says of them."""

# --- vision, and text with vision

_TWO_TOWERS: dict[str, Any] = {
    "layer": r"encoder\.layers\.(?P<layer>\d+)\.self_attn",
    "names": PROJ,
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
        named("q_proj", "k_proj", "v_proj", "o_proj"),
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

ROWS = (*SPEECH, *SPEECHBRAIN, *TEXT, *DECODERS, *ENCODERS, *VISION)
