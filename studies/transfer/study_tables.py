"""What the cells say: means, paired differences with t intervals, Holm."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from speechbrain_mam.errors import MAMError

CHOOSING = 1000
"""Seeds from here on choose learning rates, and are in no comparison."""
VARIANTS: dict[str, dict[str, str]] = {
    "": {},
    "moments": {"control": "moments"},
    "random": {"control": "random"},
    "spectrum": {"control": "spectrum"},
    "reversed": {"control": "reversed_layers"},
    "shuffled": {"control": "shuffled_layers"},
    "rotated": {"rotate": "random"},
    "hadamard": {"rotate": "hadamard"},
    "heads": {"align": "heads"},
    "heads-moments": {"align": "heads", "control": "moments"},
    "aligned": {"align": "rotation"},
    "aligned-moments": {"align": "rotation", "control": "moments"},
    "basis": {"align": "basis"},
    "basis-moments": {"align": "basis", "control": "moments"},
    "rotated-basis": {"align": "basis", "rotate": "random"},
}
"""What is made of a donor, as options of ``MAM``."""
PRIMARY = ("minilm", "minilm-moments")
PRIMARY_LAM = "@0.8"
"""Of the primary comparison where arms have a λ; of QKᵀ, (1 − λ)² = 4 % are the donor's own."""
POSITIVE = ("whisper", "whisper-moments")
Cells = Mapping[str, Mapping[int, dict[str, Any]]]
"""By arm and seed."""


@dataclass(frozen=True)
class Difference:
    """One arm minus another, over the seeds that both have.

    Arguments
    ---------
    mean, low, high : float
        With its 95 % t interval.
    p : float
        Two-sided, of the paired t test.
    seen : float
        The smallest true difference that so many seeds would show in 80 % of cases.
    """

    arm: str
    against: str
    seeds: int
    mean: float
    low: float
    high: float
    p: float
    seen: float


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """Every cell under a folder."""
    return [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.rglob("*.json"))]


def chosen_rate(cells: Sequence[dict[str, Any]], arm: str) -> float | None:
    """The rate with the lowest mean loss over the choosing seeds; None if there were none."""
    by_rate: dict[float, list[float]] = {}
    for cell in cells:
        if cell["arm"] == arm and cell["seed"] >= CHOOSING:
            by_rate.setdefault(cell["lr"], []).append(mean_loss(cell))
    return min(by_rate, key=lambda lr: float(np.mean(by_rate[lr])), default=None)


def compared(cells: Sequence[dict[str, Any]]) -> Cells:
    """The cells to compare, by arm and seed: at each arm's chosen rate, without choosing seeds.

    Raises
    ------
    MAMError
        If an arm was trained at several rates, and no seeds chose one of them.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    rates = {arm: chosen_rate(cells, arm) for arm in {cell["arm"] for cell in cells}}
    for cell in cells:
        arm, lr = cell["arm"], cell["lr"]
        if cell["seed"] >= CHOOSING or rates[arm] not in (None, lr):
            continue
        of_arm = found.setdefault(arm, {})
        if rates[arm] is None and any(other["lr"] != lr for other in of_arm.values()):
            raise MAMError(
                f"arm '{arm}' was trained at more than one rate, and no seed from {CHOOSING} on "
                "says which: run it with --choosing-seeds and the rates as --lr"
            )
        of_arm[cell["seed"]] = cell
    return found


def mean_loss(cell: Mapping[str, Any]) -> float:
    """Mean validation loss over the epochs: how low, and how soon."""
    return float(np.mean(cell["losses"]))


def area(cell: Mapping[str, Any]) -> float:
    """Mean validation loss over the logarithm of steps, by trapezoids: early steps weigh more.

    Example
    -------
    >>> area({"steps": [1, 10, 100], "losses": [2.0, 1.0, 0.0]})
    1.0
    """
    x, y = np.log(cell["steps"]), np.array(cell["losses"])
    if len(x) < 2:
        return float(y[0])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def steps_to(cell: Mapping[str, Any], loss: float) -> float:
    """Steps after which the loss is first as low as another one; infinity if it never is."""
    reached = [s for s, found in zip(cell["steps"], cell["losses"], strict=True) if found <= loss]
    return reached[0] if reached else math.inf


def difference(arm: str, against: str, cells: Cells) -> Difference | None:
    """``arm`` − ``against`` in mean loss, paired by seed; None with fewer than two seeds."""
    seeds = sorted(cells.get(arm, {}).keys() & cells.get(against, {}).keys())
    if len(seeds) < 2:
        return None
    values = np.array([mean_loss(cells[arm][s]) - mean_loss(cells[against][s]) for s in seeds])
    return paired(arm, against, values)


def paired(arm: str, against: str, values: np.ndarray) -> Difference:
    """Mean, t interval, p, and what could have been seen, of paired differences.

    Example
    -------
    >>> found = paired("a", "b", np.array([0.1, 0.2, 0.3, 0.4]))
    >>> round(found.mean, 3), round(found.p, 4)
    (0.25, 0.0305)
    """
    n, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(n)
    t = float(stats.t.ppf(0.975, n - 1))
    p = float(stats.ttest_1samp(values, 0.0).pvalue) if error > 0 else float(mean == 0)
    seen = (t + float(stats.t.ppf(0.8, n - 1))) * error
    return Difference(arm, against, n, mean, mean - t * error, mean + t * error, p, seen)


def holm(ps: Sequence[float]) -> list[float]:
    """p adjusted for so many comparisons (Holm, Scand. J. Statist. 1979), in their order.

    Example
    -------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


