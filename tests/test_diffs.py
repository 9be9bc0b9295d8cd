"""The diffs of ``examples/diffs``: SpeechBrain's own recipes, unmodified but for them, train.

The recipes come from SpeechBrain's source distribution on PyPI, which has no YAMLs: those of the
tests have the keys that a recipe reads, and the very lines that the diff adds. The environment
variable ``SPEECHBRAIN_RECIPES`` names a checkout of SpeechBrain instead; then its real YAMLs are
patched and trained as well.

Each run of a recipe takes about three seconds, as a process of its own some seconds more.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPO, made_once, save_bert, save_speech_model
from processes import run_python
from safetensors.torch import load_file

from speechbrain_mam.cli import main

DIFFS = sorted((REPO / "examples" / "diffs").glob("*.diff"))
RELEASE = "speechbrain==1.1.0"  # the newest whose source distribution holds the recipes
SHA256 = "669ed0903c2aebc0d5daffc69fdbbfc822e1e2c094be45c8160ceecc9c763cd3"
NEEDED = re.compile(r"/(recipes/(LibriSpeech|IEMOCAP)/.*(train_with_wav2vec2?|_prepare)\.py)$")
UNREACHABLE = re.compile(r"connection broken|ConnectionError|timed out|Name or service not known")
RATE_HZ = 16000

CTC_YAML = """
output_folder: !PLACEHOLDER
output_wer_folder: !ref <output_folder>
save_folder: !ref <output_folder>/save
data_folder: !PLACEHOLDER
train_csv: !PLACEHOLDER
valid_csv: !PLACEHOLDER
test_csv: !PLACEHOLDER
train_splits: []
dev_splits: []
test_splits: []
skip_prep: False
sorting: ascending
wav2vec2_hub: !PLACEHOLDER
freeze_wav2vec: True
number_of_epochs: 1
output_neurons: 29
blank_index: 0
dnn_neurons: 16
train_dataloader_opts: {batch_size: 4}
valid_dataloader_opts: {batch_size: 4}
test_dataloader_opts: {batch_size: 4}
label_encoder: !new:speechbrain.dataio.encoder.CTCTextEncoder
epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
   limit: !ref <number_of_epochs>
enc: !new:speechbrain.lobes.models.VanillaNN.VanillaNN
   input_shape: [null, null, 1024]
   dnn_blocks: 1
   dnn_neurons: !ref <dnn_neurons>
wav2vec2: !new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
   source: !ref <wav2vec2_hub>
   output_norm: True
   freeze: !ref <freeze_wav2vec>
   save_path: !ref <save_folder>/wav2vec2
ctc_lin: !new:speechbrain.nnet.linear.Linear
   input_size: !ref <dnn_neurons>
   n_neurons: !ref <output_neurons>
log_softmax: !new:speechbrain.nnet.activations.Softmax
   apply_log: True
ctc_cost: !name:speechbrain.nnet.losses.ctc_loss
   blank_index: !ref <blank_index>
modules: {wav2vec2: !ref <wav2vec2>, enc: !ref <enc>, ctc_lin: !ref <ctc_lin>}
model: !new:torch.nn.ModuleList
   - [!ref <enc>, !ref <ctc_lin>]
model_opt_class: !name:torch.optim.Adadelta
wav2vec_opt_class: !name:torch.optim.Adam
   lr: 0.001
lr_annealing_model: !new:speechbrain.nnet.schedulers.NewBobScheduler
   initial_value: 0.9
lr_annealing_wav2vec: !new:speechbrain.nnet.schedulers.NewBobScheduler
   initial_value: 0.001
test_beam_search: {blank_index: !ref <blank_index>, beam_size: 4}
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
   checkpoints_dir: !ref <save_folder>
   recoverables:
      wav2vec2: !ref <wav2vec2>
      model: !ref <model>
      counter: !ref <epoch_counter>
      tokenizer: !ref <label_encoder>
train_logger: !new:speechbrain.utils.train_logger.FileTrainLogger
   save_file: !ref <output_folder>/train_log.txt
error_rate_computer: !name:speechbrain.utils.metric_stats.ErrorRateStats
cer_computer: !name:speechbrain.utils.metric_stats.ErrorRateStats
   split_tokens: True
