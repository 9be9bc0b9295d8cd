"""Reports of made-up classification runs with known answers: clips, folds and classes."""

import csv
import io
import json

import numpy as np
import pytest
from made_up_runs import (
    ClipSet,
    TestSet,
    write_clip_experiment,
    write_experiment,
    write_run,
    write_sweep,
)
from PIL import Image
from scipy import stats as scipy_stats

from speechbrain_mam import MAMError, cli
from speechbrain_mam.report import make_report, write_report
from speechbrain_mam.report.classes import class_errors, confusion
from speechbrain_mam.report.confusion import CLASSES_SHOWN, plot_confusions
from speechbrain_mam.report.document import Heading, Picture, Text
from speechbrain_mam.report.folds import differences_by_fold, rates_by_fold

FAST = 499  # resamples
FOLDS = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_clip_experiment(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def report(experiment):
    return make_report(experiment, FAST)


def wrong_in(folds_of_class, taken_for="rain"):
    """A labelling with the first clips of a class wrong: as many as ``{class: {fold: number}}``."""

    def label(clip, ref, fold):
        number = int(clip.split("-")[1]) % 1000
        return taken_for if number < folds_of_class.get(ref, {}).get(fold, 0) else ref

    return label


@pytest.fixture()
def known(tmp_path):
    """Two classes, five folds, four clips of a class in a fold; the merge corrects some dogs.

    Wrong dogs by fold: 2 4 2 4 3 before; with the merge, by seed, 1 1 1 1 1 and 2 2 2 2 1.
    """
    clips = ClipSet(2)
    before = clips.labelled(wrong_in({"dog": dict(zip(FOLDS, (2, 4, 2, 4, 3), strict=True))}))
    runs = []
    for seed, left in ((1, (1, 1, 1, 1, 1)), (2, (2, 2, 2, 2, 1))):
        after = clips.labelled(wrong_in({"dog": dict(zip(FOLDS, left, strict=True))}))
        for method, output in (("finetune", before), ("mam_learnable", after)):
            donor = "vit" if method != "finetune" else None
            place = tmp_path / method / str(seed)
            runs.append(write_run(place, {method: output}, method, seed, donor=donor))
    return runs


def change(folder, name, edit):
    """Edit a JSON file in place."""
    file = folder / name
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def table(report, first, nth=0):
    """The nth table whose first column has a title."""
    found = [b for b in report.blocks if hasattr(b, "header") and b.header[0] == first]
    return found[nth]


def row(report, system, against):
    return next(r for r in report.rows if (r.system.name, r.against.name) == (system, against))


def test_folds_by_hand(known):
    report = make_report(known, FAST)
    finetune, merge = report.systems
    assert dict(rates_by_fold(finetune).values) == {1: 25, 2: 50, 3: 25, 4: 50, 5: 37.5}
    assert dict(rates_by_fold(merge).values) == {1: 18.75, 2: 18.75, 3: 18.75, 4: 18.75, 5: 12.5}
    found = differences_by_fold(finetune, merge)
    differences = [-6.25, -31.25, -6.25, -31.25, -25]
    assert list(found.values.values()) == differences
    assert found.mean == pytest.approx(-20)
    expected = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    rates, changes = table(report, "system", 1), table(report, "system − against")
    assert rates.rows[0] == [
        "finetune", "25.00", "50.00", "25.00", "50.00", "37.50", "37.50 ± 12.50", "37.50",
    ]  # fmt: skip
    assert changes.rows[0][:6] == [
        "mam_learnable − finetune", "−6.25", "−31.25", "−6.25", "−31.25", "−25.00",
    ]  # fmt: skip
    assert changes.rows[0][6].startswith("−20.00 [−35.") and changes.rows[0][8] == "within chance"
    assert changes.header[6:8] == ["mean [95 % over folds]", "pooled [95 % over clips]"]


def test_classes_by_hand(known):
    report = make_report(known, FAST)
    finetune, merge = report.systems
    names = ["dog", "rain"]
    assert confusion(finetune, names).tolist() == [[5, 15], [0, 20]]
    assert confusion(merge, names).tolist() == [[13, 7], [0, 20]]
    found = table(report, "class")
    assert found.header == ["class", "clips", "finetune", "mam_learnable", "− finetune"]
    assert found.rows == [["dog", "20", "75.0", "35.0", "−40.0"], ["rain", "20", *["0.0"] * 3]]
    pictures = [b.name for b in report.blocks if isinstance(b, Picture)]
    assert pictures == ["report_differences.png", "report_confusion.png"]


@pytest.mark.slow
def test_the_verdict_is_the_bootstrap_over_clips(known):
    found = row(make_report(known, FAST), "mam_learnable", "finetune")
    assert found.main.difference == pytest.approx(-20) and found.main.n_seeds == 2
    assert found.main.seeds is not None and found.main.method == "BCa"
    low, high = found.main.interval
    assert low < -20 < high < 0 and found.main.p < 0.05
    # Over clips and over folds it is below 0; over two seeds, −25 and −15, it is not.
    assert found.main.seeds == pytest.approx((-83.53, 43.53), abs=0.01)
    assert found.verdict == "within chance"
    one = [run for run in known if run.name == "1"]
    assert row(make_report(one, FAST), "mam_learnable", "finetune").verdict == "lower (one seed)"


def test_figures_for_programs(known, tmp_path):
    write_report(known, tmp_path / "report", n_resamples=FAST)
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    finetune, merge = content["systems"]
    assert finetune["error"]["folds"] == {"1": 25, "2": 50, "3": 25, "4": 50, "5": 37.5}
    assert merge["classes"]["dog"] == {
        "clips": 20, "error": 35.0, "taken_for": {"dog": 13.0, "rain": 7.0},
    }  # fmt: skip
    compared = content["comparisons"][0]["error"]
    assert compared["folds"]["2"] == -31.25 and compared["folds_mean"] == pytest.approx(-20)
    assert compared["folds_low"] < -20 < compared["folds_high"] and "WER" not in finetune
    lines = list(csv.DictReader(io.StringIO((tmp_path / "report" / "report.csv").read_text())))
    assert [line["metric"] for line in lines] == ["error"] * 3
    assert [line["fold 4"] for line in lines] == ["50.0", "18.75", "-31.25"]
    assert lines[2]["verdict"] and float(lines[2]["folds_high"]) == compared["folds_high"]


@pytest.mark.slow
def test_methods_are_grouped_and_paired_with_their_controls(report):
    assert [system.name for system in report.systems] == [
        "untouched",
        "mam_zeroshot_untouched",
        "mam_zeroshot_untouched control random",
        "finetune",
        "mam_learnable",
        "mam_learnable control random",
        "mam_zeroshot_finetuned",
        "mam_zeroshot_finetuned control random",
    ]
    assert row(report, "mam_learnable", "finetune").verdict == "lower"
    chance = row(report, "mam_zeroshot_finetuned", "finetune")
    assert chance.verdict == "within chance, not shown to be better than the random donor"
    assert chance.main.n_seeds == 3 and chance.main.seeds is not None
    compared = {(r.system.name, r.against.name) for r in report.rows}
    assert ("mam_zeroshot_finetuned", "mam_zeroshot_finetuned control random") in compared
    assert ("mam_zeroshot_untouched", "finetune") not in compared
    bold = [b.text for b in report.blocks if isinstance(b, Text) and b.bold]
    assert "one seed" not in row(report, "mam_zeroshot_untouched", "untouched").verdict
    assert not bold  # everything is controlled, and trained with several seeds


@pytest.mark.slow
def test_one_seed_of_a_merged_fine_tuned_model_is_called_so(tmp_path):
    runs = write_clip_experiment(tmp_path, seeds=(1,))
    found = make_report(runs, FAST)
    assert row(found, "mam_learnable", "finetune").verdict == "lower (one seed)"


@pytest.mark.slow
def test_a_merge_is_compared_with_the_model_that_it_went_into(tmp_path):
    """Its own run's fine-tuned model goes before that of another run with the same seed."""
    clips = ClipSet(3)
    own, merged, other = (clips.guessed(0.4, k) for k in (1, 1, 2))
    tests = {"finetune": own, "mam_zeroshot_finetuned": merged}
    runs = [
        write_run(tmp_path / "finetune", {"finetune": other}),
        write_run(tmp_path / "merge", tests, "mam_zeroshot_finetuned", donor="vit"),
    ]
    report = make_report(runs, FAST)
    assert row(report, "mam_zeroshot_finetuned", "finetune").verdict == "identical"
    bold = [b.text for b in report.blocks if isinstance(b, Text) and b.bold]
    assert any("same seed hold fine-tuned models with different errors" in text for text in bold)
    alone = make_report(runs[1:], FAST)
    assert [s.name for s in alone.systems] == ["finetune", "mam_zeroshot_finetuned"]
    bold = [b.text for b in alone.blocks if isinstance(b, Text) and b.bold]
    assert not any("same seed" in text or "No fine-tuning" in text for text in bold)


@pytest.mark.slow
def test_each_fold_may_have_its_own_search(report):
    headings = [b.text for b in report.blocks if isinstance(b, Heading)]
    found = [text for text in headings if text.startswith("Error against λ")]
    assert found == ["Error against λ, fold 1", "Error against λ, fold 2"]


@pytest.mark.slow
def test_words_of_speech_are_not_said_of_clips(report, experiment, tmp_path):
    write_report(experiment, tmp_path / "report", n_resamples=FAST)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    for word in ("WER", "CER", "utterance", "words"):
        assert word not in text
    assert "200 clips of 10 classes in folds 1, 2, 3, 4, 5" in text
    assert "a sign-flip test over clips" in text and "error %, valid" in text
    headings = [b.text for b in report.blocks if isinstance(b, Heading)]
    assert headings.index("Folds singly") < headings.index("Classes")
    files = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert files == {
        "report_differences.png", "report_sweep.png", "report_sweep_2.png",
        "report_confusion.png", "report_confusion_2.png", "report_confusion_3.png",
    }  # fmt: skip


def test_the_clips_that_changed_most(known):
    report = make_report(known, FAST)
    found = table(report, "clip")
    assert found.header == [
        "clip",
        "fold",
        "errors",
        "class",
        "taken for: finetune → mam_learnable",
    ]
    # Fold 1 is mended by seed 1 alone, and fold 2 by both: what both mended comes first.
    assert found.rows[0][:3] == ["2-2-A-0 (seed 1)", "2", "1 → 0"] and len(found.rows) == 5
    assert all(line[3:] == ["dog", "rain → dog"] for line in found.rows)
    headings = [b.text for b in report.blocks if isinstance(b, Heading)]
    assert "What got worse most: mam_learnable after finetune" in headings
    assert any(isinstance(b, Text) and b.text == "No clip." for b in report.blocks)


def test_clips_without_folds(tmp_path):
    clips = ClipSet(4, folds=(), per_fold=10)
    runs = [
        write_run(tmp_path / method, {method: clips.guessed(error, k)}, method, donor=donor)
        for k, (method, error, donor) in enumerate(
            (("finetune", 0.5, None), ("mam_learnable", 0.2, "vit"))
        )
    ]
    report = make_report(runs, FAST)
    assert "Folds singly" not in [b.text for b in report.blocks if isinstance(b, Heading)]
    assert table(report, "clip").header[:2] == ["clip", "errors"]
    assert "in fold" not in next(b.text for b in report.blocks if isinstance(b, Text))


def test_one_fold_has_no_interval_over_folds(tmp_path):
    clips = ClipSet(3, folds=(2,), per_fold=10)
    tests = {"untouched": clips.guessed(0.5, 0), "mam_zeroshot": clips.guessed(0.3, 1)}
    report = make_report([write_run(tmp_path / "run", tests, "mam_zeroshot", donor="vit")], FAST)
    changes = table(report, "system − against")
    assert changes.header[1] == "fold 2" and "[" not in changes.rows[0][2]
    assert "30 clips of 3 classes in fold 2." in next(
        b.text for b in report.blocks if isinstance(b, Text)
    )


def test_a_run_without_a_merge_and_one_without_a_reference(tmp_path):
    clips = ClipSet(3)
    alone = write_run(tmp_path / "finetune", {"finetune": clips.guessed(0.4, 1)})
    report = make_report([alone], FAST)
    assert table(report, "class").header == ["class", "clips", "finetune"]
    assert [b.name for b in report.blocks if isinstance(b, Picture)] == ["report_confusion.png"]
    tests = {"mam_learnable": clips.guessed(0.3, 2)}
    merge = write_run(tmp_path / "merge", tests, "mam_learnable", donor="vit")
    report = make_report([merge], FAST)
    assert table(report, "class").header == ["class", "clips", "mam_learnable"]


def test_a_class_that_no_clip_has(tmp_path):
    """A model may say a class that the tested folds do not have: a column, and no row."""
    clips = ClipSet(3)
    label = wrong_in({"dog": dict.fromkeys(FOLDS, 1)}, taken_for="siren")
    run = write_run(tmp_path / "run", {"finetune": clips.labelled(label)})
    report = make_report([run], FAST)
    assert [line[0] for line in table(report, "class").rows] == ["dog", "crying_baby", "rain"]
    counts = confusion(report.systems[0], ["dog", "rain", "crying_baby", "siren"])
    errors = class_errors(counts)
    assert errors[0] == 25 and np.isnan(errors[3]) and counts[0, 3] == 5


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 10, 50, 120])
def test_confusions_are_drawn_in_a_size_that_can_be_read(classes):
    rng = np.random.default_rng(0)
    names = [f"class_number_{i}" for i in range(classes)]
    counts = {name: rng.poisson(0.3, (classes, classes)) + 8.0 * np.eye(classes) for name in "ab"}
    size = Image.open(io.BytesIO(plot_confusions(counts, names))).size
    # At least 20 pixels for each label, and never more than the picture of 60 classes
    assert size[1] > 20 * min(classes, CLASSES_SHOWN) and size[0] < 3500


