"""A CTC recogniser as a Hugging Face folder and as a SpeechBrain inference folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import AutoConfig, AutoFeatureExtractor, Wav2Vec2CTCTokenizer

from speechbrain_mam.errors import MAMError
from speechbrain_mam.export.graph import GraphYaml
from speechbrain_mam.lobes.hubert_ctc import CTCAlphabet, HubertCTC

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
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
    """
    model, parent = encoder.model, encoder.folder
    # Dropout, layerdrop and masking of the training are not the model's: its parent's come back.
    config = AutoConfig.from_pretrained(parent)
    config.vocab_size = model.config.vocab_size
    trained_with, model.config = model.config, config
    try:
        model.save_pretrained(out, safe_serialization=True)
    finally:
        model.config = trained_with
    for file in out.glob("*.safetensors"):  # written for its owner alone
        file.chmod((out / "config.json").stat().st_mode)
    AutoFeatureExtractor.from_pretrained(parent).save_pretrained(out)
    vocabulary = json.dumps(encoder.alphabet.ids, indent=2, ensure_ascii=False)
    (out / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    if _has_own_tokenizer(encoder):
        for name in TOKENIZER_FILES:
            if (parent / name).is_file():
                shutil.copyfile(parent / name, out / name)
        return
    blank, delimiter = encoder.alphabet.blank, encoder.alphabet.delimiter
    known = encoder.alphabet.ids
    Wav2Vec2CTCTokenizer(
        str(out / "vocab.json"),
        pad_token=blank,
        word_delimiter_token=delimiter,
        unk_token="<unk>" if "<unk>" in known else blank,
        bos_token="<s>" if "<s>" in known else None,
        eos_token="</s>" if "</s>" in known else None,
    ).save_pretrained(out)


def _has_own_tokenizer(encoder: HubertCTC) -> bool:
    """Whether the parent's tokenizer is that of the head, which may have a new alphabet."""
    file = encoder.folder / "vocab.json"
    if not (encoder.folder / TOKENIZER_FILES[0]).is_file() or not file.is_file():
        return False
    return json.loads(file.read_text(encoding="utf-8")) == encoder.alphabet.ids


def write_speechbrain(encoder: HubertCTC, out: Path) -> None:
    """A folder for ``speechbrain.inference.ASR.EncoderASR.from_hparams(source=…)``.

    Its YAML names classes and functions of SpeechBrain, transformers and torch only.

    Arguments
    ---------
    encoder : HubertCTC
        With plain layers.
    out : Path
        An empty folder.

    Raises
    ------
    MAMError
        If the model's class is none of transformers' own.
    """
    kind = type(encoder.model).__name__
    if getattr(transformers, kind, None) is not type(encoder.model):
        raise MAMError(
            f"'{kind}' is no class of transformers: SpeechBrain could not build it where only "
            "transformers is installed; use --format hf"
        )
    torch.save(encoder.model.state_dict(), out / "model.ckpt")
    (out / "tokenizer.ckpt").write_text(_labels(encoder.alphabet), encoding="utf-8")
    (out / "hyperparams.yaml").write_text(_hyperparams(encoder), encoding="utf-8")


def _labels(alphabet: CTCAlphabet) -> str:
    """SpeechBrain's file of a ``CTCTextEncoder``: what each index is written as."""
    written = {alphabet.delimiter: " "}
    lines = []
    for token, index in sorted(alphabet.ids.items(), key=lambda item: item[1]):
        text = token if token == alphabet.blank or len(token) == 1 else ""
        lines.append(f"{written.get(token, text)!r} => {index}\n")
    lines.append("================\n")
    lines.append(f"'starting_index' => 0\n'blank_label' => {alphabet.blank!r}\n")
    return "".join(lines)


HEAD = """\
# Inference by SpeechBrain: EncoderASR.from_hparams(source=<this folder>)
# A CTC recogniser, greedy decoding, no language model. No other package than speechbrain, torch
# and transformers is named.

sample_rate: {rate}
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
    sample_rate: !ref <sample_rate>

model: !new:transformers.{kind}
    config: !new:transformers.{config_kind}
{config}
log_softmax: !new:torch.nn.LogSoftmax
    dim: -1

# What happens to waveforms [batch, samples] and their relative lengths [batch], step by step
"""

TAIL = """
modules:
    encoder: !ref <encoder>

tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder

decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: {blank}

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
        tokenizer: !ref <tokenizer>
"""


def _hyperparams(encoder: HubertCTC) -> str:
    model = encoder.model
    config = {k: v for k, v in model.config.to_diff_dict().items() if k not in NOT_CONFIGURATION}
    head = HEAD.format(
        rate=encoder.sample_rate,
        kind=type(model).__name__,
        config_kind=type(model.config).__name__,
        config=_indented(config, 8),
    )
    tail = TAIL.format(blank=encoder.alphabet.blank_index)
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
