"""One cell of the study: an arm, a seed, a learning rate; trained, and written as one JSON file.

Clips and their order are drawn by the seed alone, as is all that is not attention.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.edit_distance import count_ops, op_table
from study_arms import Setting, build, start
from study_tasks import Clip, Task, split
from torch import Tensor, nn

from speechbrain_mam.atomic import write_text_beside


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
            loss = loss_of(task, model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        loss_now, error = evaluate(task, model, *data.valid)
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


def loss_of(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the clips, in nats: cross-entropy, or CTC's divided by the number of labels."""
    if not task.ctc:
        return nn.functional.cross_entropy(logits, labels)
    frames = torch.full((len(logits),), logits.shape[1])
    lengths = (labels >= 0).sum(1)
    log_probs = logits.log_softmax(2).transpose(0, 1)
    return nn.functional.ctc_loss(
        log_probs, labels.clamp(min=0), frames, lengths, blank=task.classes
    )


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss in nats, and the error in percent: of clips, or of labels (edit distance)."""
    model.eval()
    logits = torch.cat([model(part) for part in inputs.split(60)])
    loss = loss_of(task, logits, labels).item()
    if not task.ctc:
        return loss, 100 * (logits.argmax(1) != labels).float().mean().item()
    wrong = sum(edits(*pair, task.classes) for pair in zip(logits, labels, strict=True))
    return loss, 100 * wrong / int((labels >= 0).sum())


def edits(logits: Tensor, labels: Tensor, blank: int) -> int:
    """Edit distance of what CTC's best path says from the labels, which -1 fills up.

    Example
    -------
    >>> path = torch.tensor([3, 3, 0, 3, 1])  # blank is 3: it says 0, 1
    >>> edits(torch.eye(4)[path], torch.tensor([0, 2, 1, -1]), blank=3)
    1
    """
    path = logits.argmax(1).unique_consecutive()
    said, wanted = path[path != blank].tolist(), labels[labels >= 0].tolist()
    return sum(count_ops(op_table(wanted, said)).values())


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
