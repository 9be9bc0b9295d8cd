"""A CTC recogniser as a Hugging Face folder and as a SpeechBrain inference folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from torch import nn
from transformers import AutoConfig, Wav2Vec2CTCTokenizer

from speechbrain_mam.ctc.beam_search import Decoding
from speechbrain_mam.errors import MAMError
from speechbrain_mam.export.graph import GraphYaml
from speechbrain_mam.export.speech_parts import (
    DECODED,
    LANGUAGE_MODEL,
    decoder_yaml,
    dnn_yaml,
    label_file,
)
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.lobes.ctc_folder import read_extractor
from speechbrain_mam.lobes.hubert_ctc import HubertCTC, Labels
from speechbrain_mam.lobes.pieces import FILE, SPACE, Pieces
from speechbrain_mam.results.decoding import BEAM_LM, GREEDY

TOKENIZER_FILES = (
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
NOT_CONFIGURATION = ("architectures", "dtype", "model_type", "torch_dtype", "transformers_version")
"""Keys of ``config.json`` that describe the file, and are no argument of a configuration."""


def write_huggingface(encoder: HubertCTC, out: Path) -> None:
    """A folder for ``AutoModelForCTC.from_pretrained`` and ``AutoProcessor.from_pretrained``.

    Arguments
    ---------
    encoder : HubertCTC
        With plain layers.
    out : Path
        An empty folder.

    Raises
    ------
    MAMError
        If its head is more than a linear layer.
    """
    model, parent = encoder.model, encoder.folder
    if not isinstance(model.lm_head, nn.Linear):
        raise MAMError(
            "the head has a VanillaNN ('dnn_layers'), which transformers' recognisers have not; "
            "use --format speechbrain"
        )
    # Dropout, layerdrop and masking of the training are not the model's: its parent's come back.
    config = AutoConfig.from_pretrained(parent)
    config.vocab_size = model.config.vocab_size
    config.pad_token_id = encoder.alphabet.blank_index
    trained_with, model.config = model.config, config
    try:
        model.save_pretrained(out, safe_serialization=True)
    finally:
        model.config = trained_with
    for file in out.glob("*.safetensors"):  # written for its owner alone
        file.chmod((out / "config.json").stat().st_mode)
    read_extractor(parent).save_pretrained(out)
    if isinstance(encoder.alphabet, Pieces):
        shutil.copyfile(encoder.alphabet.file, out / FILE)
    elif encoder.own_alphabet and (parent / "tokenizer_config.json").is_file():
        for name in TOKENIZER_FILES:
            if (parent / name).is_file():
                shutil.copyfile(parent / name, out / name)
        return
    known, blank, delimiter = _tokens(encoder.alphabet)
    vocabulary = json.dumps(known, indent=2, ensure_ascii=False)
    (out / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    Wav2Vec2CTCTokenizer(
        str(out / "vocab.json"),
        pad_token=blank,
        word_delimiter_token=delimiter,
        unk_token="<unk>" if "<unk>" in known else blank,
        bos_token="<s>" if "<s>" in known else None,
        eos_token="</s>" if "</s>" in known else None,
    ).save_pretrained(out)


def _tokens(labels: Labels) -> tuple[dict[str, int], str, str]:
    """``vocab.json``, its blank and its word delimiter.

    transformers' tokenizer writes tokens one after the other. A piece that begins a word begins
    with a space here, so that no detokenizer is needed.
    """
    if isinstance(labels, CTCAlphabet):
        return labels.ids, labels.blank, labels.delimiter
    blank = "<pad>"
    written = {piece.replace(SPACE, " "): i for piece, i in labels.ids.items()}
    return {blank if i == labels.blank_index else w: i for w, i in written.items()}, blank, " "


def write_speechbrain(
    encoder: HubertCTC,
    out: Path,
    decoding: Decoding = Decoding(GREEDY, {}),  # noqa: B008
) -> None:
    """A folder for ``speechbrain.inference.ASR.EncoderASR.from_hparams(source=…)``.

    Its YAML names classes and functions of SpeechBrain, transformers and torch only.

    Arguments
    ---------
    encoder : HubertCTC
        With plain layers.
    out : Path
        An empty folder.
    decoding : Decoding, optional
        Of the run's test; a language model is copied into the folder.

    Raises
    ------
    MAMError
        If the model's class is none of transformers' own, or its input is no waveform.
    """
    if encoder.extractor is not None:
        raise MAMError(
            f"a {type(encoder.model).__name__} hears filter banks of "
            f"{type(encoder.extractor).__name__}, which SpeechBrain's YAML cannot compute; use "
            "--format hf"
        )
    kind = type(encoder.model).__name__
    if getattr(transformers, kind, None) is not type(encoder.model):
        raise MAMError(
            f"'{kind}' is no class of transformers: SpeechBrain could not build it where only "
            "transformers is installed; use --format hf"
        )
    torch.save(encoder.model.state_dict(), out / "model.ckpt")
    labels = encoder.alphabet
    if isinstance(labels, Pieces):
        shutil.copyfile(labels.file, out / "tokenizer.ckpt")
    else:
        assert isinstance(labels, CTCAlphabet)
        text = label_file(labels, encoder.model.config.vocab_size)
        (out / "tokenizer.ckpt").write_text(text, encoding="utf-8")
    if decoding.name == BEAM_LM:
        model = Path(decoding.options["kenlm_model_path"])
        shutil.copyfile(model, out / f"{LANGUAGE_MODEL}{model.suffix}")
    (out / "hyperparams.yaml").write_text(_hyperparams(encoder, decoding), encoding="utf-8")


HEAD = """\
# Inference by SpeechBrain: EncoderASR.from_hparams(source=<this folder>)
# A CTC recogniser. {decoded}
# No other package than speechbrain, torch and transformers is named, and what they require.

