"""Tiny random models of every family in the table of architectures, and what is fed to them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WIDTH, HEADS, LAYERS = 8, 2, 2
BASE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 8,
}
WAVE = {
    **BASE,
    "conv_dim": (8,),
    "conv_kernel": (4,),
    "conv_stride": (4,),
    "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}
FRAMES = {**BASE, "feature_projection_input_dim": WIDTH, "apply_spec_augment": False}
FRAMES["layerdrop"] = 0.0  # a layer that is left out gives its λ no gradient
FRAMES |= {"left_max_position_embeddings": 4, "right_max_position_embeddings": 2}
SPECTROGRAM = {**BASE, "patch_size": 4, "max_length": 16, "num_mel_bins": 8}
SPECTROGRAM |= {"frequency_stride": 4, "time_stride": 4}
WHISPER = {
    **{"vocab_size": 16, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": 3},
    **{"encoder_attention_heads": HEADS, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_mel_bins": 4},
    **{"max_source_positions": 8, "max_target_positions": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
MOONSHINE = {
    **{"hidden_size": WIDTH, "intermediate_size": 8, "vocab_size": 16},
    **{"encoder_num_hidden_layers": LAYERS, "decoder_num_hidden_layers": 3},
    **{"encoder_num_attention_heads": HEADS, "decoder_num_attention_heads": HEADS},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
PARAKEET = {**BASE, "num_mel_bins": 16, "subsampling_conv_channels": 4, "layerdrop": 0.0}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**BASE, "vocab_size": 16, "max_position_embeddings": 16, **SPECIAL}
DISTILBERT = {"vocab_size": 16, "max_position_embeddings": 16, "dim": WIDTH, "hidden_dim": 8}
DISTILBERT |= {"n_heads": HEADS, "n_layers": LAYERS}
GROUPED = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2}
GROUPED |= {"attn_implementation": "eager"}
GEMMA = {**GROUPED, "head_dim": 2}
GPT2 = {"vocab_size": 16, "n_positions": 16, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
T5 = {"vocab_size": 16, "d_model": WIDTH, "d_kv": 4, "d_ff": 8, "num_layers": LAYERS}
T5 |= {"num_decoder_layers": 3, "num_heads": HEADS, "decoder_start_token_id": 0}
M2M: dict[str, Any] = {**WHISPER, "max_position_embeddings": 16}
M2M |= {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
for _name in ("num_mel_bins", "max_source_positions", "max_target_positions"):
    del M2M[_name]
IMAGE = {**BASE, "image_size": 16, "patch_size": 8}
TOWERS = {"text_config": dict(TEXT), "vision_config": dict(IMAGE)}
PATCHES = {**BASE, "patch_size": 8, "num_patches": 4}


def randomise(model: nn.Module) -> None:
    """Norms' weights around 1, or what is mixed would soon be the same for every frame."""
    for name, parameter in model.named_parameters():
        norm = parameter.dim() == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(norm), std=0.3 if parameter.dim() == 1 else 0.5)


def _inputs(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.tensor([[3, 5, 7, 11, 4, 6]])
    return {
        "wave": {"input_values": torch.randn(1, 64, generator=generator)},
        "long wave and text": {
            "input_values": torch.randn(1, 3000, generator=generator),
            "decoder_input_ids": ids,
        },
        "long mel": {"input_features": torch.randn(1, 48, 16, generator=generator)},
        "text and text": {"input_ids": ids, "decoder_input_ids": ids},
        "frames": {"input_features": torch.randn(1, 6, WIDTH, generator=generator)},
        "spectrogram": {"input_values": torch.randn(1, 16, 8, generator=generator)},
        "mel": {"input_features": torch.randn(1, 4, 16, generator=generator)},
        "mel and text": {
            "input_features": torch.randn(1, 4, 16, generator=generator),
            "decoder_input_ids": ids,
        },
        "text": {"input_ids": ids},
        "image": {"pixel_values": torch.randn(1, 3, 16, 16, generator=generator)},
        "patches": {
            "pixel_values": torch.randn(1, 4, 192, generator=generator),
            "pixel_attention_mask": torch.ones(1, 4, dtype=torch.long),
            "spatial_shapes": torch.tensor([[2, 2]]),
        },
    }[kind]


@dataclass(frozen=True)
class Family:
    """A model of transformers, the table's row that it belongs to, and what is fed to it."""

    row: str
    config: str
    model: str
    options: dict[str, Any] = field(repr=False)
    feed: str
    tower: str | None = None
    layers: int = LAYERS
    heads: int = HEADS
    biases: str = "query key value output"

    def __str__(self) -> str:
        return self.model + (f"#{self.tower}" if self.tower else "")

    def build(self, seed: int = 11) -> nn.Module:
        """The model, all of its parameters random: biases that are zero would prove nothing.

        Raises
        ------
        LookupError
            If the installed transformers has no such model.
        """
        for name in (self.config, self.model):
            if not hasattr(transformers, name):
                raise LookupError(f"transformers {transformers.__version__} has no {name}")
        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.model)(config).eval()
        randomise(model)
        return model

    def run(self, model: nn.Module) -> Any:
        """One forward pass of the model, or of its tower."""
        dtype = next(model.parameters()).dtype
        inputs = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in _inputs(self.feed).items()
        }
        known = inspect.signature(model.forward).parameters
        if "pixel_attention_mask" in inputs and "pixel_attention_mask" not in known:
            inputs["attention_mask"] = inputs.pop("pixel_attention_mask")
        return model(**inputs)

    @property
    def tensors(self) -> int:
        """How many tensors of self-attention there are."""
        return self.layers * (4 + len(self.biases.split()))


