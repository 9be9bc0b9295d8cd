"""Alignment changes what a donor looks like, not what it computes."""

import pytest
import torch
from conftest import build_speech_model, save_bert
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertModel

from speechbrain_mam import Donor, LearnableMAM, MAMError, Merge, find_attention, make_plan
from speechbrain_mam.merging.alignment import align_layer, match_heads
from speechbrain_mam.merging.on_disk import merge_folders
from speechbrain_mam.model_files.folder import ModelFolder

HEADS, WIDTH = 4, 16
KEYS = [(p, k) for p in ("query", "key", "value", "output") for k in ("weight", "bias")]
IDS = torch.arange(10)[None]


def layer(seed, biases=True):
    generator = torch.Generator().manual_seed(seed)
    shape = {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)}
    return {
        key: torch.randn(shape[key[1]], generator=generator)
        for key in KEYS
        if biases or key[1] == "weight"
    }


def attend(layer, x):
    """Scores ``[heads, T, T]`` and output ``[T, D]``."""

    def project(name, x):
        y = x @ layer[name, "weight"].t()
        return y + layer[name, "bias"] if (name, "bias") in layer else y

    q, k, v = (
        project(n, x).reshape(len(x), HEADS, -1).transpose(0, 1) for n in ("query", "key", "value")
    )
    scores = q @ k.transpose(1, 2)
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), WIDTH)
    return scores, project("output", mixed)


def distance(one, other):
    return sum((one[key] - other[key]).square().sum() for key in one)


