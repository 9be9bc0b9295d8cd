"""``fresh``: a part of the target is drawn anew; recipes that begin with a donor's attention."""

import json
import re

import pytest
import torch
from conftest import REPO, save_corpus, save_speech_model
from test_recipe import command, run
from test_recipe_table import ROWS
from tiny_beats import save_beats

from speechbrain_mam import Donor, MAMError
from speechbrain_mam.cli import main
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.report import write_report

LOBES = {"hubert": (HubertCTC, "q_proj"), "beats": (BEATsEncoder, "q_proj")}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    hubert = save_speech_model(folder / "hubert")
    beats = save_beats(folder / "beats.pt")

    def made(kind, **options):
        if kind == "beats":
            return BEATsEncoder(beats, **options).model
        return HubertCTC(hubert, freeze_feature_extractor=False, **options).model

    return made


def changed(one, other):
    theirs = dict(other.named_parameters())
    return {n for n, p in one.named_parameters() if not torch.equal(p, theirs[n])}


def is_attention(name):
    return re.search(r"layers\.\d+\.\w*att\w*\.(q|k|v|out)_proj\.(weight|bias)$", name) is not None


@pytest.mark.parametrize("kind", LOBES)
def test_what_is_drawn_anew(kind, build):
    plain = build(kind)
    names = {name for name, _ in plain.named_parameters()}
    attention = {name for name in names if is_attention(name)}
    layers = {name for name in names if re.search(r"encoder\.layers\.\d", name)}
    assert len(attention) == 8 * len({n.split("layers.")[1][0] for n in layers}) > 0
    found = {fresh: build(kind, fresh=fresh) for fresh in ("attention", "encoder", "all")}
    assert changed(build(kind, fresh="none"), plain) == set()
    assert changed(found["attention"], plain) == attention
    assert attention < changed(found["encoder"], plain) <= layers
    assert changed(found["all"], plain) - layers and changed(found["all"], plain) > attention
    weights = {f: dict(model.named_parameters()) for f, model in found.items()}
    for name in attention:  # the same numbers everywhere: PyTorch's own
        assert torch.equal(weights["attention"][name], weights["all"][name])
        assert torch.equal(weights["attention"][name], weights["encoder"][name])
    query = next(n for n in sorted(attention) if n.endswith("q_proj.weight"))
    width = weights["all"][query].shape[0]
    assert weights["all"][query].abs().max() <= width**-0.5
    assert weights["all"][query].std().item() == pytest.approx((3 * width) ** -0.5, rel=0.15)