def test_speech_and_clips_are_not_mixed(tmp_path):
    speech = write_run(tmp_path / "speech", {"finetune": TestSet().utterances(0.4, 1)})
    clips = write_run(tmp_path / "clips", {"finetune": ClipSet().guessed(0.4, 1)}, seed=2)
    with pytest.raises(
        MAMError, match="speech recognition and classification cannot be in one"
    ) as e:
        make_report([speech, clips], FAST)
    assert all(part in str(e.value) for part in (str(speech), str(clips), "'WER'", "'error'"))


def test_different_folds_are_not_mixed(tmp_path):
    runs = [
        write_run(tmp_path / str(f), {"finetune": ClipSet(3, folds=f).guessed(0.4, 1)}, seed=len(f))
        for f in ((1, 2, 3), (4, 5))
    ]
    with pytest.raises(MAMError, match=r"different test sets .* has folds 1, 2, 3, .* folds 4, 5"):
        make_report(runs, FAST)
    none = write_run(tmp_path / "none", {"finetune": ClipSet(3, folds=()).guessed(0.4, 1)})
    with pytest.raises(MAMError, match=r"has folds 1, 2, 3, .* has no folds"):
        make_report([runs[0], none], FAST)


def other_fold(content):
    one, other = (content["utterances"][name] for name in ("1-0-A-0", "2-0-A-0"))
    one["fold"], other["fold"] = other["fold"], one["fold"]


