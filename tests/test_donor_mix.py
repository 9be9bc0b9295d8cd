"""Several donors at once, each with its share, fixed or learned."""

import pytest
import torch
from conftest import build_speech_model, save_bert
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_mam import MAM, Donor, MAMError, find_attention
from speechbrain_mam.donors.mix import DonorMix
from speechbrain_mam.learning.lambdas import nearest_on_simplex

WAV = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
SHARES = [0.25, 0.75]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two donors of different depths."""
    root = tmp_path_factory.mktemp("donors")
    return [save_bert(root / "a", seed=3), save_bert(root / "b", seed=4, num_hidden_layers=5)]


def merged_by_hand(folders, lam, shares):
    model = build_speech_model()
    donors, maps = [Donor(folder) for folder in folders], [(0, 1, 2), (0, 2, 4)]
    with torch.no_grad():
        for (layer, projection, kind), ref in find_attention(model).tensors.items():
            if projection != "output":
                parameter = model.get_parameter(ref.name)
                theirs = sum(
                    share * donor.tensor((layers[layer], projection, kind))
                    for share, donor, layers in zip(shares, donors, maps, strict=True)
                )
                parameter.copy_(lam * parameter + (1 - lam) * theirs)
    return model


def test_zero_shot_is_the_weighted_mean_of_both(folders):
    model = build_speech_model()
    mam = MAM(model, donor=folders, lam=0.6, learnable=False, donor_shares=SHARES)
    mam.apply()
    expected = merged_by_hand(folders, 0.6, SHARES)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-5, atol=1e-6)
    text = str(mam.plan)
    assert "0.25·" in text and "encoder.layer.4.attention.self.query.weight" in text
    mam.take_back()
    assert torch.equal(model(WAV).logits, build_speech_model()(WAV).logits)


@pytest.mark.parametrize("constraint", ["project", "sigmoid"])
@pytest.mark.parametrize("granularity", ["layer", "model"])
def test_learned_shares_start_there_and_stay_on_the_simplex(folders, granularity, constraint):
    model = build_speech_model()
    mam = MAM(
        model,
        donor=folders,
        lam=0.6,
        donor_shares=SHARES,
        granularity=granularity,
        constraint=constraint,
    )
    mam.apply()
    expected = merged_by_hand(folders, 0.6, SHARES)(WAV).logits
    torch.testing.assert_close(model(WAV).logits, expected, rtol=0, atol=1e-5)
    start = mam.live.values()
    names = ["layer 0", "layer 0 a", "layer 0 b"]
    if granularity == "model":
        names = ["model", "model a", "model b"]
    assert list(start)[:3] == names
    assert [start[name] for name in names] == pytest.approx([0.6, 0.1, 0.3])
    optimizer = torch.optim.SGD(mam.live.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(WAV).logits.square().mean().backward()
        optimizer.step()
        mam.live.project_()
    values = list(mam.live.values().values())
    assert values != list(start.values())
    for i in range(0, len(values), 3):
        assert sum(values[i : i + 3]) == pytest.approx(1, abs=1e-5)
        assert min(values[i : i + 3]) >= 0
    live = model(WAV).logits
    mam.live.fold()
    torch.testing.assert_close(model(WAV).logits, live, rtol=0, atol=1e-5)
    assert set(model.state_dict()) == set(build_speech_model().state_dict())


def test_match_norm_scales_each_donor(folders):
    model = build_speech_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mam = MAM(model, donor=folders, lam=0, learnable=False, donor_scale="match_norm")
    mam.apply()
    name = "hubert.encoder.layers.0.attention.q_proj.weight"
    donors = [Donor(folder).tensor((0, "query", "weight")) for folder in folders]
    expected = sum(0.5 * d * before[name].norm() / d.norm() for d in donors)
    torch.testing.assert_close(model.get_parameter(name).detach(), expected)


def test_a_control_replaces_every_donor(folders):
    model = build_speech_model()
    mam = MAM(model, donor=folders, lam=0, learnable=False, control="no_donor")
    mam.apply()
    assert not any(model.get_parameter(entry.target).any() for entry in mam.plan.entries)
    random = MAM(build_speech_model(), donor=folders, learnable=False, control="random")
    assert random.donor_hash != MAM(build_speech_model(), donor=folders).donor_hash


def test_change_opens_other_donors(folders):
    mam = MAM(build_speech_model(), donor=folders, lam=0.9, learnable=False)
    both = mam.donor_hash
    mam.change(donor=str(folders[0]))
    assert mam.donor_hash != both and mam.plan.donor_name == str(folders[0])
    mam.change(donor=folders)
    assert mam.donor_hash == both


def test_refusals(folders, tmp_path):
    model, target = build_speech_model(), find_attention(build_speech_model())
    for shares in ([0.5], [0.5, 0.6], [-0.5, 1.5]):
        with pytest.raises(MAMError, match=r"key 'donor_shares'.*2 numbers from 0 on.*sum to 1"):
            MAM(model, donor=folders, donor_shares=shares, learnable=False).apply()
    with pytest.raises(MAMError, match=r"key 'donor': a list of 1"):
        MAM(model, donor=folders[:1], learnable=False).apply()
    with pytest.raises(MAMError, match=r"key 'donor_shares': there is one donor"):
        MAM(model, donor=str(folders[0]), donor_shares=[1.0])
    wide = Donor(save_bert(tmp_path / "wide", hidden_size=24))
    with pytest.raises(MAMError, match=r"of one width, but '.*a' is 16 wide, '.*wide' is 24 wide"):
        DonorMix([Donor(folders[0]), wide], target)
    for key, value in {"granularity": "head", "method": "slerp"}.items():
        with pytest.raises(MAMError, match=rf"key '{key}': '{value}' with 2 donors"):
            MAM(build_speech_model(), donor=folders, **{key: value}).apply()
    with pytest.raises(MAMError, match="a share of 0 has no finite logit"):
        MAM(model, donor=folders, donor_shares=[0, 1], constraint="sigmoid").apply()


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=5))
def test_nearest_on_the_simplex(values):
    point = torch.tensor(values)
    found = nearest_on_simplex(point)
    assert found.min() >= 0 and found.sum().item() == pytest.approx(1, abs=1e-5)
    # nearer than any corner, and than the middle
    for other in [*torch.eye(len(values)), torch.full_like(point, 1 / len(values))]:
        assert (point - found).norm() <= (point - other).norm() + 1e-5
