"""A BEATs classifier as its authors publish one, and as a SpeechBrain inference folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechbrain_mam.export.graph import GraphYaml
from speechbrain_mam.lobes.beats import BEATsEncoder

CHECKPOINT = "beats.pt"


def checkpoint(encoder: BEATsEncoder, classifier: nn.Module, classes: Sequence[str]) -> dict:
    """``{cfg, model, label_dict}``: the layout of BEATs' published fine-tuned checkpoints.

    The classifier is their ``predictor``. It is linear, so the mean of its outputs over the
    patches, which BEATs takes, is its output of their mean.

    Arguments
    ---------
    encoder : BEATsEncoder
        With plain layers.
    classifier : nn.Module
        SpeechBrain's ``Linear``.
    classes : sequence of str
        In the order of the classifier's outputs.

    Returns
    -------
    dict
        ``cfg`` (numbers, strings), ``model`` (tensors), ``label_dict`` (index → class).
    """
    linear = classifier.w
    assert isinstance(linear, nn.Linear)
    model = {_published(name): tensor for name, tensor in encoder.model.state_dict().items()}
    model |= {"predictor.weight": linear.weight.detach(), "predictor.bias": linear.bias.detach()}
    predictor = {
        "finetuned_model": True,
        "predictor_class": len(classes),
        "predictor_dropout": 0.0,
    }
    labels = dict(enumerate(classes))
    return {"cfg": {**encoder.cfg, **predictor}, "model": model, "label_dict": labels}


def _published(name: str) -> str:
    """The name from before weight normalisation became a parametrization; torch reads it too."""
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"pos_conv.0.parametrizations.weight.{new}", f"pos_conv.0.{old}")
    return name


def write_checkpoint(content: dict[str, Any], out: Path) -> None:
    """``beats.pt``."""
    torch.save(content, out / CHECKPOINT)


def write_speechbrain(
    encoder: BEATsEncoder, classifier: nn.Module, classes: Sequence[str], out: Path
) -> None:
    """A folder for ``speechbrain.inference.classifiers.EncoderClassifier.from_hparams(source=…)``.

    Its YAML names classes and functions of SpeechBrain and torch only.
    """
    torch.save(checkpoint(encoder, classifier, classes), out / "beats.ckpt")
    torch.save(classifier.state_dict(), out / "classifier.ckpt")
    labels = "".join(f"{name!r} => {index}\n" for index, name in enumerate(classes))
    text = f"{labels}================\n'starting_index' => 0\n"
    (out / "label_encoder.ckpt").write_text(text, encoding="utf-8")
    (out / "hyperparams.yaml").write_text(_hyperparams(encoder, len(classes)), encoding="utf-8")


HEAD = """\
# Inference by SpeechBrain: EncoderClassifier.from_hparams(source=<this folder>)
# BEATs and a linear classifier of its mean feature. No other package than speechbrain and torch is
# named.

sample_rate: {rate}
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
    sample_rate: !ref <sample_rate>

beats: !new:speechbrain.lobes.models.beats.BEATs
    freeze: False

linear: !new:speechbrain.nnet.linear.Linear
    input_size: {width}
    n_neurons: {classes}

classifier: !new:speechbrain.nnet.containers.Sequential
    linear: !ref <linear>
    log_softmax: !new:speechbrain.nnet.activations.Softmax
        apply_log: True

# What happens to waveforms [batch, samples] and their relative lengths [batch], step by step: the
# features' mean over the patches that hold no padding
"""

TAIL = """
# BEATs makes its own filter banks; the interface's two first steps pass the waveforms on
modules:
    compute_features: !new:torch.nn.Identity
    mean_var_norm: !new:speechbrain.nnet.containers.LengthsCapableSequential
        waveforms: !new:torch.nn.Identity
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        beats: !ref <beats>
        classifier: !ref <linear>
        label_encoder: !ref <label_encoder>
    custom_hooks:
        # The sizes of a BEATs stand in its checkpoint: it is built again from there
        beats: !name:speechbrain.lobes.models.beats.BEATs.__init__
            freeze: False
"""


def _hyperparams(encoder: BEATsEncoder, classes: int) -> str:
    graph = GraphYaml("wav", "wav_lens")
    banks = {"fbank_mean": encoder.fbank_mean, "fbank_std": encoder.fbank_std}
    graph.run("found", "beats", wav="<wav>", wav_lens="<wav_lens>", **banks)
    graph.call("features", "operator.getitem", "<found>", 0)
    graph.call("padding", "operator.getitem", "<found>", 2)
    graph.call("valid", "torch.logical_not", input="<padding>")
    graph.call("weights", "torch.unsqueeze", input="<valid>", dim=-1)
    graph.call("heard", "torch.mul", input="<features>", other="<weights>")
    graph.call("sum", "torch.sum", input="<heard>", dim=1)
    graph.call("count", "torch.sum", input="<weights>", dim=1)
    graph.call("mean", "torch.div", input="<sum>", other="<count>")
    forward = graph.module("embedding_model", "<mean>", beats="<beats>")
    head = HEAD.format(rate=encoder.sample_rate, width=encoder.width, classes=classes)
    return head + forward + TAIL
