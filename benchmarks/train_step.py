#!/usr/bin/env python3
"""What Learnable-MAM costs in a training step: time, tensors kept for backward, peak memory.

> python benchmarks/train_step.py                          # HuBERT-base's shape, CPU, float32
> python benchmarks/train_step.py --precision bf16 --json benchmarks/train_step_bf16.json
> python benchmarks/train_step.py --shape tiny --steps 3   # seconds: does it run at all

Nothing is downloaded: target and donor have the shapes of HuBERT-base and BERT-base and random
weights. A step is forward + CTC loss + backward + AdamW (and λ's Adam and projection), without the
data pipeline and gradient clipping, which would only dilute the differences. The variants:

plain             this project's fine-tuning: HubertCTC (front end without backward, no layerdrop),
                  fused AdamW
mam               the same + LearnableMAM
parametrize       the same + torch.nn.utils.parametrize, the merge as a parametrization
functional_call   the same + torch.func.functional_call over a dict of merged tensors
stock             SpeechBrain's HuBERT lobe, ``freeze_feature_extractor: True``, and a CTC layer, as
                  its recipes run it: Brain.fit puts the whole model in training mode, and the
                  library then back-propagates through the frozen front end; layerdrop 0.1 as in
                  HuBERT's configuration (one layer in ten is skipped, which saves time)
stock, layerdrop 0     the same work as plain, but for the front end's backward

All hold the same weights and see the same audio and the same random numbers. Variants step in turn,
each time in another order, so that whatever else the machine does hits all of them; a ratio is the
median over rounds of (this variant / plain in the same round).

On a CPU everything is timed twice. ``as it comes``: glibc gives freed memory back and takes it
again, up to 350,000 page faults a step, 0.1 to 1.5 s by chance; what a recipe really takes, so the
comparison with stock is this one. ``memory kept``: without those, which leaves the arithmetic; what
MAM adds to plain, half a percent to one, can only be seen here.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("SB_LOG_LEVEL", "ERROR")

import speechbrain as sb
import torch
import transformers
from torch import Tensor
from variants import (
    LAM,
    PRECISIONS,
    SHAPES,
    VARIANTS,
    Batch,
    Shape,
    Variant,
    build,
    make_batch,
    save_checkpoint,
)

MAX_TIME, MAX_TIME_OF_STOCK = 1.02, 0.85
SETTINGS = AS_IT_COMES, KEPT = "as it comes", "memory kept"


def kept_for_backward(variant: Variant, batch: Batch) -> dict[str, int]:
    """What the graph holds between forward and backward, parameters and buffers aside.

    Returns
    -------
    dict
        ``kept_tensors`` counts every tensor that an operation saved, ``kept_storages`` and
        ``kept_bytes`` count memory that several of them share once.
    """
    exists = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*variant.model.parameters(), *variant.model.buffers(), *variant.lams)
    }
    storages: dict[int, int] = {}
    tensors = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal tensors
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in exists:
            tensors += 1
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = variant.loss(batch)
    del loss
    return {
        "kept_tensors": tensors,
        "kept_storages": len(storages),
        "kept_bytes": sum(storages.values()),
    }


def peak_bytes(name: str, folder: Path, shape: Shape, precision: str, device: str) -> int:
    """Peak memory of a process that trains this variant for two steps, and does nothing else.

    On a CPU the resident set, Python and libraries included; on a GPU what torch allocated.
    """
    transformers.logging.disable_progress_bar()
    variant, batch = build(name, folder, device), make_batch(shape, precision, device)
    for _ in range(2):
        variant.step(batch)
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage may still hold the peak of the process that started this one
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def time_in_turn(
    variants: dict[str, Variant], batch: Batch, steps: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every step: each round steps each variant once, in another order."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, steps):
        note(f"round {turn + 1} of {steps}" if turn >= 0 else "warm-up")
        # shuffled, not rotated: no variant always inherits the heap and caches of the same other
        for name in random.Random(turn).sample(names, len(names)):
            gc.collect()
            gc.disable()
            clock = time.perf_counter if batch.wav.is_cuda else time.process_time
            start = clock()
            variants[name].step(replace(batch, seed=turn + warm_up))
            if batch.wav.is_cuda:
                torch.cuda.synchronize()
            elapsed = clock() - start
            gc.enable()
            if turn >= 0:
                seconds[name].append(elapsed)
    return seconds


def measure(
    folder: Path,
    shape: Shape,
    precision: str,
    device: str,
    steps: int,
    names: Sequence[str],
    memory: bool,
) -> dict[str, dict[str, Any]]:
    """All figures of all variants at one precision."""
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    if memory:
        for name in names:
            note(f"{precision}: peak memory of '{name}' in a process of its own")
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                job = pool.submit(peak_bytes, name, folder, shape, precision, device)
                results[name]["peak_bytes"] = job.result()
    batch = make_batch(shape, precision, device)
    variants = {}
    for name in names:
        note(f"{precision}: building '{name}'")
        variants[name] = build(name, folder, device)
        # before the loss is asked for: what autograd allocates lazily is then there
        results[name] |= kept_for_backward(variants[name], batch)
        results[name]["first_loss"] = float(variants[name].loss(batch).detach())
        trim()
    for setting in SETTINGS if device == "cpu" else SETTINGS[:1]:
        if setting == KEPT:
            keep_freed_memory()
        note(f"{precision}: memory {setting}")
        seconds = time_in_turn(variants, batch, steps)
        for name in names:
            ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
            to_mam = [a / b for a, b in zip(seconds["mam"], seconds[name], strict=True)]
            results[name].setdefault("time", {})[setting] = {
                "seconds": statistics.median(seconds[name]),
                "ratio": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
                "of_mam": statistics.median(to_mam),
            }
    return results


def targets(results: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What was to be reached, and whether it is."""
    plain, mam = results["plain"], results["mam"]
    arithmetic = mam["time"].get(KEPT, mam["time"][AS_IT_COMES])["ratio"]
    losses = [r["first_loss"] for n, r in results.items() if n != "plain" and "stock" not in n]
    reached = {
        f"mam takes at most {MAX_TIME} of plain's time": arithmetic <= MAX_TIME,
        "mam keeps no tensor more for backward": mam["kept_tensors"] <= plain["kept_tensors"]
        and mam["kept_storages"] <= plain["kept_storages"],
        "first losses of the MAM variants agree to 1e-4": max(losses) - min(losses) <= 1e-4,
    }
    for name, result in results.items():
        if name.startswith("stock"):
            label = f"mam takes at most {MAX_TIME_OF_STOCK} of the time of '{name}'"
            reached[label] = result["time"][AS_IT_COMES]["of_mam"] <= MAX_TIME_OF_STOCK
    return reached


