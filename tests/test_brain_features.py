"""MAMBrain beside what else SpeechBrain offers: each feature does its part, and λ learns.

Compiling takes about half a minute, everything else a second or less.
"""

import sys
import types

import pytest
import speechbrain as sb
import torch
import transformers
from conftest import build_speech_model
from hyperpyyaml import load_hyperpyyaml
from speechbrain.nnet.adapters import AdaptedModel, HoulsbyAdapterLinear, LoRA
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.parameter_transfer import Pretrainer
from speechbrain.utils.train_logger import (
    FileTrainLogger,
    TensorboardLogger,
    TrainLogger,
    WandBLogger,
)
from test_brain import BATCH, Added, Plain, build, loader, sgd
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from speechbrain_mam import MAM, MAMBrain, MAMError
from speechbrain_mam.brain.lambda_history import LambdaLog

START = 0.8
FEED_FORWARD = ["*.feed_forward.*_dense"]
ADAPTERS = {"LoRA": (LoRA, {"rank": 2}), "Houlsby": (HoulsbyAdapterLinear, {"projection_size": 2})}


def moved(brain: MAMBrain) -> bool:
    """Whether every λ has left its start."""
    return all(value != START for value in brain.mam.live.values().values())


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, bool]:
    return {name: torch.equal(t, state[name]) for name, t in module.state_dict().items()}


# --- weights that arrive late ---------------------------------------------------------------------


def pretrained_model(tmp_path):
    """A model with other weights than ``build_speech_model``'s, and a Pretrainer that loads it."""
    model = build_speech_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    torch.save(model.state_dict(), tmp_path / "pretrained.ckpt")
    return model


def pretrain(brain, tmp_path, **loadables):
    paths = dict.fromkeys(loadables, str(tmp_path / "pretrained.ckpt"))
    pretrainer = Pretrainer(collect_in=tmp_path / "collected", loadables=loadables, paths=paths)
    pretrainer.collect_files()
    pretrainer.load_collected()


@pytest.mark.parametrize("donor_scale", ["none", "match_norm"])
@pytest.mark.parametrize("learnable", [True, False])
def test_a_pretrainer_may_run_after_the_brain_is_built(
    learnable, donor_scale, bert_folder, tmp_path
):
    """As SpeechBrain's wav2vec2 recipes do. The result is that of the usual order."""
    expected = build(
        bert_folder,
        model=pretrained_model(tmp_path),
        learnable=learnable,
        donor_scale=donor_scale,
        opt_class=sgd,
    )
    brain = build(bert_folder, learnable=learnable, donor_scale=donor_scale, opt_class=sgd)
    pretrain(brain, tmp_path, encoder=brain.modules.encoder)
    if learnable:
        for each in (brain, expected):
            each.fit(range(1), loader(2))
        assert moved(brain) and brain.mam.live.values() == expected.mam.live.values()
    assert brain.evaluate(loader()) == expected.evaluate(loader())
    weights = state_of(expected.modules.encoder)
    assert all(same(brain.modules.encoder, weights).values())


def test_a_pretrainer_may_load_a_part_of_the_target(bert_folder, tmp_path):
    model = pretrained_model(tmp_path)
    expected = build(bert_folder, model=model, learnable=False)
    state = {n: t for n, t in torch.load(tmp_path / "pretrained.ckpt").items()}
    brain = build(bert_folder, learnable=False)
    brain.modules.encoder.hubert.encoder.load_state_dict(
        {n[len("hubert.encoder.") :]: t for n, t in state.items() if "hubert.encoder." in n}
    )
    weights = state_of(expected.modules.encoder.hubert.encoder)
    assert all(same(brain.modules.encoder.hubert.encoder, weights).values())


def test_a_resumed_training_keeps_the_scale_of_the_donor(bert_folder, tmp_path):
    """It was that of the pretrained target; the checkpoint's is another one."""
    first, resumed = (
        build(bert_folder, save=tmp_path, donor_scale="match_norm", opt_class=sgd) for _ in range(2)
    )
    first.fit(range(1), loader(2), loader())
    resumed.fit(range(0), loader())
    name = first.mam.plan.entries[0].target
    own, start = resumed.mam.target.get_parameter(name), build_speech_model().get_parameter(name)
    assert resumed.mam.live.values() == first.mam.live.values() and not torch.equal(own, start)
    of_first, of_resumed = (
        {n: t for n, t in each.mam.target.named_buffers() if "donor" in n}
        for each in (first, resumed)
    )
    assert of_first and all(torch.equal(of_resumed[n], t) for n, t in of_first.items())


