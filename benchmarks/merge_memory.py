"""Peak memory and time of ``speechbrain-mam merge`` at HuBERT-Large's and BERT-large's shapes.

Writes two models of the real shapes with random values (4 GB of disk, removed afterwards), merges
them in a process of its own, and compares the result byte by byte and value by value. ``--ways
numpy torch`` does the same merge with torch's arithmetic too, which other merges take. ``small`` is
a merge of the HuBERT-mini that is shipped (with itself): most of it is the start of the command.

To run: python benchmarks/merge_memory.py [--ways numpy torch] [--times 3] [--folder DIR] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PEAK = r"""
import re, sys
from pathlib import Path
{first}
from speechbrain_mam.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""
"""The command, and the most memory it had (ru_maxrss would count that of the parent, too)."""

WAYS = {
    "numpy": "",
    "torch": "from speechbrain_mam.merging import on_disk; on_disk._is_plain = lambda plan: False",
}
"""What does the arithmetic, and what makes the command take that way."""

SMALL = "speechbrain_mam/hubert-mini"

MERGED = re.compile(r"attention\.(self\.(query|key|value)|[qkv]_proj)\.(weight|bias)$")


def shapes() -> dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]]:
    """Configuration and tensor shapes of the two models; no memory is taken for values."""
    import torch
    from transformers import BertConfig, BertModel, HubertConfig, HubertForCTC

    hubert = HubertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
    )
    bert = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    with torch.device("meta"):
        models = {"target": HubertForCTC(hubert), "donor": BertModel(bert)}
    return {
        role: (
            model.config.to_dict(),
            {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        )
        for role, model in models.items()
    }


def write_model(
    folder: Path, config: dict[str, Any], tensors: dict[str, tuple[int, ...]], seed: int
) -> None:
    """A float32 model folder: normal values in the attention, random bytes elsewhere.

    Only the first megabyte of the other tensors is written, the rest is a hole that reads as
    zeros: that is what makes this affordable as a test.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    tile = random.bytes(1 << 20)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            size = int(np.prod(shape))
            if MERGED.search(name):
                values = random.standard_normal(size, np.float32) * np.float32(0.03)
                stream.write(values.tobytes())
            else:
                stream.write(tile[: 4 * size])
                stream.seek(max(0, 4 * size - len(tile)), io.SEEK_CUR)
        stream.truncate()


def tensors_of(file: Path) -> Iterator[tuple[str, bytes]]:
    """Every tensor's bytes, and the header's under the name ``""``."""
    with file.open("rb") as stream:
        text = stream.read(*struct.unpack("<Q", stream.read(8)))
        yield "", text
        header = json.loads(text)
        header.pop("__metadata__")
        for name, entry in header.items():  # as they lie in the file
            start, end = entry["data_offsets"]
            yield name, stream.read(end - start)
        assert not stream.read(1)


def merge(
    target: Path | str, donor: Path | str, out: Path, lam: float, way: str = "numpy"
) -> tuple[float, float, float]:
    """Peak memory in MB, wall time and CPU time in seconds of one merge."""
    arguments = ["merge", str(target), str(donor), "--lam", str(lam), "--out", str(out), "--force"]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    code = PEAK.format(first=WAYS[way])
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return int(ended.stdout.split()[-1]) * 1024 / 1e6, wall, cpu


def compare(target: Path, donor: Path, out: Path, lam: float) -> dict[str, Any]:
    """Which tensors changed, and how far they are from λ·W_target + (1−λ)·W_donor."""
    theirs = {
        re.sub(r"\D*(\d+).*\.(query|key|value)\.(\w+)$", r"\1 \2 \3", name): raw
        for name, raw in tensors_of(donor / "model.safetensors")
        if MERGED.search(name)
    }
    pairs = zip(
        tensors_of(target / "model.safetensors"), tensors_of(out / "model.safetensors"), strict=True
    )
    changed, worst, letters = [], 0.0, {"q": "query", "k": "key", "v": "value"}
    for (name, before), (same_name, after) in pairs:
        assert name == same_name
        if before != after:
            changed.append(name)
        if match := re.search(r"layers\.(\d+)\.attention\.([qkv])_proj\.(\w+)$", name):
            source = theirs[f"{match[1]} {letters[match[2]]} {match[3]}"]
            a, b, merged = (np.frombuffer(raw, "<f4") for raw in (before, source, after))
            exact = lam * a.astype(np.float64) + (1 - lam) * b
            size = np.spacing(np.maximum(np.abs(a), np.abs(b)))
            worst = max(worst, float(np.max(np.abs(merged - exact) / size)))
    return {
        "tensors_changed": len(changed),
        "weights_changed": sum(name.endswith(".weight") for name in changed),
        "others_changed": [name for name in changed if not MERGED.search(name)],
        "worst_error_in_fp32_spacings": worst,
    }


def measure(
    folder: Path, lam: float = 0.9, end: bool = True, way: str = "numpy", times: int = 1
) -> dict[str, Any]:
    """Everything this benchmark tells of a way, as one row; λ = 1 and small models where ``end``.

    Of several ``times`` the medians.
    """
    target, donor, out = folder / "target", folder / "donor", folder / "out"
    if not target.exists():
        for seed, (role, (config, tensors)) in enumerate(shapes().items()):
            write_model(folder / role, config, tensors, seed)
    row: dict[str, Any] = {"way": way, "lam": lam}
    row |= medians("", times, target, donor, out, lam, way)
    row["file_mb"] = (target / "model.safetensors").stat().st_size / 1e6
    row |= compare(target, donor, out, lam)
    if end:
        merge(target, donor, out, 1, way)
        row["lam_1_changed"] = compare(target, donor, out, lam=1)["tensors_changed"]
        row |= medians("small_", times, SMALL, SMALL, folder / "small", lam, way)
    return row


def medians(prefix: str, times: int, *arguments: Any) -> dict[str, float]:
    """Of what :func:`merge` gives, called so many times."""
    found = zip(*(merge(*arguments) for _ in range(times)), strict=True)
    names = (f"{prefix}{name}" for name in ("peak_mb", "time_s", "cpu_s"))
    return dict(zip(names, map(statistics.median, found), strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lam", type=float, default=0.9)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["numpy"])
    parser.add_argument("--times", type=int, default=1, help="merges a way; the medians are shown")
    parser.add_argument("--folder", type=Path, help="where 5 GB of disk are free")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for way in options.ways:
            row = measure(Path(scratch), options.lam, way=way, times=options.times)
            if options.json:
                print(json.dumps(row))
                continue
            for key, value in row.items():
                print(f"{key:30} {value:.4g}" if isinstance(value, float) else f"{key:30} {value}")
            print()


if __name__ == "__main__":
    main()
