"""Activation checkpointing: λ needs the non-re-entrant one."""

import pytest
import torch
import torch.distributed as dist
from conftest import build_speech_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from speechbrain_mam import Donor, LearnableMAM, find_attention, make_plan
from speechbrain_mam.learning.learnable import keep_donor_out_of_ddp
from speechbrain_mam.learning.recomputation import use_nonreentrant_checkpointing

WAV = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))


def build(bert_folder, granularity="layer", family="hubert"):
    donor, model = Donor(bert_folder), build_speech_model(family).train()
    plan = make_plan(find_attention(model), donor.index)
    return model, LearnableMAM(model, plan, donor, granularity)


def gradients(model, mam):
    for lam in mam.lams:
        lam.grad = None
    model(WAV).logits.square().sum().backward()
    return [lam.grad for lam in mam.lams]


def freeze(model):
    model.freeze_feature_encoder()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".lam") or name.startswith("lm_head"))


def test_lam_in_a_frozen_encoder_has_a_gradient(bert_folder):
    model, mam = build(bert_folder)
    freeze(model)
    expected = gradients(model, mam)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert gradients(model, mam) == [None] * 3  # what is to be avoided
    assert use_nonreentrant_checkpointing(model)
    for found, exact in zip(gradients(model, mam), expected, strict=True):
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("granularity", ["model", "layer"])
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_under_ddp(family, granularity, bert_folder):
    """A λ of all layers is marked ready once; the re-entrant way marks it once a layer."""
    model, mam = build(bert_folder, granularity, family)
    for name, parameter in model.named_parameters():
        if name.endswith("masked_spec_embed"):
            parameter.requires_grad_(False)
    expected = gradients(model, mam)
    keep_donor_out_of_ddp(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        if (family, granularity) == ("hubert", "model"):
            with pytest.raises(RuntimeError, match="marked as ready twice"):
                gradients(DistributedDataParallel(model), mam)
        assert use_nonreentrant_checkpointing(model)
        found = gradients(DistributedDataParallel(model), mam)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_what_is_not_switched(bert_folder):
    model, _ = build(bert_folder)
    assert not use_nonreentrant_checkpointing(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not use_nonreentrant_checkpointing(model)
    assert not use_nonreentrant_checkpointing(nn.Linear(2, 2))


def test_other_options_are_kept(bert_folder):
    model, _ = build(bert_folder)
    model.gradient_checkpointing_enable({"use_reentrant": True, "preserve_rng_state": False})
    assert use_nonreentrant_checkpointing(nn.ModuleList([model]))
    functions = [
        vars(module)["_gradient_checkpointing_func"]
        for module in model.modules()
        if "_gradient_checkpointing_func" in vars(module)
    ]
    assert functions
    for function in functions:
        assert function.keywords == {"use_reentrant": False, "preserve_rng_state": False}


def test_this_packages_encoder_is_not_reentrant(hubert_folder):
    from speechbrain_mam.lobes.hubert_ctc import HubertCTC

    encoder = HubertCTC(hubert_folder, gradient_checkpointing=True)
    assert encoder.model.is_gradient_checkpointing
    assert not use_nonreentrant_checkpointing(encoder)
