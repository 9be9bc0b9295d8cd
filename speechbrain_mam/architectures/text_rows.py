"""The rows of models of text: what each family calls its self-attention.

Names were read off live models and files of transformers 4.57 and 5.
"""

from __future__ import annotations

from typing import Any

from speechbrain_mam.architectures.row import PROJ, QKV, Architecture, named

_BERT: dict[str, Any] = {
    "layer": r"encoder\.layer\.(?P<layer>\d+)\.attention",
    "names": named("self.query", "self.key", "self.value", "output.dense"),
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
        named("q_lin", "k_lin", "v_lin", "out_lin"),
        heads="n_heads",
    ),
    Architecture(
        "ALBERT",
        ("albert",),
        r"encoder\.albert_layer_groups\.(?P<group>\d+)\.albert_layers\.(?P<layer>\d+)\.attention",
        named("query", "key", "value", "dense"),
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
        terms="pos_att_type",
        roles=("donor",),
    ),
    Architecture(
        "DeBERTa v2/v3",
        ("deberta-v2",),
        r"encoder\.layer\.(?P<layer>\d+)\.attention",
        named("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
        terms="pos_att_type",
    ),
    Architecture(
        "MPNet",
        ("mpnet",),
        r"encoder\.layer\.(?P<layer>\d+)\.attention\.attn",
        named("q", "k", "v", "o"),
    ),
    Architecture(
        "ModernBERT",
        ("modernbert",),
        r"layers\.(?P<layer>\d+)\.attn",
        {"output": ("Wo",)},
        fused={"Wqkv": QKV},
    ),
)

# Decoders that read on from left to right. Several heads of the query share one of key and value.
_DECODER: dict[str, Any] = {
    "layer": r"layers\.(?P<layer>\d+)\.self_attn",
    "names": named("q_proj", "k_proj", "v_proj", "o_proj"),
    "kv_heads": "num_key_value_heads",
    "roles": ("donor",),
}
_NORMED: dict[str, Any] = {
    "note": "the norms that the donor has on its queries and keys, behind the projections"
}

DECODERS = (
    Architecture("Llama", ("llama", "mistral"), **_DECODER),
    Architecture("Qwen2", ("qwen2",), **_DECODER),
    Architecture("Qwen3", ("qwen3",), **_DECODER, **_NORMED),
    Architecture("Gemma", ("gemma", "gemma2"), **_DECODER, scale="query_pre_attn_scalar"),
    Architecture("Gemma 3", ("gemma3_text",), **_DECODER, **_NORMED, scale="query_pre_attn_scalar"),
    Architecture(
        "GPT-2",
        ("gpt2",),
        r"h\.(?P<layer>\d+)\.attn",
        {"output": ("c_proj",)},
        heads="n_head",
        fused={"c_attn": QKV},
        transposed=True,
        requires={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        roles=("donor",),
    ),
)

# Encoders of models that also decode, whose decoder's self-attention has the same names.
ENCODERS = (
    # Its query was trained with the scale in it: it starts smaller by that than the key.
    Architecture(
        "T5's encoder",
        ("t5", "mt5", "umt5"),
        r"encoder\.block\.(?P<layer>\d+)\.layer\.0\.SelfAttention",
        named("q", "k", "v", "o"),
        heads="num_heads",
        scale="none",
        roles=("donor",),
    ),
    Architecture(
        "M2M-100's and NLLB's encoder",
        ("m2m_100",),
        r"encoder\.layers\.(?P<layer>\d+)\.self_attn",
        PROJ,
        heads="encoder_attention_heads",
        roles=("donor",),
    ),
)