NO_KEY_BIAS = "query value output"

SPEECH = (
    Family("HuBERT", "HubertConfig", "HubertForCTC", WAVE, "wave"),
    Family("wav2vec 2.0", "Wav2Vec2Config", "Wav2Vec2Model", WAVE, "wave"),
    Family("WavLM", "WavLMConfig", "WavLMModel", WAVE, "wave"),
    Family("UniSpeech", "UniSpeechConfig", "UniSpeechModel", WAVE, "wave"),
    Family("UniSpeech-SAT", "UniSpeechSatConfig", "UniSpeechSatForCTC", WAVE, "wave"),
    Family(
        "data2vec audio",
        "Data2VecAudioConfig",
        "Data2VecAudioForCTC",
        {**WAVE, "num_conv_pos_embeddings": 1, "conv_pos_kernel_size": 3},
        "wave",
    ),
    Family("wav2vec2-BERT", "Wav2Vec2BertConfig", "Wav2Vec2BertForCTC",
           {**FRAMES, "vocab_size": 8}, "frames"),
    Family("wav2vec2-BERT", "Wav2Vec2BertConfig", "Wav2Vec2BertModel",
           {**FRAMES, "position_embeddings_type": "rotary"}, "frames"),
    Family("Whisper's encoder", "WhisperConfig", "WhisperForConditionalGeneration", WHISPER,
           "mel and text", biases=NO_KEY_BIAS),
    Family("Whisper's encoder", "WhisperConfig", "WhisperForAudioClassification", WHISPER, "mel",
           biases=NO_KEY_BIAS),
    Family("AST", "ASTConfig", "ASTForAudioClassification", SPECTROGRAM, "spectrogram"),
    Family("wav2vec 2.0", "Wav2Vec2Config", "Wav2Vec2ForCTC",  # as MMS has it, with adapters
           {**WAVE, "vocab_size": 8, "do_stable_layer_norm": True, "adapter_attn_dim": 4}, "wave"),
    Family("wav2vec2-Conformer", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerForCTC",
           {**WAVE, "vocab_size": 8, "position_embeddings_type": "relative"}, "wave"),
    Family("wav2vec2-Conformer", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel",
           {**WAVE, "position_embeddings_type": "rotary"}, "wave"),
    Family("SEW", "SEWConfig", "SEWForCTC", {**WAVE, "vocab_size": 8}, "wave"),
    Family("Moonshine's encoder", "MoonshineConfig", "MoonshineForConditionalGeneration", MOONSHINE,
           "long wave and text", biases=""),
    Family("Parakeet", "ParakeetCTCConfig", "ParakeetForCTC",
           {"encoder_config": PARAKEET, "vocab_size": 8, "pad_token_id": 7}, "long mel"),
    Family("Parakeet's encoder", "ParakeetEncoderConfig", "ParakeetEncoder",
           {**PARAKEET, "attention_bias": False}, "long mel", biases=""),
)  # fmt: skip

TEXTS = (
    Family("BERT", "BertConfig", "BertModel", TEXT, "text"),
    Family("RoBERTa", "RobertaConfig", "RobertaForMaskedLM", TEXT, "text"),
    Family("RoBERTa", "XLMRobertaConfig", "XLMRobertaModel", TEXT, "text"),
    Family("RoBERTa", "XLMRobertaXLConfig", "XLMRobertaXLModel", TEXT, "text"),
    Family("RoBERTa", "CamembertConfig", "CamembertModel", TEXT, "text"),
    Family("data2vec text", "Data2VecTextConfig", "Data2VecTextModel", TEXT, "text"),
    Family("ELECTRA", "ElectraConfig", "ElectraForPreTraining", {**TEXT, "embedding_size": 4},
           "text"),
    Family("DistilBERT", "DistilBertConfig", "DistilBertForMaskedLM", DISTILBERT, "text"),
    Family("ALBERT", "AlbertConfig", "AlbertModel",
           {**TEXT, "embedding_size": 4, "num_hidden_layers": 3, "num_hidden_groups": 2}, "text",
           layers=3),
    Family("ALBERT", "AlbertConfig", "AlbertForMaskedLM",
           {**TEXT, "embedding_size": 4, "inner_group_num": 2}, "text", layers=4),
    Family("DeBERTa v2/v3", "DebertaV2Config", "DebertaV2ForMaskedLM", TEXT, "text"),
    Family("MPNet", "MPNetConfig", "MPNetModel", TEXT, "text"),
    Family("ModernBERT", "ModernBertConfig", "ModernBertForMaskedLM",
           {**TEXT, "cls_token_id": 1, "sep_token_id": 2}, "text", biases=""),
    Family("ModernBERT", "ModernBertConfig", "ModernBertModel",
           {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "attention_bias": True}, "text"),
)  # fmt: skip

