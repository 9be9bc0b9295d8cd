"""``start: donor``: layers that are not trained yet begin with a donor's attention; ``rotate``."""

import re

import pytest
import torch
import yaml
from conftest import build_speech_model, save_bert
from speechbrain.utils.checkpoints import Checkpointer
from test_brain import Added, build, loader, sgd

from speechbrain_mam import MAM, Donor, MAMError
from speechbrain_mam.cli import main
from speechbrain_mam.donors.rotation import RotatedDonor, hadamard_factors, rotation
from speechbrain_mam.export.data_only import data_only

PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
START = {"start": "donor", "lam": None, "learnable": False}


def attention(model, layer=0):
    return model.base_model.encoder.layers[layer].attention


@pytest.fixture()
def donor(bert_folder):
    return Donor(bert_folder)


def begins_with(model, donor, layer=0, theirs=0):
    return [
        torch.equal(
            getattr(attention(model, layer), module).weight,
            donor.tensor((theirs, projection, "weight")),
        )
        for projection, module in PROJECTIONS.items()
    ]


def test_all_four_projections_of_the_chosen_layers_are_the_donors(donor):
    model, untouched = build_speech_model(), build_speech_model()
    mam = MAM(model, donor, start="donor", learnable=False, layers="first:1")
    mam.apply()
    assert begins_with(model, donor) == [True] * 4
    before = dict(untouched.named_parameters())
    touched = {entry.target for entry in mam.plan.entries}
    assert len(touched) == 8 and all(".layers.0." in name for name in touched)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in touched), name


def test_it_is_trained_without_lambda_and_resumed_as_it_was_left(bert_folder, donor, tmp_path):
    brain = build(bert_folder, save=tmp_path, opt_class=sgd, **START)
    encoder = brain.modules.encoder
    assert begins_with(encoder, donor) == [True] * 4
    brain.fit(range(1), loader(2), loader())
    left = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    assert begins_with(encoder, donor) == [False] * 4
    assert not any(name.endswith("lam") for name in left)
    for act in ("fit", "evaluate", "load"):  # none of which is to merge once more
        again = build(bert_folder, save=tmp_path, opt_class=sgd, **START)
        assert begins_with(again.modules.encoder, donor) == [True] * 4
        if act == "fit":
            again.fit(range(0), loader(), loader())
        elif act == "evaluate":
            again.evaluate(loader(), min_key="loss")
        else:
            again.checkpointer.recover_if_possible()
        found = dict(again.modules.encoder.named_parameters())
        assert all(torch.equal(found[name], tensor) for name, tensor in left.items()), act
        again.evaluate_untouched(loader())
        again.mam.apply()
        assert all(torch.equal(found[name], tensor) for name, tensor in left.items()), act


def test_the_checkpoint_says_which_donor_it_began_with(bert_folder, tmp_path):
    build(bert_folder, save=tmp_path, opt_class=sgd, **START).fit(range(1), loader(), loader())
    (note,) = tmp_path.glob("CKPT*/mam.ckpt")
    content = yaml.safe_load(note.read_text())
    assert content["start"] == "donor" and "lam" not in content
    other = save_bert(tmp_path / "other", seed=5)
    for folder, options, message in (
        (other, START, "belongs to another donor"),
        (bert_folder, START | {"rotate": "random"}, "belongs to another donor"),
        (bert_folder, START | {"layers": "first:1"}, "key 'layers': the checkpoint"),
        (bert_folder, {"start": "donor", "lam": 0.0}, "holds no λ"),
    ):
        brain = build(folder, save=tmp_path, opt_class=sgd, **options)
        with pytest.raises(MAMError, match=re.escape(message)):
            brain.fit(range(1), loader(), loader())


def test_a_training_that_did_not_begin_with_a_donor_is_not_resumed(bert_folder, tmp_path):
    encoder = build_speech_model()
    Checkpointer(tmp_path, {"encoder": encoder}).save_checkpoint(meta={"loss": 1})
    brain = build(bert_folder, save=tmp_path, opt_class=sgd, **START)
    with pytest.raises(MAMError, match="did not begin with a donor"):
        brain.fit(range(1), loader(), loader())


def test_weights_that_a_pretrainer_loads_begin_there_too(bert_folder, donor):
    brain = build(bert_folder, opt_class=sgd, **START)
    encoder = brain.modules.encoder
    loaded = {name: torch.full_like(t, 0.5) for name, t in encoder.state_dict().items()}
    encoder.load_state_dict(loaded)
    assert begins_with(encoder, donor) == [True] * 4
    assert bool((encoder.lm_head.weight == 0.5).all())
    with brain.mam.taken_back():
        assert bool((attention(encoder).q_proj.weight == 0.5).all())


def test_a_learned_lambda_starts_at_zero(bert_folder):
    brain = build(bert_folder, opt_class=sgd, start="donor", lam=None)
    assert set(brain.mam.live.values().values()) == {0.0}
    assert brain.mam.plan.projections == tuple(PROJECTIONS)
    given = build(bert_folder, start="donor", lam=0.3)
    assert set(given.mam.live.values().values()) == {0.3}
    brain.fit(range(1), loader(3))
    assert any(value > 0 for value in brain.mam.live.values().values())


