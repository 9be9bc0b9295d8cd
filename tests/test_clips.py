"""Pooling, roll, mixup, rates by layer; the linear probe; folds taken together."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_beats import save_beats
from torch import nn

from speechbrain_mam import MAM, MAMError
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.runs.folds import parse_folds, pool_folds
from speechbrain_mam.tasks.clips import fit_linear_probe, layer_groups, mean_feature, mixup, roll


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_roll_turns_each_clip_within_its_own_length(lengths, seed):
    torch.manual_seed(seed)
    longest = max(lengths)
    wavs = torch.zeros(len(lengths), longest)
    for row, length in zip(wavs, lengths, strict=True):
        row[:length] = torch.arange(1, length + 1)
    turned = roll(wavs, torch.tensor(lengths) / longest)
    for row, length in zip(turned, lengths, strict=True):
        start = int(row[0]) - 1
        assert row[:length].tolist() == [(start + i) % length + 1 for i in range(length)]
        assert not row[length:].any()


def test_roll_differs_between_clips():
    torch.manual_seed(0)
    turned = roll(torch.arange(1000.0).repeat(8, 1), torch.ones(8))
    assert len({int(row[0]) for row in turned}) > 4


def test_mixup():
    torch.manual_seed(0)
    wavs, lens = torch.randn(6, 50), torch.tensor([0.5, 1, 1, 0.2, 1, 1])
    mixed, mixed_lens, (other, share) = mixup(wavs, lens, alpha=0.5)
    assert sorted(other.tolist()) == list(range(6))
    assert share.min() >= 0 and share.max() <= 1 and share.unique().numel() == 6
    for i in range(6):
        expected = share[i] * wavs[i] + (1 - share[i]) * wavs[other[i]]
        torch.testing.assert_close(mixed[i], expected)
        assert mixed_lens[i] == max(lens[i], lens[other[i]])


def test_mean_feature_leaves_padding_out():
    features = torch.randn(2, 10, 3)
    features[1, 4:] = 1e9
    found = mean_feature(features, torch.tensor([1.0, 0.4]))
    torch.testing.assert_close(found[0], features[0].mean(0))
    torch.testing.assert_close(found[1], features[1, :4].mean(0))


def test_layer_groups(tmp_path, bert_folder):
    encoder = BEATsEncoder(save_beats(tmp_path / "tiny.pt"))
    mam = MAM(encoder, str(bert_folder))
    mam.apply()
    modules = nn.ModuleDict({"encoder": encoder, "classifier": nn.Linear(16, 3)})
    groups = layer_groups(modules, 0.5)
    assert list(groups) == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    shares = {id(p): share for share, group in groups.items() for p in group}
    trained = [p for p in modules.parameters() if p.requires_grad]
    assert len(shares) == len(trained) == sum(map(len, groups.values()))
    layers = encoder.model.encoder.layers
    assert shares[id(modules["classifier"].weight)] == 1
    assert [shares[id(layer.fc1.weight)] for layer in layers] == [0.125, 0.25, 0.5]
    assert shares[id(layers[2].self_attn.q_proj.weight)] == 0.5
    assert shares[id(encoder.model.patch_embedding.weight)] == 0.5**4


def test_linear_probe_is_at_the_optimum_and_chooses_on_validation_data():
    torch.manual_seed(0)
    means = 2 * torch.randn(4, 8)
    labels = torch.arange(200) % 4
    features = (means[labels] + torch.randn(200, 8)) * torch.logspace(-3, 3, 8) + 5
    valid_labels = torch.arange(80) % 4
    valid = (means[valid_labels] + torch.randn(80, 8)) * torch.logspace(-3, 3, 8) + 5
    found = fit_linear_probe(features, labels, valid, valid_labels, 4)
    accuracy = ((valid @ found.weight.t() + found.bias).argmax(1) == valid_labels).float().mean()
    assert accuracy > 0.85
    # the gradient with respect to the weights of standardised features is zero there
    mean, std = features.double().mean(0), features.double().std(0, correction=0)
    weight = (found.weight.double() * std).requires_grad_()
    bias = (found.bias.double() + found.weight.double() @ mean).requires_grad_()
    loss = nn.functional.cross_entropy(((features - mean) / std) @ weight.t() + bias, labels)
    (loss + found.penalty * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4


def test_a_constant_feature_disturbs_no_probe():
    features = torch.cat([torch.tensor([[0.0], [1.0]]).repeat(5, 1), torch.full((10, 1), 7.0)], 1)
    labels = torch.tensor([0, 1]).repeat(5)
    found = fit_linear_probe(features, labels, features, labels, 2)
    assert found.weight.isfinite().all()
    assert torch.equal((features @ found.weight.t() + found.bias).argmax(1), labels)


@pytest.mark.parametrize("choice", ["0", "6", "1,1", "", "1;2", "all,1", "1,a"])
def test_no_such_folds(choice):
    with pytest.raises(MAMError, match="expected all, or some of 1 to 5"):
        parse_folds(choice)


def made_up_fold(folder, fold, errors, **changes):
    """A fold's results: one clip per entry of ``errors``."""
    run = folder / f"fold_{fold}"
    run.mkdir(parents=True)
    clips = {
        f"{fold}-{i}": {
            "errors": wrong,
            "words": 1,
            "ref": "dog",
            "hyp": "rain" if wrong else "dog",
            "fold": fold,
        }
        for i, wrong in enumerate(errors)
    }
    stats = {"loss": float(fold), "error": 100 * sum(errors) / len(errors)}
    (run / "utterances_finetune.json").write_text(json.dumps({"utterances": clips}))
    content = {"method": "finetune", "seed": 1, "control": "none", "donor": None, "lambdas": {}}
    content |= {"results": {"finetune": stats}, **changes}
    (run / "results.json").write_text(json.dumps(content))


def test_pooled_folds_weigh_by_their_clips(tmp_path):
    made_up_fold(tmp_path, 1, [1, 0])
    made_up_fold(tmp_path, 3, [0, 0, 0, 1, 0, 0])
    pool_folds(str(tmp_path), "finetune")
    pooled = json.loads((tmp_path / "results.json").read_text())
    assert pooled["folds"] == [1, 3]
    assert pooled["results"]["finetune"] == {"loss": 2.5, "error": 25.0, "accuracy": 75.0}
    assert len(json.loads((tmp_path / "utterances_finetune.json").read_text())["utterances"]) == 8


def test_folds_of_different_systems_are_refused(tmp_path):
    made_up_fold(tmp_path, 1, [1, 0])
    made_up_fold(tmp_path, 2, [1, 0], seed=2)
    with pytest.raises(MAMError, match="fold 1 is of seed 1, but fold 2 of 2; remove one"):
        pool_folds(str(tmp_path), "finetune")
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(MAMError, match="holds no results of a fold"):
        pool_folds(str(tmp_path / "nothing"), "finetune")
