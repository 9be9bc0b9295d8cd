"""Three steps of Learnable-MAM on a tiny BEATs under DDP; started by test_beats.py.

> torchrun --nproc_per_node=2 tests/ddp_beats.py CHECKPOINT DONOR OUT
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from speechbrain_mam import Donor, LearnableMAM, find_attention, make_plan
from speechbrain_mam.learning.learnable import keep_donor_out_of_ddp
from speechbrain_mam.lobes.beats import BEATsEncoder


def main(checkpoint: str, donor_folder: str, out: str) -> None:
    """Train, and write what this rank has at the end to ``OUT/{rank}.pt``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    encoder = BEATsEncoder(checkpoint).train()
    donor = Donor(donor_folder)
    mam = LearnableMAM(encoder, make_plan(find_attention(encoder), donor.index, lam=0.9), donor)
    keep_donor_out_of_ddp(encoder)
    model = DistributedDataParallel(encoder)
    theirs = {id(lam) for lam in mam.parameters()}
    weights = [p for p in encoder.parameters() if id(p) not in theirs]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": mam.parameters()}], lr=1e-3)
    torch.manual_seed(rank)
    seen = []
    for _ in range(3):
        wav = torch.randn(2, 8000)
        seen.append(wav.sum().item())
        features, _ = model(wav, torch.tensor([1.0, 0.6]))
        optimizer.zero_grad()
        features.square().mean(1).sum().backward()
        optimizer.step()
        mam.project_()
    torch.save({"state": encoder.state_dict(), "seen": seen}, Path(out) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
