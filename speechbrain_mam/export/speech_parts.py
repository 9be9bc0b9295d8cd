"""Parts of an exported recogniser's YAML for SpeechBrain: its labels, its decoder, its head."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from speechbrain_mam.ctc.beam_search import Decoding
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.results.decoding import BEAM, BEAM_LM, GREEDY

LANGUAGE_MODEL = "lm"
"""The name of an n-gram in an exported folder, without its end."""


def label_file(alphabet: CTCAlphabet, size: int) -> str:
    """SpeechBrain's file of a ``CTCTextEncoder``: what each index of the head is written as."""
    tokens = {index: token for token, index in alphabet.ids.items()}
    lines = []
    for index in range(size):
        token = tokens.get(index)  # a head may be wider than its vocabulary
        text = "" if token is None else alphabet.text_of(token)
        lines.append(f"{(alphabet.blank if token == alphabet.blank else text)!r} => {index}\n")
    lines.append("================\n")
    lines.append(f"'starting_index' => 0\n'blank_label' => {alphabet.blank!r}\n")
    return "".join(lines)


GREEDY_FUNCTION = """\
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: {blank}
"""


def dnn_yaml(head: nn.Module) -> str:
    """A ``VanillaNN`` in the head, put into transformers' model."""
    if isinstance(head, nn.Linear):
        return ""
    assert isinstance(head, nn.Sequential)
    linears = [part for part in head.modules() if isinstance(part, nn.Linear)]
    *blocks, last = linears
    return HEAD_OF_SEVERAL.format(
        width=blocks[0].in_features,
        blocks=len(blocks),
        neurons=last.in_features,
        labels=last.out_features,
    )


HEAD_OF_SEVERAL = """
enc: !new:speechbrain.lobes.models.VanillaNN.VanillaNN
    input_shape: [null, null, {width}]
    activation: !name:torch.nn.LeakyReLU
    dnn_blocks: {blocks}
    dnn_neurons: {neurons}
ctc_lin: !new:torch.nn.Linear
    in_features: {neurons}
    out_features: {labels}
head: !new:torch.nn.Sequential [!ref <enc>, !ref <ctc_lin>]
put: !apply:builtins.setattr [!ref <model>, lm_head, !ref <head>]
"""

DECODED = {
    GREEDY: "Greedy decoding, no language model.",
    BEAM: "Beam search, no language model.",
    BEAM_LM: "Beam search with an n-gram, which needs the packages kenlm and pygtrie.",
}


def decoder_yaml(decoding: Decoding, blank: int) -> str:
    """The decoder as ``EncoderASR`` reads it."""
    if decoding.name == GREEDY:
        return GREEDY_FUNCTION.format(blank=blank)
    options = {"blank_index": blank, "space_token": " ", **decoding.options}
    model = options.pop("kenlm_model_path")
    lines = ["decoding_function: !name:speechbrain.decoders.ctc.CTCBeamSearcher", ""]
    if decoding.name == BEAM_LM:
        lines = [f"kenlm_model_path: {LANGUAGE_MODEL}{Path(model).suffix}", *lines]
    lines.append("test_beam_search:")
    lines += [f"    {key}: {json.dumps(value)}" for key, value in options.items()]
    if decoding.name == BEAM_LM:
        lines.append("    kenlm_model_path: !ref <kenlm_model_path>")
    return "\n".join(lines) + "\n"
