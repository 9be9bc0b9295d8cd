"""A report's comparisons together: corrected, one of them primary, draws, margins, clusters."""

import json
import math
import time

import numpy as np
import pytest
from made_up_runs import TestSet, write_experiment, write_run

from speechbrain_mam import MAMError, cli
from speechbrain_mam.report import make_report, write_report
from speechbrain_mam.report.document import Table, Text
from speechbrain_mam.results.counts import error_rate
from speechbrain_mam.results.family import compare_all, holm
from speechbrain_mam.results.resampling import sign_flip_p
from speechbrain_mam.results.runs import read_runs
from speechbrain_mam.results.systems import group

FAST = 499  # resamples


def change(folder, name, edit):
    """Edit a JSON file in place."""
    file = folder / name
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def row(report, system, against):
    return next(r for r in report.rows if (r.system.name, r.against.name) == (system, against))


def said(report) -> str:
    return "\n".join(block.text for block in report.blocks if isinstance(block, Text))


def table(report, first):
    """The table whose first column has a title."""
    return next(b for b in report.blocks if isinstance(b, Table) and b.header[0] == first)


def clustered(folder, clusters):
    """The same run with a cluster for each utterance: ``clusters`` of them in turn."""
    for file in folder.glob("utterances_*.json"):
        content = json.loads(file.read_text())
        for i, utterance in enumerate(content["utterances"].values()):
            utterance["cluster"] = f"p{i % clusters}"
        file.write_text(json.dumps(content))
    return folder


def zeroshot(folder, draws=1, merged=0.3, control=0.5, n=60, name="mam_zeroshot"):
    """A zero-shot run with random controls, which scatter a little."""
    test_set = TestSet(n)
    tests = {"untouched": test_set.utterances(0.5, 0), name: test_set.utterances(merged, 9)}
    for draw in range(1, draws + 1):
        test = f"{name} control random" + (f" {draw}" if draw > 1 else "")
        tests[test] = test_set.utterances(control, 20 + draw)
    return write_run(folder, tests, name, 1986, donor="bert")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def report(experiment):
    return make_report(experiment, FAST)


def test_holm_by_hand():
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03, 0.005]) == [0.03, 0.06, 0.06, 0.02]
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_all_but_the_primary_one_are_corrected(report):
    family = report.family
    assert family.primary is row(report, "mam_learnable", "mam_learnable control random")
    assert family.primary.main.p_holm == family.primary.main.p
    assert report.table.count("| primary |") == 1
    # One draw of the zero-shot control has no verdict, and takes no part
    others = [r for r in report.rows if r is not family.primary]
    others.remove(row(report, "mam_zeroshot", "mam_zeroshot control random"))
    assert len(others) == family.corrected
    assert [r.main.p_holm for r in others] == holm([r.main.p for r in others])
    assert any(r.main.p_holm > r.main.p for r in others)
    assert all(r.comparisons["CER"].p_holm is None for r in report.rows)
    text = said(report)
    assert "The primary comparison is mam_learnable against mam_learnable control random" in text
    assert f"p of the {family.corrected} other comparisons is corrected" in text


def test_another_primary_comparison(experiment, runs_without_control, tmp_path, capsys):
    systems = group(read_runs(experiment))
    for primary, against in (
        ("mam_zeroshot", "mam_zeroshot control random"),
        ("finetune", "untouched"),
        ("mam_learnable control random", "finetune"),
    ):
        found = compare_all(systems, 99, primary).primary
        assert (found.system.name, found.against.name) == (primary, against)
    none = make_report(runs_without_control, FAST)
    assert none.family.primary is None and "No comparison is the primary one" in said(none)
    chosen = make_report(runs_without_control, FAST, primary="mam_learnable")
    assert chosen.family.primary is row(chosen, "mam_learnable", "finetune")
    for name, message in (("bert", "no such system; expected one of"), ("untouched", "nothing")):
        out = str(tmp_path / "out")
        words = ["report", *map(str, runs_without_control), "--out", out, "--primary", name]
        assert cli.main(words) == 2
        assert f"--primary '{name}': " in (error := capsys.readouterr().err) and message in error


