"""Exports of finished runs: what another environment computes is what the run recorded.

The runs are the recipes' own, on tiny random models. Each export is loaded in a process in which
this package cannot be imported.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import yaml
from conftest import REPO, TOKENS, made_once, save_bert, save_corpus, save_speech_model
from hub_stand_in import TOKEN, served
from processes import run_python
from safetensors.torch import load_file
from test_cli import everything
from test_esc50_recipe import save_tones
from test_esc50_recipe import train as train_events
from test_recipe import command, run
from tiny_beats import save_beats
from transformers import AutoModelForCTC

from speechbrain_mam import MAMError
from speechbrain_mam.cli import main
from speechbrain_mam.export import open_run
from speechbrain_mam.export.data_only import CALLED, data_only

pytestmark = pytest.mark.slow  # runs of the recipes; test_before_the_move.py exports one too
LETTERS = "abcdefghijklmnopqrstuvwxyz'"


@pytest.fixture(scope="module")
def speech(tmp_path_factory, bert_folder) -> dict[str, str]:
    """A corpus and a recogniser that never writes <s>, </s> or <unk>, as none that was trained."""
    from transformers import HubertForCTC

    def make(folder: Path) -> None:
        model = save_speech_model(folder / "hubert")
        hubert = HubertForCTC.from_pretrained(model)
        with torch.no_grad():
            hubert.lm_head.bias[1:4] = -100
            hubert.lm_head.weight[5:] *= 20  # letters, not only blanks
        hubert.save_pretrained(model)
        save_corpus(folder / "corpus", utterances=25)

    folder = made_once(tmp_path_factory, "export_speech", make)
    return {
        "data_folder": str(folder / "corpus"),
        "speech_model": str(folder / "hubert"),
        "donor_model": str(bert_folder),
    }


@pytest.fixture(scope="module")
def events(tmp_path_factory, bert_folder) -> dict[str, str]:
    def make(folder: Path) -> None:
        save_tones(folder / "corpus")
        save_beats(folder / "tiny.pt")

    folder = made_once(tmp_path_factory, "export_events", make)
    return {
        "data_folder": str(folder / "corpus"),
        "beats_checkpoint": str(folder / "tiny.pt"),
        "donor_model": str(bert_folder),
        "num_classes": "3",
        "precision": "fp32",
        "number_of_epochs": "2",
        "batch_size": "8",
        "lr": "0.001",
        "dropout": "0.0",
    }


SPEECH_RUNS: dict[str, dict[str, str]] = {
    "mam_learnable": {"lr_mam": "0.2"},
    "mam_zeroshot": {
        "lam_grid": "[0.1, 0.3]",
        "layer_choices": "['last:2']",
        "controls": "[random]",
        "random_draws": "1",
    },
    # so little training that the new head still writes letters
    "finetune": {"new_alphabet": LETTERS, "number_of_epochs": "1", "lr": "0.000001"},
}
EVENT_RUNS: dict[str, dict[str, str]] = {
    "mam_learnable": {"lr_mam": "0.05"},
    "mam_zeroshot_untouched": {
        "merge_into": "untouched",
        "number_of_epochs": "0",
        "search": "False",
        "lam": "0.3",
        "fbank_mean": "14",
        "fbank_std": "5",
    },
    "mam_zeroshot_pretrained": {
        "merge_into": "pretrained",
        "number_of_epochs": "1",
        "lr": "0.00001",
        "lam_grid": "[0.9]",
        "layer_choices": "['last:1']",
        "controls": "[]",
    },
}


@pytest.fixture(scope="module")
def speech_run(tmp_path_factory, speech) -> Callable[[str], Path]:
    """The output folder of a recipe's run, by its YAML; run once."""

    def finished(kind: str) -> Path:
        def train(folder: Path) -> None:
            run(command(kind, speech, folder, **SPEECH_RUNS[kind]))

        return made_once(tmp_path_factory, f"speech_{kind}", train)

    return finished