def primary_of(cells: Cells) -> tuple[str, str]:
    """The comparison that Holm's correction leaves alone."""
    lam = PRIMARY_LAM if any("@" in arm for arm in cells) else ""
    return f"{PRIMARY[0]}{lam}", f"{PRIMARY[1]}{lam}"


def differences(cells: Cells) -> list[Difference]:
    """The primary one, the positive control's, each arm's against its twin, then the default."""
    twins = {arm: variant_of(arm, "moments") for arm in sorted(cells, key=split_lam)}
    donors = {arm: twin for arm, twin in twins.items() if twin in cells}
    pairs = [primary_of(cells), POSITIVE, *donors.items()]
    pairs += [(arm, "default") for arm in twins if arm != "default"]
    for donor in donors:
        names = sorted(name for name in VARIANTS if not name.endswith("moments"))
        others = (variant_of(donor, name) for name in names)
        pairs += [(donor, other) for other in others if other != donor]
    found = [difference(*pair, cells) for pair in dict.fromkeys(pairs)]
    return [one for one in found if one is not None]


def variant_of(arm: str, variant: str) -> str:
    """The arm of a donor of which something was made, at the same λ.

    Example
    -------
    >>> variant_of("minilm", "moments"), variant_of("minilm@0.8", "moments")
    ('minilm-moments', 'minilm-moments@0.8')
    """
    base, at, lam = arm.partition("@")
    return f"{base}-{variant}{at}{lam}" if variant else arm


def split_lam(arm: str) -> tuple[str, str]:
    """An arm without its λ, and its λ, or nothing."""
    base, _, lam = arm.partition("@")
    return base, lam


def tables(cells: Sequence[dict[str, Any]]) -> str:
    """Both tables, in Markdown."""
    by_arm = compared(cells)
    rows = [
        "| start | lr | seeds | loss | area | final error % | steps to the default's best |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    best = {seed: min(cell["losses"]) for seed, cell in by_arm.get("default", {}).items()}
    for arm in sorted(by_arm, key=lambda arm: (arm != "default", *split_lam(arm))):
        found = by_arm[arm]
        reached = [steps_to(cell, best[seed]) for seed, cell in found.items() if seed in best]
        steps = "" if not reached else _steps(reached)
        mean = {
            "loss": np.mean([mean_loss(c) for c in found.values()]),
            "area": np.mean([area(c) for c in found.values()]),
            "error": np.mean([c["errors"][-1] for c in found.values()]),
        }
        rates = "/".join(f"{lr:g}" for lr in sorted({c["lr"] for c in found.values()}))
        rows.append(
            f"| {arm} | {rates} | {len(found)} | {mean['loss']:.3f} | {mean['area']:.3f} | "
            f"{mean['error']:.1f} | {steps} |"
        )
    rows += ["", "| loss of | minus | seeds | difference [95 %] | p | p, Holm | could be seen |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    found = differences(by_arm)
    others = [one for one in found if (one.arm, one.against) != primary_of(by_arm)]
    adjusted = dict(zip(others, holm([one.p for one in others]), strict=True))
    for one in found:
        p = "primary" if one not in adjusted else _p(adjusted[one])
        rows.append(
            f"| {one.arm} | {one.against} | {one.seeds} | {one.mean:+.3f} "
            f"[{one.low:+.3f}, {one.high:+.3f}] | {_p(one.p)} | {p} | {one.seen:.3f} |"
        )
    return re.sub(r"(?<!\w)-(?=\d)", "−", "\n".join(rows))


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _steps(reached: Sequence[float]) -> str:
    middle = float(np.median(reached))
    share = f"{sum(map(math.isfinite, reached))} of {len(reached)}"
    return f"{middle:.0f} ({share})" if math.isfinite(middle) else f"not reached ({share})"
