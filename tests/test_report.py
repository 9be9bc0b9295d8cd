"""Reports of made-up runs: what they say, what they refuse, and that they read offline."""

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from made_up_runs import TestSet, stats, write_experiment, write_run, write_sweep

from speechbrain_mam import MAMError, cli
from speechbrain_mam.atomic import write_beside
from speechbrain_mam.report import make_report, write_report
from speechbrain_mam.report.document import Heading, Items, Table, Text
from speechbrain_mam.report.figures import CONTROL_STYLES, panels_of, plot_sweep
from speechbrain_mam.results.counts import ErrorCounts
from speechbrain_mam.results.runs import read_run, read_runs
from speechbrain_mam.results.search_results import Point, Sweep
from speechbrain_mam.results.systems import group
from speechbrain_mam.search.grid import SWEEP_CONTROLS

FAST = 499  # resamples


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def report(experiment):
    return make_report(experiment, FAST)


@pytest.fixture()
def runs(tmp_path):
    """A fine-tuned and a merged run of one seed, without a control."""
    test_set = TestSet()
    untouched = test_set.utterances(0.5, 0)
    return [
        write_run(
            tmp_path / method,
            {"untouched": untouched, method: test_set.utterances(wer, k)},
            method,
            donor=donor,
        )
        for k, (method, wer, donor) in enumerate(
            (("finetune", 0.42, None), ("mam_learnable", 0.2, "bert"))
        )
    ]


def said(report) -> str:
    """The summary, in bold or not."""
    texts = []
    for block in report.blocks:
        texts += [block.text] if isinstance(block, Text) else []
        texts += block.items if isinstance(block, Items) else []
    return "\n".join(texts)


def headings(report) -> list[str]:
    return [block.text for block in report.blocks if isinstance(block, Heading)]


def change(folder, name, edit):
    """Edit a JSON file in place."""
    file = folder / name
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def row(report, system, against):
    return next(r for r in report.rows if (r.system.name, r.against.name) == (system, against))


def test_systems_pool_seeds_and_keep_order(report):
    assert [system.name for system in report.systems] == [
        "untouched",
        "mam_zeroshot",
        "mam_zeroshot control random",
        "mam_zeroshot control no_donor",
        "mam_zeroshot control permuted_rows",
        "mam_zeroshot control shuffled_layers",
        "finetune",
        "mam_learnable",
        "mam_learnable control random",
    ]
    seeds = {system.name: list(system.evaluations) for system in report.systems}
    assert seeds["untouched"] == seeds["mam_zeroshot"] == [None]
    assert seeds["finetune"] == seeds["mam_learnable control random"] == [1, 2, 3]


def test_figures_are_those_of_the_runs(report, experiment):
    wers = []
    for folder in experiment:
        results = json.loads((folder / "results.json").read_text())
        if results["method"] == "finetune":
            wers.append(results["results"]["finetune"]["WER"])
    mean = sum(wers) / 3
    sd = (sum((wer - mean) ** 2 for wer in wers) / 2) ** 0.5
    assert f"| finetune | 3 | {mean:.2f} ± {sd:.2f} |" in report.table
    untouched = json.loads((experiment[0] / "results.json").read_text())["results"]["untouched"]
    words = row(report, "finetune", "untouched").main
    assert words.relative_change == pytest.approx(100 * (mean / untouched["WER"] - 1))
    assert words.n_seeds == 3 and words.seeds.low < words.difference < words.seeds.high
    assert row(report, "mam_learnable", "finetune").main.n_seeds == 3
    chars = row(report, "finetune", "untouched").comparisons["CER"]
    assert chars.before == pytest.approx(untouched["CER"])


def test_verdicts_reach_the_tables_and_the_summary(report):
    assert row(report, "mam_learnable", "finetune").verdict == "lower"
    assert row(report, "mam_learnable", "mam_learnable control random").verdict == "lower"
    zeroshot = row(report, "mam_zeroshot", "untouched").verdict
    assert zeroshot.endswith("not shown to be better than the random donor (one draw)")
    text = said(report)
    gains = text.index("Gains beyond chance:")
    spoilt = text.index("not shown to be better than")
    assert gains < text.index("mam_learnable against finetune") < spoilt
    assert text.index("mam_zeroshot against untouched") > gains
    assert "not controlled" not in text


