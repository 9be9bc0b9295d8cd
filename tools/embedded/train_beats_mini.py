"""Trains BEATs-mini, the audio encoder behind the package's ESC-50 defaults.

To run this (``--data`` is what ``make_training_sounds.py`` wrote):

> python -m tools.embedded.train_beats_mini --data training_sounds --out OUT

All weights start random but the code of the band (see ``mark_bands``). Always, Whisper's states of
the same sound and the statistics of the filter banks are regressed. (1) Self-supervised, patches
are masked and the labels that a random-projection quantizer gives them are predicted; (2)
supervised, the kinds of the sounds in a clip are predicted. For ``shallow_steps`` there is one
layer only, at a third of the cost; then the others join in, and add nothing at first. Run again, it
resumes, and reads clips that have been made meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from speechbrain_mam.search.place import fast_precision
from tools.embedded.beats_mini_model import (
    FBANK_MEAN,
    FBANK_STD,
    encode,
    export,
    from_patches,
    make_model,
    pass_through,
    to_patches,
)
from tools.embedded.beats_mini_targets import Heads, Quantizer

logger = logging.getLogger(__name__)

WARMUP_STEPS = 30
EPOCH_STEPS = 100
MASKED, MASKED_SUPERVISED = 0.4, 0.1
"""Share of the patches that are masked in each phase."""
MASK_NOISE, GAIN = 0.1, 0.2
"""Standard deviations of a masked patch and of a clip's shift: 0.2 is 11 dB."""
CODES_WEIGHT, KINDS_WEIGHT, STATISTICS_WEIGHT = 0.1, 0.1, 0.5

Batch = tuple[Tensor, Tensor, Tensor]


class Clips(IterableDataset):
    """An epoch of random batches of the clips that there are when it starts.

    Arguments
    ---------
    folder : Path
        With the files of ``make_training_sounds``.
    batch_size, steps : int
        Clips in a batch, and batches.
    """

    def __init__(self, folder: Path, batch_size: int, steps: int = EPOCH_STEPS) -> None:
        self.folder, self.batch_size, self.steps = folder, batch_size, steps
        self.parts: dict[Path, dict[str, Tensor]] = {}
        self.load()

    def load(self) -> None:
        """Read the files that are new."""
        for path in sorted(self.folder.glob("*.pt")):
            if path not in self.parts:
                self.parts[path] = torch.load(path, weights_only=True)
        if not self.parts:
            raise FileNotFoundError(f"{self.folder}: no clips; make_training_sounds.py makes them")

    def __iter__(self) -> Iterator[Batch]:
        self.load()
        ends = torch.tensor([len(part["kinds"]) for part in self.parts.values()]).cumsum(0)
        parts = list(self.parts.values())
        order = torch.randperm(int(ends[-1]))
        for step in range(self.steps):
            chosen = order[torch.arange(self.batch_size) + step * self.batch_size - len(order)]
            items: list[list[Tensor]] = [[], [], []]
            for number in chosen.tolist():
                place = int(torch.searchsorted(ends, number, right=True))
                first = int(ends[place - 1]) if place else 0
                for item, name in zip(items, ("wavs", "rows", "kinds"), strict=True):
                    item.append(parts[place][name][number - first])
            wavs, rows, kinds = (torch.stack(item) for item in items)
            yield wavs.float() / 32768, rows, kinds