@pytest.fixture()
def runs_without_control(tmp_path):
    """A fine-tuned and a merged run of one seed."""
    test_set = TestSet()
    outputs = (("finetune", 0.42, None), ("mam_learnable", 0.2, "bert"))
    return [
        write_run(
            tmp_path / method,
            {"untouched": test_set.utterances(0.5, 0), method: test_set.utterances(wer, k)},
            method,
            donor=donor,
        )
        for k, (method, wer, donor) in enumerate(outputs)
    ]


def test_further_draws_of_a_control_are_one_system(tmp_path):
    report = make_report([zeroshot(tmp_path / "run", 10)], FAST)
    assert [s.name for s in report.systems][1:] == ["mam_zeroshot", "mam_zeroshot control random"]
    control = report.systems[-1]
    assert list(control.evaluations) == list(range(1, 11))
    found = row(report, "mam_zeroshot", "mam_zeroshot control random")
    assert found.verdict == "lower than the random draws" and found.main.n_draws == 10
    rates = [error_rate(e.main) for e in control.evaluations.values()]
    assert found.main.before == pytest.approx(np.mean(rates))
    assert row(report, "mam_zeroshot", "untouched").verdict == "lower"
    assert "| mam_zeroshot control random | 10 draws |" in report.table
    assert "(10 draws) |" in report.table


def test_draws_that_scatter_leave_the_merge_one_of_them(tmp_path):
    run = zeroshot(tmp_path / "run", 6, merged=0.4)
    test_set = TestSet(60)
    for draw, wer in enumerate((0.5, 0.35, 0.7, 0.45, 0.6, 0.65), start=1):
        name = "mam_zeroshot_control_random" + (f"_{draw}" if draw > 1 else "")
        utterances = test_set.utterances(wer, 20 + draw)
        errors, words = (sum(u[k] for u in utterances.values()) for k in ("errors", "words"))
        chars = sum(u["chars"] for u in utterances.values())
        change(run, f"utterances_{name}.json", lambda c, u=utterances: c.update(utterances=u))
        rates = {"WER": 100 * errors / words, "CER": 100 * 2 * errors / chars}
        test = name.replace("_control_random", " control random").replace("random_", "random ")
        change(run, "results.json", lambda c, t=test, r=rates: c["results"][t].update(r))
    report = make_report([run], FAST)
    found = row(report, "mam_zeroshot", "mam_zeroshot control random")
    assert found.main.interval.high < 0 and found.verdict == "within chance"
    said_of_merge = row(report, "mam_zeroshot", "untouched").verdict
    assert said_of_merge == "lower, but not shown to be better than the random donor"


def test_one_draw_has_no_verdict(tmp_path):
    report = make_report([zeroshot(tmp_path / "run")], FAST)
    found = row(report, "mam_zeroshot", "mam_zeroshot control random")
    assert report.family.primary is found and report.family.corrected == 2
    alone = zeroshot(tmp_path / "alone")
    change(alone, "results.json", lambda c: c["results"].pop("untouched"))
    only = make_report([alone], FAST)
    assert only.family.corrected == 0 and "other comparison" not in said(only)
    assert found.main.p < 0.05 and found.verdict == "one draw: no verdict"
    merge = row(report, "mam_zeroshot", "untouched").verdict
    assert merge == "lower, but not shown to be better than the random donor (one draw)"


