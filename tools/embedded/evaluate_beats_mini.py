"""Accuracy of a linear probe on BEATs-mini's frozen features, fold by fold.

> python -m tools.embedded.evaluate_beats_mini
> python -m tools.embedded.evaluate_beats_mini ESC50_LAYOUT_FOLDER
> python -m tools.embedded.evaluate_beats_mini --model OTHER.pt

Each clip's features are averaged over its patches and classified by multinomial logistic
regression. Each fold is tested once; the fold before it chooses the L2 penalty, the others train.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor

from speechbrain_mam.embedded.corpora import mini_corpus
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.tasks.audio import load_audio
from speechbrain_mam.tasks.clips import fit_linear_probe, mean_feature

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def read_corpus(folder: Path) -> list[tuple[Path, int, int]]:
    """File, class from 0 on, and fold of each clip of a folder in ESC-50's layout.

    Raises
    ------
    FileNotFoundError
        If there is no ``meta/esc50.csv``.
    """
    with open(folder / "meta" / "esc50.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    targets = sorted({int(row["target"]) for row in rows})
    clips = []
    for row in rows:
        path = folder / "audio" / row["filename"]
        if not path.is_file():
            path = path.with_suffix(".ogg")
        clips.append((path, targets.index(int(row["target"])), int(row["fold"])))
    return clips


@torch.no_grad()
def clip_features(encoder: BEATsEncoder, paths: list[Path]) -> Tensor:
    """Mean features ``[N, D]`` of the clips."""
    features = []
    for path in paths:
        wav = load_audio(str(path), encoder.sample_rate)[None]
        features.append(mean_feature(*encoder(wav))[0])
    return torch.stack(features)


def fold_accuracies(features: Tensor, labels: Tensor, folds: Tensor) -> dict[int, float]:
    """Share of right answers in each fold, by a probe that has seen nothing of it.

    Arguments
    ---------
    features : Tensor
        ``[N, D]``.
    labels, folds : Tensor
        ``[N]``; at least three folds.

    Example
    -------
    >>> labels, folds = torch.arange(2).repeat(9), torch.arange(3).repeat_interleave(6)
    >>> fold_accuracies(torch.eye(2)[labels], labels, folds)
    {0: 1.0, 1: 1.0, 2: 1.0}
    """
    found = {}
    numbers = sorted(set(folds.tolist()))
    for i, test in enumerate(numbers):
        valid = numbers[i - 1]
        train, chosen = (folds != test) & (folds != valid), folds == valid
        probe = fit_linear_probe(
            *(features[train], labels[train], features[chosen], labels[chosen]),
            classes=int(labels.max()) + 1,
            penalties=PENALTIES,
        )
        logits = features[folds == test] @ probe.weight.t() + probe.bias
        found[test] = float((logits.argmax(1) == labels[folds == test]).float().mean())
    return found


def main() -> None:
    """Read the command line, evaluate, print one line."""
    parser = argparse.ArgumentParser(description="Evaluate BEATs-mini.")
    parser.add_argument("corpus", type=Path, nargs="?", help="the mini corpus by default")
    parser.add_argument("--model", default="speechbrain_mam/beats-mini", help="or a checkpoint")
    args = parser.parse_args()
    clips = read_corpus(args.corpus or mini_corpus("mini_esc50"))
    encoder = BEATsEncoder(args.model, freeze=True)
    features = clip_features(encoder, [path for path, _, _ in clips])
    labels, folds = (torch.tensor([clip[i] for clip in clips]) for i in (1, 2))
    found = fold_accuracies(features, labels, folds)
    each = ", ".join(f"{100 * share:.1f}" for share in found.values())
    mean = 100 * sum(found.values()) / len(found)
    print(f"{args.corpus or 'mini_esc50'}: {len(clips)} clips, {mean:.2f} % (folds {each})")


if __name__ == "__main__":
    main()
