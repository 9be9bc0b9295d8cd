"""Run a recipe as ``python record_steps.py OUT train.py …`` and keep λ and weights of every step.

``OUT/rank{r}.pt`` holds one flat tensor a step: all λ, then all trained parameters. With
``KILL_AFTER_STEPS=n`` in the environment the process dies there, as a cancelled job does.
"""

import os
import runpy
import sys
from pathlib import Path

import torch

from speechbrain_mam.tasks.task import TaskBrain


def record(out: Path, kill_after: int) -> None:
    """Let the Brain write down every step into `out`, and die after `kill_after` of them."""
    steps: list[torch.Tensor] = []
    original = TaskBrain.on_fit_batch_end
    checked = TaskBrain._should_save_intra_epoch_ckpt

    def on_fit_batch_end(self, *args):
        original(self, *args)
        lams = self.mam.live.parameters() if self.mam is not None else []
        tensors = [p.detach().flatten() for p in (*lams, *self.modules.parameters())]
        steps.append(torch.cat(tensors).clone())
        torch.save(torch.stack(steps), out / f"rank{os.environ.get('RANK', '0')}.pt")

    def die_after_checkpoint(self, *args):
        if kill_after and len(steps) == kill_after:
            os._exit(9)
        return checked(self, *args)

    TaskBrain.on_fit_batch_end = on_fit_batch_end
    TaskBrain._should_save_intra_epoch_ckpt = die_after_checkpoint


if __name__ == "__main__":
    record(Path(sys.argv[1]), int(os.environ.get("KILL_AFTER_STEPS", "0")))
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
