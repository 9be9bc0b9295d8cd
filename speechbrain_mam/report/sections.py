"""A report's sections beside the tables of results: sweeps, λ, probes, utterances, machines."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from speechbrain_mam.report.document import Block, Heading, Picture, Table, Text
from speechbrain_mam.report.figures import plot_final_lambdas, plot_probe, plot_sweep
from speechbrain_mam.report.lambda_map import plot_lambdas
from speechbrain_mam.report.tables import power_table, sweep_table, utterance_table
from speechbrain_mam.results.family import Row
from speechbrain_mam.results.runs import Run, differing
from speechbrain_mam.results.systems import System, reference_of
from speechbrain_mam.results.tasks import sentence


def environments_section(runs: Sequence[Run]) -> list[Block]:
    """What the runs differ in besides what they are to be compared in; nothing if in nothing."""
    found = differing(runs)
    if not found:
        return []
    short = {
        key: ", ".join(value[:12] if key.endswith("_sha256") else value for value in values)
        for key, values in found.items()
    }
    rows = [[key, values] for key, values in short.items()]
    return [
        Heading("Environments"),
        Text(
            "These runs were not made in one environment; what is listed here may move a figure as "
            "well as what is compared."
        ),
        Table(["what", "values"], rows),
    ]


def power_section(rows: Sequence[Row]) -> list[Block]:
    """What each merge's comparison could have shown, had there been an effect."""
    found = [row for row in rows if row.system.merged and row.main.detectable is not None]
    if not found:
        return []
    task, units = found[0].system.task, found[0].system.units
    text = (
        f"The difference in {task.main} that so many {units}, and where there are several so many "
        "seeds, show in 80 % of cases, as a single comparison at p = 0.05; corrected for others it "
        "takes more. What is smaller is seen less often, and its absence is no evidence. The last "
        f"columns say what it would take to see the paper's −{task.published:g} %, relative."
    )
    return [Heading("What could have been seen"), Text(text), power_table(found)]


def sweeps_section(runs: Sequence[Run], n_resamples: int) -> list[Block]:
    """The error rate against λ, one picture and one table a sweep."""
    found = [(run, label, sweep) for run in runs for label, sweep in run.sweeps.items()]
    several = sum(bool(run.sweeps) for run in runs) > 1
    blocks: list[Block] = []
    for i, (run, label, sweep) in enumerate(found):
        name = "report_sweep.png" if i == 0 else f"report_sweep_{i + 1}.png"
        metric = run.task.main
        alt = sentence(f"{metric} against λ")
        where = [*([str(run.folder)] if several else []), *([label] * bool(label))]
        title = ", ".join([alt, *where])
        blocks += [
            Heading(title),
            Picture(name, plot_sweep(sweep, title, metric), f"{alt}, with every control"),
            Text(
                "Best λ of each line. The best of many points flatters itself, so the interval "
                f"here, over {run.task.items} without regard to clusters, is no proof, and the "
                "verdict is corrected for all points. The sweep chooses on the "
                f"{sweep.split} set, and the tables "
                "above are of the test set."
            ),
            sweep_table(sweep, metric, n_resamples),
        ]
        if sweep.untouched_was_better:
            text = f"No merge was better than the untouched model on the {sweep.split} set; the "
            blocks.append(Text(f"{text}best merge was tested all the same.", bold=True))
    return blocks


def lambdas_section(runs: Sequence[Run], systems: Sequence[System]) -> list[Block]:
    """Learned λ over layers and seeds; over the epochs too where there is one training."""
    learned: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        if run.lambdas:
            name = next(
                s.name
                for s in systems
                if (s.method, s.control, s.donor) == (run.method, run.control, run.donor)
            )
            learned.setdefault(name, []).append(dict(run.lambdas))
    if not learned:
        return []
    alt = "Learned λ by layer"
    blocks: list[Block] = [
        Heading("Learned λ"),
        Picture("report_lambdas.png", plot_final_lambdas(learned), alt),
    ]
    histories = [run.history for run in runs if run.history]
    if len(histories) == 1:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "lambdas.png"
            rows = [{k: v for k, v in row.items() if k != "epoch"} for row in histories[0]]
            plot_lambdas([int(row["epoch"]) for row in histories[0]], rows, file)
            blocks.append(
                Picture("report_lambdas_epochs.png", file.read_bytes(), "λ by layer and epoch")
            )
    return blocks


def probes_section(runs: Sequence[Run]) -> list[Block]:
    """The probe's ranking."""
    found = [(run, label, probe) for run in runs for label, probe in run.probes.items()]
    several = sum(bool(run.probes) for run in runs) > 1
    blocks: list[Block] = []
    for i, (run, label, probe) in enumerate(found):
        name = "report_probe.png" if i == 0 else f"report_probe_{i + 1}.png"
        title = "Where the donor would help: the probe's ranking"
        where = [*([str(run.folder)] if several else []), *([label] * bool(label))]
        blocks.append(Heading(", ".join([title, *where])))
        blocks.append(Text("Negative: moving towards the donor lowers the loss, to first order."))
        blocks.append(Picture(name, plot_probe(probe), "Scores of layers, projections and heads"))
    return blocks


def utterances_section(systems: Sequence[System]) -> list[Block]:
    """What each merge changed most, utterance by utterance or clip by clip."""
    blocks: list[Block] = []
    for system in systems:
        before = reference_of(system, systems)
        if not system.merged or before is None:
            continue
        for better, title in ((True, "improved most"), (False, "got worse most")):
            table = utterance_table(before, system, better)
            heading = f"What {title}: {system.name} after {before.name}"
            none = Text(f"No {system.task.item}.")
            blocks += [Heading(heading), table if table.rows else none]
    return blocks
