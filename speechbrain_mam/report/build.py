"""From run folders to the report's blocks and files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from speechbrain_mam.atomic import write_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.report.classes import classes_section
from speechbrain_mam.report.data import as_csv, as_dict
from speechbrain_mam.report.decoders import decoders_section, rivals_of
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
    power_section,
    probes_section,
    sweeps_section,
    utterances_section,
)
from speechbrain_mam.report.tables import comparison_table, controls_table, systems_table
from speechbrain_mam.report.text import how_to_read, summary
from speechbrain_mam.results.family import Family, Row, compare_all
from speechbrain_mam.results.resampling import N_RESAMPLES
from speechbrain_mam.results.runs import Run, margin_of, read_runs
from speechbrain_mam.results.systems import System, group
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
    family : Family
        The comparisons, corrected together.
    blocks : list of Block
        The document.
    table : str
        Its tables of results as Markdown.
    """

    runs: list[Run]
    systems: list[System]
    family: Family
    blocks: list[Block]
    table: str

    @property
    def rows(self) -> list[Row]:
        """Comparisons with the untouched and the fine-tuned model, then with the controls."""
        return self.family.rows


def make_report(
    folders: Iterable[Path | str],
    n_resamples: int = N_RESAMPLES,
    primary: str | None = None,
    margin: float | None = None,
) -> Report:
    """Read runs, compare them, and put everything in order.

    Arguments
    ---------
    folders : iterable of Path
        Output folders of finished runs.
    n_resamples : int
        Draws of clusters.
    primary : str, optional
        The system whose comparison is the primary one, as
        :func:`~speechbrain_mam.results.family.compare_all` has it.
    margin : float, optional
        Points within which systems count as equivalent, for runs that were made without a margin.

    Raises
    ------
    MAMError
        If the runs cannot be read, or cannot be compared.
    """
    runs = read_runs(folders)
    margin = margin_of(runs, margin)
    systems = group(runs)
    decoder = str(runs[0].decoding["name"])
    rivals = rivals_of(systems, decoder, n_resamples)
    family = compare_all(systems, n_resamples, primary, margin, [one.found for one in rivals])
    rivals = [replace(one, found=it) for one, it in zip(rivals, family.further, strict=True)]
    rows, controls = family.against, family.controls
    every = [row for of_one in rows.values() for row in of_one]

    tables = [("Error rates", systems_table(systems, rows, n_resamples))]
    tables += [
        (f"Against {name}", comparison_table(found)) for name, found in rows.items() if found
    ]
    if controls:
        tables.append(("Merges against their controls", controls_table(controls)))
    blocks = summary(runs, systems, family)
    for title, table in tables:
        blocks += [Heading(title), table]
    blocks += power_section(family.rows)
    if every or controls:
        alt = f"Differences of {systems[0].task.main} with their intervals"
        png = plot_differences([*every, *controls])
        blocks.append(Picture("report_differences.png", png, alt))
    beside = decoders_section(systems, decoder, n_resamples, rivals)
    blocks += beside
    blocks += folds_section(systems, [*every, *controls])
    blocks += [
        *sweeps_section(runs, n_resamples),
        *lambdas_section(runs, systems),
        *probes_section(runs),
    ]
    blocks += [*classes_section(systems), *utterances_section(systems)]
    blocks += environments_section(runs)
    blocks += how_to_read(systems[0], has_folds(systems), n_resamples, margin)
    printed = "\n\n".join(table_to_markdown(table) for _, table in tables)
    decoders = [table_to_markdown(block) for block in beside if isinstance(block, Table)]
    printed = "\n\n".join([printed, *decoders])
    return Report(runs, systems, family, blocks, printed)


def write_report(
    folders: Iterable[Path | str],
    out: Path,
    force: bool = False,
    n_resamples: int = N_RESAMPLES,
    primary: str | None = None,
    margin: float | None = None,
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
    n_resamples, primary, margin
        As of :func:`make_report`.

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
    report = make_report(folders, n_resamples, primary, margin)
    pictures = [block for block in report.blocks if isinstance(block, Picture)]
    files = {picture.name: picture.png for picture in pictures}
    figures = as_dict(report.runs, report.systems, report.family, n_resamples)
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