def test_averaged_checkpoints_are_loaded_before_folding(bert_folder, tmp_path):
    """Recipes that average do so after ``super().on_evaluate_start()``."""

    class Averaging(MAMBrain, Plain):
        def on_evaluate_start(self, max_key=None, min_key=None):
            super().on_evaluate_start()
            found = self.checkpointer.find_checkpoints(min_key="loss", max_num_checkpoints=2)
            average = sb.utils.checkpoints.average_checkpoints(found, "encoder")
            self.modules.encoder.load_state_dict(average, strict=True)
            self.averaged = average

    brain = build(bert_folder, Averaging, save=tmp_path, opt_class=sgd)
    brain.fit(range(1), loader(2), loader())
    brain.evaluate(loader(), min_key="loss")
    assert moved(brain)
    entry = brain.mam.plan.entries[0]
    own, path = brain.averaged[entry.target], entry.target.rpartition(".")[0]
    folded = brain.modules.encoder.get_submodule(path)
    theirs = brain.mam.donor.tensor(entry.donor_key)
    lam = brain.mam.live.lams[entry.layer].detach()
    assert type(folded) is nn.Linear
    torch.testing.assert_close(folded.weight.detach(), lam * own + (1 - lam) * theirs)


# --- how a step is made ---------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16(accumulate, bert_folder):
    run_opts = {"precision": "bf16", "grad_accumulation_factor": accumulate}
    brain, reference = (build(bert_folder, opt_class=sgd, run_opts=o) for o in (run_opts, None))
    seen = []
    forward = brain.modules.encoder.forward
    brain.modules.encoder.forward = lambda x: seen.append(forward(x)) or seen[-1]
    for each in (brain, reference):
        each.fit(range(1), loader(accumulate))
    assert seen[0].logits.dtype == torch.bfloat16
    assert moved(brain) and all(lam.dtype == torch.float32 for lam in brain.mam.live.parameters())
    if accumulate == 1:
        low, full = (list(each.mam.live.values().values()) for each in (brain, reference))
        assert low != full and low == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize("active", [("head",), ()])
def test_an_encoder_that_waits_for_its_warm_up(active, bert_folder):
    """``freeze_optimizers`` as recipes use it: the encoder's optimizer starts later."""

    class WarmUp(MAMBrain, Plain):
        def init_optimizers(self):
            encoder = self.modules.encoder
            self.encoder_opt = torch.optim.SGD(encoder.base_model.parameters(), lr=0.1)
            self.head_opt = torch.optim.SGD(encoder.lm_head.parameters(), lr=0.1)
            self.optimizers_dict = {"encoder": self.encoder_opt, "head": self.head_opt}

        def freeze_optimizers(self, optimizers):
            if self.optimizer_step >= 2:
                return optimizers
            return {name: optimizers[name] for name in active}

    brain = build(bert_folder, WarmUp)
    before = state_of(brain.modules.encoder.base_model)
    lam_names = {name for name in before if name.endswith(".lam")}
    brain.fit(range(1), loader(2))
    after_warm_up = same(brain.modules.encoder.base_model, before)
    assert (
        lam_names and {name for name, is_same in after_warm_up.items() if not is_same} == lam_names
    )
    brain.fit(range(1), loader(1))
    layer = brain.modules.encoder.base_model.encoder.layers[0].attention.k_proj
    assert not torch.equal(layer.weight, before["encoder.layers.0.attention.k_proj.weight"])
    assert moved(brain)


class StepsByItself(MAMBrain, Plain):
    """Older recipes step their one optimizer in a ``fit_batch`` of their own."""

    def init_optimizers(self):
        self.optimizer = torch.optim.SGD(self.modules.parameters(), lr=0.1)

    def fit_batch(self, batch):
        loss = self.compute_objectives(self.compute_forward(batch, None), batch, None)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class StepsAllByItself(StepsByItself):
    """The same in ``optimizers_step``, which newer ones have."""

    fit_batch = MAMBrain.fit_batch

    def optimizers_step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize("cls", [StepsByItself, StepsAllByItself])
