"""``python -m speechbrain_mam.testing``: every row of the table of architectures is checked.

> python -m speechbrain_mam.testing                 # a few settings a row, in which all pairs meet
> python -m speechbrain_mam.testing --all           # every setting, some hours
> python -m speechbrain_mam.testing --only HuBERT WavLM
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.testing.conformance import check_target
from speechbrain_mam.testing.settings import every_setting, pairwise
from speechbrain_mam.testing.targets import TARGETS, save_donors


def main(argv: list[str] | None = None) -> int:
    """Print the matrix; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m speechbrain_mam.testing", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every setting, not only all pairs")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows whose name starts so")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = list(every_setting()) if options.all else pairwise(every_setting())
    methods = list(dict.fromkeys(s.method for s in settings))
    wanted = [t for t in TARGETS if not options.only or t.name.startswith(tuple(options.only))]
    failures, checks = [], 0
    write = sys.stdout.write
    with tempfile.TemporaryDirectory() as folder:
        donors = save_donors(Path(folder))
        write(f"{'target':<48}" + "".join(f"{method:>14}" for method in methods) + "\n")
        for target in wanted:
            try:
                model = target.build()
            except LookupError as error:
                write(f"{target.name:<48}left out: {error}\n")
                continue
            fused = any(ref.part for ref in find_attention(model).tensors.values())
            asked_of = [s for s in settings if not (fused and s.donors > 1)]
            found = []
            for setting in tqdm(asked_of, desc=target.name, leave=False, disable=None):
                found += check_target(model, donors, target.run, [setting])
            checks += len(asked_of)
            failed = Counter(failure.setting.method for failure in found)
            asked = Counter(setting.method for setting in asked_of)
            cells = (f"{asked[m] - failed[m]}/{asked[m]}" for m in methods)
            write(f"{target.name:<48}" + "".join(f"{cell:>14}" for cell in cells) + "\n")
            failures += [(target.name, failure) for failure in found]
    for name, failure in failures:
        write(f"{name}: {failure}\n")
    write(f"{checks} runs of {len(wanted)} targets, {len(failures)} failures\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