ONLY_DONORS = (
    Family("Llama", "LlamaConfig", "LlamaForCausalLM", GROUPED, "text", heads=4, biases=""),
    Family("Llama", "MistralConfig", "MistralModel", GROUPED, "text", heads=4, biases=""),
    Family("Qwen2", "Qwen2Config", "Qwen2ForCausalLM", GROUPED, "text", heads=4,
           biases="query key value"),
    Family("Qwen3", "Qwen3Config", "Qwen3Model", {**GROUPED, "head_dim": 2}, "text", heads=4,
           biases=""),
    Family("Gemma", "GemmaConfig", "GemmaForCausalLM", {**GEMMA, "num_key_value_heads": 1}, "text",
           heads=4, biases=""),
    Family("Gemma", "Gemma2Config", "Gemma2Model",
           {**GEMMA, "query_pre_attn_scalar": 8, "attn_logit_softcapping": None}, "text", heads=4,
           biases=""),
    Family("Gemma 3", "Gemma3TextConfig", "Gemma3TextModel", {**GEMMA, "query_pre_attn_scalar": 2},
           "text", heads=4, biases=""),
    Family("GPT-2", "GPT2Config", "GPT2LMHeadModel", GPT2, "text"),
    Family("T5's encoder", "T5Config", "T5ForConditionalGeneration", T5, "text and text",
           biases=""),
    Family("T5's encoder", "MT5Config", "MT5EncoderModel", T5, "text", biases=""),
    Family("T5's encoder", "UMT5Config", "UMT5EncoderModel", T5, "text", biases=""),
    Family("M2M-100's and NLLB's encoder", "M2M100Config", "M2M100ForConditionalGeneration", M2M,
           "text and text"),
)  # fmt: skip

VISION = (
    Family("ViT", "ViTConfig", "ViTForImageClassification", IMAGE, "image"),
    Family("ViT", "DeiTConfig", "DeiTModel", IMAGE, "image"),
    Family("ViT", "Dinov2Config", "Dinov2Model", IMAGE, "image"),
    Family("ViT", "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", IMAGE, "image"),
    Family("BEiT", "BeitConfig", "BeitForImageClassification", IMAGE, "image",
           biases=NO_KEY_BIAS),
    Family("data2vec vision", "Data2VecVisionConfig", "Data2VecVisionModel",
           {**IMAGE, "use_relative_position_bias": True}, "image", biases=NO_KEY_BIAS),
    Family("DINOv3", "DINOv3ViTConfig", "DINOv3ViTModel", IMAGE, "image", biases=NO_KEY_BIAS),
    Family("CLIP", "CLIPTextConfig", "CLIPTextModelWithProjection", TEXT, "text"),
    Family("CLIP", "CLIPVisionConfig", "CLIPVisionModel", IMAGE, "image"),
    Family("SigLIP", "SiglipTextConfig", "SiglipTextModel", TEXT, "text"),
    Family("SigLIP", "SiglipVisionConfig", "SiglipVisionModel", IMAGE, "image"),
    Family("SigLIP", "Siglip2VisionConfig", "Siglip2VisionModel", PATCHES, "patches"),
    Family("SigLIP", "Siglip2TextConfig", "Siglip2TextModel", TEXT, "text"),
)  # fmt: skip

TWO_TOWERS = tuple(
    Family(row, config, model, {"text_config": TEXT, "vision_config": vision}, feed, tower)
    for row, config, model, vision, feeds in (
        ("CLIP", "CLIPConfig", "CLIPModel", IMAGE, ("text", "image")),
        ("SigLIP", "SiglipConfig", "SiglipModel", IMAGE, ("text", "image")),
        ("SigLIP", "Siglip2Config", "Siglip2Model", PATCHES, ("text", "patches")),
    )
    for tower, feed in zip(("text", "vision"), feeds, strict=True)
)

FAMILIES = (*SPEECH, *TEXTS, *ONLY_DONORS, *VISION, *TWO_TOWERS)
