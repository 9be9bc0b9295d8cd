"""Learnable-MAM in recipes of SpeechBrain's: run them all, and print the table of what was found.

> python examples/proof.py
> python examples/proof.py --only Whisper
> python examples/proof.py --write

Each recipe is that of SpeechBrain's source distribution, which pip downloads, with tiny models: it
is trained for two steps, resumed with the same command, and evaluated twice after either. `--write`
puts the table into `examples/README.md`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "tests"), str(REPO)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a part of the names of those that run")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write needs every row")

    from proof.material import make_parts
    from proof.release import unpack
    from proof.run import HEAD, prove
    from proof.table import ROWS

    lines, failed = [], 0
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        recipes = Path(os.environ.get("SPEECHBRAIN_RECIPES", f"{scratch}/recipes"))
        if not recipes.exists():
            unpack(recipes)
        make_parts(Path(scratch, "parts"))
        for i, row in enumerate(ROWS):
            if options.only not in row.name:
                continue
            if missing := [name for name in row.needs if importlib.util.find_spec(name) is None]:
                line = f"| {row.name} | not run: it needs {' and '.join(missing)} |"
                failed += 1
            else:
                try:
                    line = str(prove(row, recipes, Path(scratch, "parts"), Path(scratch, str(i))))
                except AssertionError as error:
                    line, failed = f"| {row.name} | FAILED: {error} |", failed + 1
            print(line, flush=True)
            lines.append(line)
    if options.write and not failed:
        write(Path(__file__).with_name("README.md"), "\n".join([HEAD, *lines]))
    sys.exit(1 if failed else 0)


def write(readme: Path, table: str) -> None:
    """Replace the table of a README."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- proof -->\n")
    _, end, after = rest.partition("<!-- end of proof -->")
    readme.write_text(before + begin + table + "\n" + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