def test_a_recipe_that_steps_its_optimizer_itself(cls, bert_folder):
    """λ gets one step for each of the recipe's, by its own optimizer, as in a plain Brain."""
    brain, plain = build(bert_folder, cls), build(bert_folder, opt_class=sgd)
    steps = []
    for each in (brain, plain):
        each.hparams.mam_optimizer = lambda params: torch.optim.SGD(params, lr=0.01)
        each.fit(range(1), loader(3))
        steps.append(each.mam.live.values())
    assert moved(brain) and steps[0] == pytest.approx(steps[1], abs=1e-5)


def test_an_optimizer_that_a_recipe_makes_while_it_trains(bert_folder, tmp_path):
    """Of all parameters, as AISHELL-1's Transformer does; λ is stepped by its own, and once."""

    class Another(MAMBrain, Plain):
        def on_fit_batch_start(self, batch, should_step):
            if self.optimizer_step == 1:
                parameters = self.modules.parameters()
                self.optimizer = torch.optim.SGD(parameters, lr=1.0, weight_decay=0.5)
                self.optimizers_dict["opt_class"] = self.optimizer
                self.checkpointer.add_recoverable("optimizer", self.optimizer)

    brain = build(bert_folder, Another, save=tmp_path, opt_class=sgd)
    before = [lam.detach().clone() for lam in brain.mam.live.parameters()]
    brain.fit(range(2), loader(2), loader())
    held = {id(p) for group in brain.optimizer.param_groups for p in group["params"]}
    lams = brain.mam.live.parameters()
    assert held and held.isdisjoint(id(lam) for lam in lams)
    # The decay would have halved it
    assert all(0 < (b - lam.detach()).abs() < 0.1 for b, lam in zip(before, lams, strict=True))
    resumed = build(bert_folder, save=tmp_path, opt_class=sgd)
    resumed.fit(range(3), loader(2), loader())  # its optimizer has no λ either


def test_an_old_recipe_without_a_dictionary_of_optimizers(bert_folder):
    """Its ``optimizer`` goes on to be stepped beside λ's."""

    class Old(MAMBrain, Plain):
        def init_optimizers(self):
            self.optimizer = self.opt_class(self.modules.parameters())

    brain = build(bert_folder, Old, opt_class=sgd)
    before = brain.modules.encoder.lm_head.weight.detach().clone()
    brain.fit(range(1), loader())
    assert moved(brain) and not torch.equal(brain.modules.encoder.lm_head.weight, before)


# --- a target that the recipe freezes -------------------------------------------------------------


class Lobe(nn.Module):
    """Freezes as SpeechBrain's lobes do."""

    def __init__(self, model, freeze):
        super().__init__()
        self.model, self.freeze = model, freeze
        if freeze:
            model.requires_grad_(False)

    def forward(self, wav):
        with torch.set_grad_enabled(not self.freeze and torch.is_grad_enabled()):
            return self.model(wav).logits


class WithHead(Plain):
    def compute_forward(self, batch, stage):
        return self.modules.head(self.modules.encoder(batch))


def build_with_head(bert_folder, encoder, target=None, cls=WithHead, **hparams):
    torch.manual_seed(0)
    modules = {"encoder": encoder, "head": nn.Linear(32, 4)}
    hparams |= {
        "mam": MAM(target or encoder, str(bert_folder), lam=START),
        "mam_optimizer": lambda params: torch.optim.SGD(params, lr=1.0),
    }
    with_mam = type("WithMAM", (MAMBrain, cls), {})
    return with_mam(modules, sgd, hparams, {"device": "cpu"}, hparams.get("checkpointer"))


def test_of_a_frozen_lobe_lam_is_learned_alone(bert_folder):
    lobe = Lobe(build_speech_model(), freeze=True)
    weights = state_of(lobe)
    brain = build_with_head(bert_folder, lobe)
    head = state_of(brain.modules.head)
    brain.fit(range(1), loader(2))
    assert moved(brain) and not any(same(brain.modules.head, head).values())
    brain.mam.live.remove()
    assert all(same(lobe, weights).values())


def test_lam_without_gradient_is_reported(bert_folder, caplog):
    class Detaches(Plain):
        def compute_forward(self, batch, stage):
            return self.modules.head(self.modules.encoder(batch).logits.detach())

    brain = build_with_head(bert_folder, build_speech_model(), cls=Detaches)
    brain.fit(range(1, 2), loader())
    assert not moved(brain)
    assert "λ has not moved: no gradient has reached it up to epoch 1" in caplog.text
    caplog.clear()
    brain = build(bert_folder, opt_class=sgd)
    brain.fit(range(1), loader())
    assert "has not moved" not in caplog.text


