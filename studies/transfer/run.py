#!/usr/bin/env python3
"""Does an encoder that is not trained yet start better with another modality's attention?

A log-mel front end, three pre-norm Transformer layers of width 384 with six heads, a linear
classifier; a minute of speech to train on, an unheard speaker to validate on. All arms of a seed
have the same clips in the same order and the same random numbers everywhere but in Q, K, V and O.
Those come from PyTorch (``default``); from a donor: MiniLM (text), ViT-S (vision), or Whisper
tiny.en (speech, the positive control); or from a donor of which something was destroyed:
``moments`` keeps each tensor's mean and standard deviation, ``rotated`` all but the basis.

``--task digits_whisper`` has an encoder of Whisper's shape in its place. There ``whisper-all``
begins with the whole of that donor, ``-blocks`` with its layers, ``-qkv``, ``-qk``, ``-vo`` with
less than the usual Q, K, V and O; with ``--rest whisper`` all but attention is Whisper's in every
arm. With ``--rest trained`` its attention is Whisper's as well, of which ``minilm@0.9`` keeps
λ = 0.9 and takes 1 − λ from MiniLM.

> python studies/transfer/run.py --quick                               # embedded corpus, no data
> python studies/transfer/run.py --quick --data digits                 # one comparison, < 5 min
> python studies/transfer/run.py --data digits                         # a small encoder, 20 seeds
> python studies/transfer/run.py --data digits --task digits_whisper --rest whisper   # Whisper's
> python studies/transfer/run.py --table                               # what the results say
> python studies/transfer/run.py --picture docs/transfer.png          # and docs/transfer_lam.png

The outcome of a cell (an arm, a seed) is its mean validation loss over the epochs. Every arm has
the same grid of learning rates, and the one that is best over seeds of its own (1000 on). A cell is
one JSON file, written beside and renamed: what is there is not trained again, so an interrupted
study goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from study_arms import ARMS, Setting
from study_cell import cell_file, run_cell
from study_pictures import lam_picture, picture
from study_tables import CHOOSING, chosen_rate, read_cells, tables
from study_tasks import TASKS, clips_of

from speechbrain_mam.errors import one_line_errors

HERE = Path(__file__).resolve().parent
PRIMARY_ARMS = ("default", "minilm-moments", "minilm", "whisper-moments", "whisper")
QUICK_ARMS = ("default", "minilm-moments", "minilm")
BESIDE_SHAPE = ("epochs", "batch_size", "layers", "projections", "rest")
GRID = (0.0001, 0.0003, 0.001)


def options_of(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Setting("digits")
    parser.add_argument("--quick", action="store_true", help="3 arms, 4 seeds, one learning rate")
    parser.add_argument("--table", action="store_true", help="print the tables of --out")
    parser.add_argument("--picture", metavar="PNG", type=Path, help="draw what --out says")
    parser.add_argument("--task", choices=TASKS, help="default digits; mini_esc50 without --data")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the task's clips")
    parser.add_argument("--arm", nargs="+", metavar="ARM", help=f"some of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, help="how many; default 20, with --quick 4")
    parser.add_argument("--first-seed", type=int, default=0, help="to share them out to processes")
    parser.add_argument("--minutes", type=float, help="of training clips; default by the task")
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    parser.add_argument("--batch-size", type=int, default=usual.batch_size)
    parser.add_argument("--depth", type=int, help="layers of the encoder; default by the task")
    parser.add_argument("--d-ffn", type=int, help="of each layer; default by the task")
    parser.add_argument("--layers", default=usual.layers, help="that begin with the donor")
    parser.add_argument("--projections", default=usual.projections, help="some of qkvo")
    parser.add_argument(
        "--rest",
        choices=("fresh", "whisper", "trained"),
        default=usual.rest,
        help="what is not attention",
    )
    parser.add_argument("--lr", type=float, nargs="+", help="the grid; one rate is not chosen")
    parser.add_argument("--choosing-seeds", type=int, default=2, help="that choose the rate")
    parser.add_argument("--until", metavar="HH:MM", help="begin no further cell after it")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; default 1")
    parser.add_argument("--out", type=Path, help="the cells; default studies/transfer/results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then print the tables."""
    options = options_of(argv)
    out = options.out or (Path("results/transfer-quick") if options.quick else HERE / "results")
    if options.table or options.picture:
        return show(out, options.picture)
    torch.set_num_threads(options.threads)
    task = options.task or ("digits" if options.data is not None else "mini_esc50")
    shape = {
        key: getattr(options, key) or getattr(TASKS[task], key)
        for key in ("minutes", "depth", "d_ffn")
    }
    told = {key: getattr(options, key) for key in BESIDE_SHAPE}
    setting = Setting(task, **told, **shape)
    clips = clips_of(task, options.data)
    arms = options.arm or (QUICK_ARMS if options.quick else PRIMARY_ARMS)
    grid = options.lr or (GRID[1:2] if options.quick else GRID)
    usual = 4 if options.quick else 20
    seeds = range(options.first_seed, usual if options.seeds is None else options.seeds)
    folder = out / setting.name

    def run(arm: str, seed: int, lr: float) -> None:
        if cell_file(out, setting, arm, seed, lr).is_file() or _is_past(options.until):
            return
        cell = run_cell(out, clips, TASKS[task], setting, arm, seed, lr)
        last = f"loss {cell['losses'][-1]:.3f}, error {cell['errors'][-1]:.1f} %"
        sys.stdout.write(f"{arm} lr {lr:g} seed {seed}: {last}, {cell['seconds']} s\n")
        sys.stdout.flush()

    if len(grid) > 1:
        for seed in range(CHOOSING, CHOOSING + options.choosing_seeds):
            for arm in arms:
                for lr in grid:
                    run(arm, seed, lr)
    cells = read_cells(folder)
    for seed in seeds:
        for arm in arms:
            lr = grid[0] if len(grid) == 1 else chosen_rate(cells, arm)
            if lr is not None:
                run(arm, seed, lr)
    return show(out)


def _is_past(until: str | None) -> bool:
    return until is not None and time.strftime("%H:%M") >= until


def show(out: Path, png: Path | None = None) -> int:
    """The tables of each setting; with ``png``, the pictures: of those with λ one beside it."""
    folders = [f for f in sorted(out.glob("*")) if any(f.rglob("*.json"))]
    if not folders:
        sys.stdout.write(f"'{out}' holds no cells yet\n")
        return 1
    if png is not None:
        cells = {folder.name: read_cells(folder) for folder in folders}
        mixed = {name: of for name, of in cells.items() if any("@" in c["arm"] for c in of)}
        if others := {name: of for name, of in cells.items() if name not in mixed}:
            picture(others, png)
        if mixed:
            lam_picture(mixed, png.with_stem(f"{png.stem}_lam"))
        return 0
    sys.stdout.write("\n".join(f"**{f.name}**\n\n{tables(read_cells(f))}\n" for f in folders))
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
