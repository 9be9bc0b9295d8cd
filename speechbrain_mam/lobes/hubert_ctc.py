"""HuBERT-CTC (wav2vec 2.0, WavLM, …) with its pretrained CTC head and its own alphabet.

Source: Hsu et al., "HuBERT", arXiv 2106.07447; the model is transformers'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from speechbrain.lobes.models.VanillaNN import VanillaNN
from torch import Tensor, nn

from speechbrain_mam.errors import one_of
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.lobes.ctc_folder import (
    language_adapter,
    load_model,
    read_alphabet,
    read_extractor,
)
from speechbrain_mam.lobes.fresh import check_fresh, draw_anew
from speechbrain_mam.lobes.pieces import read_pieces
from speechbrain_mam.lobes.spelling import composed
from speechbrain_mam.model_files.find import resolve_model
from speechbrain_mam.model_files.folder import ModelFolder
from speechbrain_mam.model_files.read import files_sha256

TRAINABLE = ("all", "head", "none")


class Labels(Protocol):
    """What a CTC head writes: a ``CTCAlphabet``, or pieces of words over one."""

    @property
    def ids(self) -> dict[str, int]:
        """The label of each token."""

    @property
    def blank_index(self) -> int:
        """The label of the CTC blank."""

    @property
    def spelling(self) -> CTCAlphabet:
        """The letters that a text is brought into first."""

    @property
    def letters(self) -> set[str]:
        """All that a text may hold, spaces aside."""

    def spell(self, text: str) -> str:
        """A text in these letters."""

    def unknown(self, text: str) -> set[str]:
        """The characters of a text that are none of the letters."""

    def encode(self, text: str) -> list[int]:
        """The labels of a text."""

    def decode(self, indices: Sequence[int]) -> str:
        """The text of labels."""


class HubertCTC(nn.Module):
    """A speech encoder with CTC head, in SpeechBrain's signature.

    Arguments
    ---------
    source : str or Path
        Local folder, embedded model or Hub name of a ``HubertForCTC`` or another CTC recogniser of
        transformers: wav2vec 2.0, WavLM, data2vec, UniSpeech, wav2vec2-BERT, MMS.
    freeze_feature_extractor : bool
        Do not train the convolutional front end, and do not back-propagate through it.
    trainable : str
        ``all``; ``head``: only the CTC head; ``none``: nothing, so that λ alone is learned.
    new_alphabet : str, optional
        Characters of a new alphabet; replaces the pretrained head by a new one.
    layerdrop : float
        Probability to skip a layer. Above 0, DDP needs ``find_unused_parameters``.
    gradient_checkpointing : bool
        Recompute each layer in backward: less memory, more time.
    dropout : float, optional
        Overrides every dropout of the encoder.
    dnn_layers, dnn_neurons : int
        Blocks of SpeechBrain's ``VanillaNN`` before the linear layer of a new head, and their
        width; none by default.
    fresh : str
        What of the model is drawn anew: ``none``, ``attention``, ``encoder`` or ``all``; see
        :mod:`speechbrain_mam.lobes.fresh`.
    fresh_seed : int
        Of what is drawn.

    Raises
    ------
    MAMError
        If the model cannot be had, ``trainable`` is none of the three, or what is drawn anew would
        not be trained.

    Example
    -------
    >>> model = HubertCTC("speechbrain_mam/hubert-mini")
    >>> log_probs, lens = model(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> log_probs.shape[0], log_probs.shape[2] == len(model.alphabet.ids)
    (2, True)
    """

    def __init__(
        self,
        source: str | Path,
        freeze_feature_extractor: bool = True,
        trainable: str = "all",
        new_alphabet: str | None = None,
        layerdrop: float = 0.0,
        gradient_checkpointing: bool = False,
        dropout: float | None = None,
        dnn_layers: int = 0,
        dnn_neurons: int = 1024,
        fresh: str = "none",
        fresh_seed: int = 0,
    ):
        super().__init__()
        one_of("trainable", trainable, TRAINABLE)
        check_fresh(fresh, trainable, freeze_feature_extractor)
        self._pretrained: tuple[nn.Module, Labels] | None = None
        self._dnn = dnn_layers, dnn_neurons
        self.alphabet: Labels
        folder = resolve_model(source)
        ModelFolder(folder).check_weights()
        overrides: dict[str, Any] = {"layerdrop": layerdrop, "apply_spec_augment": False}
        if dropout is not None:
            names = ("hidden", "attention", "activation", "final", "feat_proj", "conformer_conv")
            overrides |= dict.fromkeys((f"{name}_dropout" for name in names), dropout)
        self.model = load_model(folder, overrides, head=new_alphabet is None)
        draw_anew(self.model, fresh, lambda: type(self.model)(self.model.config), fresh_seed)
        self.folder = folder
        extractor = read_extractor(folder)
        self.extractor = extractor if "input_features" in extractor.model_input_names else None
        self.sample_rate: int = extractor.sampling_rate
        self.normalize_wav: bool = self.extractor is None and extractor.do_normalize
        self.wants_mask: bool = self.extractor is not None or extractor.return_attention_mask
        self.own_alphabet = new_alphabet is None
        if new_alphabet is None:
            if language := language_adapter(folder):
                self.model.load_adapter(language)
            pieces = read_pieces(folder, self.model.config)
            self.alphabet = pieces or read_alphabet(folder, self.model.config)
        else:
            tokens = ["<pad>", "|", *dict.fromkeys(composed(new_alphabet).replace(" ", ""))]
            alphabet = CTCAlphabet({token: i for i, token in enumerate(tokens)})
            self._put(self._new_head(len(tokens)), alphabet)
        self._set_trainable(trainable, freeze_feature_extractor)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _put(self, head: nn.Module, alphabet: Labels) -> None:
        self.model.lm_head, self.alphabet = head, alphabet
        self.model.config.vocab_size = len(alphabet.ids)
        self.model.config.pad_token_id = alphabet.blank_index

    def _new_head(self, size: int) -> nn.Module:
        width = self.model.lm_head.in_features
        blocks, neurons = self._dnn
        if not blocks:
            return nn.Linear(width, size)
        enc = VanillaNN([None, None, width], nn.LeakyReLU, blocks, neurons)
        return nn.Sequential(enc, nn.Linear(neurons, size))

    def use(self, labels: Labels) -> None:
        """Give the model a new head over other labels; the pretrained one is kept aside.

        Arguments
        ---------
        labels : Labels
            As :class:`~speechbrain_mam.lobes.pieces.Pieces`.
        """
        if self.own_alphabet:  # in a tuple, so that it is no part of the module
            self._pretrained = (self.model.lm_head, self.alphabet)
        self.own_alphabet = False
        self._put(self._new_head(len(labels.ids)), labels)

    @contextmanager
    def pretrained_head(self) -> Iterator[None]:
        """Within the block the head is the one that came with the model, where there is one."""
        if self._pretrained is None:
            yield
            return
        new = self.model.lm_head, self.alphabet
        head, alphabet = self._pretrained
        self._put(head.to(next(new[0].parameters()).device), alphabet)
        try:
            yield
        finally:
            self._put(*new)

    def files_sha256(self) -> str:
        """SHA-256 of the weights that it was made of: of their file, or of its shards' together."""
        return files_sha256(ModelFolder(self.folder).weight_files())

    def _set_trainable(self, trainable: str, freeze_feature_extractor: bool) -> None:
        self.model.requires_grad_(trainable == "all")
        if trainable != "none":
            self.model.lm_head.requires_grad_(True)
        has_front = hasattr(self.model, "freeze_feature_encoder")  # wav2vec2-BERT has none
        if has_front and (freeze_feature_extractor or trainable != "all"):
            # Not requires_grad alone: the library would still back-propagate through the front end.
            self.model.freeze_feature_encoder()
        # Used only where the library masks its input; trained nowhere here, DDP would wait for it.
        for name, parameter in self.model.named_parameters():
            if name.endswith("masked_spec_embed"):
                parameter.requires_grad_(False)

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of every label in every frame.

        Arguments
        ---------
        wav : Tensor
            ``[B, samples]`` at :attr:`sample_rate` Hz, zero-padded.
        wav_lens : Tensor, optional
            ``[B]``, length of each waveform relative to the longest.

        Returns
        -------
        log_probs : Tensor
            ``[B, frames, labels]``, float32.
        lens : Tensor
            ``[B]``, number of valid frames relative to ``frames``.
        """
        if wav_lens is None:
            wav_lens = torch.ones(len(wav), device=wav.device)
        samples = (wav_lens * wav.shape[1]).round().long()
        if self.extractor is None:
            inputs, steps = self._waveforms(wav, samples)
        else:
            inputs, steps = self._features(wav, samples)
        logits = self.model(**inputs).logits
        frames = self.model._get_feat_extract_output_lengths(steps).clamp(max=logits.shape[1])
        return logits.float().log_softmax(-1), frames / logits.shape[1]

    def _waveforms(self, wav: Tensor, samples: Tensor) -> tuple[dict[str, Any], Tensor]:
        """What a model of waveforms takes, and the valid samples."""
        mask = torch.arange(wav.shape[1], device=wav.device) < samples[:, None]
        if self.normalize_wav:
            wav = normalize(wav, mask)
        attention_mask = mask.long() if self.wants_mask else None
        return {"input_values": wav, "attention_mask": attention_mask}, samples

    def _features(self, wav: Tensor, samples: Tensor) -> tuple[dict[str, Any], Tensor]:
        """What a model of filter banks takes (wav2vec2-BERT), by its own extractor, and how many
        of its steps are valid. Nothing is trained below them.
        """
        heard = [
            w[:n].float().numpy() for w, n in zip(wav.detach().cpu(), samples.tolist(), strict=True)
        ]
        assert self.extractor is not None
        inputs = self.extractor(heard, sampling_rate=self.sample_rate, return_tensors="pt")
        found = {name: inputs[name].to(wav.device) for name in ("input_features", "attention_mask")}
        return found, found["attention_mask"].sum(1)


def normalize(wav: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over the valid samples of each waveform, zero elsewhere.

    Arguments
    ---------
    wav, mask : Tensor
        ``[B, samples]``; ``mask`` is True where a sample is valid.

    Example
    -------
    >>> normalize(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[-1.,  1.,  0.]])
    """
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mean = (wav * mask).sum(1, keepdim=True) / count
    centred = (wav - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + 1e-7).sqrt()
