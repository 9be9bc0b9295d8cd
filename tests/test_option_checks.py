"""Numbers that a recipe cannot work with are refused; devices and precisions of probe and sweep."""

import math

import pytest
import torch
import yaml
from conftest import REPO

from speechbrain_mam import MAMError
from speechbrain_mam.runs.recipe import load_recipe
from speechbrain_mam.runs.yaml_checks import RANGES, check_ranges
from speechbrain_mam.search.place import place


class AnyTag(yaml.SafeLoader):
    """HyperPyYAML's tags stand for objects; what is asked here are the numbers."""


AnyTag.add_multi_constructor("!include:", lambda loader, _, node: loader.construct_mapping(node))
AnyTag.add_multi_constructor("!", lambda loader, suffix, node: None)


def outside(rule):
    """What each rule must refuse."""
    values = [math.nan, math.inf, -math.inf, True, "3", [1], rule.low - 1]
    values += [rule.low + 0.5] if rule.whole else []
    values += [rule.low] if rule.open_low else []
    values += [rule.high + 1] if math.isfinite(rule.high) else []
    return values + ([] if rule.nothing else [None])


@pytest.mark.parametrize("key", RANGES)
def test_nonsense_is_refused(key):
    for value in outside(RANGES[key]):
        with pytest.raises(MAMError, match=f"key '{key}': expected a .*number .*got"):
            check_ranges({key: value})
    rule = RANGES[key]
    inside = rule.high if math.isfinite(rule.high) else rule.low + 1
    check_ranges({key: inside})


@pytest.mark.parametrize("file", sorted((REPO / "hparams").rglob("*.yaml")), ids=lambda f: f.stem)
def test_every_number_of_the_yamls_has_a_rule_and_keeps_it(file):
    content = yaml.load(file.read_text(encoding="utf-8"), AnyTag)
    numbers = {k: v for k, v in content.items() if isinstance(v, int | float) and v is not None}
    others = {"lam", "fold", "fbank_mean", "fbank_std"}  # checked where they are used
    flags = {key for key, value in numbers.items() if isinstance(value, bool)}
    assert set(numbers) - others - flags <= set(RANGES)
    check_ranges({key: value for key, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (["--number_of_epochs=-1"], "number_of_epochs"),
        (["--max_batch_length_s=0"], "max_batch_length_s"),
        (["--layerdrop=1.5"], "layerdrop"),
        (["--grad_accumulation_factor=-2"], "grad_accumulation_factor"),
        (["--max_grad_norm=-1"], "max_grad_norm"),
    ],
)
def test_a_recipe_refuses_them(given, key):
    with pytest.raises(MAMError, match=f"key '{key}'"):
        load_recipe([str(REPO / "hparams/finetune.yaml"), *given], defaults={"corpus": "LJSpeech"})


def test_places():
    assert place("cpu").device == torch.device("cpu")
    assert place().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for arguments, message in (
        (("tpu!",), "is no device"),
        (("cuda:77",), "not on this machine"),
        (("meta",), "not on this machine"),
        (("cpu", "fp16"), "fp16 on a CPU"),
        (("cpu", "int8"), "key 'precision': 'int8' is not one of"),
    ):
        with pytest.raises(MAMError, match=message):
            place(*arguments)
    with place("cpu", "bf16").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with place("cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--ckpt_interval_minutes", "0.5"], 0.5),
        (["--ckpt_interval_minutes=0.25"], 0.25),
        (["--ckpt_interval_minutes", "15"], 15),
        (["--ckpt_interval_minutes=1"], 1),
    ],
)
def test_checkpoints_every_half_a_minute(words, value):
    """SpeechBrain's command line takes whole minutes, its Brain any number."""
    _, run_opts, _, _ = load_recipe([str(REPO / "hparams" / "finetune.yaml"), *words], ())
    assert run_opts["ckpt_interval_minutes"] == value


def test_a_negative_fraction_of_minutes_is_refused():
    words = [str(REPO / "hparams" / "finetune.yaml"), "--ckpt_interval_minutes", "-0.5"]
    with pytest.raises(MAMError, match="ckpt_interval_minutes"):
        load_recipe(words, ())


@pytest.mark.parametrize("words", [["--lam", "{query: 0.9, key: 0.8, value: 0.7}"],
                                   ["--lam={query: 0.9, key: 0.8, value: 0.7}"]])  # fmt: skip
def test_a_lam_of_each_projection_on_a_recipes_command_line(words):
    hparams, _, _, _ = load_recipe([str(REPO / "hparams" / "mam_zeroshot.yaml"), *words], ())
    entries = hparams["mam"].plan.entries
    found = {(entry.projection, entry.lam) for entry in entries}
    assert found == {("query", 0.9), ("key", 0.8), ("value", 0.7)}
