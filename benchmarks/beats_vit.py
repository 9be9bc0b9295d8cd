#!/usr/bin/env python3
"""Learnable-MAM on BEATs-base's shape (12 × 768) with ViT-B's as donor: is each step exact?

> python benchmarks/beats_vit.py
> python benchmarks/beats_vit.py --shape tiny      # seconds: does it run at all

Random weights at the real shapes, written to disk and read as any checkpoint. Plan, zero-shot
merge, λ's gradient, fold, λ = 1 and two ranks of DDP are checked against plain computation, each
with the time it took; the exit code is 1 where one of them is off.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from speechbrain.lobes.models.beats import BEATsConfig
from torch.nn.parallel import DistributedDataParallel
from transformers import ViTConfig, ViTModel

from speechbrain_mam import Donor, LearnableMAM, Merge, find_attention, make_plan
from speechbrain_mam.learning.learnable import keep_donor_out_of_ddp
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.lobes.beats_model import BEATsModel

SHAPES = {"tiny": (3, 32, 4, 16), "base": (12, 768, 12, 512)}
"""Layers, width, heads, and width of BEATs' patches."""


def write_models(folder: Path, shape: str) -> tuple[Path, Path]:
    """A random BEATs checkpoint and a random ViT folder."""
    layers, width, heads, patches = SHAPES[shape]
    torch.manual_seed(0)
    cfg = vars(BEATsConfig()) | {
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": heads,
        "embed_dim": patches,
        "deep_norm": True,
        "relative_position_embedding": True,
        "max_distance": 800,
        "gru_rel_pos": True,
    }
    torch.save({"cfg": cfg, "model": BEATsModel(cfg).state_dict()}, folder / "beats.pt")
    vit = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    model = ViTModel(vit)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero in a fresh model
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder / "vit")
    return folder / "beats.pt", folder / "vit"


def features(model: BEATsEncoder, wav: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    """Without the lengths."""
    return model(wav, lens)[0]


RANKS = 2


def lam_gradients(mam: LearnableMAM) -> torch.Tensor:
    """Of every layer's λ, as one vector."""
    return torch.cat([lam.grad for lam in mam.lams if lam.grad is not None])


def train_rank(rank: int, checkpoint: Path, folder: Path, clips: torch.Tensor) -> None:
    """One step of DDP on clip ``rank``; λ's gradients and all weights go to ``rank_RANK.pt``."""
    torch.set_num_threads(1)
    store = f"file://{checkpoint.parent / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    model, donor = BEATsEncoder(checkpoint), Donor(folder)
    model.model.eval()  # no dropout, but gradients
    mam = LearnableMAM(model, make_plan(find_attention(model), donor.index, lam=0.7), donor)
    keep_donor_out_of_ddp(model)
    parallel = DistributedDataParallel(model)
    parallel(clips[rank : rank + 1])[0].select(-1, 0).mean().backward()
    gradients = lam_gradients(mam)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    content = {"gradients": gradients, "state": model.state_dict()}
    torch.save(content, checkpoint.with_name(f"rank_{rank}.pt"))
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> int:
    """Run every check and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a clip; default 5")
    options = parser.parse_args(arguments)
    failures = 0
    since = time.perf_counter()

    def report(what: str, good: bool, detail: str) -> None:
        nonlocal since, failures
        failures += not good
        took_s = time.perf_counter() - since
        sys.stdout.write(f"{what:<12}{'ok' if good else 'WRONG':<7}{took_s:7.2f} s  {detail}\n")
        since = time.perf_counter()

    layers = SHAPES[options.shape][0]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, folder = write_models(Path(scratch), options.shape)
        wav = 0.1 * torch.randn(2, int(options.seconds * 16000))
        lens = torch.tensor([1.0, 0.6])
        since = time.perf_counter()
        model, donor = BEATsEncoder(checkpoint, trainable="none").eval(), Donor(folder)
        plan = make_plan(find_attention(model), donor.index, lam=0.7)
        good = len(plan.entries) == layers * 3 * 2
        report("load, plan", good, f"{len(plan.entries)} tensors, {plan.target_heads} heads")

        with torch.no_grad():
            untouched = features(model, wav, lens)
        since = time.perf_counter()
        before = {entry.target: model.get_parameter(entry.target).clone() for entry in plan.entries}
        merge = Merge(model, plan, donor)
        worst = max(
            (
                model.get_parameter(e.target)
                - (0.7 * before[e.target].double() + 0.3 * donor.tensor(e.donor_key).double())
            )
            .abs()
            .max()
            .item()
            for e in plan.entries
        )
        report("merge", worst < 1e-6, f"worst distance from the formula {worst:.1e}")
        with torch.no_grad():
            merged = features(model, wav, lens)
        merge.undo()
        with torch.no_grad():
            good = torch.equal(features(model, wav, lens), untouched)
        moved = (merged - untouched).abs().mean().item()
        report("take back", good, f"bit-identical features; merged, they move by {moved:.3f}")

        ones = make_plan(find_attention(model), donor.index, lam=1)
        at_one = LearnableMAM(model, ones, donor)
        with torch.no_grad():
            good = torch.equal(features(model, wav, lens), untouched)
        report("λ = 1", good, "bit-identical features with λ in the model")
        at_one.remove()

        mam = LearnableMAM(model, plan, donor)
        # Not their squares: behind a layer norm, those have the same mean whatever λ is
        weight = torch.randn_like(untouched)
        (features(model, wav, lens) * weight).mean().backward()
        found = lam_gradients(mam)
        mam.remove()
        lams = torch.full((layers,), 0.7, requires_grad=True)
        state = {
            e.target: torch.lerp(donor.tensor(e.donor_key), before[e.target], lams[e.layer])
            for e in plan.entries
        }
        plain = torch.func.functional_call(model, state, (wav, lens))[0]
        (plain * weight).mean().backward()
        assert lams.grad is not None
        worst = ((found - lams.grad).abs().max() / lams.grad.abs().max()).item()
        good = worst < 1e-3 and found.abs().min().item() > 0
        report("gradient", good, f"∂L/∂λ against plain autograd: worst relative {worst:.1e}")

        mam.insert()
        with torch.no_grad():
            live = features(model, wav, lens)
            mam.fold()
            worst = (features(model, wav, lens) - live).abs().max().item()
            good = worst < 1e-4 and (live - merged).abs().max().item() < 1e-3
        report("fold", good, f"folded against live: worst {worst:.1e}")

        mp.spawn(train_rank, (checkpoint, folder, wav), nprocs=RANKS)
        model = BEATsEncoder(checkpoint).eval()
        mam = LearnableMAM(model, plan, donor)
        for clip in wav.split(1):
            (model(clip)[0].select(-1, 0).mean() / RANKS).backward()
        wanted = lam_gradients(mam)
        one, two = (
            torch.load(checkpoint.with_name(f"rank_{i}.pt"), weights_only=True)
            for i in range(RANKS)
        )
        worst = ((one["gradients"] - wanted).abs().max() / wanted.abs().max()).item()
        same = all(torch.equal(one["state"][name], two["state"][name]) for name in one["state"])
        detail = f"∂L/∂λ against one process: worst relative {worst:.1e}"
        detail += "; after a step both ranks have the same weights" if same else "; ranks differ"
        report("two ranks", same and worst < 1e-3 and wanted.abs().min().item() > 0, detail)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
