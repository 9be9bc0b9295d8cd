"""A YAML and a finished run from before the package was divided into folders: both still work.

``before_the_move/`` holds ``hparams/mam_learnable.yaml`` as it was, and what a run with it left,
but for pictures, logs and the checkpoint. Who has such files, or a recipe of their own with such a
YAML, need not change anything.
"""

import json
import re
import shutil
from pydoc import locate

import pytest
from conftest import REPO, made_once
from hyperpyyaml import load_hyperpyyaml
from processes import run_python
from test_recipe import command, run
from test_recipe import parts as parts

import speechbrain_mam
from speechbrain_mam import MAM
from speechbrain_mam.cli import main
from speechbrain_mam.results.runs import read_run

OLD = REPO / "tests" / "before_the_move"
YAML, RUN = OLD / "mam_learnable.yaml", OLD / "run"
PUBLIC = (
    *("ARCHITECTURES", "MAM", "Architecture", "Donor", "LearnableMAM", "MAMBrain", "MAMError"),
    *("Merge", "MergePlan", "MergedLinear", "find_attention", "index_attention", "make_plan"),
    *("register_architecture", "supported_models"),
)
OF_YAMLS = (
    *("MAM", "lobes.hubert_ctc.HubertCTC", "lobes.beats.BEATsEncoder"),
    *("recipe.tensorboard_logger", "precision.fast_precision", "corpus.normalize_text"),
)
OF_LOBES = (
    *("beats_model.BEATsModel", "beats_model.build_beats", "beats_model.checkpoint_file"),
    *("beats_model.read_checkpoint", "fbank.FilterBanks", "fbank.frame_count"),
    *("hubert_ctc.CTCAlphabet", "hubert_ctc.normalize"),
)


def names_in(yaml):
    """What HyperPyYAML looks up."""
    return sorted(set(re.findall(r"!\w+:([\w.]+)", yaml.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name):
    assert name in speechbrain_mam.__all__ and getattr(speechbrain_mam, name) is not None


@pytest.mark.parametrize("yaml", [YAML, RUN / "hyperparams.yaml"], ids=lambda file: file.name)
def test_names_in_the_yamls(yaml):
    names = names_in(yaml)
    assert "speechbrain_mam.recipe.tensorboard_logger" in names and len(names) > 10
    assert not [name for name in names if locate(name) is None]


def test_names_that_other_yamls_may_have():
    """Those of every YAML that was shipped, and the rest of the lobes."""
    names = [*OF_YAMLS, *(f"lobes.{name}" for name in OF_LOBES)]
    assert not [name for name in names if locate(f"speechbrain_mam.{name}") is None]


def test_the_module_that_is_started_by_name():
    """``python -m`` of the READMEs."""
    done = run_python("-m", "speechbrain_mam.seeds", "--help")
    assert done.returncode == 0 and "--nproc_per_node" in done.stdout, done.stderr


def test_the_yaml_loads(tmp_path):
    with YAML.open(encoding="utf-8") as stream:
        hparams = load_hyperpyyaml(stream, {"output_folder": str(tmp_path)})
    assert isinstance(hparams["mam"], MAM)
    assert hparams["tensorboard_logger"] is None
    assert hparams["precision"] in ("bf16", "fp32")


def test_the_run_is_read_and_reported(tmp_path, capsys):
    results = json.loads((RUN / "results.json").read_text())["results"]
    assert read_run(RUN).method == "mam_learnable"
    assert main(["report", str(RUN), "--out", str(tmp_path / "report")]) == 0
    told = capsys.readouterr().out
    for metrics in results.values():
        assert f"{metrics['WER']:.2f}" in told
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.fixture(scope="module")
def run_of_today(tmp_path_factory, parts):
    """The recipe of today with the YAML of then, on a tiny model."""

    def train(folder):
        _, *options = command("mam_learnable", parts, folder)
        run([str(YAML), *options])

    return made_once(tmp_path_factory, "before_the_move", train)


def test_the_yaml_trains(run_of_today):
    """A run leaves the files that it left then, with the same fields and the same names in them."""
    assert {file.name for file in RUN.iterdir()} <= {file.name for file in run_of_today.iterdir()}
    now, then = (
        json.loads((folder / "results.json").read_text()) for folder in (run_of_today, RUN)
    )
    assert now.keys() >= then.keys() and now["results"].keys() == then["results"].keys()
    assert names_in(run_of_today / "hyperparams.yaml") == names_in(RUN / "hyperparams.yaml")


def test_a_run_with_the_yaml_that_was_recorded_then_is_exported(run_of_today, parts, tmp_path):
    finished = tmp_path / "run"
    shutil.copytree(run_of_today, finished)
    text = (RUN / "hyperparams.yaml").read_text(encoding="utf-8")
    for key in ("speech_model", "donor_model"):
        name = re.search(rf"^{key}: (.*)$", text, flags=re.M)[1]
        text = text.replace(name, parts[key])
    (finished / "hyperparams.yaml").write_text(text, encoding="utf-8")
    assert main(["export", str(finished), "--out", str(tmp_path / "out")]) == 0
    for file in ("hf/model.safetensors", "speechbrain/hyperparams.yaml"):
        assert (tmp_path / "out" / file).is_file()
