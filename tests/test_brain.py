"""MAMBrain over other people's Brains: optimizers, freezing, recovery, evaluation."""

import pytest
import speechbrain as sb
import torch
from conftest import build_speech_model
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_mam import MAM, MAMBrain, MAMError, MergedLinear

BATCH = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))


class Plain(sb.Brain):
    """A recipe's Brain, as it was before MAM."""

    def compute_forward(self, batch, stage):
        return self.modules.encoder(batch).logits

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.VALID and self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"])


class TwoOptimizers(MAMBrain, sb.Brain):
    """A recipe with optimizers of its own, one of which it freezes, written with MAM in mind."""

    compute_forward, compute_objectives = Plain.compute_forward, Plain.compute_objectives

    def init_optimizers(self):
        self.encoder_opt = torch.optim.SGD(self.modules.encoder.base_model.parameters(), lr=0.1)
        self.head_opt = torch.optim.SGD(self.modules.encoder.lm_head.parameters(), lr=0.1)
        self.optimizers_dict = {"encoder": self.encoder_opt, "head": self.head_opt}

    def freeze_optimizers(self, optimizers):
        return {"head": optimizers["head"]}


class Added(MAMBrain, Plain):
    """The same recipe with MAM in front."""


def build(bert_folder, cls=Added, save=None, opt_class=None, run_opts=None, model=None, **options):
    model = model or build_speech_model()
    options = {"lam": 0.8, **options}
    hparams = {
        "mam": MAM(model, str(bert_folder), **options),
        "mam_optimizer": lambda params: torch.optim.SGD(params, lr=1.0),
        "seed": 1,
    }
    modules = {"encoder": model}
    checkpointer = (
        Checkpointer(save, recoverables=modules, allow_partial_load=True) if save else None
    )
    return cls(modules, opt_class, hparams, {"device": "cpu", **(run_opts or {})}, checkpointer)


def loader(batches=1):
    return torch.utils.data.DataLoader([BATCH] * batches, batch_size=None)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def parameters_of(optimizer):
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("cls", [Added, TwoOptimizers])
def test_lam_has_an_optimizer_of_its_own_and_only_that(cls, bert_folder):
    brain = build(bert_folder, cls, opt_class=sgd)
    brain.fit(range(1), loader())
    lams = {id(lam) for lam in brain.mam.live.parameters()}
    assert parameters_of(brain.mam_optimizer) == lams
    others = [opt for name, opt in brain.optimizers_dict.items() if name != "mam_optimizer"]
    assert others and not any(parameters_of(opt) & lams for opt in others)
    assert all(value != 0.8 for value in brain.mam.live.values().values())


def test_lam_learns_while_the_recipe_freezes_its_encoder(bert_folder):
    brain = build(bert_folder, TwoOptimizers)
    before = brain.modules.encoder.base_model.encoder.layers[0].attention.q_proj.weight.clone()
    brain.fit(range(1), loader())
    layer = brain.modules.encoder.base_model.encoder.layers[0].attention.q_proj
    assert torch.equal(layer.weight, before)
    assert brain.mam.live.values()["layer 0"] != 0.8


def test_lam_stays_in_the_unit_interval_during_training(bert_folder):
    brain = build(bert_folder, lam=1.0)
    brain.hparams.mam_optimizer = lambda params: torch.optim.SGD(params, lr=1e4)
    brain.fit(range(3), loader())
    values = list(brain.mam.live.values().values())
    assert all(0 <= value <= 1 for value in values) and {0.0, 1.0} & set(values)


def test_gradient_accumulation_steps_lam_with_the_others(bert_folder):
    brain = build(bert_folder, opt_class=sgd, run_opts={"grad_accumulation_factor": 3})
    seen = []
    brain.on_fit_batch_end = lambda *args: seen.append(brain.mam.live.values()["layer 0"])
    brain.fit(range(1), loader(6))
    assert seen[0] == seen[1] != seen[2] == seen[3] == seen[4] != seen[5]


def test_evaluate_recovers_the_best_lam_and_folds(bert_folder, tmp_path):
    brain = build(bert_folder, save=tmp_path, opt_class=sgd)
    brain.fit(range(1), loader(), loader())
    at_best = brain.mam.live.values()
    live = brain.modules.encoder.eval()(BATCH).logits
    with torch.no_grad():  # what training goes on to do
        brain.mam.live.lams[0].fill_(0.1)
    for _ in range(2):  # a second evaluation recovers into the folded model's live form again
        brain.evaluate(loader(), min_key="loss")
        assert brain.mam.live.values() == at_best
        assert not any(isinstance(m, MergedLinear) for m in brain.modules.modules())
        torch.testing.assert_close(brain.modules.encoder(BATCH).logits, live, rtol=0, atol=1e-6)


def test_a_fixed_merge_survives_the_recovery_of_a_checkpoint(bert_folder, tmp_path):
    """Brain.evaluate loads the best checkpoint; the merge must be of what it loads."""
    trained = build_speech_model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    Checkpointer(tmp_path, recoverables={"encoder": trained}).save_checkpoint(meta={"loss": 0.0})
    brain = build(bert_folder, save=tmp_path, learnable=False)
    brain.evaluate(loader(), min_key="loss")
    entry = brain.mam.plan.entries[0]
    expected = 0.8 * trained.get_parameter(entry.target) + 0.2 * brain.mam.donor.tensor(
        entry.donor_key
    )
    torch.testing.assert_close(brain.modules.encoder.get_parameter(entry.target), expected)


@pytest.mark.parametrize("learnable", [True, False])
def test_untouched_is_the_model_without_mam(learnable, bert_folder, tmp_path):
    reference = build_speech_model()(BATCH).logits.square().mean().item()
    brain = build(bert_folder, learnable=learnable)
    assert brain.evaluate_untouched(loader()) == pytest.approx(reference)
    assert brain.evaluate(loader()) != pytest.approx(reference)


def test_refusals_before_any_step(bert_folder):
    with pytest.raises(MAMError, match="needs the key 'mam_optimizer'"):
        model = build_speech_model()
        Added({"encoder": model}, None, {"mam": MAM(model, str(bert_folder))}, {"device": "cpu"})
    with pytest.raises(MAMError, match="'target' of your MAM is not part of the Brain's 'modules'"):
        hparams = {"mam": MAM(build_speech_model(), str(bert_folder), learnable=False)}
        Added({"encoder": build_speech_model()}, None, hparams, {"device": "cpu"})
    with pytest.raises(MAMError, match=r"fit\(\) with a fixed λ"):
        build(bert_folder, learnable=False).fit(range(1), loader())


def test_without_mam_it_is_the_plain_brain(bert_folder):
    results = []
    for cls in (Plain, Added):
        torch.manual_seed(0)
        model = build_speech_model()
        brain = cls({"encoder": model}, sgd, {}, {"device": "cpu"})
        brain.fit(range(2), loader())
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*results)


def test_lambda_only_training(bert_folder):
    model = build_speech_model().requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    brain = build(bert_folder, model=model)
    brain.fit(range(1), loader())
    brain.mam.live.remove()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert brain.mam.live.values()["layer 0"] != 0.8


def test_ddp_is_told_not_to_broadcast_the_donor(bert_folder):
    brain = build(bert_folder, opt_class=sgd)
    brain._wrap_distributed()  # what fit does before the first step
    ignored = brain.modules.encoder._ddp_params_and_buffers_to_ignore
    buffers = dict(brain.modules.encoder.named_buffers())
    assert len(ignored) == 3 * 3 * 2 and set(ignored) <= set(buffers)
    assert all("donor" in name for name in ignored)
