"""Several trainings with several seeds, the same budget for all, and one report over them.

> speechbrain-mam compare recipes/LJSpeech/train.py hparams/finetune.yaml \\
    hparams/mam_learnable.yaml "hparams/mam_learnable.yaml --control random" \\
    --seeds 1 2 3 4 5 --out results/seeds -- --number_of_epochs 3

Each quoted YAML may have overrides of its own; what follows ``--`` goes to every run. Runs lie in
``OUT/LABEL/SEED``, their output in ``OUT/LABEL/SEED.log``, the report in ``OUT/report``; with
``--data`` all of that in ``OUT/NAME``, once for each data folder. Finished runs are not repeated
and interrupted ones go on, when the same command is run again. Where this command ends, by a
failure, Ctrl-C or a signal, so does all that it has started.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from speechbrain_mam.embedded.corpora import packaged_corpora
from speechbrain_mam.errors import MAMError, one_line_errors
from speechbrain_mam.runs.jobs import Job, run_jobs
from speechbrain_mam.runs.yaml_checks import check_asked_donors
from speechbrain_mam.runs.yaml_files import content_sha256, files_of
from speechbrain_mam.text_files import read_json

OUT = "results/compare"


def label_of(yaml: Path, overrides: Sequence[str]) -> str:
    """The YAML's method and the overrides as one name that is safe for files.

    Example
    -------
    >>> label_of(Path("hparams/mam_learnable.yaml"), ["--control", "random", "--lam=0.9"])
    'mam_learnable_control_random_lam-0.9'
    """
    method = None
    if yaml.is_file():
        text = "\n".join(file.read_text(encoding="utf-8") for file in files_of(yaml))
        method = re.search(r"^method:\s*(\w+)", text, flags=re.M)
    parts = [method[1] if method else yaml.stem, *(word.lstrip("-") for word in overrides)]
    label = "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts)
    if len(label) > 80:
        label = f"{label[:70]}_{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return label


def plan_jobs(
    script: Path,
    specs: Iterable[str],
    seeds: Sequence[int],
    out: Path,
    shared: Sequence[str] = (),
    nproc_per_node: int = 0,
) -> list[Job]:
    """All trainings, seed by seed, so that an interrupted series still compares like with like.

    Arguments
    ---------
    script : Path
        A recipe's ``train.py``.
    specs : iterable of str
        YAML files, each with overrides of its own.
    seeds : sequence of int
        One training each.
    out : Path
        Above all output folders.
    shared : sequence of str
        Overrides for all.
    nproc_per_node : int
        Processes per training, started by ``torchrun``; 0 for none of it.

    Raises
    ------
    MAMError
        If a file does not exist, two YAMLs have one label, an override belongs to this command, a
        folder holds a run that something else was asked of, or a donor is not there: its run comes
        when others have been trained.
    """
    if not script.is_file():
        raise MAMError(f"'{script}': no such recipe")
    if doubled := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise MAMError(f"--seeds: {', '.join(map(str, doubled))} is named more than once")
    launcher = [sys.executable]
    if nproc_per_node:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={nproc_per_node}"]
        launcher += ["--standalone"]
    kinds: dict[str, tuple[Path, list[str]]] = {}
    for spec in specs:
        yaml_name, *own = shlex.split(spec) or [""]
        yaml = Path(yaml_name)
        if not yaml.is_file():
            raise MAMError(f"'{yaml_name}': no such YAML")
        for word in (*own, *shared):
            if word.split("=")[0] in ("--seed", "--output_folder"):
                raise MAMError(f"'{word}' is set for each run; use --seeds and --out")
        label = label_of(yaml, own)
        if label in kinds:
            raise MAMError(f"'{spec}' and another YAML are both '{label}': give each its own --out")
        kinds[label] = yaml, own
    jobs = []
    for seed in seeds:
        for label, (yaml, own) in kinds.items():
            folder = out / label / str(seed)
            where = ["--seed", str(seed), "--output_folder", str(folder)]
            command = (*launcher, str(script), str(yaml), *where, *own, *shared)
            asked = {
                "script": str(script.resolve()),
                "yaml": str(yaml.resolve()),
                "YAML content (sha256)": content_sha256(yaml),
                "overrides": [*own, *shared],
                "nproc_per_node": nproc_per_node,
            }
            jobs.append(Job(label, seed, folder, command, asked))
    for job in jobs:
        _check_record(job)
    for label in dict.fromkeys(job.label for job in jobs if not job.finished):
        yaml, own = kinds[label]
        check_asked_donors(yaml, [*own, *shared])
    return jobs


def _check_record(job: Job) -> None:
    if not job.record.is_file():
        if job.folder.is_dir() and any(job.folder.iterdir()):
            raise MAMError(
                f"'{job.folder}' holds a run that was not started here, so what it was asked is "
                "not known; choose another --out"
            )
        return
    found = read_json(job.record)
    for key, value in job.asked.items():
        if found.get(key) != value:
            said = [" ".join(v) if isinstance(v, list) else str(v) for v in (found.get(key), value)]
            raise MAMError(
                f"'{job.folder}' holds a run with other {key}: '{said[0]}', now '{said[1]}'; "
                "choose another --out, or remove the folder"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a series is asked: which recipe, which YAMLs, seeds, data, and where to."""
    parser.add_argument("script", metavar="TRAIN_PY", type=Path, help="a recipe's train.py")
    parser.add_argument("specs", metavar="YAML", nargs="+", help="a YAML, or 'YAML --key value'")
    parser.add_argument(
        "--seeds", type=int, nargs="+", required=True, metavar="N", help="one run of each YAML each"
    )
    parser.add_argument("--out", type=Path, default=Path(OUT), metavar="DIR", help=f"default {OUT}")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="the series on each of these data folders, in DIR/NAME, with a report of each",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side")
    parser.add_argument(
        "--nproc_per_node", type=int, default=0, metavar="N", help="processes a run (torchrun)"
    )
    parser.add_argument("--primary", metavar="SYSTEM", help="of the report's comparisons")


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line before and after its ``--``.

    Example
    -------
    >>> split_overrides(["train.py", "a.yaml", "--", "--lr", "1"])
    (['train.py', 'a.yaml'], ['--lr', '1'])
    """
    cut = list(words).index("--") if "--" in words else len(words)
    return list(words[:cut]), list(words[cut + 1 :])


def series_on(
    data: Sequence[str], out: Path, specs: Sequence[str], shared: Sequence[str]
) -> dict[Path, list[str]]:
    """By the folder of each series, what all its runs are told.

    Raises
    ------
    MAMError
        If two data folders have one name, or the runs are told of another one.

    Example
    -------
    >>> series_on(["/data/LJ"], Path("out"), ["a.yaml"], ["--lr", "1"])
    {PosixPath('out/LJ'): ['--data_folder', '/data/LJ', '--lr', '1']}
    """
    if not data:
        return {out: list(shared)}
    for word in (*shared, *(word for spec in specs for word in shlex.split(spec))):
        if word.split("=")[0] == "--data_folder":
            raise MAMError(f"'{word}' is set for each series; leave it out, or --data")
    found: dict[Path, list[str]] = {}
    for folder in data:
        place = out / re.sub(r"[^\w.+-]+", "-", Path(folder).expanduser().resolve().name)
        if place in found:
            raise MAMError(f"--data: '{folder}' and another folder would both be '{place}'")
        found[place] = ["--data_folder", folder, *shared]
    return found


def _check_data(folders: Sequence[str]) -> None:
    """That all are there: the last one's turn comes when the others are trained."""
    for folder in folders:
        if not Path(folder).expanduser().is_dir() and folder not in packaged_corpora():
            known = ", ".join(packaged_corpora())
            raise MAMError(f"--data '{folder}': no such folder; the package embeds {known}")


