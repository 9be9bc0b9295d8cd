"""The BEATs lobe: checkpoints, features, filter banks, freezing; MAM on it."""

from __future__ import annotations

import copy
import csv
import logging
import pickle
from pathlib import Path

import pytest
import soundfile
import torch
import torchaudio
from conftest import save_bert
from processes import run_python
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.lobes.models.beats import BEATs
from tiny_beats import CFG, clips, save_beats, tiny_state

from speechbrain_mam import Donor, LearnableMAM, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.learning.learnable import GRANULARITIES
from speechbrain_mam.lobes.beats import BEATsEncoder
from speechbrain_mam.lobes.beats_model import BEATsModel
from speechbrain_mam.lobes.fbank import FilterBanks, frame_count
from speechbrain_mam.search.prefix_cache import PrefixCache

LENS = torch.tensor([1.0, 0.7, 0.5, 0.93, 0.31])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_beats(tmp_path_factory.mktemp("beats") / "tiny.pt")


@pytest.fixture()
def donor(bert_folder) -> Donor:
    return Donor(bert_folder)


def encoder(checkpoint: Path, **options) -> BEATsEncoder:
    return BEATsEncoder(checkpoint, **options).eval()


def speechbrains(checkpoint: Path) -> BEATs:
    return BEATs(str(checkpoint), freeze=False).eval()


def put_in(model, donor, granularity="layer", **options) -> LearnableMAM:
    return LearnableMAM(model, make_plan(find_attention(model), donor.index, **options), donor,
                        granularity)  # fmt: skip


def esc10(folder: Path, number: int) -> torch.Tensor:
    rows = list(csv.DictReader((folder / "esc10/meta/esc50.csv").open(encoding="utf-8")))
    found = []
    for row in rows[:: len(rows) // number][:number]:
        samples, rate_hz = soundfile.read(folder / "esc10/audio" / row["filename"], dtype="float32")
        wav = torch.from_numpy(samples.reshape(len(samples), -1).mean(1))
        found.append(torchaudio.functional.resample(wav, rate_hz, 16000))
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


# --- features


@pytest.mark.parametrize("samples", [2800, 4000, 16000, 40123])
def test_features_are_speechbrains(checkpoint, samples):
    wav = clips(samples)
    with torch.no_grad():
        features, lens = encoder(checkpoint)(wav, LENS)
        expected = speechbrains(checkpoint).extract_features(wav, LENS)[0]
    assert features.shape == expected.shape and features.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)

    other = speechbrains(checkpoint)  # its masks, step by step
    mask = ~length_to_mask(LENS * samples, samples).bool()
    mask = other.forward_padding_mask(other.preprocess(wav), mask)
    mask = other.forward_padding_mask(features, mask)
    assert torch.equal((~mask).sum(1), (lens * features.shape[1]).round().long())


@pytest.mark.real
def test_features_of_real_clips_are_speechbrains(checkpoint, real_data):
    wav = esc10(real_data, 10)
    ours, theirs = encoder(checkpoint), speechbrains(checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.model.preprocess(wav), theirs.preprocess(wav), rtol=0, atol=1e-4
        )
        features, _ = ours(wav)
        expected = theirs.extract_features(wav, torch.ones(len(wav)))[0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)


def test_without_lengths_every_clip_is_whole(checkpoint):
    model, wav = encoder(checkpoint), clips()
    features, lens = model(wav)
    expected, _ = model(wav, torch.ones(5))
    assert torch.equal(features, expected) and torch.equal(lens, torch.ones(5))
    assert not torch.allclose(features, model(wav, LENS)[0])


