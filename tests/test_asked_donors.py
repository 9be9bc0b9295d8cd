"""A series of trainings opens each YAML's donors before the first of them."""

import json
import re

import pytest
from conftest import REPO

from speechbrain_mam import MAMError, cli
from speechbrain_mam.runs.seeds import plan_jobs
from speechbrain_mam.runs.yaml_checks import asked_donors, check_asked_donors

YAMLS = sorted((REPO / "hparams").rglob("*.yaml"))
FILLED = ["--data_folder", "/data", "--beats_checkpoint=/beats.pt"]
"""What the large YAMLs have no value for."""


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda yaml: str(yaml.relative_to(REPO / "hparams")))
def test_of_every_yaml(yaml):
    """Plain, with another one, and with options of the recipe's own in between."""
    found = asked_donors(yaml, FILLED)
    named = re.search(r"^donor_model: (\S+)", yaml.read_text(encoding="utf-8"), flags=re.M)
    assert found == ([named[1]] if named else [])
    assert asked_donors(yaml, ["--folds", "all", *FILLED, "--donor_model=a/b", "--debug"]) == (
        ["a/b"] if named else []
    )


def test_several_donors_and_those_of_a_search(tmp_path):
    yaml = tmp_path / "mam.yaml"
    yaml.write_text(
        "search: True\nfirst: a/b\ndonor_models: [!ref <first>, c/d]\nbig: !PLACEHOLDER\n"
        "nested:\n    mams:\n        - !new:speechbrain_mam.MAM\n            donor: [e/f, a/b]\n"
        "other: !new:torch.nn.Linear\n    donor: g/h\n"
    )
    filled = ["--big", "1"]
    assert asked_donors(yaml, filled) == ["e/f", "a/b", "c/d"]
    assert asked_donors(yaml, [*filled, "--search", "False", "--first", "i/j"]) == ["e/f", "a/b"]
    assert asked_donors(yaml, [*filled, "--first", "i/j", "--first=k/l"])[-2:] == ["k/l", "c/d"]
    assert asked_donors(yaml) == []  # its recipe says that big has no value
    for broken in ("a: [", "a: !ref <b>", "a: !include:none.yaml", "a: 1\nb: !ref <a> / 0"):
        yaml.write_text(f"mam: !new:speechbrain_mam.MAM\n    donor: x/y\n{broken}\n")
        assert asked_donors(yaml) == []
    yaml.write_text("!include:none.yaml\nlr: 1\n")
    with pytest.raises(MAMError, match=r"none\.yaml"):
        asked_donors(yaml)


def test_none_is_trained_before_one_that_is_missing_is_told(tmp_path, bert_folder, capsys):
    script, plain, mam = (tmp_path / name for name in ("train.py", "plain.yaml", "mam.yaml"))
    script.write_text("raise SystemExit('was started')")
    plain.write_text("method: plain\n")
    mam.write_text(f"donor_model: {bert_folder}\nmam: !new:speechbrain_mam.MAM\n")
    with mam.open("a") as stream:
        stream.write("    donor: !ref <donor_model>\n")
    check_asked_donors(mam)
    out, specs = tmp_path / "out", [str(plain), f"{mam} --donor_model {tmp_path / 'none'}"]
    assert cli.main(["compare", str(script), *specs, "--seeds", "1", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"'{mam}' asks for the donor '{tmp_path / 'none'}'" in said and "no such folder" in said
    assert not out.exists()
    with pytest.raises(MAMError, match="asks for the donor 'no/bert'"):
        plan_jobs(script, [str(mam)], [1], out, ["--donor_model", "no/bert"])


def test_a_series_that_is_finished_needs_no_donor(tmp_path, bert_folder):
    """Its report is made again, wherever the donor has gone."""
    script, mam, donor = tmp_path / "train.py", tmp_path / "mam.yaml", tmp_path / "bert"
    script.touch()
    donor.symlink_to(bert_folder)
    mam.write_text(f"mam: !new:speechbrain_mam.MAM\n    donor: {donor}\n")
    first, second = plan_jobs(script, [str(mam)], [1, 2], tmp_path / "out")
    donor.unlink()
    for job in (first, second):
        with pytest.raises(MAMError, match="asks for the donor"):
            plan_jobs(script, [str(mam)], [1, 2], tmp_path / "out")
        job.folder.mkdir(parents=True)
        (job.folder / "results.json").write_text("{}")
        job.record.write_text(json.dumps(job.asked))
    assert len(plan_jobs(script, [str(mam)], [1, 2], tmp_path / "out")) == 2
