"""The LJ Speech recipe as a user runs it: all three YAMLs, DDP, resume, bad input.

Each training is one of a tiny random model on noise and takes about three seconds.
"""

import csv
import hashlib
import json
import os
import re
import time

import pytest
import torch
from conftest import REPO, save_bert, save_corpus
from processes import run_python

from speechbrain_mam import MAMError
from speechbrain_mam.atomic import hold_folder
from speechbrain_mam.cli import main
from speechbrain_mam.runs.recipe import load_recipe
from speechbrain_mam.runs.yaml_files import files_of
from speechbrain_mam.tasks.asr import KEYS

TRAIN = str(REPO / "recipes" / "LJSpeech" / "train.py")
TINY = {
    "precision": "fp32",
    "number_of_epochs": "2",
    "max_batch_length_s": "3",
    "batch_size": "8",
    "lr": "0.001",
    "lr_mam": "0.05",
}


REAL_SEARCH = {
    "lam_grid": "[0.9]",
    "layer_choices": "[all]",
    "controls": "[random]",
    "random_draws": "2",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory, hubert_folder, bert_folder):
    """A corpus whose training part has 16 utterances."""
    corpus = save_corpus(tmp_path_factory.mktemp("data") / "corpus", utterances=25)
    return {
        "data_folder": str(corpus),
        "speech_model": str(hubert_folder),
        "donor_model": str(bert_folder),
    }


def command(kind, parts, output, *extra, **options):
    yaml = REPO / "hparams" / f"{kind}.yaml"
    tiny = {k: v for k, v in TINY.items() if "zeroshot" not in kind or k != "number_of_epochs"}
    options = {**parts, **tiny, "output_folder": str(output), **options}
    known = "".join(file.read_text(encoding="utf-8") for file in files_of(yaml))
    flat = [
        word
        for key, value in options.items()
        if f"\n{key}:" in known
        for word in (f"--{key}", value)
    ]
    return [str(yaml), *flat, *extra]


VCTK = (str(REPO / "recipes" / "VCTK" / "train.py"),)
SHOWN = ("lower", "higher", "equivalent")


def run(arguments, ranks=0, script=(TRAIN,), check=True, fork=True, **environment):
    """A recipe's run in a fork, or with ``fork=False`` as a user starts it; `ranks` of DDP."""
    done = run_python(
        *script, *arguments, env=environment, merge_stderr=True, ranks=ranks, fork=fork
    )
    if check:
        assert done.returncode == 0, done.stdout[-4000:]
    return done


def record(tmp_path, name, arguments, ranks=0, recipe=TRAIN, **options):
    folder = tmp_path / f"steps_{name}"
    folder.mkdir(exist_ok=True)
    script = (str(REPO / "tests" / "record_steps.py"), str(folder), recipe)
    done = run(arguments, ranks, script, **options)
    return [torch.load(file) for file in sorted(folder.glob("rank*.pt"))], done