# --- torch.compile --------------------------------------------------------------------------------


class Layers(nn.Module):
    """The Transformer alone: of all that is compiled, the part that MAM changes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features):
        return self.model(features).last_hidden_state


class OverFeatures(Plain):
    def compute_forward(self, batch, stage):
        return self.modules.encoder(torch.stack([batch[:, :160]] * 2, 1).view(2, -1, 16))


@pytest.mark.slow
def test_compile(bert_folder):
    """A compiled encoder (one graph) learns what the plain one does, and is folded."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler, which torch.compile needs on a CPU")
    results = []
    for compiled in (False, True):
        model = build_speech_model(num_hidden_layers=1)
        hparams = {
            "mam": MAM(model, str(bert_folder), lam=START, layer_map="first"),
            "mam_optimizer": lambda params: torch.optim.SGD(params, lr=1.0),
        }
        run_opts = {
            "device": "cpu",
            "compile": compiled,
            "compile_module_keys": ["encoder"],
            # transformers 4 draws a random number to decide whether a layer is skipped.
            "compile_using_fullgraph": int(transformers.__version__.split(".")[0]) >= 5,
        }
        brain = type("WithMAM", (MAMBrain, OverFeatures), {})(
            {"encoder": Layers(model.hubert.encoder)}, sgd, hparams, run_opts
        )
        brain.fit(range(1), loader(2))
        assert isinstance(brain.modules.encoder, torch._dynamo.OptimizedModule) == compiled
        assert moved(brain)
        results.append([*brain.mam.live.values().values(), brain.evaluate(loader())])
        assert not any("lam" in module._parameters for module in brain.modules.modules())
    assert results[0] == pytest.approx(results[1], abs=1e-4)


# --- loggers --------------------------------------------------------------------------------------


class Logs(Plain):
    """Logs training and validation of an epoch in one call, as recipes do."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
        else:
            meta = {self.hparams.epoch_key: epoch, "lr": 0.1}
            self.hparams.train_logger.log_stats(meta, self.train_stats, {"loss": stage_loss})


def fit_and_log(bert_folder, train_logger, epochs=3, epoch_key="epoch"):
    model = build_speech_model()
    hparams = {
        "mam": MAM(model, str(bert_folder), lam=START),
        "mam_optimizer": lambda params: torch.optim.SGD(params, lr=1.0),
        "train_logger": train_logger,
        "epoch_key": epoch_key,
    }
    brain = type("WithMAM", (MAMBrain, Logs), {})(
        {"encoder": model}, sgd, hparams, {"device": "cpu"}
    )
    brain.fit(range(1, epochs + 1), loader(), loader())
    assert moved(brain)
    return {
        f"lambda {name}": [row[name] for row in brain.history.rows.values()][1:]
        for name in brain.history.rows[0]
    }


def test_tensorboard(bert_folder, tmp_path):
    """λ have curves, and the recipe's own stay on the steps that they are on without MAM."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_logger = TensorboardLogger(str(tmp_path))
    expected = fit_and_log(bert_folder, train_logger)
    train_logger.writer.flush()  # its thread writes every two minutes
    found = events.EventAccumulator(str(tmp_path)).Reload()
    for name, values in expected.items():
        points = found.Scalars(f"{name}/train")
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx(values)
    for tag in ("epoch", "lr", "loss/train", "loss/valid"):
        assert [point.step for point in found.Scalars(tag)] == [1, 2, 3]


