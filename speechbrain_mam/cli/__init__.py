"""``speechbrain-mam``: merges of model folders, measurements, exports and reports of runs.

Exit codes: 0 done; 2 wrong usage or bad input, with one line on stderr that says why. It may import
every room.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from speechbrain_mam.cli import compare, doctor, measure, models, recipes, runs
from speechbrain_mam.cli.parser import MERGE_CHOICES, PROGRAM, Parser
from speechbrain_mam.errors import MAMError, as_options, of_the_system, one_line
from speechbrain_mam.runs.seeds import split_overrides
from speechbrain_mam.version import __version__

DESCRIPTION = """\
Multimodal Attention Merging (arXiv 2312.14378): give a speech Transformer (TARGET) part of the
self-attention that a text or vision Transformer (DONOR) has learned:

    W = λ · W_target + (1 − λ) · W_donor      for the query, key and value projections
"""

OPTIONS = {
    key: f"--{key.replace('_', '-')}"
    for key in (
        "lam",
        "start",
        "layers",
        *MERGE_CHOICES,
        "controls",
        "format",
        "device",
        "precision",
    )
} | {
    "donor": "DONOR",
    "control": "--controls",
    "lam_grid": "--grid",
    "device": "--device",
    "precision": "--precision",
    "layer_choices": "--layers",
}
"""What a YAML key is called here."""

EXAMPLES = """\
examples:
  speechbrain-mam doctor
  speechbrain-mam plan facebook/hubert-large-ls960-ft google-bert/bert-large-uncased
  speechbrain-mam merge my/hubert my/bert --lam 0.95 --out merged
  speechbrain-mam export results/LJSpeech/mam_learnable/1986 --out exported
  speechbrain-mam compare recipes/LJSpeech/train.py hparams/finetune.yaml \\
      hparams/mam_learnable.yaml --seeds 1 2 3 4 5 --out results/seeds

'speechbrain-mam COMMAND --help' has more of each.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``speechbrain-mam``.

    Arguments
    ---------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.

    Example
    -------
    >>> main(["plan", "speechbrain_mam/hubert-mini", "speechbrain_mam/hubert-mini", "--json"])
    ... # doctest: +ELLIPSIS
    {
      "target_name": "speechbrain_mam/hubert-mini",
      ...
    0
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # λ and × must not fail where a terminal is ASCII
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        overrides: list[str] = []
        if words[:1] == [runs.COMPARE]:  # what follows -- is the recipe's
            words, overrides = split_overrides(words)
        options = _parser().parse_args(words)
        if overrides:
            options.overrides = overrides
        with _quiet():
            options.run(options)
        sys.stdout.flush()
    except MAMError as error:
        return _fail(as_options(str(error), OPTIONS))
    except BrokenPipeError:
        # '| head' has seen enough. Python flushes stdout once more at exit: give it a place to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _fail(of_the_system(error))
    except KeyboardInterrupt:
        _fail("interrupted; nothing is left behind")
        return 130
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries' warnings and notes would add to the one line on stderr."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _parser() -> Parser:
    parser = Parser(PROGRAM, description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (models, compare, recipes, measure, runs, doctor):
        group.add_verbs(verbs)
    return parser


def _fail(message: str) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {one_line(message)}\n")
    return 2
