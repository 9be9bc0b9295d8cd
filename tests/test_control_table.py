"""The table of controls: each by the property that defines it, and all through a real merge."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPO, build_speech_model, save_bert
from families import FAMILIES, WIDTH

from speechbrain_mam import MAM, Donor, MAMError
from speechbrain_mam.donors.control_tensors import generator, haar
from speechbrain_mam.donors.controls import DRAWN, TABLE, ControlDonor

SIZE, HEADS, LAYERS = 48, 4, 3
QKV = ("query", "key", "value")


class Made:
    """A donor of random tensors, no two alike in mean and spread, with output projections."""

    class index:
        heads = HEADS

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.tensors = {}
        for layer in range(LAYERS):
            for p, projection in enumerate((*QKV, "output")):
                for kind, shape in (("weight", (SIZE, SIZE)), ("bias", (SIZE,))):
                    draw = generator(9, layer, projection, kind)
                    values = torch.randn(shape, generator=draw) * (0.1 + 0.1 * p + 0.05 * layer)
                    self.tensors[layer, projection, kind] = (values + 0.3 * p).to(dtype)

    def tensor(self, key):
        return self.tensors[key]


DONOR = Made()


def control(name: str, seed: int = 5) -> ControlDonor:
    return ControlDonor(DONOR, name, LAYERS, seed)


def weights(source, layer: int = 1) -> list[torch.Tensor]:
    return [source.tensor((layer, p, "weight")) for p in (*QKV, "output")]


def spectrum(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(tensor)


def check_random(made: ControlDonor) -> None:
    for key, theirs in DONOR.tensors.items():
        torch.testing.assert_close(made.tensor(key).norm(), theirs.norm())
    assert abs(weights(made)[2].mean()) < 0.05 < weights(DONOR)[2].mean(), "the mean is not kept"


def check_moments(made: ControlDonor) -> None:
    for key, theirs in DONOR.tensors.items():
        ours, n = made.tensor(key), theirs.numel()
        sd = theirs.std(correction=0)
        assert abs(ours.mean() - theirs.mean()) < 4 * sd / math.sqrt(n), key
        assert abs(ours.std() / sd - 1) < 4 / math.sqrt(2 * n), key
        z = (ours - theirs.mean()) / sd
        if n > 1000:  # normal: skewness 0, kurtosis 3
            assert abs((z**3).mean()) < 4 * math.sqrt(15 / n) and abs((z**4).mean() - 3) < 1


def check_spectrum(made: ControlDonor) -> None:
    for ours, theirs in zip(weights(made), weights(DONOR), strict=True):
        torch.testing.assert_close(spectrum(ours), spectrum(theirs), rtol=1e-4, atol=1e-4)
        left = [torch.linalg.svd(w).U[:, 0] for w in (ours, theirs)]
        assert abs(left[0] @ left[1]) < 0.6, "the directions are others"
    bias = (1, "value", "bias")
    torch.testing.assert_close(made.tensor(bias).norm(), DONOR.tensor(bias).norm())


def check_conjugate(made: ControlDonor) -> None:
    (q, _, _, o), (own_q, _, _, own_o) = weights(made), weights(DONOR)
    turn = torch.linalg.solve(own_q, q)
    torch.testing.assert_close(turn.T @ turn, torch.eye(SIZE), rtol=0, atol=2e-3)
    torch.testing.assert_close(o, turn.T @ own_o, rtol=1e-3, atol=2e-3)
    for layer in range(LAYERS):  # one rotation for all layers
        ours, theirs = weights(made, layer), weights(DONOR, layer)
        scores = theirs[0].T @ theirs[1]
        torch.testing.assert_close(
            ours[0].T @ ours[1], turn.T @ scores @ turn, rtol=1e-3, atol=0.05
        )
        mixed = theirs[3] @ theirs[2]
        torch.testing.assert_close(ours[3] @ ours[2], turn.T @ mixed @ turn, rtol=1e-3, atol=0.05)
    for projection in QKV:
        bias = (2, projection, "bias")
        assert torch.equal(made.tensor(bias), DONOR.tensor(bias))
    bias = (2, "output", "bias")
    torch.testing.assert_close(made.tensor(bias), turn.T @ DONOR.tensor(bias), rtol=0, atol=1e-2)


def check_shuffled(made: ControlDonor) -> None:
    for layer in range(LAYERS):
        here = [DONOR.tensor((i, "key", "bias")) for i in range(LAYERS)]
        place = [torch.equal(made.tensor((layer, "key", "bias")), one) for one in here]
        assert sum(place) == 1 and not place[layer]


def check_reversed(made: ControlDonor) -> None:
    for layer, projection, kind in DONOR.tensors:
        theirs = DONOR.tensor((LAYERS - 1 - layer, projection, kind))
        assert torch.equal(made.tensor((layer, projection, kind)), theirs)


def check_permuted(made: ControlDonor) -> None:
    for ours, theirs in zip(weights(made), weights(DONOR), strict=True):
        same = (ours[:, None] == theirs).all(2)
        assert (same.sum(0) == 1).all() and (same.sum(1) == 1).all(), "the same rows"
        assert not torch.equal(same.int(), torch.eye(SIZE, dtype=torch.int)), "in another order"


def check_mimetic(made: ControlDonor) -> None:
    q, k, v, o = weights(made)
    width = SIZE // HEADS
    kept = []
    for rows in q.unflatten(0, (HEADS, width)), k.unflatten(0, (HEADS, width)):
        kept.append(rows)
    for head in range(HEADS):
        check_diagonal(kept[0][head].T @ kept[1][head], 1)
    # a whole product: 0.4 · Z − 0.4 · I, with every singular value
    product = (o @ v).T
    check_diagonal(product, -1)
    noise = (product + 0.4 * torch.eye(SIZE)) * math.sqrt(SIZE) / 0.4
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    # the largest singular values of 0.7 · Z + 0.7 · I, whose norm is near 0.7 · √2 · √width
    norm = (kept[0][0].T @ kept[1][0]).norm()
    assert 0.7 * math.sqrt(width) < norm < 0.7 * 1.5 * math.sqrt(SIZE)
    biases = [made.tensor((1, p, "bias")) for p in (*QKV, "output")]
    assert not any(bias.any() for bias in biases)


def check_diagonal(product: torch.Tensor, sign: int) -> None:
    """Its diagonal has the sign, and stands out from the rest by far."""
    diagonal = sign * product.diagonal().mean()
    rest = (product - product.diagonal().diag()).abs().mean()
    assert diagonal > 2 * rest and (sign * product.diagonal() > 0).float().mean() > 0.9


def check_zeros(made: ControlDonor) -> None:
    assert not any(made.tensor(key).any() for key in DONOR.tensors)


PROPERTIES: dict[str, Callable[[ControlDonor], None]] = {
    "random": check_random,
    "moments": check_moments,
    "spectrum": check_spectrum,
    "conjugate": check_conjugate,
    "shuffled_layers": check_shuffled,
    "reversed_layers": check_reversed,
    "permuted_rows": check_permuted,
    "mimetic": check_mimetic,
    "no_donor": check_zeros,
}


@pytest.mark.parametrize("name", TABLE)
def test_its_defining_property(name):
    PROPERTIES[name](control(name))


@pytest.mark.parametrize("name", [n for n in TABLE if n not in ("random", "no_donor")])
def test_the_property_tells_it_from_random_tensors(name):
    with pytest.raises(AssertionError):
        PROPERTIES[name](control("random"))


@pytest.mark.parametrize("name", TABLE)
def test_drawn_by_seed_and_place_alone(name):
    one, other = control(name), control(name)
    keys = list(DONOR.tensors)
    found = {key: one.tensor(key) for key in keys}
    assert all(torch.equal(found[key], other.tensor(key)) for key in reversed(keys))
    others = [control(name, seed) for seed in (6, 7, 8, 9)]  # three layers have two derangements
    differs = any(not torch.equal(o.tensor(key), found[key]) for o in others for key in keys[:8])
    assert differs == (name in DRAWN) == TABLE[name].drawn
    if name in ("random", "moments", "spectrum", "mimetic"):
        same = [key for key in keys if key[1:] == ("query", "weight")]
        assert not torch.equal(found[same[0]], found[same[1]]), "no two layers alike"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLE)
def test_the_donors_shape_and_precision(name, dtype):
    donor = Made(dtype)
    made = ControlDonor(donor, name, LAYERS)
    for key, theirs in donor.tensors.items():
        ours = made.tensor(key)
        assert ours.shape == theirs.shape and ours.dtype == dtype, key
        assert torch.isfinite(ours).all()


def merged(donor: Donor, name: str, learnable: bool, **options) -> dict[str, torch.Tensor]:
    width = donor.index.hidden_size
    model = build_speech_model(hidden_size=width, num_attention_heads=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    mam = MAM(model, donor, lam=0.5, learnable=learnable, control=name, control_seed=3, **options)
    mam.fold()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    touched = {entry.target for entry in mam.plan.entries}
    biases = {key for key in touched if key.endswith("bias")}  # the target's biases are 0
    assert touched - biases <= changed <= touched
    for entry in mam.plan.entries:
        theirs = ControlDonor(donor, name, donor.index.num_layers, 3).tensor(entry.donor_key)
        factor = entry.donor_factor
        expected = 0.5 * before[entry.target] + 0.5 * factor * theirs
        torch.testing.assert_close(model.state_dict()[entry.target], expected)
    return model.state_dict()


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    """A donor in float16."""
    folder = save_bert(tmp_path_factory.mktemp("half") / "bert")
    from transformers import BertModel

    BertModel.from_pretrained(folder).half().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> Path:
    """A donor whose keys and values are repeated for groups of queries."""
    family = next(f for f in FAMILIES if f.model == "Qwen2ForCausalLM")
    folder = tmp_path_factory.mktemp("grouped")
    family.build().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("kind", ["bert_folder", "halves", "grouped"])
@pytest.mark.parametrize("name", TABLE)
def test_through_a_merge(name, kind, learnable, request):
    donor = Donor(request.getfixturevalue(kind))
    assert donor.index.hidden_size == (WIDTH if kind == "grouped" else 16)
    merged(donor, name, learnable)


@pytest.mark.parametrize("name", TABLE)
def test_in_the_place_of_several_donors(name, bert_folder, halves):
    model = build_speech_model()
    mam = MAM(model, [bert_folder, halves], lam=0, learnable=False, control=name)
    mam.apply()
    donors = [Donor(folder) for folder in (bert_folder, halves)]
    key = (1, "key", "weight")
    parts = [ControlDonor(d, name, 3, seed).tensor(key) for seed, d in enumerate(donors)]
    found = model.get_parameter("hubert.encoder.layers.1.attention.k_proj.weight").detach()
    torch.testing.assert_close(found, 0.5 * parts[0] + 0.5 * parts[1])


@pytest.mark.parametrize("name", ["shuffled_layers", "reversed_layers"])
def test_the_order_of_one_layer_is_refused(name):
    with pytest.raises(MAMError, match=f"'{name}' needs a donor of two layers"):
        ControlDonor(DONOR, name, layers=1)


def test_mimetic_is_told_the_heads():
    class Bare:
        tensor = DONOR.tensor

    with pytest.raises(MAMError, match="'mimetic' needs to know the donor's number of heads"):
        ControlDonor(Bare(), "mimetic", layers=3)
    assert ControlDonor(Bare(), "mimetic", layers=3, heads=4).tensor((0, "query", "weight")).any()


def test_haar_is_uniform():
    """Without the signs of R's diagonal, QR's own would show in the mean of the diagonal."""
    found = torch.stack([haar(3, generator(i, "test")) for i in range(400)])
    assert found.mean(0).abs().max() < 0.12
    assert (found**2).mean(0).sub(1 / 3).abs().max() < 0.06


def test_only_an_unchanged_open_donor_keeps_what_was_made(bert_folder):
    """A sweep asks for a control's tensors at each of its λ."""
    donor = Donor(bert_folder)
    mam = MAM(build_speech_model(), donor, lam=0.5, learnable=False, control="spectrum")
    made = mam.source
    tensor = made.tensor((0, "query", "weight"))
    mam.change(lam=0.6, donor=donor)
    assert mam.source is made and made.tensor((0, "query", "weight")) is tensor
    for other in ({"control_seed": 1}, {"control": "random"}, {"donor": Donor(bert_folder)}):
        mam.change(lam=0.7, **other)
        assert mam.source is not made
        made = mam.source
    learned = MAM(build_speech_model(), donor, control="random").source
    assert learned.tensor((0, "query", "weight")) is not learned.tensor((0, "query", "weight"))


@pytest.mark.parametrize(
    "file",
    ["docs/report.md", "docs/recipe.md", "recipes/LJSpeech/README.md", "hparams/mam_zeroshot.yaml",
     "hparams/mam_learnable.yaml", "hparams/esc50_mam_zeroshot.yaml",
     "hparams/esc50_mam_learnable.yaml", "speechbrain_mam/cli/measure.py"],
)  # fmt: skip
def test_every_list_has_them_all(file):
    text = (REPO / file).read_text(encoding="utf-8")
    assert [name for name in TABLE if name not in text] == []