"""
EMOTION_YAML = """
output_folder: !PLACEHOLDER
save_folder: !ref <output_folder>/save
data_folder: !PLACEHOLDER
train_annotation: !PLACEHOLDER
valid_annotation: !PLACEHOLDER
test_annotation: !PLACEHOLDER
skip_prep: False
wav2vec2_hub: !PLACEHOLDER
freeze_wav2vec2: False
freeze_wav2vec2_conv: True
encoder_dim: 768
number_of_epochs: 1
dataloader_options: {batch_size: 4, shuffle: True}
wav2vec2: !new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
    source: !ref <wav2vec2_hub>
    output_norm: True
    freeze: !ref <freeze_wav2vec2>
    freeze_feature_extractor: !ref <freeze_wav2vec2_conv>
    save_path: !ref <save_folder>/wav2vec2
avg_pool: !new:speechbrain.nnet.pooling.StatisticsPooling
    return_std: False
output_mlp: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <encoder_dim>
    n_neurons: 4
epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
    limit: !ref <number_of_epochs>
modules: {wav2vec2: !ref <wav2vec2>, output_mlp: !ref <output_mlp>}
model: !new:torch.nn.ModuleList
    - [!ref <output_mlp>]
log_softmax: !new:speechbrain.nnet.activations.Softmax
    apply_log: True
compute_cost: !name:speechbrain.nnet.losses.nll_loss
error_stats: !name:speechbrain.utils.metric_stats.MetricStats
    metric: !name:speechbrain.nnet.losses.classification_error
        reduction: batch
opt_class: !name:torch.optim.Adam
    lr: 0.01
wav2vec2_opt_class: !name:torch.optim.Adam
    lr: 0.001
lr_annealing: !new:speechbrain.nnet.schedulers.NewBobScheduler
    initial_value: 0.01
lr_annealing_wav2vec2: !new:speechbrain.nnet.schedulers.NewBobScheduler
    initial_value: 0.001
train_logger: !new:speechbrain.utils.train_logger.FileTrainLogger
    save_file: !ref <output_folder>/train_log.txt
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: !ref <save_folder>
    recoverables:
        model: !ref <model>
        wav2vec2: !ref <wav2vec2>
        counter: !ref <epoch_counter>
"""
OWN_YAMLS = {"librispeech_ctc_wav2vec2": CTC_YAML, "iemocap_wav2vec2": EMOTION_YAML}
RECIPES = {diff.stem: diff for diff in DIFFS}


def changes(diff: Path) -> dict[str, list[str]]:
    """The changed lines of a diff by file, with their sign."""
    found: dict[str, list[str]] = {}
    for line in diff.read_text(encoding="utf-8").splitlines():
        if line.startswith("+++ b/"):
            lines = found.setdefault(line[6:], [])
        elif line[0] in "+-" and not line.startswith("--- "):
            lines.append(line)
    return found


def files_of(diff: Path) -> tuple[str, str]:
    """The recipe's Python file and its YAML."""
    script, yaml = sorted(changes(diff), key=lambda name: name.endswith(".yaml"))
    return script, yaml


@pytest.fixture(scope="session")
def unmodified(tmp_path_factory) -> Path:
    """A folder that holds SpeechBrain's ``recipes``."""
    if checkout := os.environ.get("SPEECHBRAIN_RECIPES"):
        assert (Path(checkout) / "recipes").is_dir(), "SPEECHBRAIN_RECIPES is no checkout"
        return Path(checkout)
    return made_once(tmp_path_factory, "speechbrain_recipes", unpack)


def unpack(tree: Path) -> None:
    tree.mkdir()
    cache = Path(os.environ.get("SPEECHBRAIN_MAM_CACHE", tree))
    archive = cache / f"{RELEASE.replace('==', '-')}.tar.gz"
    if not archive.exists():
        download(archive, tree / "requirements.txt")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256, f"{archive}: other content"
    with tarfile.open(archive) as tar:
        for member in tar:
            if name := NEEDED.search(member.name):
                target = tree / name[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())


def download(archive: Path, pinned: Path) -> None:
    pinned.write_text(f"{RELEASE} --hash=sha256:{SHA256}\n")
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--retries", "1")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "-d", archive.parent, "-r", pinned],
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    if done.returncode and UNREACHABLE.search(said):
        pytest.skip(f"PyPI cannot be reached for {RELEASE}: {said.splitlines()[-1]}")
    assert done.returncode == 0, said