def test_the_classifier_of_a_fine_tuned_model_is_left_out(checkpoint, tmp_path):
    state = tiny_state() | {"predictor.weight": torch.randn(4, 16), "predictor.bias": torch.ones(4)}
    cfg = {**CFG, "finetuned_model": True, "predictor_class": 4, "predictor_dropout": 0.1}
    torch.save({"cfg": cfg, "model": state}, tmp_path / "tuned.pt")
    model = encoder(tmp_path / "tuned.pt")
    assert not any("predictor" in name for name, _ in model.named_parameters())
    assert torch.equal(model(clips())[0], encoder(checkpoint)(clips())[0])


def test_half_precision_and_old_names_of_weight_normalisation(checkpoint, tmp_path):
    state = {}
    for name, tensor in tiny_state().items():
        for old, new in (("g", "original0"), ("v", "original1")):
            name = name.replace(f"parametrizations.weight.{new}", f"weight_{old}")
        state[name] = tensor.half()
    assert "encoder.pos_conv.0.weight_g" in state
    torch.save({"cfg": CFG, "model": state}, tmp_path / "old.pt")
    model = encoder(tmp_path / "old.pt")
    assert model.model.patch_embedding.weight.dtype == torch.float32
    features, exact = model(clips())[0], encoder(checkpoint)(clips())[0]
    torch.testing.assert_close(features, exact, rtol=0, atol=0.05)


