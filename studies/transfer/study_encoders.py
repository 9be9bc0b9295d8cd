"""The two encoders of the study, and how much of a donor each can begin with.

``pre_norm``
    a linear front end, pre-norm Transformer layers of SpeechBrain, their mean, a linear head;
``whisper``
    Whisper's own encoder at the size of tiny.en (two convolutions, four pre-norm layers), drawn
    anew, so that everything of that donor fits: from the whole of it down to queries and keys.
"""

from __future__ import annotations

import zlib

import torch
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.errors import MAMError

WIDTH, HEADS, MELS = 384, 6, 80
FRONT = {"conv1": "encoder.conv1", "conv2": "encoder.conv2", "layer_norm": "encoder.layer_norm"}
"""Whisper's tensors beside its blocks, and their names in its CTranslate2 file."""
BESIDE_ATTENTION = {
    "whisper": {
        "self_attn_layer_norm": "encoder.layer_{}.self_attention.layer_norm",
        "final_layer_norm": "encoder.layer_{}.ffn.layer_norm",
        "fc1": "encoder.layer_{}.ffn.linear_0",
        "fc2": "encoder.layer_{}.ffn.linear_1",
    },
    # A post-norm layer's norms say nothing of a pre-norm one's: they stay as they are
    "minilm": {
        "fc1": "encoder.layer.{}.intermediate.dense",
        "fc2": "encoder.layer.{}.output.dense",
    },
}
"""Of each donor, what its blocks hold beside attention."""


class Classifier(nn.Module):
    """Log-mel tokens ``[B, T, F]`` to the logits of classes ``[B, C]``, pre-norm."""

    def __init__(self, features: int, tokens: int, classes: int, depth: int, d_ffn: int):
        super().__init__()
        self.front = nn.Linear(features, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, WIDTH))
        self.encoder = TransformerEncoder(
            num_layers=depth,
            nhead=HEADS,
            d_ffn=d_ffn,
            d_model=WIDTH,
            dropout=0.0,
            activation=nn.GELU,
            normalize_before=True,
        )
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Mean over the tokens, then the head."""
        found: Tensor = self.head(self.encoder(self.front(x) + self.places)[0].mean(1))
        return found


class WhisperClassifier(nn.Module):
    """Whisper's log-mel frames ``[B, T, 80]`` to logits: of classes ``[B, C]``; or for CTC, of
    classes and the blank behind them, ``[B, T / 2, C + 1]``."""

    def __init__(self, frames: int, classes: int, depth: int, d_ffn: int, ctc: bool = False):
        super().__init__()
        self.ctc = ctc
        self.encoder = WhisperEncoder(
            WhisperConfig(
                d_model=WIDTH,
                encoder_layers=depth,
                encoder_attention_heads=HEADS,
                encoder_ffn_dim=d_ffn,
                num_mel_bins=MELS,
                max_source_positions=frames // 2,
            )
        )
        self.head = nn.Linear(WIDTH, classes + ctc)

    def forward(self, x: Tensor) -> Tensor:
        """The head, of the mean over the encoder's outputs or of each."""
        outputs = self.encoder(x.transpose(1, 2)).last_hidden_state
        found: Tensor = self.head(outputs if self.ctc else outputs.mean(1))
        return found


@torch.no_grad()
def take_the_rest(
    model: nn.Module,
    name: str,
    donor: Donor,
    layer_map: dict[int, int],
    front: bool,
    twin_seed: int | None,
) -> None:
    """Let what is not attention begin with the donor's too, or with its twin.

    Arguments
    ---------
    model : WhisperClassifier
        Changed in place.
    name : str
        The donor's, in :data:`BESIDE_ATTENTION`.
    donor : Donor
        Itself.
    layer_map : dict
        The donor's layer of each of the model's.
    front : bool
        Convolutions and last norm as well.
    twin_seed : int, optional
        Random tensors in place of the donor's, with mean and standard deviation of each.

    Raises
    ------
    MAMError
        If the encoder is another one, or the donor's blocks are not known.
    """
    if not isinstance(model, WhisperClassifier) or name not in BESIDE_ATTENTION:
        raise MAMError(
            f"whole blocks of '{name}': there are those of {' and '.join(BESIDE_ATTENTION)}, for "
            "--task digits_whisper"
        )
    pairs = {
        f"layers.{layer}.{ours}": theirs.format(donor_layer)
        for layer, donor_layer in layer_map.items()
        for ours, theirs in BESIDE_ATTENTION[name].items()
    }
    if front:
        pairs |= FRONT
    parameters = dict(model.encoder.named_parameters())
    for ours, theirs in pairs.items():
        for kind, norms in (("weight", "gamma"), ("bias", "beta")):
            stored = f"{theirs}.{norms if 'norm' in theirs else kind}"
            value = donor.folder.read(stored).float()
            if twin_seed is not None:
                draw = torch.Generator().manual_seed(hash_of(ours, kind, twin_seed))
                noise = torch.randn(value.shape, generator=draw)
                value = value.mean() + value.std(correction=0) * noise
            parameters[f"{ours}.{kind}"].copy_(value)


def hash_of(name: str, kind: str, seed: int) -> int:
    """A tensor's own seed, the same in every process.

    Example
    -------
    >>> hash_of("fc1", "weight", 0) == hash_of("fc1", "weight", 0) != hash_of("fc1", "bias", 0)
    True
    """
    return zlib.crc32(f"{name}.{kind}.{seed}".encode())
