"""What the recipes' ``train.py`` have in common: reading the YAML, and saying what came out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import ddp_init_group, if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_mam.atomic import hold_folder, write_text_beside
from speechbrain_mam.brain.brain import MAMBrain
from speechbrain_mam.ctc.units import check_units
from speechbrain_mam.embedded.corpora import mini_corpus
from speechbrain_mam.errors import MAMError
from speechbrain_mam.report import write_report
from speechbrain_mam.results.decoding import GREEDY
from speechbrain_mam.runs.environment import check_same_training, write_environment
from speechbrain_mam.runs.yaml_checks import check_ranges
from speechbrain_mam.runs.yaml_files import load_yaml, parse_arguments
from speechbrain_mam.runs.zeroshot import KEYS as SEARCH_KEYS
from speechbrain_mam.runs.zeroshot import search_and_test, search_of
from speechbrain_mam.tasks.asr_data import train_loader_options
from speechbrain_mam.tasks.corpus import check_same_data
from speechbrain_mam.tasks.task import TaskBrain

logger = get_logger(__name__)

Datasets = Mapping[str, DynamicItemDataset]
Results = dict[str, dict[str, float]]


def load_recipe(
    argv: Sequence[str],
    needed: Iterable[str] = (),
    defaults: Mapping[str, str | int | float] | None = None,
) -> tuple[dict[str, Any], Any, str, str | dict[str, Any]]:
    """Parse a recipe's command line and load its YAML.

    Arguments
    ---------
    argv : sequence of str
        The command line, without the program.
    needed : iterable of str
        Keys that the recipe reads.
    defaults : mapping, optional
        Values that this recipe gives to keys of a YAML that it shares with others; the command
        line goes before them.

    Returns
    -------
    tuple
        Hyperparameters, run options, the path of the YAML (where one includes another as a whole,
        of the one that stands alone), the overrides: together all that the run is made of.

    Raises
    ------
    MAMError
        If a YAML does not exist or is none, a key is missing, unknown or misspelt, or another run
        is at work in the output folder.
    """
    arguments = list(argv)
    given = {argument.split("=")[0] for argument in arguments}
    for key, value in (defaults or {}).items():
        if f"--{key}" not in given:
            arguments += [f"--{key}", str(value)]
    hparams_file, run_opts, overrides = parse_arguments(arguments)
    if not (dist.is_available() and dist.is_initialized()):  # a recipe may train several times
        ddp_init_group(run_opts)
    hparams, base, replaced = load_yaml(Path(hparams_file), overrides)
    searched = SEARCH_KEYS if hparams.get("search") else ()
    check_keys(hparams, [*needed, *searched])
    check_ranges(hparams)
    check_ranges({key: value for key, value in run_opts.items() if value is not None})
    if "units" in hparams:  # before its folder is written, so that another run's stays as it is
        check_units(hparams)
    if not hparams.get("download"):  # what is to be downloaded need not be there
        hparams["data_folder"] = str(_corpus_folder(str(hparams["data_folder"])))
    if not hparams.get("skip_prep") and "save_folder" in hparams:  # for the same reason
        check_same_data(Path(hparams["save_folder"]), Path(hparams["data_folder"]))
    if if_main_process():
        check_same_training(hparams)
        hold_folder(Path(hparams["output_folder"]))
    return hparams, run_opts, str(base), replaced


def _corpus_folder(name: str) -> Path:
    """A folder as it is, or the expanded folder of a corpus that the package embeds."""
    folder = Path(name).expanduser()
    if folder.is_dir() or folder.name != name:
        return folder
    try:
        return mini_corpus(name)
    except ValueError as error:
        raise MAMError(f"--data_folder '{name}': no such folder, and {error}") from error


def check_keys(hparams: dict[str, Any], needed: Iterable[str]) -> None:
    """Every key that the recipe reads must be in the YAML, and none may be almost one of them.

    Raises
    ------
    MAMError
        Names the missing key and the closest one that is there, or the misspelt one.

    Example
    -------
    >>> check_keys({"sortng": "random"}, needed=["sorting"])
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: YAML key 'sorting' is missing; is it 'sortng'?
    """
    needed = set(needed)
    spare = [key for key in hparams if key not in needed]
    for key in sorted(needed):
        if key not in hparams:
            near = difflib.get_close_matches(key, spare, n=1, cutoff=0.75)
            hint = f"; is it '{near[0]}'?" if near else ""
            raise MAMError(f"YAML key '{key}' is missing{hint}")
    options = set(RunOptions().as_dict())
    for key in spare:
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.9)
        if key not in options and near:
            raise MAMError(f"YAML key '{key}' is not known; did you mean '{near[0]}'?")


def tensorboard_logger(use: bool, save_dir: str) -> TensorboardLogger | None:
    """SpeechBrain's TensorBoard logger where it is wanted; the package is not needed otherwise."""
    return TensorboardLogger(save_dir) if use else None


