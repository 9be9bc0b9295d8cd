"""SpeechBrain's BEATs out of a checkpoint ``{cfg, model}`` that is checked and loaded safely."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from speechbrain.lobes.models.beats import BEATs
from torch import Tensor

from speechbrain_mam.architectures.tensor_checks import check_type, type_name
from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.fbank import FilterBanks
from speechbrain_mam.model_files.find import EMBEDDED_MODELS, resolve_model
from speechbrain_mam.model_files.read import load_checkpoint, state_dict

MEL_BINS = 128
CFG_KEYS: dict[str, type] = {
    "encoder_layers": int,
    "encoder_embed_dim": int,
    "encoder_ffn_embed_dim": int,
    "encoder_attention_heads": int,
    "activation_fn": str,
    "layer_norm_first": bool,
    "deep_norm": bool,
    "relative_position_embedding": bool,
    "num_buckets": int,
    "max_distance": int,
    "gru_rel_pos": bool,
}
"""What a cfg must tell: SpeechBrain fills in what is missing, and its defaults are not BEATs'. The
weights of a model with ``deep_norm`` load without it as well, and give noise."""


class BEATsModel(BEATs):
    """SpeechBrain's BEATs without a classifier, built from a cfg, with filter banks in batches.

    Arguments
    ---------
    cfg : dict
        See :data:`CFG_KEYS`; SpeechBrain's defaults fill in the rest.
    """

    def __init__(self, cfg: Mapping[str, Any]):
        # SpeechBrain reads a cfg from a checkpoint only, whose weights it loads at once.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cfg.pt"
            torch.save({"cfg": {**cfg, "finetuned_model": False}, "model": None}, file)
            super().__init__(str(file), freeze=False)
        self.filter_banks = FilterBanks(MEL_BINS)
        self.fbank_augment: Callable[[Tensor], Tensor] | None = None

    def load_state_dict(self, state_dict, *args, **options):
        """As of any module; the None of the constructor loads nothing."""
        if state_dict is not None:
            return super().load_state_dict(state_dict, *args, **options)

    def preprocess(
        self, source: Tensor, fbank_mean: float = 15.41663, fbank_std: float = 6.55582
    ) -> Tensor:
        """Filter banks ``[B, frames, 128]`` of ``[B, samples]``, in training augmented."""
        fbank = (self.filter_banks(source) - fbank_mean) / (2 * fbank_std)
        if self.training and self.fbank_augment is not None:
            fbank = self.fbank_augment(fbank)
        return fbank.to(self.patch_embedding.weight.dtype)


def checkpoint_file(source: str | Path) -> Path:
    """The checkpoint that a path or the name of an embedded model stands for."""
    path = resolve_model(source) if str(source) in EMBEDDED_MODELS else Path(source).expanduser()
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.pt"))
    if len(files) != 1:
        raise MAMError(f"'{path}' holds {len(files)} .pt files, expected one BEATs checkpoint")
    return files[0]


def read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """cfg and weights of a BEATs checkpoint, the cfg checked; nothing in the file is run.

    Raises
    ------
    MAMError
        If the file is not a checkpoint ``{cfg, model}``, or its cfg lacks a key.
    """
    if not file.is_file():
        raise MAMError(f"BEATs checkpoint '{file}': no such file (key 'source')")
    content = load_checkpoint(
        file, "load it, and torch.save({'cfg': a plain dict, 'model': its state dict}, file)"
    )
    for part in ("cfg", "model"):
        if not isinstance(content, dict) or not isinstance(content.get(part), dict):
            raise MAMError(
                f"'{file}' has no '{part}': expected a BEATs checkpoint {{cfg, model}}; without "
                "its cfg, the weights of a BEATs give noise"
            )
    cfg = dict(content["cfg"])
    for key, kind in CFG_KEYS.items():
        if not _fits(cfg.get(key), kind):
            number = "a number above 0" if kind is int else f"a {kind.__name__}"
            found = repr(cfg[key]) if key in cfg else "nothing"
            raise MAMError(f"'{file}': the cfg's '{key}' is {found}, expected {number}")
    for name, tensor in state_dict(content["model"], f"'{file}': its 'model'").items():
        check_type(type_name(tensor), name, f"'{file}'")  # PyTorch would load integers as numbers
    return cfg, content["model"]


def _fits(value: Any, kind: type) -> bool:
    if kind is bool:
        return value in (0, 1)
    return isinstance(value, kind) and (not isinstance(value, int) or value > 0)


def build_beats(cfg: dict[str, Any], state: dict[str, Tensor], file: Path) -> BEATsModel:
    """The model of a checkpoint; ``file`` is what messages call it.

    Raises
    ------
    MAMError
        If no model can be built from ``cfg``, or its tensors have other names or shapes.
    """
    try:
        model = BEATsModel(cfg)
    except Exception as error:  # asserts, missing activations, shapes that do not divide
        raise MAMError(f"'{file}': no BEATs can be built from its cfg: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {_today(n): t for n, t in state.items() if not n.startswith("predictor")}
    for name in sorted(shapes.keys() | given.keys()):
        expected = list(shapes[name]) if name in shapes else "no such tensor"
        found = list(given[name].shape) if name in given else "no such tensor"
        if found != expected:
            raise MAMError(f"'{file}': '{name}' is {found}, by its cfg it should be {expected}")
    model.load_state_dict(given)
    return model


def _today(name: str) -> str:
    """Name of a tensor since weight normalisation became a parametrization."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        name = name.replace(f"pos_conv.0.{old}", f"pos_conv.0.parametrizations.weight.{new}")
    return name