def table(results: dict[str, dict[str, Any]]) -> str:
    """The figures, a line per variant; ``×`` columns are relative to plain, ``mam /`` to this."""
    settings = list(results["plain"]["time"])
    head = ["variant"]
    for setting in settings:
        head += [f"{setting}: s", "×", "quartiles", "mam /"]
    head += ["kept MB", "tensors", "peak MB", "loss"]
    rows = [tuple(head)]
    for name, r in results.items():
        cells = []
        for time_ in r["time"].values():
            low, high = time_["quartiles"]
            cells += [f"{time_['seconds']:.3f}", f"{time_['ratio']:.3f}"]
            cells += [f"{low:.3f}–{high:.3f}", f"{time_['of_mam']:.3f}"]
        rows.append(
            (
                name,
                *cells,
                f"{r['kept_bytes'] / 1e6:.1f}",
                f"{r['kept_tensors']}",
                f"{r['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in r else "–",
                f"{r['first_loss']:.4f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def environment(device: str) -> dict[str, Any]:
    """What the figures depend on besides this code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "speechbrain": sb.__version__,
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
    }


def trim() -> None:
    """Give freed memory back to the system (glibc), so that all variants fit at once."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, from here on."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(mmap_max, 0)


def note(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    first_line = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=first_line)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=10, help="rounds that are timed (2 at least)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=VARIANTS)
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="no FILE: stdout")
    args = parser.parse_args(argv)
    if args.steps < 2:
        parser.error("--steps: at least 2")
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the processes that measure memory
    names = [n for n in VARIANTS if n in {"plain", "mam", *args.variants}]
    shape = SHAPES[args.shape]
    transformers.logging.disable_progress_bar()
    out = sys.stderr if args.json == "-" else sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(shape, Path(folder))
        results = measure(
            Path(folder), shape, args.precision, args.device, args.steps, names, not args.no_memory
        )
    reached = targets(results)
    print(f"{args.precision}, {args.shape}, {shape.batch} × {shape.duration_s:g} s", file=out)
    print(table(results), file=out)
    for label, ok in reached.items():
        print(f"{'reached' if ok else 'MISSED '}  {label}", file=out, flush=True)
    setting = {"shape": args.shape, "batch": shape.batch, "duration_s": shape.duration_s}
    setting |= {"precision": args.precision, "rounds": args.steps, "lam": LAM}
    content = {"environment": environment(args.device), "setting": setting}
    content |= {"variants": results, "targets": reached}
    text = json.dumps(content, indent=2) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    elif args.json:
        Path(args.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
