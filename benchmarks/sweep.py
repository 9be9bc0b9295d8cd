#!/usr/bin/env python3
"""What a λ sweep costs against as many separate evaluations, at HuBERT-base's shape on a CPU.

> python benchmarks/sweep.py                      # 11 λ, all layers and the upper half
> python benchmarks/sweep.py --json benchmarks/sweep.json
> python benchmarks/sweep.py --shape tiny         # seconds: does it run at all

A separate evaluation merges one λ and runs the whole model on every batch; loading the model, which
a sweep does once too, is not counted in its disfavour. Separate and swept evaluations take turns in
one process, so that whatever else the machine does hits both; times are the process's CPU time. The
outputs must be equal to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from transformers import BertConfig, BertModel
from variants import SHAPES, save_checkpoint

from speechbrain_mam import MAM
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.search.grid import Point, Scored, points_of
from speechbrain_mam.search.sweep import Sweep

GRID = [round(0.5 + 0.045 * i, 3) for i in range(11)]
GOALS = {"all": 0.75, "upper half": 0.45}


class Outputs:
    """Evaluates by a hash of every output's bits, so that equal scores are equal outputs."""

    def __init__(self, model: HubertCTC, batches: Sequence[torch.Tensor]):
        self.model, self.batches, self.seconds = model, batches, 0.0

    @torch.no_grad()
    def __call__(self, around) -> dict[str, tuple[int, int]]:
        """Scores by 'utterance'."""
        found = {}
        for i, wav in enumerate(self.batches):
            with around(i):
                log_probs, _ = self.model(wav)
            for j, row in enumerate(log_probs):
                found[f"{i}-{j}"] = (hash(row.numpy().tobytes()), 1)
        return found


def measure(mam: MAM, donor: str, score: Outputs, layers: Sequence[int], folder: Path):
    """CPU seconds of separate and swept evaluations, and whether the outputs are the same."""
    points = points_of(GRID, {"subset": layers}, [donor])
    alone = Sweep(mam, score, folder / "alone", cache_mb=0, progress=False)
    swept = Sweep(mam, score, folder / "swept", progress=False)
    seconds = {"separate": 0.0, "sweep": 0.0}
    expected: list[Scored] = []

    def timed(name: str, sweep: Sweep, part: Sequence[Point]) -> list[Scored]:
        start = time.process_time()
        results = sweep.run(part)
        seconds[name] += time.process_time() - start
        return results

    # The sweep stands between the separate evaluations: a machine that gets slower hits both.
    for point in points[: len(points) // 2]:
        expected += timed("separate", alone, [point])
    results = timed("sweep", swept, points)
    for point in points[len(points) // 2 :]:
        expected += timed("separate", alone, [point])
    return seconds, [r.errors for r in results] == [r.errors for r in expected]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="base")
    parser.add_argument("--batches", type=int, default=2, help="of 4 × 4 s (base)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    shape = SHAPES[args.shape]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint(shape, folder / "hubert")
        model = HubertCTC(folder / "hubert", trainable="none").eval()
        config = model.model.config
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        bert = BertModel(BertConfig(vocab_size=32, **{k: getattr(config, k) for k in sizes}))
        bert.save_pretrained(folder / "bert")
        length = int(16000 * shape.duration_s)
        batches = [torch.randn(shape.batch, length) for _ in range(args.batches)]
        mam = MAM(model, str(folder / "bert"), learnable=False)
        score = Outputs(model, batches)
        score(lambda _: nullcontext())  # warm-up
        half = config.num_hidden_layers // 2
        subsets = {
            "all": range(config.num_hidden_layers),
            "upper half": range(half, config.num_hidden_layers),
        }
        rows: dict[str, dict[str, Any]] = {}
        for subset, layers in subsets.items():
            seconds, same = measure(mam, str(folder / "bert"), score, layers, folder / subset)
            ratio = seconds["sweep"] / seconds["separate"]
            rows[subset] = {**seconds, "ratio": ratio, "identical": same, "goal": GOALS[subset]}
    print(f"{args.shape}, {len(GRID)} λ, {args.batches} batches of "
          f"{shape.batch} × {shape.duration_s:g} s, CPU seconds")  # fmt: skip
    print(f"{'layers':<12}{'separate':>10}{'sweep':>10}{'ratio':>8}{'goal':>7}  outputs")
    for subset, row in rows.items():
        outputs = "bit-identical" if row["identical"] else "DIFFERENT"
        print(f"{subset:<12}{row['separate']:>10.1f}{row['sweep']:>10.1f}{row['ratio']:>8.3f}"
              f"{row['goal']:>7.2f}  {outputs}")  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    # At the tiny shape the front end costs nothing, so there only the outputs count.
    goals = {name: GOALS[name] if args.shape == "base" else 9.0 for name in rows}
    reached = all(row["identical"] and row["ratio"] <= goals[n] for n, row in rows.items())
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
