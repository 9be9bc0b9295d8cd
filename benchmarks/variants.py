"""The ways to train that ``train_step.py`` compares, on one random model and one random batch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.integrations.huggingface.hubert import HuBERT
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import HubertConfig, HubertForCTC, Wav2Vec2FeatureExtractor

from speechbrain_mam.architectures.index import index_attention
from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.architectures.registry import architecture
from speechbrain_mam.donors.donor import TensorKey
from speechbrain_mam.learning.learnable import LearnableMAM
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.merging.prepare import donor_tensors

SAMPLE_RATE_HZ = 16000
LAM = 0.95
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """A model's and a batch's shape; ``config`` is what differs from HuBERT-base."""

    config: dict[str, Any]
    batch: int
    duration_s: float


SHAPES = {
    "base": Shape({}, batch=4, duration_s=4.0),
    "tiny": Shape(
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "conv_dim": (16,) * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
        },
        batch=2,
        duration_s=1.0,
    ),
}


class RandomDonor:
    """A BERT's projections made of random numbers (a ``TensorSource``)."""

    def __init__(self, width: int):
        self.width = width

    def tensor(self, key: TensorKey) -> Tensor:
        """Normal numbers of BERT's initial deviation, always the same for a key."""
        generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
        size = (self.width,) * (2 if key[2] == "weight" else 1)
        return torch.randn(size, generator=generator) * 0.02


class StockCTC(nn.Module):
    """SpeechBrain's lobe and a CTC layer, in :class:`HubertCTC`'s signature."""

    def __init__(self, folder: Path, layerdrop: float):
        super().__init__()
        self.lobe = HuBERT(str(folder), str(folder), freeze_feature_extractor=True)
        self.lobe.model.config.layerdrop = layerdrop
        self.head = HubertForCTC.from_pretrained(folder).lm_head

    def forward(self, wav: Tensor, wav_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[B, frames, labels]`` and relative lengths ``[B]``."""
        return self.head(self.lobe(wav, wav_lens)).float().log_softmax(-1), wav_lens


class Lerp(nn.Module):
    """The merge as a parametrization."""

    def __init__(self, donor: Tensor, lam: nn.Parameter):
        super().__init__()
        self.lam = lam
        self.register_buffer("donor", donor, persistent=False)

    def forward(self, original: Tensor) -> Tensor:
        """λ · original + (1 − λ) · donor."""
        return torch.lerp(self.donor, original, self.lam)


@dataclass
class Variant:
    """One way to train: a model, how it is called, its λ and what follows an optimizer step."""

    model: nn.Module
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    lams: list[nn.Parameter] = field(default_factory=list)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)

    def start(self) -> Variant:
        """In training mode (as ``Brain.fit`` does it), with optimizers."""
        self.model.train()
        ours = {id(lam) for lam in self.lams}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ours]
        # fused, as in this project's YAMLs; the stock recipes leave torch's default
        fused = None if isinstance(self.model, StockCTC) else True
        self.optimizers = [torch.optim.AdamW(rest, lr=1e-5, weight_decay=0.01, fused=fused)]
        if self.lams:
            self.optimizers.append(torch.optim.Adam(self.lams, lr=2e-3))
        return self

    def loss(self, batch: Batch) -> Tensor:
        """Forward and CTC loss, under autocast where the precision asks for it."""
        torch.manual_seed(batch.seed)
        lower = batch.dtype != torch.float32
        with torch.autocast(batch.wav.device.type, batch.dtype if lower else None, enabled=lower):
            log_probs, lens = self.forward(batch.wav, batch.lens)
            return sb.nnet.losses.ctc_loss(log_probs, batch.tokens, lens, batch.lens, blank_index=0)

    def step(self, batch: Batch) -> float:
        """One training step; its loss."""
        loss = self.loss(batch)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for lam in self.lams:
                lam.clamp_(0.0, 1.0)
        return float(loss.detach())


@dataclass(frozen=True)
class Batch:
    """Random audio ``[B, samples]``, labels ``[B, characters]``, relative lengths (all 1)."""

    wav: Tensor
    tokens: Tensor
    lens: Tensor
    dtype: torch.dtype
    seed: int = 0


def make_batch(shape: Shape, precision: str, device: str) -> Batch:
    """A batch without padding: the variants then differ in nothing but what is compared."""
    generator = torch.Generator().manual_seed(1)
    samples = int(shape.duration_s * SAMPLE_RATE_HZ)
    wav = torch.randn(shape.batch, samples, generator=generator)
    characters = int(12 * shape.duration_s)  # a second of read speech
    tokens = torch.randint(4, 32, (shape.batch, characters), generator=generator)
    lens = torch.ones(shape.batch)
    return Batch(wav.to(device), tokens.to(device), lens.to(device), PRECISIONS[precision])


def save_checkpoint(shape: Shape, folder: Path) -> None:
    """The folder of a ``HubertForCTC`` from which every variant loads its weights."""
    torch.manual_seed(0)
    HubertForCTC(HubertConfig(vocab_size=32, **shape.config)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    content = json.dumps({token: index for index, token in enumerate(tokens)})
    (folder / "vocab.json").write_text(content, encoding="utf-8")


def plan_for(model: nn.Module, donor: RandomDonor) -> MergePlan:
    """All layers, query, key and value, with a donor as deep as the target."""
    target = find_attention(model)
    names = {
        f"encoder.layer.{i}.attention.self.{projection}.{kind}": size
        for i in range(target.num_layers)
        for projection in ("query", "key", "value")
        for kind, size in (("weight", [donor.width] * 2), ("bias", [donor.width]))
    }
    return make_plan(target, index_attention(names, architecture("bert"), target.heads), LAM)


def build(name: str, folder: Path, device: str) -> Variant:
    """A variant with its own copy of the weights."""
    if name.startswith("stock"):
        stock = StockCTC(folder, 0.0 if name.endswith(" 0") else 0.1).to(device)
        return Variant(stock, stock).start()
    model = HubertCTC(folder).to(device)
    if name == "plain":
        return Variant(model, model).start()
    donor = RandomDonor(model.model.config.hidden_size)
    plan = plan_for(model, donor)
    if name == "mam":
        return Variant(model, model, LearnableMAM(model, plan, donor).parameters()).start()
    lams = [nn.Parameter(torch.full((1,), LAM, device=device)) for _ in plan.layers]
    theirs = {
        entry: tensor.to(device)
        for entry, tensor in donor_tensors(plan, donor, model.get_parameter)
    }
    if name == "parametrize":
        for entry, tensor in theirs.items():
            path, _, kind = entry.target.rpartition(".")
            merge = Lerp(tensor, lams[entry.layer])
            parametrize.register_parametrization(model.get_submodule(path), kind, merge)
        return Variant(model, model, lams).start()

    originals = {entry: model.get_parameter(entry.target) for entry in theirs}

    def forward(wav: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        merged = {
            entry.target: torch.lerp(tensor, originals[entry], lams[entry.layer])
            for entry, tensor in theirs.items()
        }
        return torch.func.functional_call(model, merged, (wav, lens))

    variant = Variant(model, forward, lams).start()
    for i, tensor in enumerate(theirs.values()):  # so that they count as existing anyway
        model.register_buffer(f"donor_{i}", tensor, persistent=False)
    return variant


VARIANTS = ("plain", "mam", "parametrize", "functional_call", "stock", "stock, layerdrop 0")