def test_draws_of_several_runs_are_counted_through(tmp_path):
    runs = [zeroshot(tmp_path / str(seed), 2) for seed in (1, 2)]
    change(runs[1], "results.json", lambda c: c.update(seed=7))
    for file, other in (("random", 0.52), ("random_2", 0.47)):
        name = f"utterances_mam_zeroshot_control_{file}.json"
        utterances = TestSet(60).utterances(other, 50)
        change(runs[1], name, lambda c, u=utterances: c.update(utterances=u))
        rates = [
            100 * sum(u[e] for u in utterances.values()) / sum(u[w] for u in utterances.values())
            for e, w in (("errors", "words"), ("char_errors", "chars"))
        ]
        test = f"mam_zeroshot control {file.replace('_', ' ')}"
        new = dict(zip(("WER", "CER"), rates, strict=True))
        change(runs[1], "results.json", lambda c, t=test, r=new: c["results"][t].update(r))
    assert list(make_report(runs, FAST).systems[-1].evaluations) == [1, 2, 3, 4]
    # A run that is tested again with another seed, but the same draws, adds none
    same = [zeroshot(tmp_path / f"same{seed}", 2) for seed in (1, 2)]
    change(same[1], "results.json", lambda c: c.update(seed=7))
    assert list(make_report(same, FAST).systems[-1].evaluations) == [1, 2]


def test_draws_beside_something_trained_are_averaged_by_seed(tmp_path):
    """A merge into the fine-tuned model is paired by seed, whatever the number of draws."""
    run = zeroshot(tmp_path / "run", 3, name="mam_zeroshot_finetuned")
    report = make_report([run], FAST)
    control = next(s for s in report.systems if s.control == "random")
    assert list(control.evaluations) == [1986] and control.rate("WER", FAST).sd is None
    rates = json.loads((run / "results.json").read_text())["results"]
    mean = np.mean([m["WER"] for name, m in rates.items() if "control" in name])
    assert control.rate("WER", FAST).mean == pytest.approx(mean)


def test_clusters_reach_everything_that_a_report_says(tmp_path):
    run = clustered(zeroshot(tmp_path / "run", 10), 30)
    report = write_report([run], tmp_path / "report", n_resamples=FAST)
    found = row(report, "mam_zeroshot", "untouched").main
    assert found.n_clusters == 30 and found.method == "BCa"
    plain = make_report([zeroshot(tmp_path / "plain", 10)], FAST)
    alone = row(plain, "mam_zeroshot", "untouched").main
    assert alone.n_clusters == 60 and alone.interval != found.interval
    words = "in 30 clusters (speakers or chapters)"
    assert words in said(report) and "clusters (speakers" not in said(plain)
    assert "over clusters (speakers or chapters) by BCa" in said(report)
    assert "over utterances by BCa" in said(plain)
    assumed = "Utterances of one speaker or chapter are drawn as if they were independent"
    assert assumed in said(plain) and assumed not in said(report)
    assert "clusters (speakers or chapters) for it" in table(report, "comparison").header
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["clusters"] == 30 and content["units"] == "clusters (speakers or chapters)"
    assert content["comparisons"][0]["WER"]["n_clusters"] == 30


