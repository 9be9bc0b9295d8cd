"""The first-order probe against finite differences of the loss."""

import numpy as np
import pytest
import torch
from conftest import build_speech_model
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder

from speechbrain_mam import Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.search.probe import Probe, probe


@pytest.fixture()
def parts(bert_folder):
    model, donor = build_speech_model().double(), Donor(bert_folder)

    class Double:
        def tensor(self, key):
            return donor.tensor(key).double()

    return model, Double(), make_plan(find_attention(model), donor.index)


def batches(model, sizes=(2, 3)):
    for i, size in enumerate(sizes):
        torch.manual_seed(i)
        wav = torch.randn(size, 4000, dtype=torch.float64)
        yield model(wav).logits.square().mean(), size


def mean_loss(model):
    with torch.no_grad():
        losses = list(batches(model))
    return sum(loss.item() * n for loss, n in losses) / sum(n for _, n in losses)


@pytest.mark.parametrize("method", ["linear", "slerp", "multi_path"])
@pytest.mark.parametrize("options", [{"layers": [1]}, {"projections": "v"}, {"layers": [0, 2]}])
def test_agrees_with_finite_differences(parts, options, method, bert_folder):
    model, donor, _ = parts
    index, donor_index = find_attention(model), Donor(bert_folder).index
    whole = make_plan(index, donor_index, method=method)
    found = probe(model, whole, donor, batches(model))
    step, before = 1e-5, mean_loss(model)
    plan = make_plan(index, donor_index, lam=1 - step, method=method, **options)
    with Merge(model, plan, donor):
        slope = (mean_loss(model) - before) / step
    scores, _ = found.score("layer", "projection")
    layers = [found.layers.index(layer) for layer in plan.layers]
    names = [found.projections.index(p) for p in plan.projections]
    assert scores[np.ix_(layers, names)].sum() == pytest.approx(slope, rel=1e-3)


def test_a_head_alone_agrees_with_finite_differences(parts):
    model, donor, plan = parts
    found = probe(model, plan, donor, batches(model))
    heads, _ = found.score("layer", "projection", "head")
    step, before = 1e-5, mean_loss(model)
    with torch.no_grad():  # head 1 of layer 2's keys: the second half of the rows
        projection = model.get_submodule("hubert.encoder.layers.2.attention.k_proj")
        for kind in ("weight", "bias"):
            ours = getattr(projection, kind)
            theirs = donor.tensor((2, "key", kind))
            ours[8:] += step * (theirs - ours)[8:]
    slope = (mean_loss(model) - before) / step
    assert heads[2, found.projections.index("key"), 1] == pytest.approx(slope, rel=1e-3)


def test_a_fused_target_agrees_with_finite_differences(bert_folder):
    """Query, key and value in one tensor: each has the gradient of its own rows."""
    torch.manual_seed(0)
    encoder = TransformerEncoder(num_layers=3, nhead=2, d_ffn=32, d_model=16, dropout=0.0)
    encoder, donor = encoder.double().eval(), Donor(bert_folder)
    frames = torch.randn(2, 5, 16, dtype=torch.float64)

    def loss():
        return (encoder(frames)[0] * frames).square().mean()

    index, step = find_attention(encoder), 1e-5
    found = probe(encoder, make_plan(index, donor.index), donor, [(loss(), 1)])
    scores, _ = found.score("layer", "projection")
    before = loss().item()
    for i, projection in enumerate(found.projections):
        plan = make_plan(index, donor.index, lam=1 - step, layers=[1], projections=projection)
        with Merge(encoder, plan, donor), torch.no_grad():
            slope = (loss().item() - before) / step
        assert scores[1, i] == pytest.approx(slope, rel=1e-3, abs=1e-9)


def test_leaves_the_model_as_it_was(parts):
    model, donor, plan = parts
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    probe(model, plan, donor, batches(model))
    for name, p in model.named_parameters():
        assert p.requires_grad == name.startswith("lm_head") and p.grad is None
        assert torch.equal(p, before[name])


def test_scores_add_up_and_rank():
    values = np.zeros((2, 3, 1, 2))
    values[:, 1] = -1.0
    values[0, 2], values[1, 2] = 0.25, -0.5
    found = Probe((4, 5, 6), ("query",), values, np.array([1.0, 3.0]))
    mean, error = found.score("layer")
    assert mean.tolist() == [0.0, -2.0, pytest.approx(2 * (0.25 - 1.5) / 4)]
    assert error[0] == error[1] == 0 < error[2]
    assert found.ranking() == [5, 6, 4]
    content = found.as_dict()
    assert content["layers"][1] == {"layer": 5, "score": -2.0, "stderr": 0.0}
    assert len(content["heads"]) == 6 and content["utterances"] == 4
    assert str(found).splitlines()[2].split()[0] == "5"


def test_bad_losses(parts):
    model, donor, plan = parts
    with pytest.raises(MAMError, match="no batch"):
        probe(model, plan, donor, [])
    broken = ((loss * float("nan"), n) for loss, n in batches(model))
    with pytest.raises(MAMError, match="loss of batch 0 is nan"):
        probe(model, plan, donor, broken)
