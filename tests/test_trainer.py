"""transformers' Trainer learns λ: resumed to the bit, folded in all that others see."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO
from safetensors.torch import load_file
from tiny_models import build_speech_model, save_bert
from torch import nn
from transformers import (
    AutoModelForCTC,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from speechbrain_mam import Donor, Merge, find_attention, make_plan
from speechbrain_mam.errors import MAMError
from speechbrain_mam.integrations.trainer_files import FILE
from speechbrain_mam.integrations.transformers import MAMCallback
from speechbrain_mam.learning.module import MergedModule

pytest.importorskip("accelerate", reason="Trainer needs it (extra trainer)")
DROPOUT = {"attention_dropout": 0.1, "activation_dropout": 0.1}
FAMILIES = {"wav2vec2": AutoModelForCTC, "whisper": WhisperForConditionalGeneration}


def build(family="wav2vec2", seed=0):
    torch.manual_seed(seed)
    if family == "wav2vec2":
        return build_speech_model("wav2vec2", hidden_dropout=0.1, **DROPOUT)
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(
        vocab_size=40, num_mel_bins=8, d_model=16, max_source_positions=50,
        max_target_positions=20, dropout=0.1, **sizes, **tokens, **DROPOUT,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config)


def examples(family="wav2vec2", count=16):
    generator = torch.Generator().manual_seed(5)
    name, shape = ("input_values", 2400) if family == "wav2vec2" else ("input_features", (8, 100))
    shape = shape if isinstance(shape, tuple) else (shape,)
    return [
        {
            name: torch.randn(shape, generator=generator),
            "labels": torch.randint(5, 20, (4,), generator=generator),
        }
        for _ in range(count)
    ]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True


@pytest.fixture()
def train(tmp_path, bert_folder):
    """Some steps of a training with MAM; ``stop_at`` interrupts it."""

    def run(
        out="out", family="wav2vec2", stop_at=None, resume=None, mam=None, model=None, only=False,
        callbacks=(), **arguments,
    ):  # fmt: skip
        chosen = {
            "max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1,
            "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3,
            "learning_rate": 1e-3, "weight_decay": 0.1,
        }  # fmt: skip
        trainer = Trainer(
            model=model or build(family),
            args=TrainingArguments(str(tmp_path / out), **{**chosen, **arguments}),
            train_dataset=examples(family),
            eval_dataset=examples(family)[:4],
            callbacks=[StopAt(stop_at), *callbacks],
        )
        callback = MAMCallback(**{"donor": bert_folder, "lr": 0.01, **(mam or {})})
        callback.attach(trainer)
        if not only:
            trainer.train(resume_from_checkpoint=resume)
        return trainer, callback

    return run


def has_lambdas(model):
    return any(isinstance(module, MergedModule) for module in model.modules())


def assert_equal(one, other):
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def everything(trainer, callback):
    """The folded model, λ, and the target's own weights."""
    folded = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    callback.mam.apply()
    own = {f"own {name}": tensor for name, tensor in trainer.model.state_dict().items()}
    callback.mam.fold()
    return folded | own


