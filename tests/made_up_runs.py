"""Output folders as finished runs leave them, made up, for the tests of reports."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

WORDS = ["A", "CAT", "THE", "DOG", "NO", "BIRD", "IS", "HERE", "IT'S", "FINE", "DAY", "WE", "GO"]
CLASSES = ["dog", "rain", "crying_baby", "door_wood_knock", "helicopter", "washing_machine",
           "rooster", "sneezing", "clock_tick", "fire_crackling"]  # fmt: skip


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


class ClipSet:
    """Clips of some classes in some folds, ``per_fold`` of each class in each fold.

    Arguments
    ---------
    classes : int
        How many; the first ten have names of ESC-50.
    folds : tuple of int
        Empty: the clips have no field ``fold``.
    """

    def __init__(
        self, classes: int = 10, folds: tuple[int, ...] = (1, 2, 3, 4, 5), per_fold: int = 4
    ):
        self.classes = [CLASSES[i] if i < len(CLASSES) else f"sound_{i}" for i in range(classes)]
        self.with_folds = bool(folds)
        self.clips = {
            f"{fold}-{1000 * i + n}-A-{i}": (name, fold)
            for fold in folds or (1,)
            for i, name in enumerate(self.classes)
            for n in range(per_fold)
        }

    def labelled(self, label) -> dict[str, dict]:
        """What a classifier says, given by ``label(clip, its class, its fold)``."""
        found = {}
        for clip, (ref, fold) in self.clips.items():
            hyp = label(clip, ref, fold)
            found[clip] = {"errors": int(hyp != ref), "words": 1, "ref": ref, "hyp": hyp}
            found[clip] |= {"fold": fold} if self.with_folds else {}
        return found

    def guessed(self, error: float, seed: int) -> dict[str, dict]:
        """A classifier's output: some classes are harder, and most errors are the next class."""

        def label(clip: str, ref: str, fold: int) -> str:
            at = self.classes.index(ref)
            chance, shared = random.Random(f"{clip} {seed}"), random.Random(clip)
            luck = 0.6 * shared.random() + 0.4 * chance.random()
            if luck >= error * (0.5 + at / len(self.classes)) * (0.9 + 0.05 * fold):
                return ref
            step = 1 if chance.random() < 0.7 else chance.randrange(1, len(self.classes))
            return self.classes[(at + step) % len(self.classes)]

        return self.labelled(label)


def stats(utterances: dict[str, dict]) -> dict[str, float]:
    """The metrics that go with some utterances or clips."""

    def rate(errors: str, words: str) -> float:
        total = sum(u[errors] for u in utterances.values())
        return 100 * total / sum(u[words] for u in utterances.values())

    if "chars" not in next(iter(utterances.values())):
        error = rate("errors", "words")
        return {"loss": 0.5, "error": error, "accuracy": 100 - error}
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


def write_sweep(
    folder: Path, test_set: TestSet | ClipSet, subsets: tuple[str, ...] = ("all",)
) -> None:
    """``sweep.json`` with every control in the first subset."""
    points, output = [], test_set.utterances if isinstance(test_set, TestSet) else test_set.guessed

    def point(control: str, lam: float, subset: str, rate: float, seed: int) -> dict[str, dict]:
        found = output(rate, seed)
        metrics = stats(found)
        points.append(
            {
                "donor": "bert",
                "control": control,
                "lam": lam,
                "layers": [0, 1, 2, 3],
                "subset": subset,
                **{name: metrics[name] for name in ("WER", "CER", "error") if name in metrics},
                "errors": [u["errors"] for u in found.values()],
            }
        )
        return found

    found = point("none", 1.0, "all", 0.4, 0)
    for k, lam in enumerate((0.8, 0.85, 0.9, 0.95)):
        for subset in subsets:
            point("none", lam, subset, 0.38 + 2 * (0.95 - lam) ** 2, k)
        for c, control in enumerate(("random", "shuffled_layers", "permuted_rows", "no_donor")):
            point(control, lam, subsets[0], 0.40 + (0.03 + 0.01 * c) * (1 - lam) * 20, k)
    chosen = {"donor": "bert", "lam": 0.95, "layers": [0, 1, 2, 3], "subset": subsets[0]}
    content = {
        "ids": list(found), "words": [u["words"] for u in found.values()], "points": points,
        "chosen": chosen, "split": "valid",
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


def write_clip_experiment(
    folder: Path, clips: ClipSet | None = None, seeds: tuple[int, ...] = (1, 2, 3)
) -> list[Path]:
    """The same of clips: zero-shot with a sweep; fine-tuned models, and merges of each of them."""
    clips = clips or ClipSet()
    untouched = clips.guessed(0.6, 0)
    method = "mam_zeroshot_untouched"
    zeroshot = {"untouched": untouched, method: clips.guessed(0.58, 9)}
    zeroshot[f"{method} control random"] = clips.guessed(0.6, 1)
    folders = [write_run(folder / "zeroshot", zeroshot, method, 1986, donor="vit")]
    for fold in (1, 2):
        (folders[0] / f"fold_{fold}").mkdir()
        write_sweep(folders[0] / f"fold_{fold}", clips)
    for seed in seeds:
        finetuned = clips.guessed(0.4, 100 * seed)
        outputs = {
            "finetune": {"finetune": finetuned},
            "mam_learnable": {
                "mam_learnable": clips.guessed(0.25, 100 * seed + 1),
                "mam_learnable control random": clips.guessed(0.4, 100 * seed + 2),
            },
            "mam_zeroshot_finetuned": {
                "finetune": finetuned,
                "mam_zeroshot_finetuned": clips.guessed(0.39, 100 * seed + 3),
                "mam_zeroshot_finetuned control random": clips.guessed(0.41, 100 * seed + 4),
            },
        }
        for method, tests in outputs.items():
            donor = None if method == "finetune" else "vit"
            place = folder / method / str(seed)
            tests = {"untouched": untouched, **tests}
            folders.append(write_run(place, tests, method, seed, donor=donor))
    return folders
