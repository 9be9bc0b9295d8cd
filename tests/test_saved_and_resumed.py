"""Whole runs, twice: each kind of merged module in a Brain that is moved, saved, resumed."""

import pytest
import speechbrain as sb
import torch
import transformers
from conftest import build_speech_model, save_bert
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_mam import MAM, MAMBrain, MAMError
from speechbrain_mam.merging.arithmetic import linear

WAVES = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
FRAMES = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


class SavesAtTest(MAMBrain, sb.Brain):
    """Saves what it tests, as SpeechBrain's Transformer recipes do, and notes the weights."""

    def compute_forward(self, batch, stage):
        if stage == sb.Stage.TEST:
            self.seen = {n: p.detach().clone() for n, p in self.modules.named_parameters()}
        return self.hparams.run(self.modules.encoder, batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if self.checkpointer is not None and stage != sb.Stage.TRAIN:
            best = -1.0 if stage == sb.Stage.TEST else float(stage_loss)
            self.checkpointer.save_and_keep_only(meta={"loss": best}, min_keys=["loss"])


def hubert():
    return build_speech_model("hubert")


def wavlm():
    return build_speech_model("wavlm")


def sb_transformer():
    torch.manual_seed(1)
    return TransformerEncoder(num_layers=3, nhead=2, d_ffn=32, d_model=16, dropout=0.0)


def logits(model, batch):
    return model(batch).logits


def frames(model, batch):
    return model(batch)[0]


KINDS = {
    "called": (hubert, logits, {}),
    "read": (wavlm, logits, {}),
    "fused": (sb_transformer, frames, {}),
    "slerp": (hubert, logits, {"method": "slerp"}),
    "multi_path": (hubert, logits, {"method": "multi_path"}),
    "per head": (hubert, logits, {"granularity": "head", "projections": "qkvo"}),
    "sigmoid": (wavlm, logits, {"constraint": "sigmoid"}),
    "two donors": (hubert, logits, {"donors": 2}),
}


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("donors")
    return [str(save_bert(folder / str(seed), seed)) for seed in (2, 3)]


def build(kind, donors, folder, **options):
    make, run, extra = KINDS[kind]
    extra = dict(extra)
    model = make()
    several = extra.pop("donors", 1)
    mam = MAM(model, donors[:several] if several > 1 else donors[0],
              **{"lam": 0.8, "bias": "where_both", **extra, **options})  # fmt: skip
    hparams = {"mam": mam, "run": run, "mam_optimizer": lambda p: torch.optim.SGD(p, lr=0.5)}
    checkpointer = Checkpointer(folder, {"encoder": model}) if folder else None
    brain = SavesAtTest(
        {"encoder": model}, lambda p: torch.optim.SGD(p, lr=0.01), hparams,
        {"device": "cpu"}, checkpointer,
    )  # fmt: skip
    brain.modules._apply(lambda tensor: tensor.clone())  # what a move to another device does
    return brain


def data(kind):
    batch = FRAMES if KINDS[kind][1] is frames else WAVES
    return torch.utils.data.DataLoader([batch] * 2, batch_size=None)


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_test_scores_the_same_merge(kind, donors, tmp_path):
    """A checkpoint that is saved at a test holds the target's own weights: nothing is λ²."""
    brain, loader = build(kind, donors, tmp_path), data(kind)
    before = [lam.detach().clone() for lam in brain.mam.live.parameters()]
    brain.fit(range(1), loader, loader, progressbar=False)
    lams = [lam.detach().clone() for lam in brain.mam.live.parameters()]
    assert not all(torch.equal(*pair) for pair in zip(before, lams, strict=True))
    brain.evaluate(loader, min_key="loss", progressbar=False)
    first = brain.seen
    brain.evaluate(loader, min_key="loss", progressbar=False)
    same(first, brain.seen)
    anew = build(kind, donors, tmp_path)
    anew.evaluate(loader, min_key="loss", progressbar=False)
    same(first, anew.seen)
    anew.evaluate(loader, min_key="loss", progressbar=False)
    same(first, anew.seen)
    for ours, saved in zip(anew.mam.live.parameters(), lams, strict=True):
        assert torch.equal(ours, saved)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["called", "read", "fused", "slerp", "two donors"])
