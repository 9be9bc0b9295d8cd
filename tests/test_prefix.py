"""The prefix cache: the same bits with less work."""

import pytest
import torch
from conftest import FAMILIES, build_speech_model

from speechbrain_mam import Donor, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.search.prefix_cache import PrefixCache

BATCHES = [(2, 4000), (3, 6400), (1, 9000)]


def inputs():
    torch.manual_seed(0)
    for size, length in BATCHES:
        mask = torch.ones(size, length, dtype=torch.long)
        mask[-1, length * 2 // 3 :] = 0
        yield torch.randn(size, length) * mask, mask


@torch.no_grad()
def outputs(model, cache=None):
    found = []
    for i, (wav, mask) in enumerate(inputs()):
        if cache is None:
            found.append(model(wav, attention_mask=mask).logits)
        else:
            with cache.batch(i):
                found.append(model(wav, attention_mask=mask).logits)
    return found


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_bit_identical_for_every_merge_from_the_layer_on(family, first, stable, bert_folder):
    model = build_speech_model(family, do_stable_layer_norm=stable)
    donor, index = Donor(bert_folder), find_attention(model)
    untouched = outputs(model)
    with PrefixCache(model, first) as cache:
        assert equal(outputs(model, cache), untouched)
        assert equal(outputs(model, cache), untouched)
        for lam in (0.9, 0.3):
            plan = make_plan(index, donor.index, lam=lam, layers=list(range(first, 3)))
            with Merge(model, plan, donor):
                expected = outputs(model)
                assert not equal(expected, untouched)
                assert equal(outputs(model, cache), expected)
    assert equal(outputs(model), untouched), "the model is whole again"


def test_what_is_cached_is_not_computed():
    model = build_speech_model()
    calls = {"front": 0, "below": 0, "from": 0}
    layers = model.hubert.encoder.layers
    for module, name in (
        (model.hubert.feature_extractor.conv_layers[0].conv, "front"),
        (layers[0].attention.q_proj, "below"),
        (layers[1].attention.q_proj, "from"),
    ):
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    with PrefixCache(model, 1) as cache:
        for _ in range(4):
            outputs(model, cache)
        size = cache.size_mb * 2**20
    assert calls == {"front": 3, "below": 3, "from": 12}
    frames = [int(model._get_feat_extract_output_lengths(length)) for _, length in BATCHES]
    # float32 hidden states, 16 wide, and nothing else: a mask may be frames × frames
    assert size == sum(n * frame * 16 * 4 for (n, _), frame in zip(BATCHES, frames, strict=True))


def test_a_change_below_the_layer_is_not_seen():
    """Which is why a sweep gives the lowest merged layer."""
    model = build_speech_model()
    with PrefixCache(model, 1) as cache:
        before = outputs(model, cache)
        with torch.no_grad():
            model.hubert.encoder.layers[0].attention.q_proj.weight.mul_(2)
        assert equal(outputs(model, cache), before)
    assert not equal(outputs(model), before)


@pytest.mark.parametrize("on_disk", [True, False])
def test_memory_is_bounded(tmp_path, on_disk):
    model = build_speech_model()
    expected, folder = outputs(model), tmp_path / "cache" if on_disk else None
    limit = 0.0  # nothing fits
    with PrefixCache(model, 0, limit_mb=limit, folder=folder) as cache:
        for _ in range(3):
            assert equal(outputs(model, cache), expected)
        assert cache.size_mb == 0
        if on_disk:
            assert len(list(folder.rglob("*.safetensors"))) == len(BATCHES)
    if on_disk:
        assert not list(folder.iterdir()), "the files are gone at the end"
    whole = PrefixCache(model, 0)
    with whole as cache:
        outputs(model, cache)
        size = cache.size_mb
    with PrefixCache(model, 0, limit_mb=size / 2) as cache:
        for _ in range(2):
            assert equal(outputs(model, cache), expected)
        assert 0 < cache.size_mb <= size / 2


def test_an_error_in_a_pass_leaves_the_model_whole():
    model = build_speech_model()
    expected = outputs(model)
    with PrefixCache(model, 1) as cache:
        outputs(model, cache)
        with pytest.raises(ZeroDivisionError), cache.batch(0):
            raise ZeroDivisionError
    assert equal(outputs(model), expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_bad_use():
    model = build_speech_model()
    with pytest.raises(MAMError, match="no layer 3: 3 layers"):
        PrefixCache(model, 3)
    model.train()
    with pytest.raises(RuntimeError, match="evaluation mode"), PrefixCache(model, 1) as cache:
        outputs(model, cache)
