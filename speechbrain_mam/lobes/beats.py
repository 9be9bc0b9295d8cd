"""BEATs, for features, in SpeechBrain's signature; the model is SpeechBrain's.

Source: Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", arXiv 2212.09058.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.lobes.beats_model import (
    BEATsModel,
    build_beats,
    checkpoint_file,
    read_checkpoint,
)
from speechbrain_mam.lobes.fbank import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    SHIFT_SAMPLES,
    frame_count,
)
from speechbrain_mam.lobes.fresh import check_fresh, draw_anew
from speechbrain_mam.model_files.read import files_sha256

logger = logging.getLogger(__name__)

TRAINABLE = ("all", "none")


class BEATsEncoder(nn.Module):
    """Features of audio by a pretrained BEATs, in SpeechBrain's signature.

    Arguments
    ---------
    source : str or Path
        A checkpoint ``{cfg, model}`` as BEATs' authors publish it, a folder with one such ``.pt``
        file, or the name of an embedded model. The classifier of a fine-tuned model is left out.
    freeze : bool
        Features only, without gradients, and in evaluation mode also after ``.train()``.
    trainable : str
        ``all``; or ``none``: no parameter of BEATs, with gradients still flowing, so that λ alone
        is learned.
    fbank_mean, fbank_std : float
        The filter banks are shifted and scaled to (x − mean) / (2 · std); by default with what
        BEATs was trained with.
    dropout : float, optional
        Overrides every dropout of the cfg.
    layerdrop : float
        Probability to skip a layer. Above 0, DDP needs ``find_unused_parameters``.
    gradient_decay : float, optional
        In backward, each layer passes this share of its gradient down: layer-wise decay for
        optimizers that see the gradient's size. λ's gradient shrinks with it. None takes the cfg's.
    fbank_augment : callable, optional
        Applied to the filter banks ``[B, frames, 128]`` in training, where zero is their mean:
        SpecAugment, for example.
    fresh : str
        What of the model is drawn anew: ``none``, ``attention``, ``encoder`` or ``all``; see
        :mod:`speechbrain_mam.lobes.fresh`.
    fresh_seed : int
        Of what is drawn.

    Raises
    ------
    MAMError
        If the checkpoint is missing, cut short, holds pickled code or no complete cfg, or other
        tensors than its cfg says; or what is drawn anew would not be trained.

    Example
    -------
    >>> from tempfile import TemporaryDirectory
    >>> from speechbrain.lobes.models.beats import BEATsConfig
    >>> from speechbrain_mam.lobes.beats_model import BEATsModel
    >>> cfg = vars(BEATsConfig()) | dict(encoder_layers=2, encoder_embed_dim=16, embed_dim=8,
    ...     encoder_ffn_embed_dim=32, encoder_attention_heads=2, conv_pos=8, conv_pos_groups=2,
    ...     deep_norm=True, relative_position_embedding=True, gru_rel_pos=True)
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"cfg": cfg, "model": BEATsModel(cfg).state_dict()}, f"{folder}/tiny.pt")
    ...     encoder = BEATsEncoder(folder)
    >>> features, lens = encoder(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> features.shape, lens
    (torch.Size([2, 48, 16]), tensor([1.0000, 0.5208]))
    """

    sample_rate = SAMPLE_RATE_HZ

    def __init__(
        self,
        source: str | Path,
        freeze: bool = False,
        trainable: str = "all",
        fbank_mean: float = 15.41663,
        fbank_std: float = 6.55582,
        dropout: float | None = None,
        layerdrop: float = 0.0,
        gradient_decay: float | None = 1.0,
        fbank_augment: Callable[[Tensor], Tensor] | None = None,
        fresh: str = "none",
        fresh_seed: int = 0,
    ):
        super().__init__()
        one_of("trainable", trainable, TRAINABLE)
        check_fresh(fresh, "none" if freeze else trainable)
        if not fbank_std > 0:
            raise MAMError(f"key 'fbank_std': expected a number above 0, got {fbank_std}")
        file = checkpoint_file(source)
        cfg, state = read_checkpoint(file)
        cfg |= {"encoder_layerdrop": layerdrop}
        if dropout is not None:
            names = ("dropout", "attention_dropout", "activation_dropout", "dropout_input")
            cfg |= dict.fromkeys(names, dropout)
        if gradient_decay is not None:
            cfg["layer_wise_gradient_decay_ratio"] = gradient_decay
        logger.info("BEATs '%s' with cfg %s", file, cfg)
        self.file, self.cfg, self.freeze = file, cfg, freeze
        self.fbank_mean, self.fbank_std = fbank_mean, fbank_std
        self.model = build_beats(cfg, state, file)
        draw_anew(self.model, fresh, lambda: BEATsModel(cfg), fresh_seed)
        self.model.fbank_augment = fbank_augment
        self.width: int = cfg["encoder_embed_dim"]
        self.model.requires_grad_(trainable == "all" and not freeze)
        if cfg["layer_norm_first"]:
            # SpeechBrain does not use it then, and DDP would wait for its gradient.
            self.model.encoder.layer_norm.requires_grad_(False)
        self.train()

    def files_sha256(self) -> str:
        """SHA-256 of the checkpoint that it was made of."""
        return files_sha256([self.file])

    def train(self, mode: bool = True) -> BEATsEncoder:
        """As of any module; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.model.eval()
        return self

    @property
    def min_samples(self) -> int:
        """The shortest clip: one row of patches."""
        return FRAME_SAMPLES + (self.model.input_patch_size - 1) * SHIFT_SAMPLES

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of every patch.

        Arguments
        ---------
        wav : Tensor
            ``[B, samples]`` at 16 kHz, in [−1, 1], zero-padded.
        wav_lens : Tensor, optional
            ``[B]``, length of each clip relative to the longest.

        Returns
        -------
        features : Tensor
            ``[B, T, D]``: patches of 0.16 s × 16 mel bins, 8 in a row of the same time.
        lens : Tensor
            ``[B]``, number of valid patches relative to ``T``.

        Raises
        ------
        MAMError
            If the batch is shorter than one row of patches, or a frozen model holds a λ to learn.
        """
        if wav.ndim != 2 or wav.shape[1] < self.min_samples:
            raise MAMError(
                f"BEATs got audio of shape {list(wav.shape)}, expected [clips, samples] with at "
                f"least {self.min_samples} samples ({self.min_samples / SAMPLE_RATE_HZ:.3f} s at "
                "16 kHz: one row of patches). Leave shorter clips out, or pad them"
            )
        if wav_lens is None:
            wav_lens = torch.ones(len(wav), device=wav.device)
        learns = torch.is_grad_enabled()
        if self.freeze and learns and any(p.requires_grad for p in self.parameters()):
            raise MAMError(
                "key 'freeze': a frozen BEATs gives λ no gradient; to learn λ alone, set 'freeze: "
                "False' and 'trainable: none'"
            )
        with torch.set_grad_enabled(learns and not self.freeze):
            features = self.model.extract_features(wav, wav_lens, self.fbank_mean, self.fbank_std)
        return features[0], self._lens(wav, wav_lens, features[0].shape[1])

    def _lens(self, wav: Tensor, wav_lens: Tensor, patches: int) -> Tensor:
        """What the padding mask leaves: SpeechBrain cuts samples, then frames, into equal runs and
        masks a run without a valid one."""
        frames = frame_count(wav.shape[1])
        valid = (wav_lens * wav.shape[1]).ceil()
        valid = (valid / (wav.shape[1] // frames)).ceil().clamp(max=frames)
        return (valid / (frames // patches)).ceil().clamp(max=patches) / patches