@pytest.mark.parametrize("kind", LOBES)
def test_it_is_seeded_and_moves_no_other_random_number(kind, build):
    torch.manual_seed(5)
    build(kind)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = build(kind, fresh="all", fresh_seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert changed(one, build(kind, fresh="all", fresh_seed=3)) == set()
    assert any(is_attention(n) for n in changed(one, build(kind, fresh="all", fresh_seed=4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fresh": "everything"}, "key 'fresh': 'everything'"),
        ({"fresh": "attention", "trainable": "head"}, "'attention' with 'trainable: head'"),
        ({"fresh": "all"}, "'all' with 'freeze_feature_extractor: True'"),
    ],
)
def test_what_is_drawn_anew_must_be_trained(options, message, hubert_folder):
    with pytest.raises(MAMError, match=re.escape(message)):
        HubertCTC(hubert_folder, **options)


def test_a_frozen_beats_is_not_drawn_anew(tmp_path):
    with pytest.raises(MAMError, match="'trainable: none' would leave"):
        BEATsEncoder(save_beats(tmp_path / "beats.pt"), freeze=True, fresh="attention")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, hubert_folder, bert_folder):
    corpus = save_corpus(tmp_path_factory.mktemp("data") / "corpus", utterances=25)
    return {
        "data_folder": str(corpus),
        "speech_model": str(hubert_folder),
        "donor_model": str(bert_folder),
    }


@pytest.mark.slow
def test_arms_of_a_comparison_in_one_report(parts, bert_folder, tmp_path):
    """Default, donor, its control, and the donor turned: trained, tested again, exported."""
    out = {name: tmp_path / name for name in ("finetune", "mam_init", "random", "turned")}
    run(command("finetune", parts, out["finetune"], fresh="attention", test_untouched="False"))
    run(command("mam_init", parts, out["mam_init"]))
    run(command("mam_init", parts, out["random"], control="random"))
    run(command("mam_init", parts, out["turned"], rotate="random", projections="qk"))
    results = {name: json.loads((f / "results.json").read_text()) for name, f in out.items()}
    assert [r["method"] for r in results.values()] == ["finetune", *["mam_init"] * 3]
    assert all(set(r["results"]) == {r["method"]} for r in results.values())
    assert results["random"]["control"] == "random" and results["mam_init"]["control"] == "none"
    assert len({r["donor_sha256"] for r in results.values()}) == 4
    plan = (out["mam_init"] / "merge_plan.txt").read_text(encoding="utf-8")
    assert "12 weights and 12 biases" in plan and "  output  " in plan  # three layers of four
    assert "rotate: random, seed 1986" in (out["turned"] / "merge_plan.txt").read_text("utf-8")
    before = (out["mam_init"] / "utterances_mam_init.json").read_text()
    run(command("mam_init", parts, out["mam_init"], "--test_only"))
    assert (out["mam_init"] / "utterances_mam_init.json").read_text() == before
    page = write_report(out.values(), tmp_path / "page")
    names = [system.name.replace(str(bert_folder), "bert") for system in page.systems]
    assert names == [
        "finetune",
        "mam_init (bert)",
        "mam_init control random (bert)",
        "mam_init (bert, rotated (random))",
    ]
    assert "finetune" in {row.against.name for row in page.rows}
    assert any("control random" in row.against.name for row in page.rows)
    assert main(["export", str(out["mam_init"]), "--out", str(tmp_path / "exported")]) == 0
    exported = Donor(tmp_path / "exported" / "hf")
    state = next(out["mam_init"].glob("save/CKPT*/encoder.ckpt"))
    trained = torch.load(state, weights_only=True)
    name = exported.index.tensors[0, "query", "weight"].name
    assert torch.equal(exported.tensor((0, "query", "weight")), trained[f"model.{name}"])
    assert not torch.equal(
        exported.tensor((0, "query", "weight")), Donor(bert_folder).tensor((0, "query", "weight"))
    )
    card = (tmp_path / "exported" / "hf" / "README.md").read_text(encoding="utf-8")
    assert "its self-attention began with the donor's" in card and "the target's share" not in card


@pytest.mark.slow
def test_it_is_resumed_in_the_middle(parts, tmp_path):
    """A second epoch after the first equals two at once; another donor is refused."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(command("mam_init", parts, whole, number_of_epochs="2"))
    run(command("mam_init", parts, cut, number_of_epochs="1"))
    run(command("mam_init", parts, cut, number_of_epochs="2"))
    texts = [(folder / "utterances_mam_init.json").read_text() for folder in (whole, cut)]
    assert texts[0] == texts[1]
    before = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    for key, other in (("rotate", "random"), ("fresh", "encoder"), ("seed", "3")):
        done = run(command("mam_init", parts, cut, **{key: other}), check=False)
        assert done.returncode == 2 and f"key '{key}': the training in" in done.stdout
    done = run(command("finetune", parts, cut), check=False)  # its baseline, in the same folder
    assert done.returncode == 2 and "key 'method': the training in" in done.stdout
    assert {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()} == before


def test_the_recipes_table_has_both():
    rows = {row["Hparam_file"] for row in ROWS}
    for name in ("mam_init", "esc50_mam_init"):
        assert f"hparams/{name}.yaml" in rows
        assert (REPO / "hparams" / f"{name}.yaml").is_file()