def test_learnable(parts, tmp_path):
    out = tmp_path / "out"
    done = run(command("mam_learnable", parts, out, "--use_tensorboard", "True"))
    results = json.loads((out / "results.json").read_text())
    assert set(results["results"]) == {"untouched", "mam_learnable"}
    assert list(results["lambdas"]) == ["layer 0", "layer 1", "layer 2"]
    table = list(csv.reader((out / "lambdas.csv").open()))
    assert table[0] == ["epoch", "layer 0", "layer 1", "layer 2"]
    assert [row[0] for row in table[1:]] == ["0", "1", "2"]
    assert table[1][1:] == ["0.95"] * 3 and table[1] != table[3]
    assert (out / "lambdas.png").stat().st_size > 5000
    assert "W = λ · W_target + (1 − λ) · W_donor" in (out / "merge_plan.txt").read_text("utf-8")
    assert "train lambda layer 2" in (out / "train_log.txt").read_text()
    assert list((out / "tensorboard").iterdir())
    for name in ("untouched", "mam_learnable"):
        assert "%WER" in (out / f"wer_{name}.txt").read_text()
        assert len(json.loads((out / f"utterances_{name}.json").read_text())["utterances"]) == 5
    assert json.loads((out / "results.json").read_text())["equivalence_margin"] == 1.0
    found = json.loads((out / "utterances_mam_learnable.json").read_text())["utterances"]
    for file, side in (("ref", "ref"), ("mam_learnable.hyp", "hyp")):
        lines = sorted((out / f"{file}.trn").read_text(encoding="utf-8").splitlines())
        # The corpus has one chapter: each utterance is its own cluster
        assert lines == sorted(f"{one[side]} ({i}-{i})".lstrip() for i, one in found.items())
    assert (out / "untouched.hyp.trn").is_file()
    for shown in ("Test set:", "Learned λ", "layer 2", "lambdas.png"):
        assert shown in done.stdout
    note = json.loads((out / "environment.json").read_text())
    manifest = (out / "save" / "train.csv").read_bytes()
    assert note["train.csv_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert (note["precision"], note["ranks"], note["torch"]) == ("fp32", "1", torch.__version__)
    assert note["target_sha256"] == json.loads((out / "results.json").read_text())["target_sha256"]
    assert len(note["donor_sha256"]) == len(note["package_sha256"]) == 64
    # Evaluated again from the checkpoint alone, in a new process: the same figures
    before = (out / "utterances_mam_learnable.json").read_text()
    (out / "environment.json").write_text(json.dumps(note | {"torch": "2.0.0"}))
    again = run(command("mam_learnable", parts, out, "--test_only"))
    assert (out / "utterances_mam_learnable.json").read_text() == before
    assert f"another environment: torch (2.0.0, now {torch.__version__})" in again.stdout


@pytest.mark.slow
def test_further_test_sets(parts, tmp_path):
    """The test set under another name has the same figures; half of it has its own."""
    first = tmp_path / "first"
    run(command("finetune", parts, first, number_of_epochs="1"))
    header, *rows = (first / "save" / "test.csv").read_text().splitlines(keepends=True)
    (tmp_path / "same.csv").write_text(header + "".join(reversed(rows)))
    named = [row.rstrip() + f",p{i}\n" for i, row in enumerate(rows[::2])]
    (tmp_path / "half.csv").write_text(header.rstrip() + ",cluster\n" + "".join(named))
    out = tmp_path / "out"
    sets = f"[{tmp_path / 'same.csv'}, {tmp_path / 'half.csv'}]"
    done = run(command("mam_learnable", parts, out, test_csv=sets))
    whole, same, half = (
        json.loads((folder / "results.json").read_text())["results"]
        for folder in (out, out / "tests" / "same", out / "tests" / "half")
    )
    assert same == whole and set(whole) == {"untouched", "mam_learnable"}
    assert half.keys() == whole.keys() and half != whole
    found = json.loads((out / "tests" / "half" / "utterances_mam_learnable.json").read_text())
    assert len(found["utterances"]) == len(rows[::2])
    assert {one["cluster"] for one in found["utterances"].values()} == {"p0", "p1", "p2"}
    said = (out / "tests" / "half" / "ref.trn").read_text(encoding="utf-8").splitlines()
    names = {f"({one['cluster']}-{i})" for i, one in found["utterances"].items()}
    assert {line.split()[-1] for line in said} == names
    assert (out / "utterances_untouched.json").is_file()
    assert "Test set half:" in done.stdout and "Test set:" in done.stdout
    assert main(["report", str(out / "tests" / "half"), "--out", str(tmp_path / "page")]) == 0
    for wrong, message in {
        str(tmp_path / "none.csv"): "none.csv': no such file",
        str(first / "save" / "test.csv"): "another set is called 'test'; rename",
    }.items():
        done = run(command("finetune", parts, tmp_path / "bad", test_csv=wrong), check=False)
        assert done.returncode == 2 and message in done.stdout and "epoch: 1" not in done.stdout


@pytest.mark.slow
def test_finetune_and_zeroshot(parts, tmp_path):
    out = tmp_path / "finetune"
    run(command("finetune", parts, out))
    assert not (out / "merge_plan.txt").exists()
    assert set(json.loads((out / "results.json").read_text())["results"]) == {
        "untouched",
        "finetune",
    }
    out = tmp_path / "zeroshot"
    run(command("mam_zeroshot", parts, out, search="False", lam="0.5"))
    results = json.loads((out / "results.json").read_text())["results"]
    assert results["mam_zeroshot"]["loss"] != results["untouched"]["loss"]
    out = tmp_path / "identity"
    run(command("mam_zeroshot", parts, out, search="False", lam="1"))
    results = json.loads((out / "results.json").read_text())["results"]
    assert results["mam_zeroshot"] == results["untouched"]


def own_rate(chosen, line):
    same = ("lam", "layers", "draw", "donor")
    (found,) = [p for p in line if all(p[key] == chosen[key] for key in same)]
    return found["WER"]


@pytest.mark.slow
def test_zeroshot_search(parts, tmp_path):
    """On two ranks and in one process: the same choice, the same figures."""
    options = {
        "lam_grid": "[0.2, 0.8]",
        "layer_choices": "[all, 'last:1', greedy]",
        "controls": "[random, match_norm, no_donor]",
        "random_draws": "2",
    }
    out, two = tmp_path / "search", tmp_path / "two"
    done = run(command("mam_zeroshot", parts, out, **options))
    content = json.loads((out / "results.json").read_text())
    names = ("random", "random 2", "match_norm", "no_donor")
    controls = [f"mam_zeroshot control {name}" for name in names]
    assert list(content["results"]) == ["untouched", "mam_zeroshot", *controls]
    assert content["control"] == "none" and content["seed"] == 1986
    for name in content["results"]:
        assert (out / f"utterances_{name.replace(' ', '_')}.json").is_file()
    sweep = json.loads((out / "sweep.json").read_text())
    tried = [(p["lam"], tuple(p["layers"])) for p in sweep["points"] if p["control"] == "none"]
    assert len(tried) == len(set(tried)) >= 1 + 4 + 2  # λ = 1, two subsets, greedy's first layers
    swept = {lam for lam, layers in tried if list(layers) == sweep["chosen"]["layers"]}
    assert swept == {0.2, 0.8}, "the chosen subset at every λ"
    for control, draw in (("random", 1), ("random", 2), ("match_norm", 1), ("no_donor", 1)):
        line = [p for p in sweep["points"] if (p["control"], p["draw"]) == (control, draw)]
        assert len(line) >= 4 + 2, "as many points to choose from as the donor has"
        own = sweep["chosen_controls"][control if draw == 1 else f"{control} {draw}"]
        assert min(p["WER"] for p in line) == own_rate(own, line)
    assert list(sweep["chosen_controls"]) == list(names)
    assert sweep["dropped"] == [], "four utterances decide nothing"
    assert all(len(p["errors"]) == len(sweep["ids"]) == 4 for p in sweep["points"])
    merged = [p for p in sweep["points"] if p["control"] == "none" and p["lam"] != 1]
    best = min(merged, key=lambda p: p["WER"])
    assert sweep["chosen"]["lam"] in (p["lam"] for p in merged if p["WER"] == best["WER"])
    assert f"{sweep['chosen']['lam']:g} " in (out / "merge_plan.txt").read_text("utf-8")
    probe = json.loads((out / "probe.json").read_text())
    assert len(probe["layers"]) == 3 and len(probe["heads"]) == 6
    assert "First-order probe" in done.stdout and "Tested: λ" in done.stdout
    ddp = ("--distributed_backend", "gloo")
    run(command("mam_zeroshot", parts, two, *ddp, cache_mb="0", **options), ranks=2)
    tests = [f"utterances_{name.replace(' ', '_')}.json" for name in content["results"]]
    for file in ("sweep.json", "probe.json", "results.json", *tests):
        assert (two / file).read_text() == (out / file).read_text(), file


def test_a_bad_search_is_one_line_before_any_evaluation(parts, tmp_path):
    done = run(command("mam_zeroshot", parts, tmp_path / "out", lam_grid="[0.9, 2]"), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stdout
    assert "key 'lam_grid': λ = 2 is not a number in [0, 1]" in done.stdout
    assert not (tmp_path / "out" / "wer_untouched.txt").exists()


@pytest.mark.slow
def test_two_ranks_equal_one_process(parts, tmp_path):
    """Same global batch: λ and weights agree on both ranks after every step, and with one process.

    SGD for the encoder: Adam would blow gradients that are zero but for rounding (a key's bias has
    none in theory) up to whole steps.
    """
    text = (REPO / "hparams" / "mam_learnable.yaml").read_text(encoding="utf-8")
    text = text.replace("torch.optim.AdamW", "torch.optim.SGD")
    yaml = tmp_path / "sgd.yaml"
    yaml.write_text(text, encoding="utf-8")
    options = {"dynamic_batching": "False", "wav_augment": "null", "lr": "0.05"}

    def arguments(name, batch_size):
        _, *rest = command(
            "mam_learnable", parts, tmp_path / name, **options, batch_size=batch_size
        )
        return [str(yaml), *rest]

    (one,), _ = record(tmp_path, "one", arguments("one", "8"))
    distributed = [*arguments("two", "4"), "--distributed_backend", "gloo"]
    (rank0, rank1), _ = record(tmp_path, "two", distributed, ranks=2, fork=False)  # torchrun's own
    assert one.shape == rank0.shape and len(one) == 4
    assert torch.equal(rank0, rank1)
    assert (one[-1] - one[0]).abs().max() > 1e-3
    torch.testing.assert_close(rank0, one, rtol=0, atol=1e-5)
    assert "find_unused_parameters" not in text


@pytest.mark.slow
def test_resumed_in_the_middle_of_an_epoch(parts, tmp_path):
    """With augmentation, dropout and shuffled dynamic batches: every random number must return."""
    extra = ("--ckpt_interval_steps", "2")
    options = {"dropout": "0.1"}
    (whole,), _ = record(
        tmp_path, "whole", command("mam_learnable", parts, tmp_path / "whole", *extra, **options)
    )
    per_epoch = len(whole) // 2
    killed_at = per_epoch + 3  # a step after the second epoch's first checkpoint
    arguments = command("mam_learnable", parts, tmp_path / "cut", *extra, **options)
    (cut,), done = record(tmp_path, "cut", arguments, check=False, KILL_AFTER_STEPS=str(killed_at))
    assert done.returncode == 9 and len(cut) == killed_at
    (rest,), _ = record(tmp_path, "rest", arguments)
    assert len(rest) == len(whole) - per_epoch - 2
    assert torch.equal(torch.cat([cut[: per_epoch + 2], rest]), whole)
    for name in ("lambdas.csv", "utterances_mam_learnable.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.slow
def test_resuming_with_another_donor_is_an_error(parts, tmp_path):
    out = tmp_path / "out"
    arguments = command("mam_learnable", parts, out, number_of_epochs="1")
    run(arguments)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    arguments[arguments.index("--donor_model") + 1] = str(save_bert(tmp_path / "other", seed=5))
    done = run(arguments, check=False)
    assert done.returncode == 2
    assert "began with another donor" in done.stdout and str(tmp_path / "other") in done.stdout
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_another_corpus_leaves_a_run_as_it_was(parts, tmp_path):
    """``hyperparams.yaml`` too, which says what a finished run was made of."""
    out = tmp_path / "out"
    arguments = command("finetune", parts, out, "--debug", "--debug_batches=1")
    run(arguments)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    other = save_corpus(tmp_path / "other", utterances=25)
    arguments[arguments.index("--data_folder") + 1] = str(other)
    done = run(arguments, check=False)
    assert done.returncode == 2 and "was prepared with another data_folder" in done.stdout
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def wait_for(file):
    """The other process makes it; a minute is far more than it needs."""
    end = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the other one is a fork")
def test_the_second_of_two_trainings_in_one_folder_is_told(parts, tmp_path):
    out = tmp_path / "out"
    ready, done = tmp_path / "ready", tmp_path / "done"
    if not (other := os.fork()):
        try:
            hold_folder(out)
            ready.touch()
            wait_for(done)
        finally:
            os._exit(0)
    try:
        wait_for(ready)
        second = run(command("mam_learnable", parts, out), check=False)
    finally:
        done.touch()
        os.waitpid(other, 0)
    assert second.returncode == 2 and "Traceback" not in second.stdout
    assert re.search(rf"'{out}' is in use by process {other} on .* since .*: ", second.stdout)
    assert [file for file in out.rglob("*") if file.is_file() and file.name[0] != "."] == []
    run(command("mam_learnable", parts, out, number_of_epochs="1"))  # its end has freed it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "extra", "message"),
    [
        ({"data_folder": "nowhere"}, (), "--data_folder 'nowhere': no such folder"),
        ({"lam": "1.5"}, (), "key 'lam': λ = 1.5 is not a number in [0, 1]"),
        ({"layers": "0-7"}, (), "key 'layers': '0-7' names layer 3, but the target has"),
        ({}, ("--lamda", "0.9"), "has no such key; did you mean --lam?"),
        ({}, ("--debug_batches", "few"), "argument --debug_batches: invalid int value: 'few'"),
    ],
)
def test_bad_input_is_one_line_before_any_step(options, extra, message, parts, tmp_path):
    done = run(command("mam_learnable", parts, tmp_path / "out", *extra, **options), check=False)
    assert done.returncode == 2, done.stdout[-2000:]
    assert message in done.stdout
    assert "Traceback" not in done.stdout
    assert "Going into epoch" not in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sorting: ascending", "sortng: ascending", "'sorting' is missing; is it 'sortng'"),
        ("max_grad_norm: 5.0", "max_grad_nrom: 5.0", "did you mean 'max_grad_norm'"),
        (
            "    granularity: !ref",
            "    granularty: !ref",
            "unexpected keyword argument 'granularty'",
        ),
        ("lr: 0.0001", "learn_rate: 0.0001", 'The reference "lr" is not valid'),
    ],
)
def test_a_misspelt_yaml_key(old, new, message, parts, tmp_path):
    text = (REPO / "hparams" / "mam_learnable.yaml").read_text(encoding="utf-8")
    assert old in text
    yaml = tmp_path / "misspelt.yaml"
    yaml.write_text(text.replace(old, new), encoding="utf-8")
    _, *rest = command("mam_learnable", parts, tmp_path / "out")
    if "--lr" in rest and "learn_rate" in new:
        del rest[rest.index("--lr") : rest.index("--lr") + 2]
    with pytest.raises(MAMError, match=re.escape(message)):
        load_recipe([str(yaml), *rest], needed=KEYS)


