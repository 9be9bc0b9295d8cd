"""A long training: do memory and open files grow, and does MAM make them?

Trains a small HuBERT-CTC on random audio in a real ``MAMBrain``, with checkpoints and evaluations,
each time in a process of its own: ``plain`` without MAM, ``mam`` with learnable λ, ``pictures``
with the picture of λ after each epoch as well. Notes the resident memory and the open files on the
way. Short epochs: what is done once an epoch is done often.

To run: python benchmarks/soak.py [--steps 2000] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from transformers import BertConfig, BertModel
from variants import SHAPES, save_checkpoint

from speechbrain_mam import MAM, MAMBrain
from speechbrain_mam.lobes.hubert_ctc import HubertCTC

STEPS_PER_EPOCH, BATCH, SAMPLES, LABELS = 20, 4, 8000, 6
VARIANTS = ("plain", "mam", "pictures")
WARM_UP = 0.2
"""Of the steps: allocators and caches fill; growth is counted from there on."""


class Soak(MAMBrain, sb.Brain):
    """CTC on random labels; saves each epoch and keeps one checkpoint."""

    def compute_forward(self, batch, stage):
        """Log-probabilities."""
        return self.modules.encoder(batch[0], torch.ones(BATCH))

    def compute_objectives(self, predictions, batch, stage):
        """CTC loss."""
        ones = torch.ones(BATCH)
        return sb.nnet.losses.ctc_loss(*_order(predictions, batch[1], ones), blank_index=0)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Note what the process holds."""
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        if self.optimizer_step % self.hparams.note_every == 0:
            self.hparams.notes.append({"step": self.optimizer_step, **held()})

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """A checkpoint after each validation."""
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"])


def _order(predictions, labels, ones):
    log_probs, lens = predictions
    return log_probs, labels, lens, ones


def held() -> dict[str, float]:
    """Resident memory in MB, and open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    rss = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return {"rss_mb": rss, "files": len(os.listdir("/proc/self/fd"))}


def train(steps: int, variant: str, folder: Path) -> list[dict[str, float]]:
    """The notes of one training, on one thread."""
    torch.set_num_threads(1)
    save_checkpoint(SHAPES["tiny"], folder / "hubert")
    torch.manual_seed(1)
    config = BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    BertModel(config).save_pretrained(folder / "bert")
    encoder = HubertCTC(str(folder / "hubert"))
    notes: list[dict[str, float]] = []
    hparams: dict[str, Any] = {"notes": notes, "note_every": steps // 20, "seed": 1}
    hparams |= {"exact_resume": True}
    if variant == "pictures":
        hparams["output_folder"] = str(folder)
    if variant != "plain":
        hparams["mam"] = MAM(encoder, donor=str(folder / "bert"), lam=0.95)
        hparams["mam_optimizer"] = lambda lams: torch.optim.Adam(lams, lr=1e-3)
    counter = EpochCounter(steps // STEPS_PER_EPOCH)
    recoverables = {"encoder": encoder, "counter": counter}
    checkpointer = Checkpointer(folder / "save", recoverables)
    options = {"device": "cpu"}
    brain = Soak(
        {"encoder": encoder}, lambda p: torch.optim.AdamW(p, 1e-4), hparams, options, checkpointer
    )
    data = [
        (torch.randn(BATCH, SAMPLES), torch.randint(5, 31, (BATCH, LABELS)))
        for _ in range(STEPS_PER_EPOCH)
    ]
    loader = {"batch_size": None}
    brain.fit(
        counter,
        data,
        data[:2],
        progressbar=False,
        train_loader_kwargs=loader,
        valid_loader_kwargs=loader,
    )
    return notes


def growth(notes: list[dict[str, float]], key: str) -> float:
    """The mean of the last fifth less that of the first fifth after the warm-up."""
    settled = [note[key] for note in notes[int(len(notes) * WARM_UP) :]]
    part = max(1, len(settled) // 5)
    return sum(settled[-part:]) / part - sum(settled[:part]) / part


def main() -> None:
    """All trainings, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 100 or options.steps % STEPS_PER_EPOCH:
        parser.error(f"--steps: expected a multiple of {STEPS_PER_EPOCH}, at least 100")
    if options.only:
        logging.disable(logging.WARNING)
        with tempfile.TemporaryDirectory() as folder:
            notes = train(options.steps, options.only, Path(folder))
        sys.stdout.write(json.dumps(notes))
        return
    found = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, "--steps", str(options.steps), "--only", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout[done.stdout.index("[{") :])
    if options.json:
        sys.stdout.write(json.dumps(found))
        return
    lines = [
        "| step | plain: MB | files | mam: MB | files |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for plain, mam in list(zip(found["plain"], found["mam"], strict=True))[1::3]:
        cells = (f"{note['rss_mb']:.1f} | {note['files']}" for note in (plain, mam))
        lines.append(f"| {plain['step']} | {' | '.join(cells)} |")
    grown = ", ".join(f"{name} {growth(notes, 'rss_mb'):+.2f} MB" for name, notes in found.items())
    files = ", ".join(f"{name} {growth(notes, 'files'):+.0f}" for name, notes in found.items())
    sys.stdout.write("\n".join(lines) + f"\n\ngrowth: {grown}; open files: {files}\n")


if __name__ == "__main__":
    main()
