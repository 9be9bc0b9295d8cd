#!/usr/bin/env python3
"""How well the first-order probe foretells what merging one part alone does to the loss.

> python benchmarks/probe_rank.py results/LJSpeech/mam_zeroshot/1986/save/valid.csv

Brute force merges each layer alone, and each projection of each layer alone, at λ = 0.95, and
measures the validation loss. The probe had one pass. What is printed is Spearman's rank correlation
between its scores and the measured changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import speechbrain as sb
import torch
from scipy.stats import spearmanr
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader

from speechbrain_mam import Donor, Merge, find_attention, make_plan
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.search.prefix_cache import PrefixCache
from speechbrain_mam.search.probe import probe
from speechbrain_mam.tasks.asr_data import speech_dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="a valid.csv out of a recipe's save folder")
    parser.add_argument("--target", default="speechbrain_mam/hubert-mini")
    parser.add_argument("--donor", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--lam", type=float, default=0.95)
    parser.add_argument("--json", metavar="FILE", type=Path)
    args = parser.parse_args(argv)
    encoder, donor = HubertCTC(args.target, trainable="none").eval(), Donor(args.donor)
    root = json.loads(args.manifest.with_name("prepared.json").read_text())["data_folder"]
    dataset = speech_dataset(args.manifest, root, encoder).filtered_sorted(sort_key="duration")
    batches = list(SaveableDataLoader(dataset, batch_size=8, collate_fn=PaddedBatch))
    index = find_attention(encoder)
    blank = encoder.alphabet.blank_index

    def loss_of(batch: PaddedBatch) -> torch.Tensor:
        log_probs, lens = encoder(*batch.sig)
        return sb.nnet.losses.ctc_loss(log_probs, batch.tokens.data, lens, batch.tokens.lengths,
                                       blank_index=blank)  # fmt: skip

    found = probe(
        encoder,
        make_plan(index, donor.index),
        donor,
        ((loss_of(batch), len(batch)) for batch in batches),
    )

    @torch.no_grad()
    def mean_loss(cache: PrefixCache) -> float:
        total = 0.0
        for i, batch in enumerate(batches):
            with cache.batch(i):
                total += loss_of(batch).item() * len(batch)
        return total / sum(map(len, batches))

    rows = []
    with PrefixCache(encoder, 0) as cache:
        before = mean_loss(cache)
        for layer in found.layers:
            for projections in ("qkv", *found.projections):
                plan = make_plan(
                    index, donor.index, lam=args.lam, layers=[layer],
                    projections=projections if projections == "qkv" else [projections],
                )  # fmt: skip
                with Merge(encoder, plan, donor):
                    rows.append((layer, projections, mean_loss(cache) - before))
    by_layer, by_projection = found.score("layer")[0], found.score("layer", "projection")[0]
    pairs: dict[str, list[tuple[float, float]]] = {"layers": [], "projections": []}
    print(f"validation loss {before:.4f}; λ = {args.lam:g} in one part alone")
    print(f"{'layer':>5}  {'part':<6}{'foretold':>10}{'measured':>10}")
    for layer, part, change in rows:
        i = found.layers.index(layer)
        kind = "layers" if part == "qkv" else "projections"
        score = by_layer[i] if part == "qkv" else by_projection[i][found.projections.index(part)]
        foretold = score * (1 - args.lam)
        pairs[kind].append((foretold, change))
        print(f"{layer:>5}  {part:<6}{foretold:>+10.5f}{change:>+10.5f}")
    result = {}
    for kind, values in pairs.items():
        rho, p = spearmanr(*zip(*values, strict=True))
        result[kind] = {"n": len(values), "spearman": float(rho), "p": float(p)}
        print(f"{kind}: Spearman's ρ = {rho:+.2f} (n = {len(values)}, p = {p:.2g})")
    if args.json:
        args.json.write_text(json.dumps({**result, "rows": rows}, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