@pytest.mark.slow
def test_short_and_long_clips(checkpoint):
    model = encoder(checkpoint)
    assert model.min_samples == 2800
    with pytest.raises(MAMError, match=r"shape \[2, 2799\], expected .* at least 2800 samples"):
        model(torch.randn(2, 2799))
    with pytest.raises(MAMError, match=r"shape \[16000\], expected \[clips, samples\]"):
        model(torch.randn(16000))
    assert model(torch.randn(1, 2800))[0].shape == (1, 8, 16)
    with torch.no_grad():
        features, lens = model(torch.randn(1, 60 * 16000), torch.tensor([1.0]))
    assert features.shape == (1, 5998 // 16 * 8, 16) and features.isfinite().all()
    assert lens.tolist() == [1.0]


# --- filter banks


def kaldi(wav: torch.Tensor) -> torch.Tensor:
    """As SpeechBrain's BEATs calls it."""
    return torch.stack(
        [
            torchaudio.compliance.kaldi.fbank(
                clip[None] * 2**15,
                num_mel_bins=128,
                sample_frequency=16000,
                frame_length=25,
                frame_shift=10,
            )
            for clip in wav
        ]
    )


@pytest.mark.parametrize("samples", [400, 559, 560, 16000, 170_000])
@pytest.mark.parametrize("gain", [1, 1e-3])
def test_filter_banks_are_kaldis(samples, gain):
    wav = gain * clips(samples)
    found, expected = FilterBanks()(wav), kaldi(wav)
    assert found.shape == expected.shape == (5, frame_count(samples), 128)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_filter_banks_are_in_float32_under_autocast():
    wav, banks = clips(), FilterBanks()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = banks(wav)
    assert found.dtype == torch.float32 and torch.equal(found, banks(wav))
    assert banks(wav[:, :399]).shape == (5, 0, 128)


def test_mean_and_deviation_are_keys(checkpoint):
    plain, other = encoder(checkpoint), encoder(checkpoint, fbank_mean=10.0, fbank_std=2.0)
    seen = []
    for model in (plain, other):
        model.model.patch_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(clips())
    raw = kaldi(clips())[:, None]
    torch.testing.assert_close(seen[0], (raw - 15.41663) / (2 * 6.55582), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[1], (raw - 10) / 4, rtol=0, atol=1e-4)
    with pytest.raises(MAMError, match="key 'fbank_std': expected a number above 0"):
        encoder(checkpoint, fbank_std=0)


@pytest.mark.slow
def test_the_benchmark_of_the_filter_banks_runs():
    options = ("--rounds", "3", "--clips", "4", "--seconds", "1")
    done = run_python("benchmarks/beats_fbank.py", *options, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert "× faster" in done.stdout and "worst difference" in done.stdout


# --- freezing


def test_freeze_really_freezes(checkpoint):
    model = BEATsEncoder(checkpoint, freeze=True, dropout=0.5)
    torch.nn.ModuleList([model]).train()
    assert not any(module.training for module in model.model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    features, _ = model(clips())
    assert not features.requires_grad and torch.equal(features, model(clips())[0])
    assert BEATsEncoder(checkpoint, dropout=0.5).train()(clips())[0].requires_grad


def test_what_trains(checkpoint, donor):
    model = BEATsEncoder(checkpoint).train()
    model(clips(), LENS)[0].sum().backward()
    parts = dict(model.named_parameters())
    assert all(p.grad is not None for p in parts.values()), "DDP would wait"

    model = BEATsEncoder(checkpoint, trainable="none").train()
    assert not any(p.requires_grad for p in model.parameters())
    mam = put_in(model, donor, lam=0.7)
    model(clips(), LENS)[0].square().sum().backward()
    assert all(lam.grad is not None and lam.grad.abs() > 0 for lam in mam.lams)
    assert all(p.grad is None for name, p in model.named_parameters() if "lam" not in name)
    with pytest.raises(MAMError, match="key 'trainable': 'head'"):
        BEATsEncoder(checkpoint, trainable="head")


def test_layers_that_are_not_used_wait_for_no_gradient(tmp_path):
    file = save_beats(tmp_path / "first.pt", layer_norm_first=True, deep_norm=False)
    model = BEATsEncoder(file).train()
    model(clips())[0].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_a_frozen_model_with_a_lam_to_learn_is_an_error(checkpoint, donor):
    model = BEATsEncoder(checkpoint, freeze=True)
    put_in(model, donor)
    with pytest.raises(MAMError, match="key 'freeze': a frozen BEATs gives λ no gradient"):
        model(clips())
    with torch.no_grad():
        assert model(clips())[0].isfinite().all()


def test_dropout_and_layerdrop_are_keys(checkpoint):
    assert encoder(checkpoint).model.cfg.dropout == 0.1
    assert encoder(checkpoint).model.encoder.layerdrop == 0  # the checkpoint says 0.05
    model = BEATsEncoder(checkpoint, dropout=0.0, layerdrop=0.25).train()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert model.model.encoder.dropout == 0 and model.model.encoder.layerdrop == 0.25


# --- checkpoints that cannot be used


class Evil:
    def __reduce__(self):
        return (open, ("harm", "w"))


def without(*keys):
    return {"cfg": {k: v for k, v in CFG.items() if k not in keys}, "model": tiny_state()}


BAD = {
    "no cfg": (lambda: {"model": tiny_state()}, "has no 'cfg'"),
    "cfg None": (lambda: {"cfg": None, "model": tiny_state()}, "has no 'cfg'"),
    "bare weights": (tiny_state, "has no 'cfg'"),
    "no model": (lambda: {"cfg": CFG}, "has no 'model'"),
    "a list": (lambda: [1], "has no 'cfg'"),
    "no deep_norm": (lambda: without("deep_norm"), "cfg's 'deep_norm' is nothing, expected a bool"),
    "no gru": (lambda: without("gru_rel_pos"), "cfg's 'gru_rel_pos' is nothing"),
    "layers": (
        lambda: {"cfg": {**CFG, "encoder_layers": "3"}, "model": tiny_state()},
        "'encoder_layers' is '3', expected a number above 0",
    ),
    "fewer layers": (
        lambda: {"cfg": {**CFG, "encoder_layers": 2}, "model": tiny_state()},
        r"'encoder\.layers\.2\..*' is \[.*\], by its cfg it should be no such tensor",
    ),
    "wider": (
        lambda: {"cfg": {**CFG, "encoder_embed_dim": 24}, "model": tiny_state()},
        r"'encoder\.layer_norm\.bias' is \[16\], by its cfg it should be \[24\]",
    ),
    "no gate": (
        lambda: {"cfg": {**CFG, "gru_rel_pos": False}, "model": tiny_state()},
        r"grep_a' is \[1, 2, 1, 1\], by its cfg it should be no such tensor",
    ),
    "a tensor short": (
        lambda: {
            "cfg": CFG,
            "model": {k: v for k, v in tiny_state().items() if k != "patch_embedding.weight"},
        },
        r"'patch_embedding\.weight' is no such tensor, by its cfg it should be \[8, 1, 16, 16\]",
    ),
    "not tensors": (lambda: {"cfg": CFG, "model": {"x": 1}}, "its 'model' is no state dict"),
    "heads": (
        lambda: {"cfg": {**CFG, "encoder_attention_heads": 3}, "model": tiny_state()},
        "no BEATs can be built from its cfg: embed_dim must be divisible by num_heads",
    ),
    "both norms": (
        lambda: {"cfg": {**CFG, "layer_norm_first": True}, "model": tiny_state()},
        "'deep_norm' and 'layer_norm_first' cannot both be True",
    ),
    "code": (
        lambda: {"cfg": CFG, "model": tiny_state(), "more": Evil()},
        r"holds pickled code and is not read\. .* torch\.save\(\{'cfg'",
    ),
}


@pytest.mark.parametrize("damage", BAD)
def test_bad_checkpoints(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = BAD[damage]
    torch.save(content(), tmp_path / "bad.pt")
    with pytest.raises(MAMError, match=f"(?s)bad\\.pt.*{message}"):
        BEATsEncoder(tmp_path / "bad.pt")
    assert not Path("harm").exists()


def test_files_that_are_no_checkpoints(checkpoint, tmp_path):
    with pytest.raises(MAMError, match=r"none\.pt': no such file \(key 'source'\)"):
        BEATsEncoder(tmp_path / "none.pt")
    content = checkpoint.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 10):
        (tmp_path / "cut.pt").write_bytes(content[:size])
        with pytest.raises(MAMError, match=r"cut\.pt'"):
            BEATsEncoder(tmp_path / "cut.pt")
    with (tmp_path / "old.pt").open("wb") as stream:
        pickle.dump({"cfg": Evil()}, stream)
    with pytest.raises(MAMError, match="holds pickled code"):
        BEATsEncoder(tmp_path / "old.pt")
    with pytest.raises(MAMError, match=r"holds 2 \.pt files, expected one"):
        BEATsEncoder(tmp_path)


def test_the_cfg_is_shown(checkpoint, caplog):
    with caplog.at_level(logging.INFO, logger="speechbrain_mam"):
        model = BEATsEncoder(checkpoint.parent)
    assert "'deep_norm': True" in caplog.text and "tiny.pt" in caplog.text
    assert model.cfg["gru_rel_pos"] is True and model.width == 16


# --- MAM on BEATs


def test_beats_is_found_however_it_is_wrapped(checkpoint):
    bare = speechbrains(checkpoint)
    for target, prefix in (
        (bare, ""),
        (BEATsModel(CFG), ""),
        (encoder(checkpoint), "model."),
        (torch.nn.ModuleList([encoder(checkpoint), torch.nn.Linear(2, 2)]), "0.model."),
    ):
        index = find_attention(target)
        assert index.architecture.name == "BEATs" and index.prefix == prefix
        assert (index.num_layers, index.heads, index.hidden_size) == (3, 2, 16)
        assert len(index.tensors) == 3 * 4 * 2
        for ref in index.tensors.values():
            assert tuple(target.get_parameter(ref.name).shape) == ref.shape
    with pytest.raises(MAMError, match="holds 2 supported encoders"):
        find_attention(torch.nn.ModuleList([bare, copy.deepcopy(bare)]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_agree_with_finite_differences(granularity, tmp_path, donor):
    """Through everything that depends on q: the scores and the gate of the position bias."""
    # SpeechBrain computes "gelu" in float32 whatever the model is in, too coarse for differences
    file = save_beats(tmp_path / "smooth.pt", activation_fn="gelu_accurate")
    model = BEATsEncoder(file, trainable="none").eval().double()
    mam = put_in(model, donor, granularity, lam=0.6)
    for lam in mam.lams:
        lam.data = lam.data.double()
    mam.insert()
    weight = torch.randn(5, 48, 16, generator=torch.Generator().manual_seed(3)).double()

    def loss() -> torch.Tensor:
        return (model(clips(), LENS)[0] * weight).sum()

    loss().backward()
    step = 1e-5
    for lam in mam.lams:
        for i in range(lam.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    lam[i] += sign * step
                    values.append(loss().item())
                    lam[i] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert abs(slope) > 1e-3
            assert lam.grad[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_gate_of_the_position_bias_sees_the_merged_query(checkpoint, donor):
    model = encoder(checkpoint)
    gates = []
    attention = model.model.encoder.layers[0].self_attn
    attention.grep_linear.register_forward_hook(lambda _, args, output: gates.append(args[0]))
    model(clips())
    for projections in ("kv", "q"):
        plan = make_plan(find_attention(model), donor.index, lam=0.5, projections=projections)
        with Merge(model, plan, donor):
            model(clips())
    assert torch.equal(gates[0], gates[1])  # keys and values leave the gate alone
    assert not torch.allclose(gates[0], gates[2], atol=0.1)


def test_the_gradient_is_not_decayed_unless_asked(checkpoint, donor):
    """The checkpoint says 0.6 a layer, which would make λ of the first layers learn slowest."""
    gradients = {}
    for decay in (1.0, None, 0.6):
        model = encoder(checkpoint, trainable="none", gradient_decay=decay)
        mam = put_in(model, donor, lam=0.6)
        model(clips(), LENS)[0].square().sum().backward()
        gradients[decay] = torch.cat([lam.grad for lam in mam.lams])
    torch.testing.assert_close(gradients[None], gradients[0.6])
    ratio = gradients[0.6] / gradients[1.0]
    torch.testing.assert_close(ratio, torch.tensor([0.36, 0.6, 1.0]), rtol=1e-3, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_live_equals_zero_shot_equals_folded(wrapped, granularity, checkpoint, donor):
    def build():
        return encoder(checkpoint) if wrapped else speechbrains(checkpoint)

    def features(model):
        return model(clips(), LENS)[0]

    model, reference = build(), build()
    untouched = features(model)
    plan = make_plan(find_attention(reference), donor.index, lam=0.3)
    Merge(reference, plan, donor)
    mam = LearnableMAM(model, plan, donor, granularity)
    live = features(model)
    assert not torch.allclose(live, untouched, atol=1e-2)
    torch.testing.assert_close(live, features(reference), rtol=0, atol=1e-4)
    mam.fold()
    assert set(model.state_dict()) == set(reference.state_dict())
    torch.testing.assert_close(features(model), live, rtol=0, atol=1e-4)
    mam.remove()
    assert torch.equal(features(model), untouched)


def test_lam_1_changes_no_bit(checkpoint, donor):
    model = encoder(checkpoint)
    untouched = model(clips(), LENS)[0]
    with Merge(model, make_plan(find_attention(model), donor.index, lam=1), donor):
        assert torch.equal(model(clips(), LENS)[0], untouched)
    put_in(model, donor, lam=1)
    assert torch.equal(model(clips(), LENS)[0], untouched)


def test_a_checkpoint_with_lam_goes_both_ways(checkpoint, donor):
    model = encoder(checkpoint)
    mam = put_in(model, donor, lam=0.8)
    saved = model.state_dict()
    assert sum(name.endswith(".lam") for name in saved) == 3
    other = encoder(checkpoint)
    put_in(other, donor, lam=1)
    other.load_state_dict(saved)
    assert torch.equal(other(clips())[0], model(clips())[0])
    mam.fold()
    speechbrains(checkpoint).load_state_dict(model.model.state_dict(), strict=True)


def test_a_donor_of_another_width_is_an_error(checkpoint, tmp_path):
    donor = Donor(save_bert(tmp_path, hidden_size=24))
    with pytest.raises(MAMError, match=r"q_proj\.weight' is \[16, 16\], donor .* is \[24, 24\]"):
        put_in(encoder(checkpoint), donor)


# --- the prefix cache

BATCHES = [(clips(8000), LENS), (clips(12000)[:3], LENS[:3]), (clips(8000).flip(0), LENS)]


@torch.no_grad()
def outputs(model, cache=None):
    found = []
    for i, (wav, lens) in enumerate(BATCHES):
        if cache is None:
            found.append(model(wav, lens)[0])
        else:
            with cache.batch(i):
                found.append(model(wav, lens)[0])
    return found


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("wrapped", [True, False])
def test_cached_prefixes_are_bit_identical(wrapped, first, checkpoint, donor):
    """The position bias is made in layer 0 and handed from layer to layer."""
    model = encoder(checkpoint) if wrapped else speechbrains(checkpoint)
    index, untouched = find_attention(model), outputs(model)
    with PrefixCache(model, first) as cache:
        assert equal(outputs(model, cache), untouched)
        assert equal(outputs(model, cache), untouched)
        for lam in (0.9, 0.3):
            plan = make_plan(index, donor.index, lam=lam, layers=list(range(first, 3)))
            with Merge(model, plan, donor):
                expected = outputs(model)
                assert not equal(expected, untouched)
                assert equal(outputs(model, cache), expected)
    assert equal(outputs(model), untouched)


def test_what_is_cached_is_not_computed_and_a_bias_kept_once(checkpoint):
    model = encoder(checkpoint)
    beats, calls = model.model, dict.fromkeys(("bank", "conv", "below", "from"), 0)
    for module, name in (
        (beats.patch_embedding, "bank"),
        (beats.encoder.pos_conv[0], "conv"),
        (beats.encoder.layers[0].fc1, "below"),
        (beats.encoder.layers[1].fc1, "from"),
    ):
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    # a hook would run on a skipped filter bank too: what it calls inside does not
    piece, pieces = beats.filter_banks._piece, []
    beats.filter_banks._piece = lambda *args: pieces.append(0) or piece(*args)
    with PrefixCache(model, 1) as cache:
        for _ in range(4):
            outputs(model, cache)
        size = cache.size_mb * 2**20
    assert calls["below"] == 3 and calls["from"] == 12 and calls["conv"] == 3
    assert len(pieces) == 3
    patches = [frame_count(wav.shape[1]) // 16 * 8 for wav, _ in BATCHES]
    hidden = sum(len(wav) * n * 16 for (wav, _), n in zip(BATCHES, patches, strict=True))
    biases = 5 * 2 * patches[0] ** 2 + 3 * 2 * patches[1] ** 2  # batches 0 and 2 share theirs
    assert size == 4 * (hidden + biases)


# --- two processes


@pytest.mark.slow
def test_two_ranks_agree(checkpoint, bert_folder, tmp_path):
    """λ and every weight after three steps of DDP, on different clips; about 3 s."""
    done = run_python("tests/ddp_beats.py", checkpoint, bert_folder, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one["seen"] != two["seen"], "each rank has its own clips"
    start = BEATsEncoder(checkpoint).state_dict()
    assert set(one["state"]) == set(start) | {n for n in one["state"] if n.endswith(".lam")}
    for name, tensor in one["state"].items():
        assert torch.equal(tensor, two["state"][name]), name
        if name.endswith(".lam"):
            assert tensor.item() != pytest.approx(0.9, abs=1e-4)
    changed = [
        name for name, tensor in start.items() if not torch.equal(tensor, one["state"][name])
    ]
    assert len(changed) > 0.9 * len(start)
