"""From run folders to the report's blocks and files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from speechbrain_mam.atomic import write_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.report.classes import classes_section
from speechbrain_mam.report.data import as_csv, as_dict
from speechbrain_mam.report.decoders import decoders_section
from speechbrain_mam.report.document import (
    Block,
    Heading,
    Picture,
    Table,
    table_to_markdown,
    to_html,
    to_markdown,
)
from speechbrain_mam.report.figures import plot_differences
from speechbrain_mam.report.folds import folds_section, has_folds
from speechbrain_mam.report.sections import (
    environments_section,
    lambdas_section,
    probes_section,
    sweeps_section,
    utterances_section,
)
from speechbrain_mam.report.tables import comparison_table, controls_table, systems_table
from speechbrain_mam.report.text import how_to_read, summary
from speechbrain_mam.results.runs import FINETUNE, UNTOUCHED, Run, read_runs
from speechbrain_mam.results.statistics import N_RESAMPLES
from speechbrain_mam.results.systems import (
    Row,
    System,
    compare_with,
    compare_with_controls,
    find,
    group,
)
from speechbrain_mam.version import __version__

TITLE = "Multimodal Attention Merging: what it was worth"


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report says, before it is written.

    Arguments
    ---------
    runs : list of Run
        What was read.
    systems : list of System
        The runs by method, control and donor.
    rows : list of Row
        Comparisons with the untouched and the fine-tuned model, then with the controls.
    blocks : list of Block
        The document.
    table : str
        Its tables of results as Markdown.
    """

    runs: list[Run]
    systems: list[System]
    rows: list[Row]
    blocks: list[Block]
    table: str


def make_report(folders: Iterable[Path | str], n_resamples: int = N_RESAMPLES) -> Report:
    """Read runs, compare them, and put everything in order.

    Arguments
    ---------
    folders : iterable of Path
        Output folders of finished runs.
    n_resamples : int
        Bootstrap resamples.

    Raises
    ------
    MAMError
        If the runs cannot be read, or cannot be compared.
    """
    runs = read_runs(folders)
    systems = group(runs)
    untouched, finetuned = find(systems, UNTOUCHED), find(systems, FINETUNE)
    references = [system for system in (untouched, finetuned) if system is not None]
    rows = {ref.name: compare_with(ref, systems, n_resamples) for ref in references}
    if finetuned is not None:
        # Whether a merge without training beats a fine-tuned model is nobody's question.
        rows[finetuned.name] = [row for row in rows[finetuned.name] if row.system.trained]
    controls = compare_with_controls(systems, n_resamples)
    every = [row for of_one in rows.values() for row in of_one]

    tables = [("Error rates", systems_table(systems, rows, n_resamples))]
    tables += [
        (f"Against {name}", comparison_table(found)) for name, found in rows.items() if found
    ]
    if controls:
        tables.append(("Merges against their controls", controls_table(controls)))
    blocks = summary(runs, systems, every)
    for title, table in tables:
        blocks += [Heading(title), table]
    if every or controls:
        alt = f"Differences of {systems[0].task.main} with their intervals"
        png = plot_differences([*every, *controls])
        blocks.append(Picture("report_differences.png", png, alt))
    decoder = str(runs[0].decoding["name"])
    beside = decoders_section(systems, decoder, n_resamples)
    blocks += beside
    blocks += folds_section(systems, [*every, *controls])
    blocks += [
        *sweeps_section(runs, n_resamples),
        *lambdas_section(runs, systems),
        *probes_section(runs),
    ]
    blocks += [*classes_section(systems), *utterances_section(systems)]
    blocks += environments_section(runs)
    blocks += how_to_read(systems[0].task, has_folds(systems), n_resamples)
    printed = "\n\n".join(table_to_markdown(table) for _, table in tables)
    decoders = [table_to_markdown(block) for block in beside if isinstance(block, Table)]
    printed = "\n\n".join([printed, *decoders])
    return Report(runs, systems, [*every, *controls], blocks, printed)


def write_report(
    folders: Iterable[Path | str], out: Path, force: bool = False, n_resamples: int = N_RESAMPLES
) -> Report:
    """Write ``report.html``, ``.md``, ``.csv``, ``.json`` and the pictures into a folder.

    Each file appears whole, and the page last.

    Arguments
    ---------
    folders : iterable of Path
        Output folders of finished runs.
    out : Path
        Where to; made if it does not exist. Other files there stay.
    force : bool
        Replace the report that is there.

    Raises
    ------
    MAMError
        As :func:`make_report`, or if ``out`` is a file or holds a report and ``force`` is not set.
    """
    if out.exists() and not out.is_dir():
        raise MAMError(f"--out '{out}' is a file; choose a folder")
    former = [*out.glob("report_*.png"), *out.glob("report.*")]
    if former and not force:
        raise MAMError(f"--out '{out}' holds a report; --force replaces it")
    report = make_report(folders, n_resamples)
    pictures = [block for block in report.blocks if isinstance(block, Picture)]
    files = {picture.name: picture.png for picture in pictures}
    figures = as_dict(report.runs, report.systems, report.rows, n_resamples)
    texts = {
        "report.md": to_markdown(TITLE, report.blocks),
        "report.csv": as_csv(figures),
        "report.json": json.dumps(figures, indent=1, ensure_ascii=False),
        "report.html": to_html(TITLE, report.blocks, f"speechbrain_mam {__version__}"),
    }
    files |= {name: text.encode("utf-8") for name, text in texts.items()}
    out.mkdir(parents=True, exist_ok=True)
    for file in former:
        if file.name not in files:  # a picture that this report does not have
            file.unlink()
    for name, data in files.items():
        write_beside(out / name, lambda part, data=data: part.write_bytes(data))
    return report
