"""Output folders of finished runs, read and checked for a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from speechbrain_mam.errors import MAMError
from speechbrain_mam.results.decoding import decoding_of, differing_decoders
from speechbrain_mam.results.evaluations import Evaluation, check_same_test, read_evaluation
from speechbrain_mam.results.fields import get, number
from speechbrain_mam.results.search_results import Sweep, read_probe, read_sweep
from speechbrain_mam.results.tasks import Task
from speechbrain_mam.text_files import read_json, read_table

Found = TypeVar("Found")

UNTOUCHED = "untouched"
FINETUNE = "finetune"
ZEROSHOT = "mam_zeroshot"
UNTRAINED = (UNTOUCHED, ZEROSHOT, "mam_zeroshot_untouched")
"""Methods in which nothing is trained by a seed; what is not here was fine-tuned."""
RANDOM = "random"
ENVIRONMENT = "environment.json"
UNIMPORTANT = ("command", "threads")
"""What may differ between runs without moving a figure, or is another one by what they are."""


@dataclass(frozen=True, eq=False)
class Run:
    """One output folder.

    Arguments
    ---------
    evaluations : mapping of str to Evaluation
        By name of the test: ``untouched``, ``finetune`` where that is what a merge went into, the
        method, the method with a control.
    lambdas : mapping of str to float
        Learned λ by layer (projection, head) of the tested checkpoint; empty if none was learned.
    history : list of dict
        λ by name after each epoch, with the key ``epoch``.
    sweeps, probes : mapping
        By ``""``, or by ``fold 1`` and so on where each test fold had its own search.
    environment : mapping of str to str
        Versions, hashes, device, precision; empty for runs of before there was such a note.
    decoding : mapping
        How its tests decoded: a ``name``, and what of it moves a figure.
    margin : float or None
        Points within which systems count as equivalent, as its YAML had them before the run.
    """

    folder: Path
    method: str
    seed: int
    control: str
    donor: str | None
    evaluations: Mapping[str, Evaluation]
    lambdas: Mapping[str, float]
    history: list[dict[str, float]]
    sweeps: Mapping[str, Sweep]
    probes: Mapping[str, dict[str, Any]]
    environment: Mapping[str, str]
    decoding: Mapping[str, Any]
    margin: float | None = None

    @property
    def task(self) -> Task:
        """What was tested."""
        return next(iter(self.evaluations.values())).task

    def control_of(self, test: str) -> tuple[str, int]:
        """The control that a test of this run belongs to, and which draw of it: the first is 1."""
        if test == self.method:
            return self.control, 1
        name, _, number = test.removeprefix(f"{self.method} control ").partition(" ")
        if name == RANDOM and number.isascii() and number.isdecimal():
            return RANDOM, int(number)
        return f"{name} {number}".rstrip(), 1


def read_runs(folders: Iterable[Path | str]) -> list[Run]:
    """Read finished runs that were tested on the same utterances or clips.

    Arguments
    ---------
    folders : iterable of Path
        Output folders with ``results.json`` and one ``utterances_{test}.json`` per test;
        ``lambdas.csv``, ``sweep.json`` and ``probe.json`` (also those in ``fold_1`` and so on) are
        read where they are.

    Raises
    ------
    MAMError
        If there is no folder, one is not finished, a file is malformed, or the tasks or test sets
        differ.

    Example
    -------
    >>> read_runs([])
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: no runs: name at least one output folder of a finished run
    """
    runs = [read_run(Path(folder)) for folder in folders]
    if not runs:
        raise MAMError("no runs: name at least one output folder of a finished run")
    first_name, first = next(iter(runs[0].evaluations.items()))
    for run in runs:
        for name, evaluation in run.evaluations.items():
            check_same_test(
                f"'{runs[0].folder}' ({first_name})", first, f"'{run.folder}' ({name})", evaluation
            )
        if changed := differing_decoders(runs[0].decoding, run.decoding):
            raise MAMError(
                f"runs with different decoders cannot be in one report: '{runs[0].folder}' and "
                f"'{run.folder}' were tested with {changed}"
            )
    return runs


def read_run(folder: Path) -> Run:
    """Read one output folder.

    Raises
    ------
    MAMError
        Names the folder or file, and the field.
    """
    file = folder / "results.json"
    if not file.is_file():
        raise MAMError(f"'{folder}' holds no results.json: the run is not finished")
    content = read_json(file)
    method, seed = get(content, "method", str, file), get(content, "seed", int, file)
    results = get(content, "results", dict, file)
    if not results:
        raise MAMError(f"'{file}': field 'results' is empty: the run is not finished")
    evaluations = {}
    for name, metrics in results.items():
        if name not in (UNTOUCHED, FINETUNE, method) and not name.startswith(f"{method} control "):
            raise MAMError(
                f"'{file}': field 'results': '{name}' is neither '{UNTOUCHED}' nor '{method}' nor "
                f"'{method} control …'"
            )
        evaluations[name] = read_evaluation(folder, name, metrics, file)
    if content.get("lambdas") and method not in results:
        raise MAMError(f"'{file}': field 'results' lacks '{method}', whose λ are there")
    return Run(
        folder=folder,
        method=method,
        seed=seed,
        control=get(content, "control", str, file),
        donor=get(content, "donor", str, file, optional=True),
        evaluations=evaluations,
        lambdas={k: number(v, k, file) for k, v in (content.get("lambdas") or {}).items()},
        history=_read_history(folder / "lambdas.csv"),
        sweeps=_read_searches(folder, "sweep.json", read_sweep),
        probes=_read_searches(folder, "probe.json", read_probe),
        environment=_read_environment(folder),
        decoding=decoding_of(content, file),
        margin=_read_margin(content, file),
    )


def margin_of(runs: Sequence[Run], asked: float | None = None) -> float | None:
    """The margin of equivalence that runs were made with; where they have none, the one asked for.

    Raises
    ------
    MAMError
        If two runs have different ones, or one has another than asked for: a margin that is chosen
        after the figures proves nothing.
    """
    if asked is not None and not 0 < asked < math.inf:
        raise MAMError(f"--margin {asked}: expected a number of points above 0")
    known = [run for run in runs if run.margin is not None]
    for run in known:
        if run.margin != known[0].margin:
            raise MAMError(
                f"runs with different margins cannot be in one report: equivalence_margin is "
                f"{known[0].margin:g} in '{known[0].folder}' and {run.margin:g} in '{run.folder}'"
            )
        if asked not in (None, run.margin):
            raise MAMError(
                f"--margin {asked:g}: '{run.folder}' was made with equivalence_margin "
                f"{run.margin:g}; --margin is for runs without one"
            )
    return known[0].margin if known else asked


def _read_margin(content: Mapping[str, Any], file: Path) -> float | None:
    if content.get("equivalence_margin") is None:
        return None
    margin = number(content["equivalence_margin"], "equivalence_margin", file)
    if margin <= 0:
        raise MAMError(f"'{file}': field 'equivalence_margin' is {margin:g}, expected above 0")
    return margin


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What the runs' environments differ in, and its values, in the order of the runs.

    Donor and number of ranks belong to a system as its λ does; all else should be the same.
    """
    noted = [run.environment for run in runs if run.environment]
    skipped = {*UNIMPORTANT, "donor_sha256"}
    keys = dict.fromkeys(key for one in noted for key in one if key not in skipped)
    values = {key: list(dict.fromkeys(one.get(key, "none") for one in noted)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _read_environment(folder: Path) -> dict[str, str]:
    """Of the run, or of its first test fold."""
    files = [folder / ENVIRONMENT, *sorted(folder.glob(f"fold_[0-9]*/{ENVIRONMENT}"))]
    found = next((file for file in files if file.is_file()), None)
    return {} if found is None else {key: str(value) for key, value in read_json(found).items()}


def _read_searches(
    folder: Path, name: str, read: Callable[[Path], Found | None]
) -> dict[str, Found]:
    """A file of a search, of the run itself or of each of its test folds."""
    files = {"": folder / name}
    files |= {
        file.parent.name.replace("_", " "): file
        for file in sorted(folder.glob(f"fold_[0-9]*/{name}"))
    }
    read_files = {label: read(file) for label, file in files.items()}
    return {label: found for label, found in read_files.items() if found is not None}


def _read_history(file: Path) -> list[dict[str, float]]:
    if not file.is_file():
        return []
    rows = read_table(file)
    try:
        return [{key: float(value) for key, value in row.items()} for row in rows]
    except ValueError as error:
        raise MAMError(f"'{file}': not a table of numbers: {error}") from error
