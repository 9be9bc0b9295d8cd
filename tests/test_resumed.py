"""A run goes on with its own training only; another one is refused before anything is written."""

import json
from types import SimpleNamespace

import pytest

from speechbrain_mam import MAMError
from speechbrain_mam.runs.environment import BEGINNING, MERGE, check_same_training

FORMER = """\
seed: 1
method: mam
lam: 0.9
layers: all # in words
donor_models: [bert]
encoder: !new:some.Encoder
    source: !ref <model>
"""


class Hashed:
    def __init__(self, digest):
        self.digest = digest

    def files_sha256(self):
        return self.digest


@pytest.fixture
def hparams(tmp_path):
    """What the YAML of a run that was begun before gives, and its folder."""
    (tmp_path / "save" / "CKPT+1").mkdir(parents=True)
    others = {key: "as it was" for key in (*BEGINNING, *MERGE) if f"{key}:" not in FORMER}
    others["merge_into"] = "pretrained"
    rest = "".join(f"{key}: {value}\n" for key, value in others.items()) + "train_logger: null\n"
    (tmp_path / "hyperparams.yaml").write_text(FORMER + rest)
    noted = {"target_sha256": "a" * 64, "donor_sha256": "b" * 64}
    (tmp_path / "environment.json").write_text(json.dumps(noted))
    return {
        **{"output_folder": str(tmp_path), "save_folder": str(tmp_path / "save")},
        **{"seed": 1, "method": "mam", "lam": "0.9", "layers": "all", "donor_models": ["bert"]},
        **{"encoder": Hashed("a" * 64), "mam": SimpleNamespace(donor_hash="b" * 64)},
        **others,
    }


def test_the_same_goes_on(hparams):
    check_same_training(hparams)
    check_same_training(hparams | {"lr": 0.1, "number_of_epochs": 9, "a new key": 1})


@pytest.mark.parametrize("key", [*BEGINNING, *MERGE])
def test_every_key_of_the_beginning(key, hparams):
    other = "none" if key == "merge_into" else 2
    if key == "merge_into":
        hparams["mam"] = None  # a baseline: no merge's key is looked at
    with pytest.raises(MAMError, match=f"key '{key}': the training in '.*' began with '.*', now"):
        check_same_training(hparams | {key: other})


@pytest.mark.parametrize("key", MERGE)
def test_a_merge_after_the_training_may_change(key, hparams, tmp_path):
    """``finetuned`` and ``untouched``: no checkpoint has it in it."""
    file = tmp_path / "hyperparams.yaml"
    file.write_text(file.read_text().replace("pretrained", "finetuned"))
    hparams["mam"].donor_hash = "c" * 64
    check_same_training(hparams | {"merge_into": "finetuned", key: 2})


@pytest.mark.parametrize(
    ("change", "role"),
    [
        ({"encoder": Hashed("c" * 64)}, "target"),
        ({"mam": SimpleNamespace(donor_hash="c" * 64)}, "donor"),
    ],
)
def test_another_model_under_the_same_name(change, role, hparams):
    with pytest.raises(
        MAMError, match=f"another {role} .sha256 {'a' if role == 'target' else 'b'}"
    ):
        check_same_training(hparams | change)


def test_without_a_checkpoint_nothing_was_trained(hparams, tmp_path):
    (tmp_path / "save" / "CKPT+1").rmdir()
    check_same_training(hparams | {"seed": 2})


@pytest.mark.parametrize("text", ["seed: [1", "- 1", "seed: 1\n seed", "a: \x00", "!x:\xe9: :"])
def test_a_yaml_that_was_cut_short_hides_nothing_else(text, hparams, tmp_path):
    """SpeechBrain writes it in place: after a kill the run must go on all the same."""
    (tmp_path / "hyperparams.yaml").write_bytes(text.encode("latin-1"))
    check_same_training(hparams)
    with pytest.raises(MAMError, match="another target"):
        check_same_training(hparams | {"encoder": Hashed("c" * 64)})


def test_a_run_of_an_earlier_version_has_not_all_files(hparams, tmp_path):
    (tmp_path / "environment.json").unlink()
    check_same_training(hparams | {"encoder": Hashed("c" * 64)})
    (tmp_path / "hyperparams.yaml").unlink()
    check_same_training(hparams | {"seed": 2})
