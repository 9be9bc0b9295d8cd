"""``speechbrain-mam diff``: what differs between two folders, and which λ explains it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_bert

from speechbrain_mam.cli import main
from speechbrain_mam.merging import compare as module

WEIGHTS = "model.safetensors"


@pytest.fixture()
def folders(tmp_path, hubert_folder, bert_folder, capsys):
    """``diff`` of the tiny HuBERT and a merge of it with the tiny BERT."""

    class Folders:
        a, b, donor = hubert_folder, tmp_path / "b", bert_folder

        def merge(self, *options):
            arguments = [str(self.a), str(self.donor), "--out", str(self.b), *map(str, options)]
            assert main(["merge", *arguments]) == 0
            capsys.readouterr()

        def change(self, change):
            """``change(tensors)`` of B, which is a copy of A where it is not there yet."""
            if not self.b.exists():
                shutil.copytree(self.a, self.b)
            tensors = load_file(self.b / WEIGHTS)
            change(tensors)
            save_file(tensors, self.b / WEIGHTS, metadata={"format": "pt"})

        def diff(self, *options):
            code = main(["diff", str(self.a), str(self.b), *map(str, options)])
            told = capsys.readouterr()
            assert (code, bool(told.err)) in ((0, False), (2, True))
            return told.err or (json.loads(told.out) if "--json" in options else told.out)

    return Folders()


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95])
def test_the_lambda_of_a_merge(folders, lam):
    folders.merge("--lam", lam, "--layers", "first:2", "--projections", "qv")
    found = folders.diff("--donor", folders.donor, "--json")
    names = {
        f"hubert.encoder.layers.{layer}.attention.{letter}_proj.{kind}"
        for layer in (0, 1)
        for letter in "qv"
        for kind in ("weight", "bias")
    }
    assert {one["name"] for one in found["differences"]} == names
    before, after = load_file(folders.a / WEIGHTS), load_file(folders.b / WEIGHTS)
    assert set(found["equal"]) == set(before) - names
    for one in found["differences"]:
        (share,) = one["shares"]
        assert share["lam"] == pytest.approx(lam, abs=1e-6) and share["unexplained"] < 1e-5
        a, b = before[one["name"]].double(), after[one["name"]].double()
        norm = a.norm().item()  # 0 of a fresh model's biases
        assert one["relative"] == (pytest.approx((b - a).norm().item() / norm) if norm else None)
        assert one["largest"] == pytest.approx((b - a).abs().max().item())
        assert one["changed"] == pytest.approx(((a != b).sum() / a.numel()).item())


def test_the_table(folders):
    folders.merge("--lam", 0.9)
    told = folders.diff("--donor", folders.donor)
    assert told.count("_proj.weight") == 9 and told.count("  0.9  ") == 18
    assert "18 of 72 tensors differ; 54 are equal bits" in told
    assert "key, query, value of self-attention in 3 layers (0 to 2), 0 are others" in told
    assert "λ is 0.9 to 0.9 in 18 projections" in told
    without = folders.diff()
    assert "λ" not in without and "unexplained" not in without


def test_a_merge_that_did_nothing(folders):
    folders.merge("--lam", 1)
    told = folders.diff("--donor", folders.donor)
    assert told.startswith("none of 72 tensors differs") and "did nothing" in told
    assert folders.diff("--json")["differences"] == []


def test_another_donor_explains_little(folders, tmp_path, capsys):
    folders.merge("--lam", 0.9)
    other = save_bert(tmp_path / "other", seed=9)
    capsys.readouterr()
    shares = [
        share["unexplained"]
        for one in folders.diff("--donor", other, "--json")["differences"]
        for share in one["shares"]
    ]
    assert min(shares) > 0.1 and sum(shares) / len(shares) > 0.6


def test_the_merge_s_own_options(folders):
    folders.merge("--lam", 0.9, "--donor-scale", "match_norm", "--layer-map", "[2,1,0]")

    def worst(*options):
        found = folders.diff("--donor", folders.donor, "--json", *options)
        return max(s["unexplained"] for one in found["differences"] for s in one["shares"])

    assert worst("--layer-map", "[2,1,0]", "--donor-scale", "match_norm") < 1e-5 < 0.1 < worst()


@pytest.mark.parametrize("rotate", ["random", "hadamard"])
def test_another_basis_is_told_from_the_donor_s_own(folders, rotate):
    """λ is a number that least squares always has; where it says nothing, a sentence says so."""
    folders.merge("--lam", 0.9, "--projections", "qkvo", "--rotate", rotate, "--control-seed", 2)
    turned = ["--rotate", rotate, "--control-seed", 2]
    told = folders.diff("--donor", folders.donor, *turned)
    assert "λ is 0.9 to 0.9 in 24 projections" in told and "says nothing" not in told
    for wrong in ([], turned[:2]):
        told = folders.diff("--donor", folders.donor, *wrong)
        # weights of four projections in three layers, and the biases of what is written
        assert "in 15 of them more than half of the change is unexplained" in told


def test_training_beside_a_merge(folders):
    """What has no counterpart in the donor is said, and counted."""
    folders.merge("--lam", 0.9)
    folders.change(lambda tensors: tensors["lm_head.bias"].add_(1))
    told = folders.diff("--donor", folders.donor)
    assert "19 of 72 tensors differ" in told and "0 to 2), 1 are others" in told
    assert "1 tensors that differ have no counterpart in the donor" in told
    row = next(line for line in told.splitlines() if line.startswith("lm_head.bias"))
    assert row.split()[-2:] == ["–", "–"]


def test_another_type_alone(folders):
    folders.change(lambda t: t.update({name: one.half() for name, one in t.items()}))
    told = folders.diff()
    assert "72 of 72 tensors differ" in told and "72 of them are A's numbers in another" in told
    assert "tensor " not in told  # no table
    folders.change(lambda t: t.update({"lm_head.bias": t["lm_head.bias"] + 1}))
    assert "lm_head.bias (float32 → float16)" in folders.diff()


def test_what_only_one_has(folders):
    def change(tensors):
        tensors["extra"] = tensors.pop("lm_head.bias")
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()

    folders.change(change)
    told = folders.diff()
    assert "only in A: lm_head.bias\n" in told and "only in B: extra\n" in told
    assert "of another shape: lm_head.weight\n" in told


def test_nan_and_the_sign_of_zero_are_seen(folders):
    def change(tensors):
        tensors["lm_head.bias"][0] = torch.nan
        tensors["lm_head.weight"].zero_()

    folders.change(change)
    found = {one["name"]: one for one in folders.diff("--json")["differences"]}
    bias = found["lm_head.bias"]
    assert bias["relative"] is None and bias["largest"] is None and 0 < bias["changed"] < 1
    assert found["lm_head.weight"]["relative"] == pytest.approx(1)
    folders.a = folders.b
    folders.b = folders.b.with_name("c")

    def change_again(tensors):
        tensors["lm_head.weight"].mul_(-1)
        tensors["lm_head.bias"][1] += 1

    shutil.copytree(folders.a, folders.b)
    folders.change(change_again)
    bias, weight = folders.diff("--json")["differences"]
    assert (weight["name"], weight["changed"], weight["relative"]) == ("lm_head.weight", 0.0, None)
    assert bias["changed"] == pytest.approx(1 / len(load_file(folders.a / WEIGHTS)["lm_head.bias"]))


def test_parts_of_a_tensor_are_read_at_a_time(folders, monkeypatch):
    folders.merge("--lam", 0.9)
    whole = folders.diff("--json")
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = folders.diff("--json")
    for one, other in zip(whole["differences"], parts["differences"], strict=True):
        if one["relative"] is not None:
            assert one["relative"] == pytest.approx(other["relative"], rel=1e-12)
            one["relative"] = other["relative"]
    assert whole == parts


def test_bad_input(folders):
    folders.merge("--lam", 0.9)
    folders.b, b = folders.donor, folders.b
    assert "have no tensor in common" in folders.diff()
    folders.b = b / "none"
    assert "was found neither" in folders.diff() or "no such" in folders.diff()
    folders.b = b
    assert "--layer-map" in folders.diff("--donor", folders.donor, "--layer-map", "zigzag")
    (b / WEIGHTS).write_bytes((b / WEIGHTS).read_bytes()[:-9])
    told = folders.diff()
    assert "is not a whole safetensors file" in told and told.count("\n") == 1
