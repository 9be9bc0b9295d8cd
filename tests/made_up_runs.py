"""Output folders as finished runs leave them, made up, for the tests of reports."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

WORDS = ["A", "CAT", "THE", "DOG", "NO", "BIRD", "IS", "HERE", "IT'S", "FINE", "DAY", "WE", "GO"]


class TestSet:
    """References, and how hard each utterance is."""

    __test__ = False

    def __init__(self, n: int = 40, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.ids = [f"XX001-{i:04d}" for i in range(n)]
        self.refs = {i: " ".join(rng.choice(WORDS, rng.integers(4, 14))) for i in self.ids}
        self.difficulty = dict(zip(self.ids, rng.beta(1.2, 3.0, n), strict=True))

    def utterances(self, wer: float, seed: int) -> dict[str, dict]:
        """A recogniser's output; the same seed makes the same accidents."""
        found = {}
        for name, ref in self.refs.items():
            chance = random.Random(f"{name} {seed}")
            words = ref.split()
            shared = random.Random(name)
            hyp = []
            for word in words:
                luck = 0.7 * shared.random() + 0.3 * chance.random()
                hyp.append("UM" if luck < wer * (0.5 + self.difficulty[name]) else word)
            errors = sum(a != b for a, b in zip(words, hyp, strict=True))
            found[name] = {
                "errors": errors,
                "words": len(words),
                "char_errors": 2 * errors,
                "chars": len(ref),
                "ref": ref,
                "hyp": " ".join(hyp),
            }
        return found


def stats(utterances: dict[str, dict]) -> dict[str, float]:
    """The metrics that go with some utterances."""

    def rate(errors: str, words: str) -> float:
        total = sum(u[errors] for u in utterances.values())
        return 100 * total / sum(u[words] for u in utterances.values())

    return {"loss": 0.5, "WER": rate("errors", "words"), "CER": rate("char_errors", "chars")}


def write_run(
    folder: Path,
    tests: dict[str, dict[str, dict]],
    method: str = "finetune",
    seed: int = 1,
    control: str = "none",
    donor: str | None = None,
    lambdas: dict[str, float] | None = None,
) -> Path:
    """A finished run; ``tests`` holds utterances by name of the test."""
    folder.mkdir(parents=True)
    for name, utterances in tests.items():
        content = {"stats": stats(utterances), "utterances": utterances}
        file = folder / f"utterances_{name.replace(' ', '_')}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
    results = {
        "method": method,
        "seed": seed,
        "control": control,
        "donor": donor,
        "results": {name: stats(utterances) for name, utterances in tests.items()},
        "lambdas": lambdas or {},
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if lambdas:
        names = list(lambdas)
        rows = [f"{e},{','.join(str(0.95 + e * (lambdas[n] - 0.95) / 3) for n in names)}"
                for e in range(4)]  # fmt: skip
        (folder / "lambdas.csv").write_text("\n".join([f"epoch,{','.join(names)}", *rows, ""]))
    return folder


def write_sweep(folder: Path, test_set: TestSet, subsets: tuple[str, ...] = ("all",)) -> None:
    """``sweep.json`` with every control in the first subset."""
    points = []

    def point(control: str, lam: float, subset: str, wer: float, seed: int) -> None:
        found = test_set.utterances(wer, seed)
        metrics = stats(found)
        points.append(
            {
                "donor": "bert",
                "control": control,
                "lam": lam,
                "layers": [0, 1, 2, 3],
                "subset": subset,
                "WER": metrics["WER"],
                "CER": metrics["CER"],
                "errors": [u["errors"] for u in found.values()],
            }
        )

    point("none", 1.0, "all", 0.4, 0)
    for k, lam in enumerate((0.8, 0.85, 0.9, 0.95)):
        for subset in subsets:
            point("none", lam, subset, 0.38 + 2 * (0.95 - lam) ** 2, k)
        for c, control in enumerate(("random", "shuffled_layers", "permuted_rows", "no_donor")):
            point(control, lam, subsets[0], 0.40 + (0.03 + 0.01 * c) * (1 - lam) * 20, k)
    words = [len(ref.split()) for ref in test_set.refs.values()]
    chosen = {"donor": "bert", "lam": 0.95, "layers": [0, 1, 2, 3], "subset": subsets[0]}
    content = {
        "ids": test_set.ids, "words": words, "points": points, "chosen": chosen, "split": "valid",
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(content), encoding="utf-8")


def write_probe(folder: Path, layers: int = 4, heads: int = 6) -> None:
    """``probe.json``."""
    rng = np.random.default_rng(0)

    def row(**place) -> dict:
        return {**place, "score": float(rng.normal(0, 0.1)), "stderr": 0.03}

    content = {
        "method": "first-order probe",
        "layers": [row(layer=i) for i in range(layers)],
        "projections": [
            row(layer=i, projection=p) for i in range(layers) for p in ("query", "key", "value")
        ],
        "heads": [row(layer=i, head=h) for i in range(layers) for h in range(heads)],
    }
    (folder / "probe.json").write_text(json.dumps(content), encoding="utf-8")


def write_experiment(folder: Path, n: int = 40, seeds: tuple[int, ...] = (1, 2, 3)) -> list[Path]:
    """Zero-shot with controls and a sweep; fine-tuning, Learnable-MAM and its control by seed."""
    test_set = TestSet(n)
    untouched = test_set.utterances(0.5, 0)
    zeroshot = {"untouched": untouched, "mam_zeroshot": test_set.utterances(0.49, 9)}
    for i, control in enumerate(("random", "shuffled_layers", "permuted_rows", "no_donor")):
        zeroshot[f"mam_zeroshot control {control}"] = test_set.utterances(0.5 + 0.01 * i, 1 + i)
    folders = [write_run(folder / "zeroshot", zeroshot, "mam_zeroshot", 1986, donor="bert")]
    write_sweep(folders[0], TestSet(n, seed=7), ("all", "last:2"))
    write_probe(folders[0])
    for i, (method, control, wer) in enumerate(
        (
            ("finetune", "none", 0.42),
            ("mam_learnable", "none", 0.28),
            ("mam_learnable", "random", 0.41),
        )
    ):
        for seed in seeds:
            tests = {"untouched": untouched, method: test_set.utterances(wer, 100 * seed + i)}
            learned = {f"layer {i}": 0.93 + 0.01 * i + 0.003 * seed for i in range(4)}
            lambdas = learned if method == "mam_learnable" else None
            donor = "bert" if lambdas else None
            place = folder / f"{method}_{control}" / str(seed)
            folders.append(write_run(place, tests, method, seed, control, donor, lambdas))
    return folders