def test_few_clusters_are_said_and_bounded_by_nothing(tmp_path):
    run = clustered(zeroshot(tmp_path / "run", 10), 4)
    report = write_report([run], tmp_path / "report", n_resamples=FAST)
    assert {r.verdict.split(",")[0] for r in report.rows} == {"undecided"}
    assert "Undecided, of too few clusters (speakers or chapters):" in said(report)
    bold = [b.text for b in report.blocks if isinstance(b, Text) and b.bold]
    assert any("With 4 clusters (speakers or chapters) no difference can" in t for t in bold)
    assert "[not bounded]" in report.table and "inf" not in report.table
    text = (tmp_path / "report" / "report.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    figures = json.loads(text)["comparisons"][0]["WER"]
    assert figures["low"] is None and figures["detectable"] is None
    power = table(report, "comparison").rows[0]
    assert power[1] == "none" and power[4].endswith(" (here 4)")
    assert int(power[4].split()[0].replace(",", "")) > 6
    one = clustered(zeroshot(tmp_path / "one", 10), 1)
    assert table(make_report([one], FAST), "comparison").rows[0][4] == "more than 1"
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "not bounded" in page and "∞" not in page


@pytest.mark.slow
def test_a_report_of_ten_systems_and_2620_utterances_takes_seconds(tmp_path):
    """As many as LibriSpeech's test-clean has; under 10 s of CPU."""
    test_set = TestSet(2620)
    untouched = test_set.utterances(0.5, 0)
    controls = ("random", "shuffled_layers", "permuted_rows", "no_donor")
    runs = []
    for k, method in enumerate(("mam_zeroshot", "mam_learnable")):
        tests = {"untouched": untouched, method: test_set.utterances(0.48, 9 + k)}
        for i, control in enumerate(controls[: 4 - k]):
            tests[f"{method} control {control}"] = test_set.utterances(0.5 + 0.01 * i, 20 + i)
        runs.append(write_run(tmp_path / method, tests, method, 1, donor="bert"))
    start = time.process_time()
    report = write_report(runs, tmp_path / "report")
    assert len(report.systems) == 10 and report.rows[0].main.method == "BCa"
    assert time.process_time() - start < 10


def test_many_utterances_are_not_enumerated():
    """2 to the power of 2,000 is no floating-point number."""
    assert sign_flip_p(np.ones(2000), 99) == 0.01


def test_what_could_have_been_seen_by_hand(report):
    rows = {line[0]: line for line in table(report, "comparison").rows}
    found = row(report, "mam_learnable", "finetune").main
    line = rows["mam_learnable − finetune"]
    assert line[1] == f"±{found.detectable:.2f}"
    assert line[2] == f"{100 * found.detectable / found.before:.1f} %"
    target = 0.027 * found.before
    needed = math.ceil(40 * (found.detectable_clusters / target) ** 2)
    seeds = math.ceil(3 * (found.detectable_seeds / target) ** 2)
    assert line[3] == f"−{target:.2f}"
    assert line[4:] == [f"{needed:,} (here 40)", f"{seeds:,} (here 3)"]
    assert "finetune − untouched" not in rows  # no merge


def test_runs_with_other_clusters_are_not_mixed(tmp_path):
    runs = [clustered(zeroshot(tmp_path / str(k)), k) for k in (6, 7)]
    with pytest.raises(MAMError, match=r"different clusters .* has cluster 'p0' in .* 'p6' in"):
        make_report(runs, FAST)
    old = zeroshot(tmp_path / "old")
    with pytest.raises(MAMError, match=r"cluster 'p0' in .* and no cluster in .* the older run"):
        make_report([runs[0], old], FAST)
    change(
        runs[0],
        "utterances_untouched.json",
        lambda c: c["utterances"]["XX001-0003"].pop("cluster"),
    )
    with pytest.raises(MAMError, match="'XX001-0003': field 'cluster' is missing"):
        make_report([runs[0]], FAST)


def test_the_margin_is_the_runs_own(tmp_path, capsys):
    runs = [zeroshot(tmp_path / "a", merged=0.5), zeroshot(tmp_path / "b", merged=0.5)]
    change(runs[1], "results.json", lambda c: c.update(seed=2))
    report = make_report(runs[:1], FAST)
    assert "equivalent" not in report.table
    asked = make_report(runs[:1], FAST, margin=30)
    assert "within chance, equivalent (within ± 30 points)" in asked.table
    assert "lie within ± 30 points" in said(asked)
    change(runs[0], "results.json", lambda c: c.update(equivalence_margin=30.0))
    assert make_report(runs, FAST).table.count("equivalent") == asked.table.count("equivalent")
    with pytest.raises(MAMError, match="was made with equivalence_margin 30; --margin is for"):
        make_report(runs, FAST, margin=2)
    change(runs[1], "results.json", lambda c: c.update(equivalence_margin=1.0))
    with pytest.raises(MAMError, match=r"equivalence_margin is 30 in '.*a' and 1 in '.*b'"):
        make_report(runs, FAST)
    for wrong in ("-1", "0", "nan", "inf"):
        words = ["report", str(runs[0]), "--out", str(tmp_path / "out"), f"--margin={wrong}"]
        assert cli.main(words) == 2 and "above 0" in capsys.readouterr().err
    change(runs[0], "results.json", lambda c: c.update(equivalence_margin=-1))
    with pytest.raises(MAMError, match="'equivalence_margin' is -1, expected above 0"):
        make_report(runs[:1], FAST)