def speech_like(index: int, seconds: float) -> np.ndarray:
    """Syllables of a voiced sound, at a pitch and with formants of its own."""
    rng = np.random.default_rng(index)
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = 90 + 30 * (index % 4)
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.05 * np.sin(5 * time_s))) / RATE_HZ
    formants_hz = np.array([500, 1500]) * (1 + 0.2 * (index % 4))
    voice = sum(
        np.exp(-(((n * pitch_hz - formants_hz) / 200) ** 2)).sum() * np.sin(n * phase)
        for n in range(1, 25)
    )
    envelope = np.maximum(0, np.sin(2 * np.pi * 3 * time_s))
    return 0.1 * envelope * voice + 0.003 * rng.standard_normal(len(time_s))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    """Tiny random models, a few seconds of audio, and manifests as the two corpora have them."""
    folder = tmp_path_factory.mktemp("parts")
    save_speech_model(folder / "wav2vec2", "wav2vec2")
    save_bert(folder / "bert")
    # Every character that the recipe's 29 outputs stand for.
    texts = ["QUICK FOX", "JUMPS BY", "LAZY DOG'S", "VET HERE", "WIN IT"]
    emotions = ["ang", "hap", "sad", "neu"]
    rows, entries = [["ID", "duration", "wav", "spk_id", "wrd"]], {}
    for i in range(8):
        wav, seconds = folder / f"{i}.wav", 0.4 + 0.05 * (i % 3)
        soundfile.write(wav, speech_like(i, seconds), RATE_HZ)
        rows.append([f"1-2-{i:04d}", seconds, f"$data_root/{i}.wav", "1-2", texts[i % 5]])
        entries[f"Ses01_{i}"] = {"wav": str(wav), "length": seconds, "emo": emotions[i % 4]}
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    (folder / "data.json").write_text(json.dumps(entries))
    return {name: folder / name for name in ("", "wav2vec2", "bert", "data.csv", "data.json")}


def options_of(recipe: str, parts: dict[str, Path], output: Path) -> dict[str, str]:
    """What a user gives on the command line, and the width that the tiny encoder has."""
    manifest = parts["data.csv" if recipe == "librispeech_ctc_wav2vec2" else "data.json"]
    options = {
        "output_folder": str(output),
        "data_folder": str(parts[""]),
        "wav2vec2_hub": str(parts["wav2vec2"]),
        "skip_prep": "True",
        "mam": f"{{donor: {parts['bert']}}}",
    }
    if recipe == "librispeech_ctc_wav2vec2":
        return options | {
            "train_csv": str(manifest),
            "valid_csv": str(manifest),
            "test_csv": f"[{manifest}]",
            "enc": "{input_shape: [null, null, 16]}",
        }
    return options | {
        **{f"{part}_annotation": str(manifest) for part in ("train", "valid", "test")},
        "encoder_dim": "16",
    }


