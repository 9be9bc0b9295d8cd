"""The ESC-50 recipe as a user runs it, with a tiny random BEATs on tones: folds, merges, resume.

Each training takes about three seconds.
"""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPO
from test_esc50_prepare import HEADER, write_meta
from test_recipe import record, run
from tiny_beats import save_beats

from speechbrain_mam.report import make_report

TRAIN = str(REPO / "recipes" / "ESC50" / "train.py")
TONES = {0: ("dog", 300), 12: ("crackling_fire", 900), 40: ("helicopter", 2700)}


def save_tones(folder):
    """Three classes of 0.5 s, a noisy tone each, in five folds of four recordings a class."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rng = np.random.default_rng(0)
    lines, number, time = [HEADER], 100, np.arange(4000) / 8000
    for fold in range(1, 6):
        for target, (name, hz) in TONES.items():
            for _ in range(4):
                number += 1
                file = f"{fold}-{number}-A-{target}.wav"
                tone = np.sin(2 * np.pi * hz * rng.uniform(0.95, 1.05) * time)
                soundfile.write(
                    folder / "audio" / file, 0.4 * tone + 0.05 * rng.standard_normal(4000), 8000
                )
                lines.append(f"{file},{fold},{target},{name},True,{number},A")
    write_meta(folder, lines)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory, bert_folder):
    folder = tmp_path_factory.mktemp("esc50")
    return {
        "data_folder": str(save_tones(folder / "corpus")),
        "beats_checkpoint": str(save_beats(folder / "tiny.pt")),
        "donor_model": str(bert_folder),
        "num_classes": "3",
        "precision": "fp32",
        "number_of_epochs": "2",
        "batch_size": "8",
        "lr": "0.001",
        "dropout": "0.0",
    }


def command(kind, parts, output, *extra, **options):
    yaml = REPO / "hparams" / f"esc50_{kind}.yaml"
    options = {**parts, **options}
    if kind == "finetune":
        del options["donor_model"]
    flat = [word for key, value in options.items() for word in (f"--{key}", value)]
    return [str(yaml), *flat, "--output_folder", str(output), *extra]


def train(*arguments, **options):
    return run(command(*arguments, **options), script=(TRAIN,))


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def clips_of(folder, test):
    return read(folder / f"utterances_{test}.json")["utterances"]


@pytest.mark.slow
def test_learnable_on_two_folds(parts, tmp_path):
    out = tmp_path / "out"
    done = train("mam_learnable", parts, out, "--folds", "2,1", lr_mam="0.05", mixup="0.5")
    for fold in ("1", "2"):
        files = {file.name for file in (out / f"fold_{fold}").iterdir()}
        assert {"merge_plan.txt", "lambdas.csv", "lambdas.png", "train_log.txt"} <= files
        assert {"classification_untouched.txt", "classification_mam_learnable.txt"} <= files
        tested = clips_of(out / f"fold_{fold}", "mam_learnable")
        assert len(tested) == 12 and {str(clip["fold"]) for clip in tested.values()} == {fold}
        assert all(clip.startswith(f"{fold}-") for clip in tested)
        assert all(tested[clip]["cluster"] == clip.split("-")[1] for clip in tested)
        assert not any(name.endswith(".trn") for name in files)
    pooled = read(out / "results.json")
    assert pooled["folds"] == [1, 2] and pooled["method"] == "mam_learnable"
    every = clips_of(out, "mam_learnable")
    assert len(every) == 24 and all("cluster" in clip for clip in every.values())
    assert pooled["equivalence_margin"] == 1.0
    wrong = sum(clip["ref"] != clip["hyp"] for clip in every.values())
    assert pooled["results"]["mam_learnable"]["error"] == pytest.approx(100 * wrong / 24)
    singly = [read(out / f"fold_{fold}" / "results.json") for fold in (1, 2)]
    losses = [one["results"]["untouched"]["loss"] for one in singly]
    assert pooled["results"]["untouched"]["loss"] == pytest.approx(sum(losses) / 2)
    assert any(abs(value - 0.95) > 1e-3 for value in singly[0]["lambdas"].values())
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    for said in ("Test error, %:", "mean ± s.d.", "pooled", "Confusion matrices: "):
        assert said in done.stdout


@pytest.mark.slow
def test_a_probe_of_the_untouched_encoder_comes_first(parts, tmp_path):
    """All methods start from the same classifier, and it is better than chance on tones."""
    train("finetune", parts, tmp_path / "ft")
    train("mam_learnable", parts, tmp_path / "mam")
    one, other = (clips_of(tmp_path / name / "fold_1", "untouched") for name in ("ft", "mam"))
    assert one == other
    assert sum(clip["errors"] for clip in one.values()) < 6  # of 12; chance is 8


@pytest.mark.slow
@pytest.mark.parametrize("into", ["untouched", "finetuned", "pretrained"])
def test_zero_shot(parts, tmp_path, into):
    options = {
        "merge_into": into,
        "number_of_epochs": "0" if into == "untouched" else "1",
        "lam_grid": "[0.6, 0.9]",
        "layer_choices": "[all, greedy]",
        "controls": "[random, no_donor]",
        "random_draws": "2",
    }
    out = tmp_path / "out"
    train("mam_zeroshot", parts, out, **options)
    method = f"mam_zeroshot_{into}"
    tests = {"untouched", method}
    if into == "finetuned":
        tests |= {"finetune"}
    if into != "pretrained":
        tests |= {f"{method} control {name}" for name in ("random", "random 2", "no_donor")}
    assert set(read(out / "results.json")["results"]) == tests
    sweep = read(out / "fold_1" / "sweep.json")
    assert all("error" in point for point in sweep["points"]) and sweep["split"] == "valid"
    with (out / "fold_1" / "save" / "valid.csv").open(newline="") as stream:
        valid = {row["ID"] for row in csv.DictReader(stream)}
    assert set(sweep["ids"]) == valid and not any(clip.startswith("1-") for clip in valid)
    assert make_report([out]).systems


@pytest.mark.slow
def test_lambda_one_is_the_untouched_model(parts, tmp_path):
    options = {"merge_into": "untouched", "number_of_epochs": "0", "search": "False", "lam": "1"}
    train("mam_zeroshot", parts, tmp_path / "out", **options)
    results = read(tmp_path / "out" / "results.json")["results"]
    assert results["mam_zeroshot_untouched"] == results["untouched"]


@pytest.mark.slow
def test_two_ranks_equal_one_process(parts, tmp_path):
    """λ, encoder and classifier after every step, with layer-wise rates; SGD as for speech."""
    text = (REPO / "hparams" / "esc50_mam_learnable.yaml").read_text(encoding="utf-8")
    yaml = tmp_path / "sgd.yaml"
    yaml.write_text(text.replace("torch.optim.AdamW", "torch.optim.SGD"), encoding="utf-8")
    options = {"roll": "False", "spec_drops": "0", "lr": "0.001"}
    options["valid_share"] = "0.25"  # 36 clips to train with, and no rank gets one twice

    def arguments(name, batch_size):
        sizes = {"batch_size": batch_size, "sorting": "ascending"}
        _, *rest = command("mam_learnable", {**parts, **sizes}, tmp_path / name, **options)
        return [str(yaml), *rest]

    (one,), _ = record(tmp_path, "one", arguments("one", "8"), recipe=TRAIN)
    distributed = [*arguments("two", "4"), "--distributed_backend", "gloo"]
    (rank0, rank1), _ = record(tmp_path, "two", distributed, ranks=2, recipe=TRAIN)
    assert torch.equal(rank0, rank1) and rank0.shape == one.shape
    assert (one[-1] - one[0]).abs().max() > 1e-3
    torch.testing.assert_close(rank0, one, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_resumed_in_the_middle_of_an_epoch(parts, tmp_path):
    """Mixup, roll, SpecAugment, dropout, one rate a layer: the same steps as uninterrupted."""
    options = {"mixup": "0.5", "dropout": "0.1"}
    extra = ("--ckpt_interval_steps", "2")
    whole_run = command("mam_learnable", parts, tmp_path / "whole", *extra, **options)
    (whole,), _ = record(tmp_path, "whole", whole_run, recipe=TRAIN)
    per_epoch = len(whole) // 2
    killed_at = per_epoch + 3
    cut_run = command("mam_learnable", parts, tmp_path / "cut", *extra, **options)
    kill = {"KILL_AFTER_STEPS": str(killed_at)}
    (cut,), done = record(tmp_path, "cut", cut_run, check=False, recipe=TRAIN, **kill)
    assert done.returncode == 9 and len(cut) == killed_at
    (rest,), _ = record(tmp_path, "rest", cut_run, recipe=TRAIN)
    assert torch.equal(torch.cat([cut[: per_epoch + 2], rest]), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "extra", "message"),
    [
        ("finetune", {"num_classes": "50"}, (), "key 'num_classes' is 50, but"),
        ("finetune", {"fold": "6"}, (), "fold 6: expected one of ESC-50's folds, 1 to 5"),
        ("finetune", {}, ("--folds", "1,6"), "--folds '1,6': expected all, or some of 1 to 5"),
        (
            "finetune",
            {"lr_layer_decay": "0"},
            (),
            "key 'lr_layer_decay': expected a number above 0 to 1, got 0",
        ),
        ("mam_zeroshot", {"merge_into": "everything"}, (), "merge_into"),
        ("mam_zeroshot", {"merge_into": "untouched"}, (), "with number_of_epochs 2; expected 0"),
        ("mam_learnable", {"lam": "1.5"}, (), "λ = 1.5"),
        ("mam_zeroshot", {"donor_models": "[!ref <donor_model>, no/bert]"}, (), "'no/bert' was"),
    ],
)
def test_bad_input(parts, tmp_path, kind, options, extra, message):
    done = run(
        command(kind, parts, tmp_path / "out", *extra, **options), script=(TRAIN,), check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stdout
    assert message in done.stdout
    assert not (tmp_path / "out" / "results.json").exists()
    assert not list(tmp_path.rglob("train_log.txt"))  # nothing was tested or trained before