def run_stages(brain: TaskBrain, hparams: Mapping[str, Any], datasets: Datasets) -> None:
    """What follows once the trainer stands: the untouched model, training, the test, the summary.

    Zero-shot MAM with ``search`` chooses its merge on the validation set, tests it beside its
    controls and writes a report; otherwise the best checkpoint is tested, λ folded into plain
    linear layers.

    Arguments
    ---------
    brain : TaskBrain
        With the model, and the merge stage done.
    hparams : mapping
        What the YAML gave.
    datasets : mapping
        ``train``, ``valid`` and ``test``; any other is a further test set, whose files go into
        ``tests/NAME``, a folder that :func:`~speechbrain_mam.report.write_report` takes as a run.
    """
    results, folder = {}, Path(hparams["output_folder"])
    further: dict[str, Results] = {
        name: {} for name in datasets if name not in ("train", "valid", "test")
    }
    write_environment(brain)
    if hparams.get("search") and brain.mam is not None:
        search_of(brain)  # a mistake is told before any work
    if hparams["test_untouched"]:
        results["untouched"] = brain.test(datasets["test"], "untouched", untouched=True)
        for name, found in further.items():
            with _writing_to(brain, folder / "tests" / name):
                found["untouched"] = brain.test(datasets[name], "untouched", untouched=True)
    if hparams["number_of_epochs"] > 0:
        fit(brain, hparams, datasets)
    results |= final_test(brain, hparams, datasets)
    for name, found in further.items():
        with _writing_to(brain, folder / "tests" / name):
            found[hparams["method"]] = brain.test(datasets[name], hparams["method"])
            write_results(brain, found)
    summarize(brain, results, further)
    if hparams.get("search") and if_main_process():
        report = write_report([folder], folder / "report", force=True)
        logger.info("\n%s\n\nThe report: %s", report.table, folder / "report" / "report.html")


def fit(brain: TaskBrain, hparams: Mapping[str, Any], datasets: Datasets) -> None:
    """Train as the YAML says, with an evaluation of ``valid`` after each epoch."""
    brain.fit(
        hparams["epoch_counter"],
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=train_loader_options(hparams, datasets["train"]),
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )


def final_test(
    brain: TaskBrain, hparams: Mapping[str, Any], datasets: Datasets
) -> dict[str, dict[str, float]]:
    """The metrics of the method's test; with ``search``, of its choice's and the controls'."""
    method = hparams["method"]
    if hparams.get("search"):
        return search_and_test(brain, datasets, method)
    return {method: brain.test(datasets["test"], method)}


@contextmanager
def _writing_to(brain: MAMBrain, folder: Path) -> Iterator[None]:
    """Within the block tests write there."""
    before, brain.hparams.output_folder = brain.hparams.output_folder, str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        brain.hparams.output_folder = before


def write_results(brain: MAMBrain, results: Results) -> dict[str, float]:
    """``results.json``: what was tested, and what came out. Returns λ, where they were learned."""
    learned = brain.mam is not None and brain.mam.learnable
    lambdas: dict[str, float] = brain.mam.live.values() if brain.mam is not None and learned else {}
    if not if_main_process():
        return lambdas
    encoder = brain.hparams.encoder
    content = {
        "method": brain.hparams.method,
        "seed": brain.hparams.seed,
        "control": brain.mam.control_name if brain.mam is not None else "none",
        "donor": _donor_of(brain),
        "donor_sha256": brain.mam.donor_hash if brain.mam is not None else None,
        "target_sha256": encoder.files_sha256() if hasattr(encoder, "files_sha256") else None,
        "equivalence_margin": getattr(brain.hparams, "equivalence_margin", None),
        "results": results,
        "lambdas": lambdas,
    }
    decoding = getattr(brain, "decoding", None)
    if decoding is not None and decoding.name != GREEDY:
        content["decoding"] = decoding.described()
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_text_beside(Path(brain.hparams.output_folder) / "results.json", text)
    return lambdas


def _donor_of(brain: MAMBrain) -> str | None:
    """The donor's name; one that was turned is another one to a report."""
    if brain.mam is None:
        return None
    name, rotate = brain.mam.donor.name, brain.mam.rotate
    return name if rotate == "none" else f"{name}, rotated ({rotate})"


def summarize(
    brain: MAMBrain, results: Results, further: Mapping[str, Results] | None = None
) -> None:
    """Log the test results side by side, λ per layer, and where the files are.

    The figures also go into ``results.json``.

    Arguments
    ---------
    brain : MAMBrain
        After its last test.
    results : dict
        Metrics by name of the test, the untouched model first.
    further : mapping, optional
        The same of further test sets, by their names.
    """
    lambdas, folder = write_results(brain, results), Path(brain.hparams.output_folder)
    if not if_main_process():
        return
    lines = [""]
    for title, found in {"": results, **(further or {})}.items():
        lines.append(f"Test set{title and f' {title}'}:")
        width = 2 + max(map(len, found))
        for name, metrics in found.items():
            shown = ", ".join(f"{metric} {value:.2f}" for metric, value in metrics.items())
            lines.append(f"  {name:<{width}}{shown}")
    if lambdas:
        lines.append("Learned λ (the target's share):")
        lines += [f"  {name:<24}{value:.4f}" for name, value in lambdas.items()]
        lines.append(f"Plot of λ over the epochs: {folder / 'lambdas.png'}")
    if brain.mam is not None:
        lines.append(f"What was merged: {folder / 'merge_plan.txt'}")
    lines.append(f"Everything else: {folder}")
    logger.info("\n".join(lines))
