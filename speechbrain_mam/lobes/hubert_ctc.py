"""HuBERT-CTC (wav2vec 2.0, WavLM) with its pretrained CTC head and its own alphabet.

Source: Hsu et al., "HuBERT", arXiv 2106.07447; the model is transformers'.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForCTC

from speechbrain_mam.choices import one_of
from speechbrain_mam.donor import ModelFolder
from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.reading import files_sha256
from speechbrain_mam.sources import resolve_model

TRAINABLE = ("all", "head", "none")


class HubertCTC(nn.Module):
    """A speech encoder with CTC head, in SpeechBrain's signature.

    Arguments
    ---------
    source : str or Path
        Local folder, embedded model or Hub name of a ``HubertForCTC`` (``Wav2Vec2ForCTC``,
        ``WavLMForCTC``).
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
    ):
        super().__init__()
        one_of("trainable", trainable, TRAINABLE)
        folder = resolve_model(source)
        overrides = {"layerdrop": layerdrop, "apply_spec_augment": False}
        if dropout is not None:
            names = ("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout")
            overrides |= dict.fromkeys((*names, "feat_proj_dropout"), dropout)
        # float32 whatever the file holds: it is the master copy that is trained and merged
        self.model = AutoModelForCTC.from_pretrained(folder, dtype=torch.float32, **overrides)
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        self.folder = folder
        self.sample_rate: int = extractor.sampling_rate
        self.normalize_wav: bool = extractor.do_normalize
        self.wants_mask: bool = extractor.return_attention_mask
        if new_alphabet is None:
            self.alphabet = _read_alphabet(folder, self.model.config.vocab_size)
        else:
            tokens = ["<pad>", "|", *dict.fromkeys(new_alphabet.replace(" ", ""))]
            self.alphabet = CTCAlphabet({token: i for i, token in enumerate(tokens)})
            self.model.lm_head = nn.Linear(self.model.lm_head.in_features, len(tokens))
            self.model.config.vocab_size = len(tokens)
        self._set_trainable(trainable, freeze_feature_extractor)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable()

    def files_sha256(self) -> str:
        """SHA-256 of the weights that it was made of: of their file, or of its shards' together."""
        return files_sha256(ModelFolder(self.folder).weight_files())

    def _set_trainable(self, trainable: str, freeze_feature_extractor: bool) -> None:
        self.model.requires_grad_(trainable == "all")
        if trainable != "none":
            self.model.lm_head.requires_grad_(True)
        if freeze_feature_extractor or trainable != "all":
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
        mask = torch.arange(wav.shape[1], device=wav.device) < samples[:, None]
        if self.normalize_wav:
            wav = normalize(wav, mask)
        logits = self.model(wav, attention_mask=mask.long() if self.wants_mask else None).logits
        frames = self.model._get_feat_extract_output_lengths(samples).clamp(max=logits.shape[1])
        return logits.float().log_softmax(-1), frames / logits.shape[1]


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


def _read_alphabet(folder: Path, size: int) -> CTCAlphabet:
    file = folder / "vocab.json"
    if not file.is_file():
        raise MAMError(f"'{file}': no such file; a pretrained CTC head needs its vocabulary")
    ids = json.loads(file.read_text(encoding="utf-8"))
    if max(ids.values()) >= size:
        raise MAMError(
            f"'{file}' has the index {max(ids.values())}, the CTC head only {size} labels"
        )
    return CTCAlphabet(ids)