sample_rate: {rate}
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
    sample_rate: !ref <sample_rate>

model: !new:transformers.{kind}
    config: !new:transformers.{config_kind}
{config}{dnn}
log_softmax: !new:torch.nn.LogSoftmax
    dim: -1

# What happens to waveforms [batch, samples] and their relative lengths [batch], step by step
"""

TAIL = """
modules:
    encoder: !ref <encoder>

tokenizer: !new:{tokenizer}

{decoding}
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
        tokenizer: !ref <tokenizer>
"""


def _hyperparams(encoder: HubertCTC, decoding: Decoding) -> str:
    model = encoder.model
    config = {k: v for k, v in model.config.to_diff_dict().items() if k not in NOT_CONFIGURATION}
    head = HEAD.format(
        rate=encoder.sample_rate,
        kind=type(model).__name__,
        config_kind=type(model.config).__name__,
        config=_indented(config, 8),
        decoded=DECODED[decoding.name],
        dnn=dnn_yaml(model.lm_head),
    )
    tail = TAIL.format(
        tokenizer="sentencepiece.SentencePieceProcessor"
        if isinstance(encoder.alphabet, Pieces)
        else "speechbrain.dataio.encoder.CTCTextEncoder",
        decoding=decoder_yaml(decoding, encoder.alphabet.blank_index),
    )
    return head + _forward(encoder) + tail


def _forward(encoder: HubertCTC) -> str:
    """The steps of :meth:`HubertCTC.forward`."""
    graph = GraphYaml("wav", "wav_lens")
    wav, masked = "<wav>", {}
    if encoder.normalize_wav or encoder.wants_mask:
        graph.ask("samples", "size", "<wav>", dim=1)
        graph.call("relative", "torch.mul", input="<wav_lens>", other="<samples>")
        graph.call("valid", "torch.round", input="<relative>")
        graph.call(
            "mask",
            "speechbrain.dataio.dataio.length_to_mask",
            length="<valid>",
            max_len="<samples>",
        )
    if encoder.normalize_wav:  # zero mean and unit variance over the valid samples, zero elsewhere
        over_time = {"dim": 1, "keepdim": True}
        graph.call("count", "torch.sum", input="<mask>", **over_time)
        graph.call("heard", "torch.mul", input="<wav>", other="<mask>")
        graph.call("sum", "torch.sum", input="<heard>", **over_time)
        graph.call("mean", "torch.div", input="<sum>", other="<count>")
        graph.call("shifted", "torch.sub", input="<wav>", other="<mean>")
        graph.call("centred", "torch.mul", input="<shifted>", other="<mask>")
        graph.call("power", "torch.square", input="<centred>")
        graph.call("energy", "torch.sum", input="<power>", **over_time)
        graph.call("variance", "torch.div", input="<energy>", other="<count>")
        graph.call("above_zero", "torch.add", input="<variance>", other=1e-7)
        graph.call("deviation", "torch.sqrt", input="<above_zero>")
        graph.call("normal", "torch.div", input="<centred>", other="<deviation>")
        wav = "<normal>"
    if encoder.wants_mask:
        graph.ask("whole_mask", "long", "<mask>")
        masked = {"attention_mask": "<whole_mask>"}
    graph.run("found", "model", input_values=wav, **masked)
    graph.call("logits", "operator.getitem", "<found>", "logits")
    graph.run("log_probs", "log_softmax", input="<logits>")
    return graph.module("encoder", "<log_probs>", model="<model>", log_softmax="<log_softmax>")


def _indented(content: dict[str, Any], by: int) -> str:
    text = yaml.safe_dump(content, default_flow_style=None, allow_unicode=True, width=90)
    return "".join(f"{' ' * by}{line}\n" for line in text.splitlines())