def patch(recipe: str, unmodified: Path, folder: Path, *arguments: str) -> None:
    """The recipe's folder, patched with the command that the README gives."""
    script, _ = files_of(RECIPES[recipe])
    shutil.copytree(unmodified / Path(script).parent, folder / Path(script).parent)
    done = subprocess.run(
        ["git", "apply", "--unidiff-zero", *arguments, str(RECIPES[recipe])],
        cwd=folder,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def train(
    folder: Path, script: str, yaml: Path, options: dict[str, str], fork: bool = True
) -> None:
    flat = [word for key, value in options.items() for word in (f"--{key}", value)]
    place = folder / Path(script).parent
    arguments = (Path(script).name, yaml, *flat, "--device", "cpu")
    done = run_python(*arguments, cwd=place, fork=fork)
    assert done.returncode == 0, done.stdout + done.stderr


def lambdas(output: Path) -> list[list[float]]:
    """λ of every layer, one row for the start and one for each epoch."""
    with (output / "lambdas.csv").open(encoding="utf-8") as stream:
        return [[float(value) for value in row[1:]] for row in list(csv.reader(stream))[1:]]


def check_run(recipe: str, output: Path, epochs: int, encoder: Path) -> None:
    assert "bert" in (output / "merge_plan.txt").read_text(encoding="utf-8")
    start, *learned = lambdas(output)
    assert start == [0.95] * 3 and len(learned) == epochs
    assert all(value != 0.95 for value in learned[0])
    checkpoint = max((output / "save").glob("CKPT+*"), key=lambda path: path.stat().st_mtime)
    assert (checkpoint / "mam.ckpt").is_file() and (checkpoint / "mam_optimizer.ckpt").is_file()
    saved = torch.load(checkpoint / "wav2vec2.ckpt", weights_only=True)
    query = "encoder.layers.0.attention.q_proj.weight"
    same = torch.equal(
        saved[f"model.{query}"], load_file(encoder / "model.safetensors")[f"wav2vec2.{query}"]
    )
    assert same == (recipe == "librispeech_ctc_wav2vec2")  # which has `freeze_wav2vec: True`
    log = (output / "train_log.txt").read_text(encoding="utf-8")
    assert log.count("valid loss") == epochs and log.count("test loss") >= 1


def test_there_are_two_diffs():
    assert sorted(RECIPES) == sorted(OWN_YAMLS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_ten_lines_are_enough(recipe):
    """And all but the class line are added: nothing of SpeechBrain's text is in the diff."""
    changed = changes(RECIPES[recipe])
    assert sum(len(lines) for lines in changed.values()) <= 10
    removed = [line for lines in changed.values() for line in lines if line[0] == "-"]
    assert len(removed) == 1 and re.fullmatch(r"-class \w+\(sb\.Brain\):", removed[0])
    text = RECIPES[recipe].read_text(encoding="utf-8")
    assert all(line[0] in "+-@" for line in text.splitlines())  # no line of context


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_add_writes_the_diff(recipe, unmodified, tmp_path, monkeypatch, capsys):
    """``speechbrain-mam add --diff`` on the recipe itself; with a checkout, on its YAML too."""
    script, yaml = files_of(RECIPES[recipe])
    shutil.copytree(unmodified / Path(script).parent, tmp_path / Path(script).parent)
    diff = RECIPES[recipe].read_text(encoding="utf-8")
    if not (tmp_path / yaml).exists():
        (tmp_path / yaml).parent.mkdir(exist_ok=True)
        (tmp_path / yaml).write_text(OWN_YAMLS[recipe])
    monkeypatch.chdir(tmp_path)
    donor = diff.partition("donor: ")[2].partition("\n")[0]
    assert main(["add", script, yaml, "--target", "wav2vec2", "--donor", donor, "--diff"]) == 0
    printed = capsys.readouterr().out
    of_script = re.search(rf"--- a/{script}\n.*?(?=--- a/|\Z)", diff, flags=re.S)[0]
    assert of_script in printed
    if "SPEECHBRAIN_RECIPES" in os.environ:
        assert printed == diff


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_hides_what_it_inherits(recipe, unmodified):
    """Methods without ``super()``: why MAMBrain wraps those of its subclasses."""
    script, _ = files_of(RECIPES[recipe])
    text = (unmodified / script).read_text(encoding="utf-8")
    for name in ("init_optimizers", "on_stage_end"):
        assert f"def {name}(self" in text and f"super().{name}" not in text


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_trains_and_resumes(recipe, unmodified, parts, tmp_path):
    script, yaml_name = files_of(RECIPES[recipe])
    patch(recipe, unmodified, tmp_path / "tree", "--include=*.py")
    added = [line[1:] for line in changes(RECIPES[recipe])[yaml_name]]
    yaml = tmp_path / "tiny.yaml"
    yaml.write_text("\n".join([OWN_YAMLS[recipe], *added, ""]), encoding="utf-8")
    options = options_of(recipe, parts, tmp_path / "out")
    train(tmp_path / "tree", script, yaml, options, fork=False)
    check_run(recipe, tmp_path / "out", 1, parts["wav2vec2"])
    first = lambdas(tmp_path / "out")
    train(tmp_path / "tree", script, yaml, options | {"number_of_epochs": "2"})
    check_run(recipe, tmp_path / "out", 2, parts["wav2vec2"])
    assert lambdas(tmp_path / "out")[:2] == first != lambdas(tmp_path / "out")[1:]


@pytest.mark.slow
@pytest.mark.skipif(
    "SPEECHBRAIN_RECIPES" not in os.environ,
    reason="SPEECHBRAIN_RECIPES is not set: the source distribution has no YAMLs",
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_trains_with_its_own_yaml(recipe, unmodified, parts, tmp_path):
    script, yaml_name = files_of(RECIPES[recipe])
    patch(recipe, unmodified, tmp_path / "tree")
    options = options_of(recipe, parts, tmp_path / "out")
    options |= {"number_of_epochs": "1"}
    train(tmp_path / "tree", script, tmp_path / "tree" / yaml_name, options)
    check_run(recipe, tmp_path / "out", 1, parts["wav2vec2"])