def test_a_fixed_lambda_of_a_trained_target_still_cannot_be_trained(bert_folder):
    brain = build(bert_folder, Added, opt_class=sgd, learnable=False)
    with pytest.raises(MAMError, match="'start: donor' where"):
        brain.fit(range(1), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "doner"}, "key 'start': 'doner'"),
        ({"start": "donor", "method": "multi_path"}, "key 'method': 'multi_path' with 'start"),
        ({"start": "donor", "method": "slerp"}, "key 'method': 'slerp' with 'start"),
        ({"start": "donor", "method": "pretrained"}, "key 'method': 'pretrained' with 'start"),
        ({"start": "donor", "align": "heads"}, "key 'align': 'heads' with 'start"),
        ({"rotate": "randm"}, "key 'rotate': 'randm'"),
    ],
)
def test_what_makes_no_sense_is_one_error(options, message, donor):
    with pytest.raises(MAMError, match=re.escape(message)) as error:
        MAM(build_speech_model(), donor, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("projections", "warned"), [("qkv", 1), ("o", 1), ("qk", 0), ("vo", 0)])
def test_value_without_output_is_warned_of(projections, warned, donor, caplog):
    MAM(build_speech_model(), donor, start="donor", projections=projections)
    assert len([r for r in caplog.records if "'projections'" in r.getMessage()]) == warned


@pytest.mark.parametrize("rotate", ["random", "hadamard"])
def test_a_rotated_donor_is_the_donor_in_another_basis(rotate, donor):
    """Scores and what a head writes, said in the other basis; one R for all layers."""
    turned = RotatedDonor(donor, rotate, seed=3)
    r = turned.basis
    width = donor.index.hidden_size
    torch.testing.assert_close(r @ r.T, torch.eye(width).double(), rtol=0, atol=1e-6)
    assert (r - torch.eye(width)).abs().max() > 0.1
    x = torch.randn(5, width, dtype=torch.float64)  # in the new basis
    for layer in range(donor.index.num_layers):

        def tensors(source, layer=layer):
            found = {p: source.tensor((layer, p, "weight")).double() for p in PROJECTIONS}
            return found | {f"{p} b": source.tensor((layer, p, "bias")).double() for p in found}

        ours, theirs = tensors(turned), tensors(donor)
        for name in ("query", "key", "value"):
            torch.testing.assert_close(
                x @ ours[name].T + ours[f"{name} b"],
                (x @ r.T) @ theirs[name].T + theirs[f"{name} b"],
                rtol=0,
                atol=1e-5,
            )
        written, there = (t["output"] @ t["value"] for t in (ours, theirs))
        torch.testing.assert_close(r @ written @ r.T, there, rtol=0, atol=1e-4)
        torch.testing.assert_close(r @ ours["output b"], theirs["output b"], rtol=0, atol=1e-5)


def test_the_seed_of_a_rotation_is_the_controls(donor):
    def hashes(**options):
        return MAM(build_speech_model(), donor, learnable=False, **options).donor_hash

    one = hashes(rotate="random", control_seed=1)
    assert one == hashes(rotate="random", control_seed=1)
    others = {hashes(rotate="random", control_seed=2), hashes(rotate="hadamard"), hashes()}
    assert len(others | {one}) == 4
    mam = MAM(build_speech_model(), donor, learnable=False, rotate="random")
    mam.change(control_seed=1)
    assert mam.donor_hash == one and "rotate: random, seed 1" in str(mam.plan)
    mam.change(rotate="none")
    assert mam.donor_hash == hashes()


def test_several_donors_are_turned_together(bert_folder, tmp_path):
    donors = [str(bert_folder), str(save_bert(tmp_path / "b", seed=5))]
    plain, turned = (
        MAM(build_speech_model(), donors, rotate=rotate).source for rotate in ("none", "random")
    )
    key = (0, "query", "weight")
    r = rotation(plain.index.hidden_size, "random", 0)
    there = (plain.tensor(key).double() @ r).float()
    torch.testing.assert_close(turned.tensor(key), there)


@pytest.mark.parametrize("width", [1, 2, 12, 20, 24, 64, 160])
def test_hadamard_matrices(width):
    r = rotation(width, "hadamard", seed=1)
    torch.testing.assert_close(r @ r.T, torch.eye(width).double())
    torch.testing.assert_close(r.abs(), torch.full_like(r, width**-0.5))


@pytest.mark.parametrize("width", [3, 36, 352])
def test_widths_without_one_are_told(width):
    with pytest.raises(MAMError, match=f"width {width}; there is one of 2\\^k.*384, 768"):
        hadamard_factors(width)


def test_merge_on_the_command_line(hubert_folder, bert_folder, donor, tmp_path, capsys):
    models = [str(hubert_folder), str(bert_folder)]
    out = tmp_path / "out"
    assert main(["merge", *models, "--start", "donor", "--out", str(out)]) == 0
    assert "λ 0: 12 weights and 12 biases" in capsys.readouterr().out
    found = Donor(out)
    for projection in PROJECTIONS:
        key = (0, projection, "weight")
        assert torch.equal(found.tensor(key), donor.tensor(key)), projection
    assert main(["plan", *models]) == 0 and "0.95" in capsys.readouterr().out
    assert main(["merge", *models, "--out", str(tmp_path / "no")]) == 2
    assert "required: --lam" in capsys.readouterr().err
    wrong = [*models, "--start", "donor", "--method", "slerp", "--out", str(tmp_path / "no")]
    assert main(["merge", *wrong]) == 2
    assert "--method: 'slerp' with '--start donor'" in capsys.readouterr().err


def test_a_runs_yaml_may_name_it(tmp_path):
    text = "mam: !new:speechbrain_mam.MAM\n    start: donor\n"
    assert data_only(text, tmp_path / "hyperparams.yaml").left_out == {}