OPTIONS = {
    "plain": {},
    "bf16_accumulated": {"bf16": True, "gradient_accumulation_steps": 2},
    "checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        pytest.param(
            family,
            options,
            id=f"{family}-{name}",
            marks=() if (family, name) == ("wav2vec2", "plain") else pytest.mark.slow,
        )
        for family in FAMILIES
        for name, options in OPTIONS.items()
    ],
)
def test_resumed_to_the_bit(train, family, options, tmp_path):
    whole = train("whole", family, **options)
    train("parts", family, stop_at=2, **options)
    resumed = train("parts", family, resume=True, **options)
    assert_equal(everything(*whole), everything(*resumed))
    lams = whole[1].mam.live.values().values()
    assert all(0 <= lam <= 1 and lam != 0.95 for lam in lams)
    assert all(lam.dtype == torch.float32 for lam in whole[1].mam.live.parameters())
    first = [tmp_path / name / "checkpoint-4" / FILE for name in ("whole", "parts")]
    assert first[0].read_bytes() == first[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_the_merged_model_with_plain_layers(train, family, tmp_path, bert_folder):
    trainer, callback = train(family=family)
    trainer.save_model(str(tmp_path / "final"))
    assert not has_lambdas(trainer.model) and not (tmp_path / "final" / FILE).exists()
    loaded, info = FAMILIES[family].from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_equal(loaded.state_dict(), trainer.model.state_dict())
    # The checkpoint of the last step is that model too; without λ it is the target's own.
    assert_equal(
        load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors"),
        load_file(tmp_path / "final" / "model.safetensors"),
    )
    expected = build(family)
    expected.load_state_dict(loaded.state_dict())
    kept = load_file(tmp_path / "out" / "checkpoint-4" / FILE)
    own = {name: tensor for name, tensor in kept.items() if not name.endswith(".lam")}
    expected.load_state_dict(own, strict=False)
    assert own.keys() <= expected.state_dict().keys()
    lams = [lam.item() for lam in callback.mam.live.parameters()]
    assert sorted(lams) == sorted(v.item() for n, v in kept.items() if n.endswith(".lam"))
    donor = Donor(bert_folder)
    plan = make_plan(find_attention(expected), donor.index, lam=lams)
    with Merge(expected, plan, donor):
        assert_equal(expected.state_dict(), loaded.state_dict())
    assert {entry.target for entry in plan.entries} <= own.keys()


def test_lambda_s_group(train):
    """Its own rate, no weight decay, in no other group; put back into [0, 1] after each step."""
    trainer, callback = train(mam={"lr": 30.0}, max_steps=2, lr_scheduler_type="constant")
    ours = {id(lam) for lam in callback.mam.live.parameters()}
    *others, group = trainer.optimizer.param_groups
    assert {id(p) for p in group["params"]} == ours and len(ours) == 3
    assert (group["lr"], group["weight_decay"]) == (30.0, 0.0)
    assert not any(id(p) in ours for other in others for p in other["params"])
    assert {other["weight_decay"] for other in others} == {0.1, 0.0}
    assert set(callback.mam.live.values().values()) <= {0.0, 1.0}


def test_lambda_is_logged(train, tmp_path):
    trainer, callback = train()
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    rows = [row for row in state["log_history"] if "loss" in row]
    assert len(rows) == 4 and all(f"lam/layer_{i}" in row for row in rows for i in range(3))
    last = {f"lam/{n.replace(' ', '_')}": v for n, v in callback.mam.live.values().items()}
    assert {name: rows[-1][name] for name in last} == last
    trainer.evaluate()
    assert not any("lam" in name for name in trainer.state.log_history[-1])


def test_it_evaluates_plain_layers_with_the_merged_weights(train, tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_prediction_step(self, args, state, control, model=None, **kwargs):
            seen.append(has_lambdas(model))

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            seen.append(has_lambdas(model))

        def on_train_end(self, args, state, control, model=None, **kwargs):
            seen.append(has_lambdas(model))

    trainer, _ = train(eval_strategy="steps", eval_steps=2, callbacks=[Look()], eval_on_start=True)
    assert seen == [False, True, True, False, True, True, False, False]
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    saved = AutoModelForCTC.from_pretrained(tmp_path / "out" / "checkpoint-2")
    arguments = TrainingArguments(str(tmp_path / "x"), use_cpu=True, report_to="none")
    plain = Trainer(saved, arguments, eval_dataset=examples()[:4])
    assert plain.evaluate()["eval_loss"] == losses[1] != losses[2]


@pytest.mark.slow
def test_the_best_model_at_the_end(train, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    # The loss falls; with 'greater' the first checkpoint is the best one.
    best, callback = train("best", greater_is_better=True, **options)
    assert best.state.best_model_checkpoint.endswith("checkpoint-2")
    short, at_2 = train("short", stop_at=2, eval_strategy="steps", eval_steps=2)
    assert_equal(everything(best, callback), everything(short, at_2))
    kept = load_file(tmp_path / "best" / "checkpoint-4" / FILE)
    now = load_file(tmp_path / "best" / "checkpoint-2" / FILE)
    assert any(not torch.equal(kept[name], now[name]) for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mam",
    [
        {"granularity": "head"},
        {"granularity": "model", "constraint": "sigmoid"},
        {"method": "multi_path", "lam": 1.0},
        {"projections": "qk", "layers": "last:1"},
    ],
    ids=str,
)
def test_other_merges(train, mam):
    whole = train("whole", mam=mam)
    train("parts", stop_at=2, mam=mam)
    assert_equal(everything(*whole), everything(*train("parts", resume=True, mam=mam)))


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_bits(train):
    model = build()
    for parameter in model.wav2vec2.parameters():
        parameter.requires_grad = False
    former = {f"own {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    trainer, callback = train(model=model)
    found = everything(trainer, callback)
    assert all(torch.equal(found[n], t) for n, t in former.items() if "lm_head" not in n)
    assert all(lam != 0.95 for lam in callback.mam.live.values().values())


@pytest.mark.slow
def test_a_part_of_the_model_is_the_target(train):
    model = build()
    _, callback = train(model=model, mam={"target": model.wav2vec2}, max_steps=1)
    assert callback.mam.plan.entries[0].target.startswith("encoder.")


@pytest.mark.slow
def test_trained_twice(train):
    """A second train() begins with λ of the first, in the same group."""
    trainer, callback = train(max_steps=2)
    once = callback.mam.live.values()
    trainer.train()
    assert len(trainer.optimizer.param_groups) == 3 and callback.mam.live.values() != once
    assert not has_lambdas(trainer.model)


@pytest.mark.slow
def test_an_optimizer_that_was_made_before(train, tmp_path, bert_folder):
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to="none", save_strategy="no"
    )
    trainer = Trainer(model, arguments, train_dataset=examples(), optimizers=(optimizer, None))
    callback = MAMCallback(donor=bert_folder).attach(trainer)
    trainer.train()
    assert [len(group["params"]) for group in optimizer.param_groups][1:] == [3]
    assert all(lam != 0.95 for lam in callback.mam.live.values().values())


def test_an_interrupted_training_leaves_plain_layers(train):
    class Fails(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    trainer, callback = train(only=True, callbacks=[Fails()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not has_lambdas(trainer.model) and callback.mam.live.values()["layer 0"] != 0.95


@pytest.mark.parametrize(
    ("mam", "message"),
    [
        ({"donor": "other"}, "belongs to another donor"),
        ({"layers": "last:2"}, "key 'layers': the checkpoint .* was trained with \\[0, 1, 2\\]"),
        ({"granularity": "head"}, "key 'granularity': .* 'layer', now it is 'head'"),
    ],
)
def test_a_checkpoint_of_another_merge_is_refused(train, mam, message, tmp_path):
    train(stop_at=2)
    if "donor" in mam:
        mam = {"donor": save_bert(tmp_path / "other", seed=9)}
    with pytest.raises(MAMError, match=message):
        train(resume=True, mam=mam)


def test_a_checkpoint_without_lambda_is_refused(train, tmp_path):
    train(stop_at=2)
    file = tmp_path / "out" / "checkpoint-2" / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(MAMError, match="not a whole safetensors file"):
        train(resume=True)
    file.unlink()
    with pytest.raises(MAMError, match=f"has no '{FILE}'"):
        train(resume=True)


def test_what_does_not_go_together_is_refused(train, tmp_path, bert_folder):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    model = build()

    def trainer(model=model, **options):
        return Trainer(model, arguments, train_dataset=examples(), **options)

    def attach(trainer, **options):
        MAMCallback(**{"donor": bert_folder, **options}).attach(trainer)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    for call, message in (
        (lambda: attach(trainer(None, model_init=lambda: build())), "model_init"),
        (lambda: attach(trainer(optimizers=(optimizer, scheduler))), "a scheduler"),
        (lambda: attach(trainer(), target=nn.Linear(2, 2)), "not a part of the trainer's model"),
        (lambda: attach(trainer(), lr=0), "key 'lr'"),
        (lambda: attach(trainer(), learnable=False), "key 'learnable'"),
        (lambda: attach(trainer(), layers="first:9"), "layers"),
        (lambda: trainer(callbacks=[MAMCallback(donor=bert_folder)]).train(), "call attach"),
    ):
        with pytest.raises(MAMError, match=message):
            call()
    assert not has_lambdas(model)
    callback = MAMCallback(donor=bert_folder).attach(trainer())
    with pytest.raises(MAMError, match="attached already"):
        callback.attach(trainer())


@pytest.mark.slow
def test_the_core_needs_no_trainer_and_the_integration_no_speechbrain():
    program = (
        "import sys, speechbrain_mam.integrations.transformers as one\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert 'speechbrain' not in loaded\n"
        "assert 'transformers.trainer' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPO)
    core = ("architectures", "model_files", "donors", "merging", "learning", "mam.py")
    for name in core:
        path = REPO / "speechbrain_mam" / name
        for file in [path] if path.is_file() else Path(path).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert "integrations" not in text and "Trainer" not in text, file