class BeatsMiniBrain(sb.Brain):
    """Masked prediction for ``ssl_steps``, then kinds of sound; Whisper's states in both."""

    def compute_forward(self, batch, stage):
        """Features, filter banks and patches without masks, the mask ``[B, N]``."""
        model = self.modules.model
        depth = 1 if self.optimizer_step < self.hparams.shallow_steps else None
        with torch.no_grad():
            fbank = model.preprocess(batch[0], FBANK_MEAN, FBANK_STD)
            patches = to_patches(fbank)
            share = MASKED if self.in_masked_phase() else MASKED_SUPERVISED
            mask = torch.rand(patches.shape[:2]) < share
            heard = patches + GAIN * torch.randn(len(patches), 1, 1)
            heard[mask] = MASK_NOISE * torch.randn(int(mask.sum()), patches.shape[2])
        return encode(model, from_patches(heard), depth), fbank, patches, mask

    def compute_objectives(self, predictions, batch, stage):
        """The phase's loss, and the distances from Whisper's states and from the statistics."""
        features, fbank, patches, mask = predictions
        _, rows, kinds = batch
        heads = self.modules.heads
        self.errors = heads.teacher_error(features, rows), heads.statistics_error(features, fbank)
        loss = self.errors[0] + STATISTICS_WEIGHT * self.errors[1]
        if self.in_masked_phase():
            codes = heads.codes(features[mask]).float()
            self.task = F.cross_entropy(codes, self.hparams.quantizer(patches)[mask])
            return loss + CODES_WEIGHT * self.task
        logits = heads.kinds(features.mean(1)).float().log_softmax(-1)
        self.task = -logits.gather(1, kinds).mean()
        return loss + KINDS_WEIGHT * self.task

    def in_masked_phase(self) -> bool:
        """Whether labels are not used yet."""
        return self.optimizer_step < self.hparams.ssl_steps

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate: warm-up, then linear to 0."""
        steps = self.hparams.steps
        share = min((self.optimizer_step + 1) / WARMUP_STEPS, 1.02 - self.optimizer_step / steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr * min(1.0, max(0.0, share))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Logs every 20 steps."""
        if self.optimizer_step % 20 == 0:
            whisper, statistics = self.errors
            self.log(
                f"loss {float(loss):.3f} whisper {whisper:.3f} statistics {statistics:.3f} "
                f"task {self.task:.3f}"
            )

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """After an epoch: the checkpoint, and the model as it will be shipped."""
        self.log(f"epoch {epoch} mean loss {stage_loss:.4f}")
        export(self.modules.model, self.hparams.out / "beats_mini.pt")
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch}, num_to_keep=1)

    def log(self, text: str) -> None:
        """A line of ``train_log.txt``."""
        phase = "masked" if self.in_masked_phase() else "kinds"
        line = f"step {self.optimizer_step} ({phase}) {text} | cpu {time.process_time():.0f} s"
        logger.info(line)
        with open(self.hparams.out / "train_log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train BEATs-mini.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800, help="in all")
    parser.add_argument("--ssl_steps", type=int, default=80, help="the first, self-supervised ones")
    parser.add_argument("--shallow_steps", type=int, default=340, help="with one layer only")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--epoch_steps", type=int, default=EPOCH_STEPS)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak")
    parser.add_argument("--start", type=Path, help="a checkpoint {cfg, model} to go on from")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)

    clips = Clips(args.data, args.batch_size, args.epoch_steps)
    first = next(iter(clips.parts.values()))
    kinds = len((args.data / "kinds.txt").read_text(encoding="utf-8").splitlines())
    model = make_model()
    if args.start is not None:
        model.load_state_dict(torch.load(args.start, weights_only=True)["model"])
    elif args.shallow_steps:
        pass_through(model, 1)
    with torch.no_grad():
        known = model.preprocess(first["wavs"][:500].float() / 32768, FBANK_MEAN, FBANK_STD)
    heads = Heads(kinds, first["rows"][:500], known)
    modules = torch.nn.ModuleDict({"model": model, "heads": heads})
    counter = EpochCounter(limit=-(-args.steps // args.epoch_steps))
    brain = BeatsMiniBrain(
        modules=modules,
        opt_class=lambda p: torch.optim.AdamW(p, lr=args.lr, weight_decay=0.01, fused=True),
        hparams={
            **{"steps": args.steps, "ssl_steps": args.ssl_steps, "lr": args.lr},
            **{"shallow_steps": args.shallow_steps, "out": args.out, "quantizer": Quantizer()},
        },
        run_opts={
            "device": "cpu",
            "precision": fast_precision(),
            "max_grad_norm": 1.0,
            "skip_nonfinite_grads": True,
            "noprogressbar": True,
            "optimizer_step_limit": args.steps,
        },
        checkpointer=Checkpointer(
            args.out / "save", recoverables={"modules": modules, "counter": counter}
        ),
    )
    brain.fit(counter, DataLoader(clips, batch_size=None))


if __name__ == "__main__":
    main()
