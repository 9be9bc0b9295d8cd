"""Bad input in bulk, and a table of how it was taken.

    python tests/fuzz/nightly.py --cases 10000 --seed 1
    python tests/fuzz/nightly.py --case "config.json:1000017"

The second line repeats one case of a finding. Exit code 1: there are findings.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", MPLBACKEND="agg")  # before any library
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

SHOWN = 3000


def main() -> int:
    """Run the cases, print the table and then each finding once."""
    from cases import Outcome, Workshop, plan
    from targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--case", help="one case: a target, a colon, its seed")
    parser.add_argument("--skip", type=int, default=0, help="cases that a former run has done")
    parser.add_argument("--minutes", type=float, help="stop after so many, the targets in turn")
    options = parser.parse_args()
    findings: list[Outcome] = []
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        workshop = Workshop(Path(folder))
        if options.case:
            name, _, seed = options.case.rpartition(":")
            outcome = workshop.run(name, int(seed))
            print(outcome)
            return outcome.kind == "finding"
        wanted, start = plan(options.cases, options.seed, options.target), time.monotonic()
        for name, seed in sorted(wanted, key=lambda case: case[1])[options.skip :]:
            if options.minutes and time.monotonic() - start > 60 * options.minutes:
                break
            outcome = workshop.run(name, seed)
            counts.setdefault(name, Counter())[outcome.kind] += 1
            if outcome.kind == "finding":
                findings.append(outcome)
                last = outcome.said.strip().splitlines()[-1][:300]
                print(f"{outcome.target}:{outcome.seed}: {outcome.what[:200]}: {last}", flush=True)
    print(table(counts))
    alike: dict[tuple[str, str], list[Outcome]] = {}
    for one in findings:
        alike.setdefault(_place(one.said), []).append(one)
    for (place, kind), several in alike.items():
        one = several[0]
        print(f"\n--- {len(several)} like {one.target}:{one.seed}: {one.what[:300]}")
        print(f"{one.said[-SHOWN:]}\n{place}: {kind[:300]}")
    return bool(findings)


def _place(said: str) -> tuple[str, str]:
    """The last line of this package in a traceback, and the exception's name."""
    lines = said.strip().splitlines()
    ours = [x.strip() for x in lines if "/speechbrain_mam/" in x or "/recipes/" in x]
    return ours[-1] if len(lines) > 1 and ours else "", lines[-1].partition(":")[0]


def table(counts: dict[str, Counter[str]]) -> str:
    """The targets, and how their cases were taken."""
    rows = [["target", "cases", "refused", "right", "findings"]]
    sums: Counter[str] = Counter()
    for name, found in counts.items():
        sums += found
        rows.append(_row(name, found))
    rows.append(_row("all", sums))
    return "\n".join(f"{r[0]:<20}" + "".join(f"{cell:>10}" for cell in r[1:]) for r in rows)


def _row(name: str, found: Counter[str]) -> list[str]:
    kinds = ("refused", "right", "finding")
    return [name, str(sum(found.values())), *(str(found[kind]) for kind in kinds)]


if __name__ == "__main__":
    sys.exit(main())
