"""A new head with layers of its own, its optimizer, and an encoder that waits for it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import REPO
from test_recipe import command, record, run
from test_units import check_form, parts  # noqa: F401

from speechbrain_mam import MAMError
from speechbrain_mam.cli import main
from speechbrain_mam.ctc.units import check_units
from speechbrain_mam.lobes.hubert_ctc import HubertCTC

LAMS = 3


def test_a_head_of_several_layers(hubert_folder) -> None:
    encoder = HubertCTC(hubert_folder, new_alphabet="ab'", dnn_layers=2, dnn_neurons=24)
    head = encoder.model.lm_head
    widths = [tuple(p.shape) for name, p in head.named_parameters() if p.dim() == 2]
    assert widths == [(24, encoder.model.config.hidden_size), (24, 24), (5, 24)]
    log_probs, _ = encoder(torch.randn(1, 8000))
    assert log_probs.shape[-1] == 5
    log_probs.sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    with pytest.raises(MAMError, match=r"key 'dnn_layers': .* 'units' or 'new_alphabet'"):
        check_units({"save_folder": "none", "dnn_layers": 2})
    check_units({"save_folder": "none", "dnn_layers": 2, "new_alphabet": "ab"})


@pytest.mark.slow
def test_the_encoder_and_lam_wait_while_the_head_learns(parts, tmp_path) -> None:  # noqa: F811
    """All steps but the last one of two epochs; then both learn, without what has gathered."""
    keys = {"units": "bpe", "vocab_size": "40", "lr_head": "0.02", "number_of_epochs": "2"}
    steps, _ = record(tmp_path, "free", command("mam_learnable", parts, tmp_path / "free", **keys))
    count = len(steps[0])
    keys["freeze_steps"] = str(count - 1)
    out = tmp_path / "out"
    steps, _ = record(tmp_path, "waiting", command("mam_learnable", parts, out, **keys))
    found = steps[0]
    head = 40 * 24 + 40 if found.shape[1] > 2000 else 40
    moved = (found[1:] != found[:-1]).any(0)
    assert len(found) == count and moved.any()
    assert torch.equal(found[-2, :LAMS], torch.full((LAMS,), 0.95))
    assert (found[-1, :LAMS] != 0.95).all()
    before = (found[1:-1] != found[:-2]).any(0)
    after = found[-1] != found[-2]
    assert 0 < before.sum() <= moved.sum() - LAMS and after.sum() > before.sum() > head // 2
    largest = (found[-1] - found[-2])[LAMS:].abs()
    # Adam's first step is its learning rate: 0.001 of the encoder, 0.02 of the head, 0.05 of λ
    assert (largest[~before[LAMS:]] > 0.0012).sum() <= LAMS
    names = {file.stem for file in next((out / "save").glob("CKPT*")).glob("*.ckpt")}
    assert {"wav2vec_opt", "modelopt", "scheduler_model", "mam_optimizer"} <= names
    assert "optimizer" not in names


@pytest.mark.slow
def test_resumed_and_exported(parts, tmp_path, capsys) -> None:  # noqa: F811
    """In one go and interrupted: the same figures; SpeechBrain has the layers, transformers not."""
    keys = {"units": "char", "dnn_layers": "2", "dnn_neurons": "24", "lr_head": "0.00001"}
    keys |= {"freeze_steps": "2", "lr": "0.000001"}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(command("mam_learnable", parts, whole, **keys))
    run(command("mam_learnable", parts, halves, **keys | {"number_of_epochs": "1"}))
    (halves / "save" / "prepared.json").rename(tmp_path / "prepared.json")
    run(command("mam_learnable", parts, halves, **keys, skip_prep="True"))
    assert not (halves / "save" / "prepared.json").exists()
    figures = [json.loads((f / "results.json").read_text()) for f in (whole, halves)]
    assert figures[0]["results"] == figures[1]["results"]
    assert figures[0]["lambdas"] == figures[1]["lambdas"]
    rows = list(csv.reader((whole / "lambdas.csv").open()))
    assert rows[1][1:] == ["0.95"] * LAMS
    out = tmp_path / "exported"
    assert main(["export", str(whole), "--out", str(out), "--format", "hf"]) == 2
    assert "the head has a VanillaNN ('dnn_layers')" in capsys.readouterr().err
    arguments = ["export", str(whole), "--out", str(out), "--format", "speechbrain"]
    assert main(arguments) == 0
    check_form(whole, out, "asr", tmp_path)


def test_the_yamls_have_the_keys() -> None:
    for name in ("finetune", "mam_learnable"):
        text = (Path(REPO) / "hparams" / f"{name}.yaml").read_text()
        for key in ("lr_head: null", "freeze_steps: 0", "dnn_layers: 0", "units: pretrained"):
            assert f"\n{key}" in text, (name, key)