@pytest.mark.parametrize("epoch_key", ["epoch", "Epoch"])  # SpeechBrain's logger knows the first
def test_wandb(epoch_key, bert_folder, monkeypatch):
    """One row an epoch, at its step: W&B drops what comes for a step that it has left."""
    rows: list[tuple[dict, int | None]] = []
    run = types.SimpleNamespace(log=lambda row, step=None: rows.append((row, step)))
    wandb = types.SimpleNamespace(init=lambda project: run if project == "mam" else None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    yaml = """
    train_logger: !new:speechbrain.utils.train_logger.WandBLogger
        initializer: !name:wandb.init
            project: mam
    """
    train_logger = load_hyperpyyaml(yaml)["train_logger"]
    assert isinstance(train_logger, WandBLogger)
    expected = fit_and_log(bert_folder, train_logger, epoch_key=epoch_key)
    assert [step for _, step in rows] == ([1, 2, 3] if epoch_key == "epoch" else [None] * 3)
    for name, values in expected.items():
        assert [row["train"][name] for row, _ in rows] == values
    assert all(set(row) == {epoch_key, "lr", "train", "valid"} for row, _ in rows)


def test_a_log_file_has_a_line_for_the_recipe_and_one_for_lam(bert_folder, tmp_path):
    fit_and_log(bert_folder, FileTrainLogger(str(tmp_path / "log.txt")), epochs=2)
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    for own, recipe in (lines[:2], lines[2:]):
        assert "train lambda layer 2" in own and "lambda" not in recipe and "valid loss" in recipe


def test_lam_is_logged_where_the_recipe_logs_no_training():
    """It comes with the next epoch, in a call of its own."""
    calls = []

    class Recording(TrainLogger):
        def log_stats(self, stats_meta, train_stats=None, valid_stats=None, **kwargs):
            calls.append((stats_meta, train_stats))

    log = LambdaLog(["no logger", Recording()])
    for epoch in (1, 2):
        log.add(epoch, {"layer 0": 0.9 - epoch / 10})
        log.loggers[0].log_stats({"epoch": epoch}, valid_stats={"loss": 0.0})
    assert calls == [({"epoch": 1}, None), ({}, {"lambda layer 0": 0.8}), ({"epoch": 2}, None)]


# --- adapters -------------------------------------------------------------------------------------


def adapt(model, name="LoRA", layers=FEED_FORWARD):
    adapter, options = ADAPTERS[name]
    torch.manual_seed(3)
    return AdaptedModel(model, adapter, target_layers=layers, adapter_kwargs=options)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["adapters first", "MAM first"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_on_other_modules(name, order, bert_folder, tmp_path):
    """λ and adapters are learned, and only they; both are in the checkpoint; a fold keeps them."""
    model = build_speech_model()
    weights = state_of(model)
    adapted = adapt(model, name) if order == "adapters first" else None
    hparams = {
        "mam": MAM(adapted or model, str(bert_folder), lam=START),
        "mam_optimizer": lambda params: torch.optim.SGD(params, lr=1.0),
    }
    checkpointer = Checkpointer(tmp_path, allow_partial_load=True)
    brain = Added({"encoder": adapted or model}, sgd, hparams, {"device": "cpu"}, checkpointer)
    if adapted is None:
        adapted = brain.modules["encoder"] = adapt(model, name)
    checkpointer.add_recoverable("encoder", adapted)
    before = state_of(adapted)
    brain.fit(range(2), loader(2), loader())
    changed = {n for n, is_same in same(adapted, before).items() if not is_same}
    kinds = {"lam", "adapter_down_proj", "adapter_up_proj"}
    assert moved(brain) and changed
    assert all(kinds & set(n.split(".")) for n in changed)
    assert all(any(kind in n for n in changed) for kind in kinds)
    live = adapted(BATCH).logits.detach()
    lambdas = brain.mam.live.values()
    with torch.no_grad():  # what training goes on to do
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    brain.evaluate(loader())
    assert brain.mam.live.values() == lambdas
    torch.testing.assert_close(adapted(BATCH).logits, live, rtol=0, atol=1e-5)
    brain.mam.live.remove()
    assert sum(tensor.equal(weights[n]) for n, tensor in plain_state(adapted).items()) == len(
        weights
    )


def plain_state(adapted):
    """The state of the model that was adapted, by its former names."""
    parts = (".pretrained_module", ".pretrained_linear")
    found = {}
    for name, tensor in adapted.adapted_model.state_dict().items():
        if "adapter_" not in name:
            for part in parts:
                name = name.replace(part, "")
            found[name] = tensor
    return found


@pytest.mark.parametrize("layers", ["*.attention.q_proj", "*.attention.*_proj"])
def test_adapters_on_merged_projections_are_refused(layers, bert_folder):
    adapted = adapt(build_speech_model(), layers=[layers])
    with pytest.raises(MAMError, match=r"\.[qk]_proj' is inside a LoRA\)"):
        build(bert_folder, model=adapted)
    brain = build(bert_folder, opt_class=sgd)
    brain.modules["encoder"] = adapt(brain.modules.encoder, layers=[layers])
    with pytest.raises(MAMError, match=r"q_proj' carries λ no more: it was replaced by a LoRA"):
        brain.fit(range(1), loader())
    with pytest.raises(MAMError, match="carries λ no more"):
        brain.evaluate(loader())