@pytest.fixture(scope="module")
def event_run(tmp_path_factory, events) -> Callable[[str], Path]:
    def finished(method: str) -> Path:
        def train(folder: Path) -> None:
            kind = "mam_zeroshot" if "zeroshot" in method else method
            train_events(kind, events, folder, **EVENT_RUNS[method])

        return made_once(tmp_path_factory, f"events_{method}", train) / "fold_1"

    return finished


def recorded(finished: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What a run's test wrote for each utterance or clip, and where their audio lies."""
    method = json.loads((finished / "results.json").read_text())["method"]
    rows = json.loads((finished / f"utterances_{method}.json").read_text())["utterances"]
    root = json.loads((finished / "save" / "prepared.json").read_text())["data_folder"]
    with (finished / "save" / "test.csv").open(newline="") as stream:
        files = {r["ID"]: r["wav"].replace("$data_root", root) for r in csv.DictReader(stream)}
    return {name: row["hyp"] for name, row in rows.items()}, files


Job = tuple[str, str, dict[str, str]]


def elsewhere(jobs: list[Job], scratch: Path) -> list[dict[str, str]]:
    """What exports write where this package cannot be imported."""
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    script = REPO / "tests" / "run_export.py"
    done = run_python(script, scratch / "jobs.json", cwd=scratch, timeout_s=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_same(finished: Path, out: Path, kinds: tuple[str, str], scratch: Path) -> None:
    """Both exports, at a place where they were not written, on every utterance or clip."""
    moved = out.rename(out.with_name("moved"))
    expected, files = recorded(finished)
    assert set(expected) == set(files) and len(set(expected.values())) > 1
    first = dict(list(files.items())[:1])
    jobs: list[Job] = []
    for kind, form in zip(kinds, ("hf", "speechbrain"), strict=True):
        jobs += [(kind, str(moved / form), files), ("card", str(moved / form), first)]
    for (kind, _, asked), found in zip(jobs, elsewhere(jobs, scratch), strict=True):
        words = {name: text.split() for name, text in found.items()}
        assert words == {name: expected[name].split() for name in asked}, kind


@pytest.mark.parametrize("kind", SPEECH_RUNS)
def test_a_recogniser_writes_what_its_run_wrote(kind, speech_run, tmp_path, capsys) -> None:
    finished = speech_run(kind)
    before = everything(finished)
    out = tmp_path / "out"
    assert main(["export", str(finished), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"written to '{out / 'hf'}'\nwritten to '{out / 'speechbrain'}'\n"
    assert not told.err and everything(finished) == before
    names = {file.name for file in (out / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.json", "preprocessor_config.json"} <= names
    assert {"README.md", "tokenizer_config.json"} <= names
    weights = load_file(out / "hf" / "model.safetensors")
    assert not [name for name in weights if "lam" in name.split(".")[-1] or "donor" in name]
    assert len({oct(file.stat().st_mode) for file in (out / "hf").iterdir()}) == 1
    yaml_text = (out / "speechbrain" / "hyperparams.yaml").read_text()
    check_names(yaml_text, {"speechbrain", "torch", "transformers", "operator", "builtins"})
    check_same(finished, out, ("ctc", "asr"), tmp_path)


def test_what_was_pushed_loads_as_what_was_exported(
    speech_run, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out, down = tmp_path / "out", tmp_path / "down"
    with served() as hub:
        hub.lfs = True
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        options = ["--format", "hf", "--push", "somebody/hubert-mam"]
        finished = speech_run("mam_learnable")
        assert main(["export", str(finished), "--out", str(out), *options]) == 0
        assert "(private)" in capsys.readouterr().out
        repository = hub.repos["somebody/hubert-mam"]
    down.mkdir()
    for name, content in repository["files"].items():
        (down / name).write_bytes(content)
    assert everything(down) == everything(out)
    loaded = AutoModelForCTC.from_pretrained(down).state_dict()
    saved = load_file(out / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("method", EVENT_RUNS)
def test_a_classifier_hears_what_its_run_heard(method, event_run, tmp_path, capsys) -> None:
    finished = event_run(method)
    before = everything(finished)
    out = tmp_path / "out"
    assert main(["export", str(finished), "--out", str(out)]) == 0
    assert not capsys.readouterr().err and everything(finished) == before
    published = torch.load(out / "hf" / "beats.pt", weights_only=True)
    assert set(published) == {"cfg", "model", "label_dict"} and published["cfg"]["finetuned_model"]
    assert "encoder.pos_conv.0.weight_g" in published["model"]
    yaml_text = (out / "speechbrain" / "hyperparams.yaml").read_text()
    check_names(yaml_text, {"speechbrain", "torch", "operator", "builtins"})
    check_same(finished, out, ("beats", "classifier"), tmp_path)


def check_names(text: str, allowed: set[str]) -> None:
    """What a YAML has built or called, by the package it comes from."""
    named = set(re.findall(r"!(?:new|name|apply):(\w+)\.", text))
    assert named and named <= allowed and "speechbrain_mam" not in text


def test_batches_are_masked_as_the_run_masks_them(speech_run, tmp_path) -> None:
    """SpeechBrain's interface with a padded batch: the same log-probabilities."""
    from speechbrain.inference.ASR import EncoderASR

    finished = speech_run("mam_learnable")
    assert main(["export", str(finished), "--out", str(tmp_path / "out")]) == 0
    model = EncoderASR.from_hparams(source=str(tmp_path / "out" / "speechbrain"))
    encoder = open_run(finished).encoder
    wavs = torch.randn(3, 12000, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([1.0, 0.6, 0.3])
    wavs *= torch.arange(12000) < (lens * 12000)[:, None]
    with torch.no_grad():
        expected, valid = encoder(wavs, lens)
        found = model.encode_batch(wavs, lens)
    for ours, theirs, share in zip(expected, found, valid, strict=True):
        frames = int((share * len(ours)).round())
        torch.testing.assert_close(theirs[:frames], ours[:frames], rtol=1e-4, atol=1e-5)


def test_the_folded_weights(speech_run, speech, tmp_path) -> None:
    """Zero-shot: λ · target + (1 − λ) · donor in the chosen layers, all else the target's bits."""
    finished, out = speech_run("mam_zeroshot"), tmp_path / "out"
    assert main(["export", str(finished), "--out", str(out), "--format", "hf"]) == 0
    chosen = json.loads((finished / "sweep.json").read_text())["chosen"]
    found = load_file(out / "model.safetensors")
    target = load_file(Path(speech["speech_model"]) / "model.safetensors")
    donor = load_file(Path(speech["donor_model"]) / "model.safetensors")
    assert set(found) == set(target) and chosen["layers"] == [1, 2]
    words = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
    for name, tensor in found.items():
        match = re.fullmatch(r"hubert\.encoder\.layers\.(\d)\.attention\.(\w_proj)\.(\w+)", name)
        if match is None or match[2] not in words or int(match[1]) not in chosen["layers"]:
            assert torch.equal(tensor, target[name]), name
            continue
        theirs = donor[f"encoder.layer.{match[1]}.attention.self.{words[match[2]]}.{match[3]}"]
        expected = chosen["lam"] * target[name] + (1 - chosen["lam"]) * theirs
        torch.testing.assert_close(tensor, expected)


def test_the_card(speech_run, event_run, tmp_path) -> None:
    for finished, shown in (
        (
            speech_run("mam_learnable"),
            ("WER", "layer 2", "automatic-speech-recognition", "W = λ · W_target + (1 − λ)"),
        ),
        (event_run("mam_zeroshot_untouched"), ("accuracy", "layer 0 | 0.3", "Test fold: 1")),
    ):
        out = tmp_path / finished.parent.name / finished.name
        assert main(["export", str(finished), "--out", str(out), "--format", "hf"]) == 0
        card = (out / "README.md").read_text()
        opened = open_run(finished)
        front = yaml.safe_load(card.split("---\n")[1])
        assert front["license"] == "other" and opened.method in front["tags"]
        for text in (*shown, opened.target_sha256, opened.donor_sha256, "| unknown |"):
            assert text in card, text
        results = json.loads((finished / "results.json").read_text())
        assert results["donor_sha256"] == opened.donor_sha256
        for name in ("WER", "accuracy"):
            if name in opened.metrics:
                row = re.search(rf"\| {name} \| ([\d.]+) \| ([\d.-]+) to ([\d.]+) \|", card)
                assert row is not None and row[1] == f"{opened.metrics[name]:.2f}"
                assert float(row[2]) <= float(row[1]) <= float(row[3])
        assert str(tmp_path.parent) not in card, "a path of this machine"


def test_a_parent_with_a_licence(copy, speech, tmp_path) -> None:
    out = tmp_path / "out"
    for role in ("speech_model", "donor_model"):
        parent = shutil.copytree(speech[role], tmp_path / role)
        (parent / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
        edit_yaml(re.escape(speech[role]), str(parent))(copy)
    assert main(["export", str(copy), "--out", str(out), "--format", "hf"]) == 0
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    assert card.count("| mit |") == 2


@pytest.fixture()
def copy(tmp_path, speech_run) -> Path:
    """A finished run that may be spoiled."""
    return Path(shutil.copytree(speech_run("mam_learnable"), tmp_path / "run"))


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "save").glob("CKPT*"))


def in_checkpoints(name: str, spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil_all(folder: Path) -> None:
        for checkpoint in checkpoints(folder):
            spoil(checkpoint / name)

    return spoil_all


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("code was run",))


def with_code(file: Path) -> None:
    """As a stranger would hand it over, without a note of what the files were."""
    file.write_bytes(pickle.dumps(Code()))
    (file.parent / "files.json").unlink()


def edit_yaml(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "hyperparams.yaml"
        text = file.read_text()
        assert re.search(old, text)
        file.write_text(re.sub(old, new, text))

    return edit


def with_folds(folder: Path) -> None:
    (folder / "fold_3").mkdir()
    (folder / "fold_3" / "results.json").write_text("{}")


def another_donor(folder: Path) -> None:
    other = save_bert(folder.parent / "other", seed=9)
    edit_yaml(r"donor: .*", f"donor: {other}")(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "run': no such folder; expected the output folder of a finished"),
    "not finished": (lambda f: (f / "results.json").unlink(), "the run is not finished"),
    "results cut": (lambda f: (f / "results.json").write_text('{"meth'), "results.json'"),
    "folds": (with_folds, "holds the runs of test folds"),
    "no yaml": (lambda f: (f / "hyperparams.yaml").unlink(), "holds no hyperparams.yaml"),
    "yaml of another class": (
        edit_yaml("HubertCTC", "HubertXTC"),
        "'encoder' would call !new:speechbrain_mam.lobes.hubert_ctc.HubertXTC; what a run",
    ),
    "another encoder": (
        edit_yaml("!new:speechbrain_mam.lobes.hubert_ctc.HubertCTC", "!new:torch.nn.Identity"),
        "'encoder' would call !new:torch.nn.Identity; what a run folder names is not executed",
    ),
    "no donor": (edit_yaml(r"donor: .*", "donor: /no/such/bert"), "model '/no/such/bert': no such"),
    "another donor": (another_donor, "belongs to another donor"),
    "no target": (
        edit_yaml(r"source: .*", "source: /no/such/hubert"),
        "'/no/such/hubert': no such",
    ),
    "no checkpoint": (
        lambda f: [shutil.rmtree(c) for c in checkpoints(f)],
        "save' holds no checkpoint with a validation WER",
    ),
    "checkpoint cut": (
        in_checkpoints("encoder.ckpt", lambda f: f.write_bytes(f.read_bytes()[:-500])),
        "' cannot be used: 'encoder.ckpt' has ",
    ),
    "code in a checkpoint": (
        in_checkpoints("encoder.ckpt", with_code),
        "' cannot be loaded: ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_that_cannot_be_exported_gets_one_line(damage, copy, tmp_path, capsys) -> None:
    spoil, message = DAMAGE[damage]
    spoil(copy)
    before = everything(copy) if copy.exists() else {}
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["export", str(copy), "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and not told.out, told.err
    assert "code was run" not in told.out + told.err
    assert not out.exists() and (everything(copy) if copy.exists() else {}) == before
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("role", ["target", "donor"])
def test_zero_shot_needs_the_models_of_then(role, tmp_path, speech_run, capsys) -> None:
    finished = Path(shutil.copytree(speech_run("mam_zeroshot"), tmp_path / "run"))
    if role == "donor":
        other = str(save_bert(tmp_path / "other", seed=9))
        sweep = json.loads((finished / "sweep.json").read_text())
        sweep["chosen"]["donor"] = other
        (finished / "sweep.json").write_text(json.dumps(sweep))
    else:
        other = str(save_speech_model(tmp_path / "other"))
        edit_yaml(r"source: .*", f"source: {other}")(finished)
    capsys.readouterr()  # of what saved the other model
    assert main(["export", str(finished), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert f"was run with another {role}: its results.json says sha256" in told.err
    assert told.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_an_untrained_classifier_that_is_gone(event_run, tmp_path, capsys) -> None:
    finished = Path(shutil.copytree(event_run("mam_zeroshot_untouched"), tmp_path / "run"))
    file = finished / "save" / "linear_classifier.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["export", str(finished), "--out", str(tmp_path / "out")]) == 2
    assert "is not a whole PyTorch checkpoint" in capsys.readouterr().err
    file.unlink()
    assert main(["export", str(finished), "--out", str(tmp_path / "out")]) == 2
    assert "linear_classifier.ckpt': no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_moved(copy, tmp_path, speech_run) -> None:
    """Its hyperparams.yaml names the folder of then, which must neither be read nor be made."""
    was = str(speech_run("mam_learnable"))
    gone = str(tmp_path / "gone")
    edit_yaml(re.escape(was), gone)(copy)
    assert main(["export", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert not Path(gone).exists()


def test_nothing_is_overwritten_without_force(copy, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main(["export", str(copy), "--out", str(out)]) == 2
    assert "exists and is not empty; --force replaces it" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
    assert main(["export", str(copy), "--out", str(out), "--force", "--format", "hf"]) == 0
    assert not (out / "notes.txt").exists() and (out / "config.json").is_file()
    for inside in (copy, copy / "exported"):
        assert main(["export", str(copy), "--out", str(inside), "--force"]) == 2
        assert "choose another one" in capsys.readouterr().err
    assert main(["export", str(copy), "--out", str(tmp_path / "new"), "--format", "onnx"]) == 2
    assert "--format: 'onnx' is not one of hf, speechbrain, both" in capsys.readouterr().err


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
FULL_TORCH = RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("failure", [FULL, FULL_TORCH, KeyboardInterrupt()], ids=repr)
def test_a_full_disk_leaves_everything_as_it_was(
    failure, force, copy, tmp_path, monkeypatch, capsys
) -> None:
    out = tmp_path / "out"
    if force:
        out.mkdir()
        (out / "old.txt").write_text("of before")
    before = everything(tmp_path)

    def save(content: object, file: Path) -> None:
        """The second folder's weights, half of them."""
        Path(file).write_bytes(b"half")
        raise failure

    monkeypatch.setattr("speechbrain_mam.export.speech.torch.save", save)
    code = 130 if isinstance(failure, KeyboardInterrupt) else 2
    assert main(["export", str(copy), "--out", str(out), *["--force"] * force]) == code
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and not told.out
    if code == 2:
        assert "No space left" in told.err or "is there room on the disk?" in told.err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", ["hf", "speechbrain"])
def test_files_that_the_system_refuses_to_grow(form, copy, tmp_path) -> None:
    """No injected error: writes beyond a limit fail as they do on a full disk."""
    before = everything(tmp_path)
    code = (
        "import resource, signal, sys; from speechbrain_mam.cli import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["export", str(copy), "--out", str(tmp_path / "out"), "--format", form]
    done = run_python("-c", code, *arguments)
    assert done.returncode == 2 and not done.stdout, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert everything(tmp_path) == before


def test_no_permission(copy, tmp_path, monkeypatch, capsys) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    make = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        """As in a folder of mode 0o500; root, who runs many a CI, may write there all the same."""
        if locked in self.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert main(["export", str(copy), "--out", str(locked / "out")]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "Permission denied: '" in told.err
    assert not list(locked.iterdir())


def test_open_run_is_the_tested_model(speech_run) -> None:
    opened = open_run(speech_run("mam_learnable"))
    assert opened.is_speech and opened.method == "mam_learnable" and opened.control == "none"
    assert list(opened.lambdas) == ["layer 0", "layer 1", "layer 2"]
    assert len(TOKENS) == opened.encoder.model.config.vocab_size
    with pytest.raises(MAMError, match="no such folder"):
        open_run(Path("/no/such/run"))


CODE = (
    "!apply:os.system [{touch}]",
    "!apply:subprocess.getoutput [{touch}]",
    "!new:subprocess.Popen [[touch, {marker}]]",
    "!applyref:os.system [{touch}]",
    "!module:os",
    "!name:os.system [{touch}]",
    '!!python/object/apply:os.system ["{touch}"]',
    '!!python/object/new:os.system ["{touch}"]',
    "!!python/name:os.system",
    "!tuple (!!python/object/apply:os.system [{touch}],)",
    "!include:{other}",
    "!apply:getattr [!apply:os.system [{touch}], real]",
    "!new:collections.OrderedDict {{a: !apply:os.system [{touch}]}}",
    "[1, {{deep: !apply:os.system [{touch}]}}]",
)


PLACES = {
    "a key of its own": (r"\Z", "\nextra: CODE\n"),
    "before all": (r"\A", "extra: CODE\n"),
    "in the model": (r"layerdrop: .*", "layerdrop: CODE"),
    "as the model": (r"(?m)^encoder: .*\n( .*\n)*", "encoder: CODE\n"),
}


# Each kind of code once, and one kind in each place, through a whole export: that takes two seconds
WHOLE = [(code, "a key of its own") for code in CODE] + [(CODE[0], place) for place in PLACES]


def code_of(tmp_path: Path, code: str) -> tuple[str, Path]:
    """What leaves a file behind if anybody executes it, and the file."""
    marker, other = tmp_path / "executed", tmp_path / "other.yaml"
    other.write_text(f"x: !apply:os.system [touch {marker}]\n")
    return code.format(touch=f"touch {marker}", marker=marker, other=other), marker


@pytest.mark.parametrize(("code", "place"), dict.fromkeys(WHOLE))
def test_code_in_a_runs_yaml_is_not_executed(code, place, tmp_path, copy, capsys) -> None:
    """The run is exported without it, or refused; ``hyperparams.yaml`` is only read."""
    code, marker = code_of(tmp_path, code)
    old, new = PLACES[place]
    edit_yaml(old, new.replace("CODE", code))(copy)
    capsys.readouterr()
    done = main(["export", str(copy), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert not marker.exists()
    assert done == (0 if place in ("a key of its own", "before all") else 2), told
    assert done == 0 or told.count("\n") == 1


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("place", [place for place in PLACES if place != "as the model"])
def test_no_code_reaches_hyperpyyaml(code, place, tmp_path, speech_run) -> None:
    """What is left over calls nothing but what builds the model.

    In the place of the model it leaves references to nothing, which is an error before that.
    """
    code, _ = code_of(tmp_path, code)
    old, new = PLACES[place]
    text = (speech_run("mam_learnable") / "hyperparams.yaml").read_text()
    found = data_only(re.sub(old, new.replace("CODE", code), text), tmp_path / "hyperparams.yaml")
    called = re.findall(
        r"!(?:new|name|apply|applyref|module|include|!python)[:/][\w./]*", found.text
    )
    assert found.left_out and "executed" not in found.text
    assert {name.partition(":")[2] for name in called} <= {"getattr"}.union(*CALLED.values())
