#!/usr/bin/env python3
"""What λ costs in attention that reads its projections' weights instead of calling them.

> python benchmarks/reads_weight.py                      # HuBERT-large's width, CPU, one thread
> python benchmarks/reads_weight.py --width 64 --steps 2 # seconds: does it run at all

Nothing is downloaded: random weights, random input. One attention module of each kind, forward
(``no_grad``) and forward + backward, in three variants:

plain       the module as it is
mam         query, key and value merged with λ; what the forward pass reads is merged once
each read   the same, merged at every read of a weight or bias

The variants take turns, each time in another order; a ratio is the median over rounds of
(this variant / plain in the same round). ``merges`` are the merges of a projection in one forward
pass; where one tensor holds query, key and value, all three are merged together.

Everything is timed twice, as in ``train_step.py``: ``as it comes``, where glibc gives a merged
weight's memory back and takes it again page by page, and ``memory kept``, without those faults.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from train_step import AS_IT_COMES, KEPT, keep_freed_memory
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from speechbrain_mam.architectures.parts import Part
from speechbrain_mam.learning.linear import MergedLinearByWeight
from speechbrain_mam.learning.module import MergedModule
from speechbrain_mam.learning.once_a_forward import keep_merged_within
from speechbrain_mam.learning.other_layers import Piece, merge_rows
from speechbrain_mam.merging.methods import METHODS

LAM, HEADS = 0.95, 16
VARIANTS = ("plain", "mam", "each read")


def torch_attention(width: int, merged: bool) -> nn.Module:
    """torch.nn.MultiheadAttention, as in SpeechBrain's Transformer; one tensor for Q, K and V."""
    plain = nn.MultiheadAttention(width, HEADS, batch_first=True)
    if not merged:
        return plain
    lam = nn.Parameter(torch.tensor([LAM]))
    pieces = [Piece(Part(width, place=i, of=3), slice(None), True) for i in range(3)]
    donor = torch.randn(3 * width, width) * 0.02, torch.randn(3 * width) * 0.02
    return merge_rows(plain, pieces, *donor, lam, METHODS["linear"], False, True)


def wavlm_attention(width: int, merged: bool) -> nn.Module:
    """WavLM's attention; a layer each for Q, K and V."""
    attention = WavLMAttention(embed_dim=width, num_heads=HEADS)
    if merged:
        lam = nn.Parameter(torch.tensor([LAM]))
        for name in ("q_proj", "k_proj", "v_proj"):
            donor = torch.randn(width, width) * 0.02, torch.randn(width) * 0.02
            plain = attention.get_submodule(name)
            setattr(attention, name, MergedLinearByWeight(plain, *donor, lam))
    return attention


ATTENTIONS: dict[str, Callable[[int, bool], nn.Module]] = {
    "torch.nn.MultiheadAttention": torch_attention,
    "WavLMAttention": wavlm_attention,
}


def build(name: str, variant: str, width: int) -> nn.Module:
    """An attention module; the same weights in each variant."""
    torch.manual_seed(0)
    module = ATTENTIONS[name](width, variant != "plain").train()
    if variant == "mam":
        keep_merged_within([module])
    return module


def run(module: nn.Module, x: Tensor) -> Tensor:
    """The attention's output ``[B, T, C]``."""
    if isinstance(module, nn.MultiheadAttention):
        return module(x, x, x, need_weights=False)[0]
    return module(x)[0]


def merges(module: nn.Module, x: Tensor) -> float:
    """How often a merged module is merged in one forward pass, on average."""
    merged = [part for part in module.modules() if isinstance(part, MergedModule)]
    count = 0
    for kind in {type(part) for part in merged}:
        method = kind.merged

        def counted(part: MergedModule, method: Callable = method) -> Any:
            nonlocal count
            count += 1
            return method(part)

        kind.merged = counted  # type: ignore[method-assign]
    run(module, x)
    for kind in {type(part) for part in merged}:
        del kind.merged
    return count / len(merged) if merged else 0.0


def measure(name: str, width: int, x: Tensor, steps: int, train: bool) -> dict[str, Any]:
    """Seconds and ratios of all variants, merges per forward pass."""
    modules = {variant: build(name, variant, width) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(-2, steps):
        for variant in random.Random(turn).sample(VARIANTS, len(VARIANTS)):
            gc.collect()
            start = time.process_time()
            with torch.set_grad_enabled(train):
                output = run(modules[variant], x)
                if train:
                    output.square().sum().backward()
            elapsed = time.process_time() - start
            modules[variant].zero_grad()
            if turn >= 0:
                seconds[variant].append(elapsed)
    found = {}
    for variant in VARIANTS:
        ratios = [a / b for a, b in zip(seconds[variant], seconds["plain"], strict=True)]
        found[variant] = {
            "seconds": statistics.median(seconds[variant]),
            "ratio": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2],
            "merges": merges(modules[variant], x),
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    first_line = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=first_line)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=200, help="20 ms each in HuBERT and WavLM")
    parser.add_argument("--steps", type=int, default=15, help="rounds that are timed (2 at least)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args(argv)
    if args.steps < 2:
        parser.error("--steps: at least 2")
    torch.set_num_threads(args.threads)
    x = torch.randn(args.batch, args.frames, args.width)
    content = {}
    for setting in (AS_IT_COMES, KEPT):
        if setting == KEPT:
            keep_freed_memory()
        for name in ATTENTIONS:
            for train in (False, True):
                what = "forward + backward" if train else "forward"
                found = measure(name, args.width, x, args.steps, train)
                content[f"{setting}, {name}, {what}"] = found
                for variant, row in found.items():
                    low, high = row["quartiles"]
                    print(
                        f"{setting}  {name:27}  {what:18}  {variant:9}  "
                        f"{1000 * row['seconds']:6.1f} ms  {row['ratio']:.3f} "
                        f"({low:.3f}–{high:.3f})  {row['merges']:.1f} merges",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if any(found["mam"]["merges"] != 1 for found in content.values()):
        sys.exit("a projection was merged more than once in a forward pass")


if __name__ == "__main__":
    main()