def test_a_merge_without_a_control_is_called_so_in_bold(runs):
    report = make_report(runs, FAST)
    bold = [block.text for block in report.blocks if isinstance(block, Text) and block.bold]
    assert any("The gain of mam_learnable is not controlled" in text for text in bold)
    assert any("Trained with one seed only" in text and "mam_learnable" in text for text in bold)
    assert row(report, "mam_learnable", "finetune").verdict == "lower (one seed)"
    alone = said(make_report(runs[1:], FAST))
    assert "No fine-tuning without merging is in this report" in alone


def test_a_merge_that_its_random_donor_equals(runs, tmp_path):
    """The same errors with BERT and with random numbers: whatever was gained, BERT has no part."""
    shutil.copytree(runs[1], tmp_path / "random")
    change(tmp_path / "random", "results.json", lambda c: c.update(control="random"))
    report = make_report([*runs, tmp_path / "random"], FAST)
    found = row(report, "mam_learnable", "finetune").verdict
    assert found == "lower (one seed), but not shown to be better than the random donor"
    assert row(report, "mam_learnable", "mam_learnable control random").verdict == "identical"
    assert "these data do not show that the gain came from the donor" in said(report)
    assert "Gains beyond chance:" in said(report)  # fine-tuning itself


def test_runs_with_identical_errors_are_called_identical(runs, tmp_path):
    shutil.copy(runs[0] / "utterances_finetune.json", runs[1] / "utterances_mam_learnable.json")
    same = stats(json.loads((runs[0] / "utterances_finetune.json").read_text())["utterances"])
    change(runs[1], "results.json", lambda c: c["results"].update(mam_learnable=same))
    report = make_report(runs, FAST)
    assert row(report, "mam_learnable", "finetune").verdict == "identical"
    assert "| mam_learnable | identical | 1 | 0.0 % | identical | 1.000 |" in report.table
    assert "Identical, utterance by utterance" in said(report)


def test_two_donors_are_two_systems(runs, tmp_path):
    shutil.copytree(runs[1], tmp_path / "other")
    change(tmp_path / "other", "results.json", lambda c: c.update(donor="gpt"))
    names = [system.name for system in group(read_runs([*runs, tmp_path / "other"]))]
    assert names == ["untouched", "finetune", "mam_learnable (bert)", "mam_learnable (gpt)"]


def test_an_untouched_model_that_differs_between_runs_is_said(runs):
    other = TestSet().utterances(0.5, 1)
    file = runs[1] / "utterances_untouched.json"
    file.write_text(json.dumps({"utterances": other}))
    change(runs[1], "results.json", lambda c: c["results"].update(untouched=stats(other)))
    assert "untouched model's errors differ between the runs" in said(make_report(runs, FAST))


def test_the_utterances_that_changed_most(report):
    page = [b for b in report.blocks if hasattr(b, "header") and b.header[0] == "utterance"]
    assert len(page) == 4  # better and worse, of two merges
    for i, table in enumerate(page):
        changes = []
        for line in table.rows:
            before, after = map(float, line[2].split(" → "))
            changes.append(after - before)
        assert changes and all(x < 0 if i % 2 == 0 else x > 0 for x in changes)
        steps = itertools.pairwise(changes)
        assert all(abs(one) > abs(other) - 0.15 for one, other in steps)  # shown rounded
    learnable = next(table for table in page if table.header[-1] == "mam_learnable")
    assert learnable.header[-2] == "finetune" and "(seed " in learnable.rows[0][0]