@pytest.mark.parametrize("kind", ["finetune", "mam_zeroshot", "mam_learnable"])
def test_the_large_yamls_name_the_papers_models_and_load(kind, parts, tmp_path):
    text = (REPO / "hparams" / "large" / f"{kind}.yaml").read_text(encoding="utf-8")
    assert "speech_model: facebook/hubert-large-ls960-ft" in text
    assert kind == "finetune" or "donor_model: google-bert/bert-large-uncased" in text
    arguments = command(f"large/{kind}", parts, tmp_path / "out")
    hparams, *_ = load_recipe(arguments, needed=KEYS)
    assert hparams["encoder"].alphabet.blank_index == 0
    assert hparams["num_workers"] == hparams["test_dataloader_opts"]["num_workers"] == 4


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("kind", ["finetune", "mam_zeroshot", "mam_learnable"])
def test_real_speech_goes_through_every_yaml(kind, real_data, tmp_path):
    """A batch of training a YAML; the figures are the README's business."""
    parts = {"data_folder": str(real_data / "prompts_ljspeech")}
    yaml = str(REPO / "hparams" / f"{kind}.yaml")
    options = ["--output_folder", str(tmp_path / "out"), "--debug", "--debug_batches=1"]
    search = [f"--{key}={value}" for key, value in REAL_SEARCH.items() if kind == "mam_zeroshot"]
    run([yaml, *options, *search, "--data_folder", parts["data_folder"]])
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert {name.split(" control ")[0] for name in results} == {"untouched", kind}
    assert len(results) == (4 if kind == "mam_zeroshot" else 2)  # its control is drawn twice
    assert all(0 < metrics["WER"] <= 150 for metrics in results.values())