@settings(deadline=None)
@given(seed=st.integers(0, 999), rotate=st.booleans(), biases=st.booleans())
def test_an_aligned_donor_computes_the_same(seed, rotate, biases):
    target, donor = layer(seed, biases), layer(seed + 1000, biases)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))
    aligned = align_layer(target, donor, HEADS, rotate)
    order = match_heads(target, donor, HEADS, rotate)
    assert sorted(order.tolist()) == list(range(HEADS))
    (before, output), (after, same_output) = attend(donor, x), attend(aligned, x)
    torch.testing.assert_close(after, before[order], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(same_output, output, rtol=1e-4, atol=1e-3)


@given(st.integers(0, 999))
def test_it_comes_nearer(seed):
    target, donor = layer(seed), layer(seed + 1000)
    plain = distance(target, donor)
    heads = distance(target, align_layer(target, donor, HEADS))
    turned = distance(target, align_layer(target, donor, HEADS, rotate=True))
    assert turned < heads <= plain * (1 + 1e-6)


def test_a_hidden_copy_is_found():
    """The target's own attention, its heads shuffled and each turned, is turned back."""
    target = layer(7)
    q, _ = torch.linalg.qr(torch.randn(HEADS, 4, 4, generator=torch.Generator().manual_seed(3)))
    order = torch.tensor([2, 0, 3, 1])
    hidden = {}
    for (projection, kind), tensor in target.items():
        if projection == "output":
            hidden[projection, kind] = tensor
            continue
        rows = tensor.reshape(HEADS, 4, -1)
        if projection in ("query", "key"):
            rows = q @ rows
        hidden[projection, kind] = rows[order].reshape(tensor.shape)
    hidden["output", "weight"] = (
        target["output", "weight"].reshape(WIDTH, HEADS, 4)[:, order].reshape(WIDTH, WIDTH)
    )
    found = align_layer(target, hidden, HEADS, rotate=True)
    for key in KEYS:
        torch.testing.assert_close(found[key], target[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("align", ["heads", "rotation"])
def test_at_lam_0_the_model_has_the_donors_scores(align, tmp_path):
    """λ = 0 in one model of the donor's own family: its scores are the donor's, head by head."""
    target = BertModel.from_pretrained(
        save_bert(tmp_path / "a", seed=3), attn_implementation="eager"
    )
    donor = Donor(save_bert(tmp_path / "b", seed=4))
    theirs = BertModel.from_pretrained(tmp_path / "b", attn_implementation="eager")
    plan = make_plan(find_attention(target), donor.index, lam=0, projections="qkvo", align=align)
    expected = theirs(IDS, output_attentions=True).attentions[0]
    target.embeddings.load_state_dict(theirs.embeddings.state_dict())
    with Merge(target, plan, donor):
        found = target(IDS, output_attentions=True).attentions[0]
    ordered = [sorted(head.flatten().tolist() for head in a[0]) for a in (found, expected)]
    torch.testing.assert_close(torch.tensor(ordered[0]), torch.tensor(ordered[1]))
    assert "align: " + align in str(plan)


@pytest.mark.parametrize("align", ["heads", "rotation"])
def test_live_file_and_zero_shot_agree(align, tmp_path, bert_folder):
    wav = torch.randn(1, 8000)
    model, reference, donor = build_speech_model(), build_speech_model(), Donor(bert_folder)
    plan = make_plan(find_attention(model), donor.index, lam=0.7, align=align)
    Merge(reference, plan, donor)
    plain = build_speech_model()
    Merge(plain, make_plan(find_attention(plain), donor.index, lam=0.7), donor)
    assert not torch.allclose(reference(wav).logits, plain(wav).logits, atol=1e-4)
    LearnableMAM(model, plan, donor)
    torch.testing.assert_close(model(wav).logits, reference(wav).logits, rtol=0, atol=1e-5)
    build_speech_model().save_pretrained(tmp_path / "target")
    target = ModelFolder(tmp_path / "target")
    (tmp_path / "out").mkdir()
    on_disk = make_plan(target.attention(), donor.index, lam=0.7, align=align)
    merge_folders(on_disk, target, ModelFolder(bert_folder), tmp_path / "out")
    merged = ModelFolder(tmp_path / "out")
    for entry in plan.entries:
        torch.testing.assert_close(
            merged.read(entry.target), reference.get_parameter(entry.target).detach()
        )


def test_refusals(tmp_path, bert_folder):
    target = find_attention(build_speech_model())
    other = Donor(save_bert(tmp_path, num_attention_heads=4)).index
    with pytest.raises(MAMError, match=r"key 'align'.*target's 2 are 8 wide, the donor's 4 are 4"):
        make_plan(target, other, align="heads")
    donor = Donor(bert_folder).index
    with pytest.raises(MAMError, match=r"key 'align': 'rotation' turns queries and keys together"):
        make_plan(target, donor, align="rotation", projections="qv")
    with pytest.raises(MAMError, match=r"key 'align': 'hungarian' is not one of none, heads"):
        make_plan(target, donor, align="hungarian")


def rows_of(heads, columns=WIDTH, seed=0):
    """Query and key rows of `heads` heads, each head unlike the others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads * (WIDTH // HEADS), columns, generator=generator)


@pytest.mark.parametrize("projection", ["query", "key"])
def test_a_rotated_head_is_matched_by_its_best_rotation(projection):
    """Negated, a head's rows have the worst inner product with their own, and the best rotation."""
    other = "key" if projection == "query" else "query"
    target = {(projection, "weight"): rows_of(HEADS), (other, "weight"): torch.zeros(WIDTH, WIDTH)}
    order = torch.tensor([2, 0, 3, 1])
    donor = {
        key: -rows.reshape(HEADS, -1, WIDTH)[order].reshape(WIDTH, WIDTH)
        for key, rows in target.items()
    }
    assert match_heads(target, donor, HEADS, rotate=True).equal(order.argsort())
    assert not match_heads(target, donor, HEADS).equal(order.argsort())
    aligned = align_layer(target, donor, HEADS, rotate=True)
    torch.testing.assert_close(aligned[projection, "weight"], target[projection, "weight"])


@pytest.mark.parametrize("rotate", [False, True])
def test_biases_count_where_weights_do_not_tell_heads_apart(rotate):
    """Every head has the same rows; only its bias says which one it is."""
    same = rows_of(1).repeat(HEADS, 1)
    bias = 10 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    target = {(p, "weight"): same for p in ("query", "key")}
    target |= {(p, "bias"): bias for p in ("query", "key")}
    order = torch.tensor([1, 3, 0, 2])
    donor = dict(target)
    for projection in ("query", "key"):
        donor[projection, "bias"] = bias.reshape(HEADS, -1)[order].reshape(-1)
    assert match_heads(target, donor, HEADS, rotate).equal(order.argsort())
