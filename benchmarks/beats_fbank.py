#!/usr/bin/env python3
"""What BEATs' filter banks cost here against SpeechBrain's loop over the clips.

> python benchmarks/beats_fbank.py                     # 16 clips of 5 s
> python benchmarks/beats_fbank.py --json benchmarks/beats_fbank.json
> python benchmarks/beats_fbank.py --device cuda

Both take turns in one process on the same clips, so that whatever else the machine does hits both;
the ratio is the median of the rounds' own ratios. It ends with an error where the values differ by
more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from speechbrain.lobes.models.beats import BEATs

from speechbrain_mam.lobes.fbank import SAMPLE_RATE_HZ, FilterBanks


def speechbrains(wav: torch.Tensor) -> torch.Tensor:
    """SpeechBrain's filter banks, not shifted and not scaled; no model is needed for them."""
    return BEATs.preprocess(None, wav, fbank_mean=0.0, fbank_std=0.5)


def seconds(run: Callable[[torch.Tensor], torch.Tensor], wav: torch.Tensor) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run(wav)
    if wav.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether the values are the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16, help="clips in the batch; default 16")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a clip; default 5")
    parser.add_argument("--rounds", type=int, default=30, help="pairs of timings; default 30")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; default 1")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    torch.manual_seed(0)
    wav = 0.1 * torch.randn(options.clips, int(options.seconds * SAMPLE_RATE_HZ))
    wav = wav.to(options.device)
    ours = FilterBanks().to(options.device)
    worst = (ours(wav) - speechbrains(wav)).abs().max().item()
    loop, batch = [], []
    for _ in range(options.rounds):
        loop.append(seconds(speechbrains, wav))
        batch.append(seconds(ours, wav))
    ratios = [one / other for one, other in zip(loop, batch, strict=True)]
    found = {
        "clips": options.clips,
        "seconds": options.seconds,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "speechbrain_ms": round(1000 * statistics.median(loop), 2),
        "batch_ms": round(1000 * statistics.median(batch), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)[::2]],
        "worst_difference": worst,
    }
    low, high = found["ratio_quartiles"]
    sys.stdout.write(
        f"{options.clips} clips of {options.seconds:g} s on {options.device}, "
        f"{found['threads']} threads: SpeechBrain's loop {found['speechbrain_ms']} ms, "
        f"one batch {found['batch_ms']} ms: {found['ratio']} × faster "
        f"(quartiles {low} to {high} of {options.rounds} pairs); "
        f"worst difference {worst:.1e}\n"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