@pytest.mark.slow
@pytest.mark.real
def test_one_random_draw_and_four_speakers_give_no_verdict(real_data, tmp_path):
    """Forty real clips: whoever is lucky there, by speaker or by draw, has shown nothing."""
    yaml, out = str(REPO / "hparams" / "mam_zeroshot.yaml"), tmp_path / "out"
    options = [yaml, "--data_folder", str(real_data / "digits_vctk"), "--output_folder", str(out)]
    run([*options, "--search=False", "--debug", "--debug_batches=1"], script=VCTK)
    speakers: dict[str, list[dict[str, str]]] = {}
    for name in ("train", "valid", "test"):
        with (out / "save" / f"{name}.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                speakers.setdefault(row["cluster"], []).append(row)
    *heard, fifth, sixth = sorted(speakers)
    cut = {"test": heard, "valid": [fifth], "train": [sixth]}
    for name, chosen in cut.items():
        rows = [row for speaker in chosen for row in speakers[speaker][:10]]
        with (out / "save" / f"{name}.csv").open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    search = ["--lam_grid=[0.8, 0.95]", "--layer_choices=[all]", "--controls=[random]"]
    run([*options, "--skip_prep=True", "--random_draws=1", *search], script=VCTK)
    report = (out / "report" / "report.md").read_text()
    told = json.loads((out / "report" / "report.json").read_text())
    assert "one draw: no verdict" in report and "[not bounded]" in report
    assert {row["WER"]["n_clusters"] for row in told["comparisons"]} == {4}
    assert not any(word in row["verdict"] for row in told["comparisons"] for word in SHOWN)
