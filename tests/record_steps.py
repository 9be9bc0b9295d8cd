"""Run a recipe as ``python record_steps.py OUT train.py …`` and keep λ and weights of every step.

``OUT/rank{r}.pt`` holds one flat tensor a step: all λ, then all trained parameters. With
``KILL_AFTER_STEPS=n`` in the environment the process dies there, as a cancelled job does.
"""

import os
import runpy
import sys
from pathlib import Path

import torch

from speechbrain_mam.asr import ASR

out, script = Path(sys.argv[1]), sys.argv[2]
kill_after = int(os.environ.get("KILL_AFTER_STEPS", "0"))
steps = []
original = ASR.on_fit_batch_end


def on_fit_batch_end(self, *args):
    original(self, *args)
    lams = self.mam.live.parameters() if self.mam is not None else []
    tensors = [p.detach().flatten() for p in (*lams, *self.modules.parameters())]
    steps.append(torch.cat(tensors).clone())
    torch.save(torch.stack(steps), out / f"rank{os.environ.get('RANK', '0')}.pt")


checked = ASR._should_save_intra_epoch_ckpt


def die_after_checkpoint(self, *args):
    if kill_after and len(steps) == kill_after:
        os._exit(9)
    return checked(self, *args)


ASR.on_fit_batch_end = on_fit_batch_end
ASR._should_save_intra_epoch_ckpt = die_after_checkpoint
sys.argv = sys.argv[2:]
sys.path.insert(0, str(Path(script).parent))
runpy.run_path(script, run_name="__main__")