def run_series(options: argparse.Namespace, shared: Sequence[str]) -> None:
    """Run what :func:`add_arguments` asked for, then report.

    Raises
    ------
    MAMError
        As :func:`plan_jobs` before anything is run; or if a run fails.
    SystemExit
        130, if it is interrupted.
    """
    if options.jobs < 1:
        raise MAMError(f"--jobs {options.jobs}: expected at least 1")
    if "--download" not in " ".join([*options.specs, *shared]):
        _check_data(options.data)
    series = {
        out: plan_jobs(
            *(options.script, options.specs, options.seeds, out),
            shared=told,
            nproc_per_node=options.nproc_per_node,
        )
        for out, told in series_on(options.data, options.out, options.specs, shared).items()
    }
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not so under nohup
            signal.signal(number, signal.default_int_handler)
    for out, jobs in series.items():
        try:
            run_jobs(jobs, options.jobs)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted; the same command goes on from here\n")
            raise SystemExit(130) from None
        # Loaded late: wrong arguments should be answered at once.
        from speechbrain_mam.report import write_report

        folders, page = [job.folder for job in jobs], out / "report"
        report = write_report(folders, page, force=True, primary=options.primary)
        sys.stdout.write(f"{report.table}\n\nwritten to '{page}'\n")


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m speechbrain_mam.seeds``, what ``speechbrain-mam compare`` was called before.

    Arguments
    ---------
    argv : sequence of str, optional
        The arguments; those of the process by default.
    """
    words, shared = split_overrides(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        "python -m speechbrain_mam.seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    options = parser.parse_args(words)
    with one_line_errors():
        run_series(options, shared)


if __name__ == "__main__":
    main()