@pytest.mark.slow
def test_written_files(experiment, tmp_path):
    out = tmp_path / "report"
    written = write_report(experiment, out, n_resamples=FAST)
    assert {path.name for path in out.iterdir()} == {
        *(f"report.{kind}" for kind in ("md", "csv", "json", "html")),
        *(f"report_{name}.png" for name in ("differences", "sweep", "lambdas", "probe")),
    }
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    outside = re.findall(r"(?:src|href)\s*=\s*\"(?!data:)|url\(|@import|https?://", page)
    assert not outside
    content = json.loads((out / "report.json").read_text())
    assert [s["name"] for s in content["systems"]] == [s.name for s in written.systems]
    with (out / "report.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    found = next(
        line
        for line in lines
        if (line["system"], line["against"], line["metric"]) == ("mam_learnable", "finetune", "WER")
    )
    assert found["verdict"] == "lower" and float(found["high"]) < 0
    markdown = (out / "report.md").read_text(encoding="utf-8")
    for part in (*written.table.split("\n\n"), "![WER against λ, with every control]"):
        assert part in markdown
    for name in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (out / name).stat().st_size > 5000
    again = write_report(experiment, out, force=True, n_resamples=FAST)
    assert again.table == written.table
    assert (out / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_a_report_replaces_one_only_if_asked_and_wholly(experiment, runs, tmp_path):
    out = tmp_path / "report"
    write_report(experiment, out, n_resamples=FAST)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(MAMError, match="holds a report; --force replaces it"):
        write_report(runs, out)
    write_report(runs, out, force=True, n_resamples=FAST)
    assert not (out / "report_sweep.png").exists()  # these runs have no sweep
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(MAMError, match="is a file"):
        write_report(runs, out / "notes.txt")


def test_texts_are_escaped(runs, tmp_path):
    nasty = "<script>alert(1)</script> | `x`"

    def edit(content):
        for utterance in content["utterances"].values():
            utterance["hyp"] = nasty

    for run, name in zip(runs, ("finetune", "mam_learnable"), strict=True):
        change(run, f"utterances_{name}.json", edit)
    write_report(runs, tmp_path / "report", n_resamples=FAST)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "</script> \\| `x`" in markdown


def test_long_names_leave_room_for_the_differences(tmp_path):
    """Matplotlib warns, and draws over the labels, where a layout does not fit."""
    test_set = TestSet()
    untouched = test_set.utterances(0.5, 0)
    for k, (seed, control) in enumerate((s, c) for s in "12" for c in ("none", "random")):
        tests = {"untouched": untouched, "mam_learnable": test_set.utterances(0.3, k)}
        donor = (
            f"an-organisation-of-some-length/a-model-with-a-long-name-{seed}, rotated (hadamard)"
        )
        run = tmp_path / f"run_{seed}_{control}"
        write_run(run, tests, "mam_learnable", control=control, donor=donor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path.glob("run_*"), tmp_path / "report", n_resamples=FAST)
    assert (tmp_path / "report" / "report_differences.png").stat().st_size > 5000


def test_a_heat_map_where_there_is_one_training(tmp_path):
    test_set = TestSet()
    lambdas = {f"layer {i}": 0.9 + 0.01 * i for i in range(3)}
    tests = {"untouched": test_set.utterances(0.5, 0), "mam_learnable": test_set.utterances(0.3, 1)}
    run = write_run(tmp_path / "run", tests, "mam_learnable", donor="bert", lambdas=lambdas)
    write_report([run], tmp_path / "report", n_resamples=FAST)
    assert (tmp_path / "report" / "report_lambdas_epochs.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_sweep_with_gaps_is_still_drawn(tmp_path):
    """A control with one λ, a subset of its own, a control that breaks the model, no untouched."""
    write_sweep(tmp_path, TestSet(20), ("all", "last:2", "first:1"))

    def edit(content):
        content["points"] = [
            p for p in content["points"]
            if p["lam"] != 1 and not (p["control"] == "random" and p["lam"] > 0.8)
        ]  # fmt: skip
        content["points"][1]["errors"] = content["words"]
        content["points"][2]["donor"] = None

    change(tmp_path, "sweep.json", edit)
    write_run(tmp_path / "run", {"mam_zeroshot": TestSet().utterances(0.5, 0)}, "mam_zeroshot")
    shutil.copy(tmp_path / "sweep.json", tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert plot_sweep(run.sweeps[""], "WER against λ").startswith(b"\x89PNG")
    assert "No run tested the untouched model" in said(make_report([tmp_path / "run"], FAST))


def test_sets_of_layers_that_a_greedy_search_tried_are_kept_apart(tmp_path):
    write_run(tmp_path / "run", {"mam_zeroshot": TestSet().utterances(0.5, 0)}, "mam_zeroshot")
    write_sweep(tmp_path / "run", TestSet(20), ("all", "greedy"))

    def edit(content):
        tried = [p for p in content["points"] if p["subset"] == "greedy"]
        for i, point in enumerate(tried):
            point.update(lam=0.9, layers=[i])
        content["chosen"].update(subset="greedy", lam=0.9, layers=[2])
        content["untouched_was_better"] = True

    change(tmp_path / "run", "sweep.json", edit)
    sweep = read_run(tmp_path / "run").sweeps[""]
    subsets = {point.subset for point in sweep.points}
    assert subsets == {"all", *(f"greedy ({i})" for i in range(4))}
    assert sweep.chosen["subset"] == "greedy (2)"
    report = make_report([tmp_path / "run"], FAST)
    table = next(b for b in report.blocks if getattr(b, "header", [""])[0] == "merge or control")
    assert [line[2] for line in table.rows if line[0] == "MAM"] == sorted(subsets)
    assert "No merge was better than the untouched model on the valid set" in said(report)


def break_json(folder):
    (folder / "results.json").write_text('{"method": ')


def other_text(folder):
    def edit(content):
        content["utterances"]["XX001-0007"]["ref"] = "ANOTHER TEXT"

    change(folder, "utterances_untouched.json", edit)


def other_test_set(folder):
    def edit(content):
        content["utterances"]["YY"] = content["utterances"].pop("XX001-0003")

    for file in folder.glob("utterances_*.json"):
        change(folder, file.name, edit)


@pytest.mark.parametrize(
    ("breakage", "parts"),
    [
        (lambda f: (f / "results.json").unlink(), ["mam_learnable' holds no results.json"]),
        (break_json, ["results.json' is not valid JSON"]),
        (lambda f: (f / "results.json").write_text("[]"), ["expected a JSON object, found list"]),
        (
            lambda f: change(f, "results.json", lambda c: c.pop("seed")),
            ["results.json': field 'seed' is missing"],
        ),
        (
            lambda f: change(f, "results.json", lambda c: c.update(seed="1")),
            ["field 'seed' is '1', expected int"],
        ),
        (
            lambda f: change(f, "results.json", lambda c: c["results"].update(x={})),
            ["'x' is neither 'untouched' nor 'mam_learnable'"],
        ),
        (
            lambda f: change(
                f,
                "results.json",
                lambda c: c.update(lambdas={"layer 0": 0.9}) or c["results"].pop("mam_learnable"),
            ),
            ["field 'results' lacks 'mam_learnable', whose λ are there"],
        ),
        (
            lambda f: change(f, "results.json", lambda c: c["results"]["untouched"].update(WER=1)),
            ["says WER 1.00 for 'untouched'", "they come from different evaluations"],
        ),
        (
            lambda f: (f / "utterances_mam_learnable.json").unlink(),
            ["utterances_mam_learnable.json': no such file"],
        ),
        (
            lambda f: change(
                f, "utterances_untouched.json", lambda c: c["utterances"]["XX001-0000"].pop("hyp")
            ),
            ["utterances_untouched.json', utterance 'XX001-0000': field 'hyp' is missing"],
        ),
        (other_text, ["different test sets", "'XX001-0007'", "'ANOTHER TEXT'", "finetune'"]),
        (other_test_set, ["different test sets", "'XX001-0003'", "not there", "mam_learnable'"]),
        (
            lambda f: (f / "lambdas.csv").write_text("epoch,layer 0\n0,high\n"),
            ["lambdas.csv': not a table of numbers"],
        ),
        (lambda f: (f / "sweep.json").write_text("{}"), ["sweep.json': field 'ids' is missing"]),
        (lambda f: (f / "probe.json").write_text("{}"), ["probe.json': field 'layers' is missing"]),
    ],
)
def test_bad_runs_are_one_line_and_nothing_is_written(breakage, parts, runs, tmp_path, capsys):
    breakage(runs[1])
    out = tmp_path / "report"
    assert cli.main(["report", *map(str, runs), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("speechbrain-mam: error: ") and message.count("\n") == 1
    for part in parts:
        assert part in message
    assert not out.exists()


def test_the_same_run_twice(runs):
    with pytest.raises(MAMError, match="are both 'finetune' with seed 1; leave one out") as error:
        make_report([runs[0], runs[1], runs[0]], FAST)
    assert str(runs[0]) in str(error.value)


def test_no_runs(capsys, tmp_path):
    with pytest.raises(MAMError, match="no runs"):
        make_report([])
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    assert "RUN_DIR" in capsys.readouterr().err


def test_a_write_that_fails_leaves_no_half_file(runs, tmp_path, monkeypatch):
    def full(file, write):
        def fail(part):
            part.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(file))

        write_beside(file, fail)

    monkeypatch.setattr("speechbrain_mam.report.build.write_beside", full)
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "report")]) == 2
    assert not list((tmp_path / "report").iterdir())


@pytest.mark.slow
def test_the_command_prints_the_tables(runs, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "speechbrain_mam", "report"),
            *(*map(str, runs), "--out", str(tmp_path / "report")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| mam_learnable | 1 |" in done.stdout and "lower (one seed)" in done.stdout


def test_the_other_commands_need_no_plotting(tmp_path):
    code = (
        "import sys; from speechbrain_mam import cli; m = 'speechbrain_mam/hubert-mini'; "
        "cli.main(['plan', m, m]); "
        "bad = {'scipy', 'matplotlib', 'torch'} & set(sys.modules); sys.exit(str(sorted(bad)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


HOSTILE = (
    *("<img src=x onerror=alert(1)>", "=1+1", "[a](javascript:alert)", "$\\frac{", "a|b\nc", "-2"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_a_run_are_no_html_link_formula_or_mathematics(tmp_path, name):
    """A run's method, donor and hypotheses may have been written by anybody."""
    test_set = TestSet()
    runs = [
        write_run(
            tmp_path / str(k),
            {"untouched": test_set.utterances(0.5, 0), method: test_set.utterances(0.3, k)},
            method,
            donor=donor,
        )
        for k, (method, donor) in enumerate((("finetune", None), (name, name)))
    ]
    for run in runs:
        for file in run.glob("utterances_*.json"):
            file.write_text(file.read_text().replace("UM", json.dumps(name)[1:-1]))
    report = write_report(runs, tmp_path / "report", n_resamples=FAST)
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<[A-Za-z/!?]", page) and "](javascript" not in page
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html and "<a " not in html
    table = (tmp_path / "report" / "report.csv").read_text(encoding="utf-8")
    cells = [cell for row in csv.reader(table.splitlines()) for cell in row]
    assert not [c for c in cells if c[:1] in tuple("=+-@") and not re.fullmatch(r"-[\d.e-]+", c)]
    assert report.rows


def test_runs_of_different_environments_are_told_apart(runs):
    """Whether a gain is the merge's or another torch's."""
    note = {"torch": "2.14.1", "precision": "fp32", "command": "a", "donor_sha256": "0" * 64}
    other = {**note, "precision": "bf16", "command": "b", "donor_sha256": "1" * 64}
    for run, content in zip(runs, (note, note), strict=True):
        (run / "environment.json").write_text(json.dumps(content))
    assert "Environments" not in headings(make_report(runs, FAST))
    (runs[1] / "environment.json").write_text(json.dumps(other))
    report = make_report(runs, FAST)
    (table,) = [b for b in report.blocks if isinstance(b, Table) and "what" in b.header]
    assert [list(row) for row in table.rows] == [["precision", "fp32, bf16"]]
    assert "Environments" in headings(report)


def test_every_control_has_its_own_colour_and_marker():
    """All of them may stand in one picture; two of a kind could not be told apart."""
    assert set(CONTROL_STYLES) == set(SWEEP_CONTROLS) - {"none"}
    colours, markers = zip(*CONTROL_STYLES.values(), strict=True)
    assert len(set(colours)) == len(colours) and len(set(markers)) == len(markers)


def test_a_panel_is_a_line_all_layers_or_the_chosen_ones():
    def point(subset, lam, control="none", donor="bert"):
        return Point(
            donor, control, lam, subset, ErrorCounts(("u",), np.array([1]), np.array([10]))
        )

    own = [point("all", 0.9), point("greedy (1)", 0.9), point("greedy (2)", 0.9)]
    own += [point("last:2", lam) for lam in (0.8, 0.9)]
    controls = [point("greedy (1)", lam, "random") for lam in (0.8, 0.9)]
    alone = [point(f"greedy ({i})", 0.9, "moments") for i in (4, 5)]
    sweep = Sweep((*own, *controls, *alone), {"subset": "greedy (2)"}, "valid")
    assert panels_of(sweep) == [
        *(("bert", subset) for subset in ("all", "greedy (2)", "last:2", "greedy (1)")),
        ("bert", "greedy (4)"),
    ]
    assert panels_of(Sweep((), {}, "valid")) == [(None, "all")]