def test_a_fixed_merge_is_taken_back_after_a_move_and_saved_without(kind, donors, tmp_path):
    make = KINDS[kind][0]
    own = {f"encoder.{n}": p.detach().clone() for n, p in make().named_parameters()}
    brain, loader = build(kind, donors, tmp_path, learnable=False), data(kind)
    brain.evaluate_untouched(loader, progressbar=False)
    same(own, brain.seen)
    brain.evaluate(loader, min_key="loss", progressbar=False)
    first = brain.seen
    assert any(not torch.equal(tensor, own[name]) for name, tensor in first.items())
    brain.evaluate(loader, min_key="loss", progressbar=False)
    same(first, brain.seen)
    anew = build(kind, donors, tmp_path, learnable=False)
    anew.evaluate(loader, min_key="loss", progressbar=False)
    same(first, anew.seen)
    for lam in (0.9, 0.5):  # each from the target's own weights, not from the merge before
        anew.mam.change(lam=lam)
        anew.mam.apply()
        anew.modules._apply(lambda tensor: tensor.clone())
        entry = anew.mam.plan.entries[0]
        theirs = anew.mam.source.tensor(entry.donor_key)
        now = dict(anew.modules.named_parameters())[f"encoder.{entry.target}"]
        rows = slice(*(entry.target_rows or (None,)))
        expected = linear(own[f"encoder.{entry.target}"][rows], theirs, lam, entry_method(anew))
        torch.testing.assert_close(now.detach()[rows], expected, rtol=0, atol=1e-6)
    anew.mam.take_back()
    same(own, {n: p.detach() for n, p in anew.modules.named_parameters()})


def entry_method(brain):
    return brain.mam.plan.method


OTHER = {
    "constraint": "sigmoid",
    "method": "slerp",
    "donor_scale": "match_norm",
    "align": "heads",
    "granularity": "head",
    "layers": [0, 1],
    "projections": "qk",
    "layer_map": [2, 1, 0],
    "bias": "keep",
}


@pytest.mark.slow
@pytest.mark.parametrize("key", OTHER)
def test_resuming_with_another_setting_names_the_key(key, donors, tmp_path):
    loader = data("called")
    build("called", donors, tmp_path).fit(range(1), loader, loader, progressbar=False)
    other = build("called", donors, tmp_path, **{key: OTHER[key]})
    with pytest.raises(MAMError, match=f"key '{key}'"):
        other.fit(range(1, 2), loader, loader, progressbar=False)


def test_weights_without_lam_are_refused_once_training_has_started(donors, tmp_path):
    brain, loader = build("called", donors, tmp_path), data("called")
    plain = hubert().state_dict()
    brain.modules["encoder"].load_state_dict(plain)  # before it, as a Pretrainer does
    brain.fit(range(1), loader, loader, progressbar=False)
    with pytest.raises(MAMError, match="without λ"):
        brain.modules["encoder"].load_state_dict(plain)


class Frozen(torch.nn.Module):
    """A lobe of SpeechBrain's kind: frozen, with a weight of its own that is trained."""

    def __init__(self):
        super().__init__()
        self.model, self.freeze = hubert(), True
        self.model.requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, wav):
        with torch.set_grad_enabled(not self.freeze):
            found = self.model.hubert(wav).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(logits=found * self.scale)


def test_a_frozen_lobe_stays_frozen_for_its_recipe(donors, monkeypatch):
    monkeypatch.setitem(KINDS, "called", (Frozen, logits, {}))
    brain, loader = build("called", donors, None), data("called")
    lobe = brain.modules["encoder"]
    own = {n: p.detach().clone() for n, p in lobe.model.named_parameters() if "lam" not in n}
    learned = [lam.detach().clone() for lam in brain.mam.live.parameters()]
    brain.fit(range(1), loader, progressbar=False)
    assert lobe.freeze is True
    assert lobe.scale.item() != 1
    assert not lobe.model.hubert.feature_extractor._requires_grad
    assert not torch.equal(learned[0], brain.mam.live.parameters()[0])
    same(own, {n: p.detach() for n, p in lobe.model.named_parameters() if "lam" not in n})