def no_fold(content):
    content["utterances"]["3-0-A-0"].pop("fold")


def other_class(content):
    content["utterances"]["3-0-A-0"] |= {"ref": "rain", "hyp": "dog", "errors": 1}


def two_words(content):
    content["utterances"]["3-0-A-0"]["words"] = 2


def wrong_but_right(content):
    clip = content["utterances"]["3-0-A-0"]
    clip["errors"] = 1 - clip["errors"]


@pytest.mark.parametrize(
    ("file", "edit", "parts"),
    [
        (1, other_fold, ["clip '1-0-A-0' is in fold 1 in", "and in fold 2 in", "different folds"]),
        (1, no_fold, ["utterances_mam_learnable.json', clip '3-0-A-0': field 'fold' is missing"]),
        (
            1,
            lambda c: c["utterances"]["3-0-A-0"].update(fold="3"),
            ["field 'fold' is '3', expected int"],
        ),
        (1, two_words, ["clip '3-0-A-0': 'errors' is 1 and 'words' is 2, expected 1 and 1"]),
        (1, wrong_but_right, ["clip '3-0-A-0': 'errors' is 0", "expected 1 and 1 of a clip of"]),
        (1, other_class, ["different test sets", "clip '3-0-A-0' is 'dog' in"]),
        (
            0,
            lambda c: c["results"]["mam_learnable"].update(error=3.0),
            ["says error 3.00 for 'mam_learnable'", "adds up to 22.50"],
        ),
        (
            0,
            lambda c: c["results"]["mam_learnable"].pop("error"),
            ["neither 'WER' (speech recognition) nor 'error' (classification)"],
        ),
        (0, lambda c: c["results"].update(mam_learnable=[]), ["neither 'WER'"]),
    ],
)
def test_bad_clips_are_one_line_and_nothing_is_written(file, edit, parts, known, tmp_path, capsys):
    runs = [run for run in known if run.name == "2"]
    change(runs[1], ("results.json", "utterances_mam_learnable.json")[file], edit)
    out = tmp_path / "report"
    assert cli.main(["report", *map(str, runs), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("speechbrain-mam: error: ") and message.count("\n") == 1
    for part in parts:
        assert part in message
    assert not out.exists()


def test_a_sweep_of_clips_that_does_not_fit(tmp_path):
    clips = ClipSet(3)
    run = write_run(tmp_path / "run", {"mam_zeroshot": clips.guessed(0.4, 1)}, "mam_zeroshot")
    write_sweep(run, clips)
    change(run, "sweep.json", lambda c: c["words"].pop())
    with pytest.raises(MAMError, match="point 0 has 60 errors for 60 IDs and 59 word counts"):
        make_report([run], FAST)


def test_an_accuracy_is_not_asked_for(known):
    for run in known:
        change(run, "results.json", lambda c: [m.pop("accuracy") for m in c["results"].values()])
    assert make_report(known, FAST).systems[0].rate("error", FAST).mean == 37.5


@pytest.mark.slow
def test_a_report_of_speech_is_as_it_was(tmp_path):
    """Its sections and columns, name by name."""
    report = make_report(write_experiment(tmp_path), FAST)
    assert [b.text for b in report.blocks if isinstance(b, Heading)] == [
        "Error rates",
        "Against untouched",
        "Against finetune",
        "Merges against their controls",
        "What could have been seen",
        "WER against λ",
        "Learned λ",
        "Where the donor would help: the probe's ranking",
        "What improved most: mam_zeroshot after untouched",
        "What got worse most: mam_zeroshot after untouched",
        "What improved most: mam_learnable after finetune",
        "What got worse most: mam_learnable after finetune",
        "How to read this",
    ]
    against = [
        "verdict on WER", "seeds", "WER", "WER points [95 %]", "p", "p, Holm", "WER, seeds' 95 %",
        "CER", "CER points [95 %]",
    ]  # fmt: skip
    tables = [list(b.header) for b in report.blocks if hasattr(b, "header")]
    assert tables == [
        ["system", "seeds", "WER %", "WER, 95 %", "CER %", "CER, 95 %", "WER against untouched",
         "WER against finetune"],
        ["against untouched", *against],
        ["against finetune", *against],
        ["merge", "against its control", "verdict", "WER", "WER points [95 %]", "p", "p, Holm",
         "WER, seeds' 95 %"],
        ["comparison", "points seen in 80 %", "of the error rate before", "−2.7 %, points",
         "utterances for it", "seeds for it"],
        ["merge or control", "donor", "layers", "points", "best λ", "WER %, valid",
         "against untouched, points [95 %]", "verdict"],
        *[["utterance", "words", "errors", "reference", "untouched", "mam_zeroshot"]] * 2,
        *[["utterance", "words", "errors", "reference", "finetune", "mam_learnable"]] * 2,
    ]  # fmt: skip
