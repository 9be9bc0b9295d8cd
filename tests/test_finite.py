"""Outputs and losses that are no numbers: never left out of a mean in silence."""

import importlib
import logging
from functools import partial

import pytest
import speechbrain as sb
import torch
from conftest import save_corpus
from test_hubert_ctc import ALPHABET
from test_ljspeech_prepare import prepare_ljspeech
from torch import nn

from speechbrain_mam import MAMError
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.runs.probe_manifest import probe_manifest
from speechbrain_mam.runs.sweep_manifest import sweep_manifest
from speechbrain_mam.tasks.asr import ASR
from speechbrain_mam.tasks.asr_data import speech_dataset
from speechbrain_mam.tasks.audio_events import AudioEvents
from speechbrain_mam.tasks.finite import TrainLosses, check_outputs

NAN, INF = float("nan"), float("inf")
LOADER = {"batch_size": 2}
"""Two utterances a batch."""


def spoil(encoder, value):
    with torch.no_grad():
        encoder.model.lm_head.bias[3] = value


@pytest.fixture()
def sets(tmp_path, hubert_folder):
    save_corpus(tmp_path / "lj")
    prepare_ljspeech(tmp_path / "lj", tmp_path / "save", ALPHABET)
    encoder = HubertCTC(hubert_folder)
    names = {"train": "train", "valid": "valid", "test": "test"}
    found = {n: speech_dataset(tmp_path / "save" / f"{f}.csv", tmp_path / "lj", encoder)
             for n, f in names.items()}  # fmt: skip
    return encoder, found, tmp_path


@pytest.fixture()
def brain(sets):
    encoder, _, folder = sets
    schedule = sb.nnet.schedulers.NewBobScheduler(1e-3)
    return ASR(
        modules={"encoder": encoder},
        opt_class=lambda parameters: torch.optim.SGD(parameters, 1e-3),
        hparams={
            "encoder": encoder,
            "error_rate_computer": sb.utils.metric_stats.ErrorRateStats,
            "test_dataloader_opts": dict(LOADER),
            "output_folder": str(folder),
            "lr_annealing": schedule,
            "epoch_counter": object(),
        },
        run_opts={"device": "cpu", "noprogressbar": True},
    )


WAYS = {
    "test": lambda brain, sets: brain.test(sets["test"], "a test"),
    "untouched": lambda brain, sets: brain.test(sets["test"], "untouched", untouched=True),
    "validation": lambda brain, sets: brain.fit([1], sets["test"], sets["test"],
                                                train_loader_kwargs=dict(LOADER),
                                                valid_loader_kwargs=dict(LOADER)),
    "sweep": lambda brain, sets: brain.score(brain.batches(sets["test"])),
    "probe": lambda brain, sets: list(brain.losses(brain.batches(sets["test"]))),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [NAN, INF])
def test_no_evaluation_gives_a_figure(way, value, brain, sets):
    encoder, found, _ = sets
    if way == "validation":  # the training step is sound, what it leads to is not
        brain.on_fit_batch_end = lambda *_: spoil(encoder, value)
        brain.train_losses = TrainLosses()
    else:
        spoil(encoder, value)
    both = r"XX001-0016, XX001-0017 \(of the batch XX001-0016, XX001-0017\)"
    with pytest.raises(MAMError, match=f"gives NaN or infinite values for {both}"):
        WAYS[way](brain, found)


def test_a_loss_of_sound_outputs(brain, sets, monkeypatch):
    # The module itself: what SpeechBrain loads lazily is another object until it has been used
    losses = importlib.import_module("speechbrain.nnet.losses")
    monkeypatch.setattr(losses, "ctc_loss", lambda *_, **__: torch.tensor(INF))
    with pytest.raises(MAMError, match="the loss of the batch XX001-0016, XX001-0017 is inf"):
        brain.test(sets[1]["test"], "a test")


def manifest(sets):
    _, _, folder = sets
    text = (folder / "save" / "test.csv").read_text()
    (folder / "m.csv").write_text(text)
    return folder / "m.csv", folder / "lj"


@pytest.mark.parametrize("run", [probe_manifest, sweep_manifest])
def test_no_manifest_gives_a_figure(run, sets, hubert_folder, bert_folder, monkeypatch):
    file, root = manifest(sets)
    options = {"grid": [0.9]} if run is sweep_manifest else {}
    forward = HubertCTC.forward

    def spoilt(self, wav, lens):
        log_probs, lens = forward(self, wav, lens)
        return torch.cat([log_probs[:1], log_probs[1:] * NAN]), lens

    monkeypatch.setattr(HubertCTC, "forward", spoilt)
    with pytest.raises(MAMError, match=r"infinite values for XX001-0017 \(of the batch XX001-0016"):
        run(str(hubert_folder), str(bert_folder), file, data_folder=root, batch_size=2, **options)


def test_only_what_is_heard_counts():
    outputs = torch.zeros(2, 4, 3)
    outputs[1, 2] = NAN
    check_outputs(outputs, ["a", "b"], torch.tensor([1.0, 0.5]))  # padding
    with pytest.raises(MAMError, match=r"values for b \(of the batch a, b\)"):
        check_outputs(outputs, ["a", "b"], torch.tensor([1.0, 0.75]))
    with pytest.raises(MAMError, match=r"values for b \(of the batch a, b\)"):
        check_outputs(outputs, ["a", "b"])


class Batch:
    id, fold = ("x", "y"), (1, 1)
    label = torch.tensor([0, 1])
    sig = torch.zeros(2, 4), torch.ones(2)

    def to(self, device):
        return self


@pytest.mark.parametrize("stage", [sb.Stage.VALID, sb.Stage.TEST])
def test_audio_events(stage):
    brain = AudioEvents(
        modules={"encoder": nn.Identity()},
        hparams={"classification_stats": sb.utils.metric_stats.ClassificationStats},
        run_opts={"device": "cpu"},
    )
    brain.class_names = ["dog", "rain"]
    brain.start_errors(details=True)
    with pytest.raises(MAMError, match=r"infinite values for y \(of the batch x, y\)"):
        brain.compute_objectives(torch.tensor([[-1.0, -2.0], [NAN, -1.0]]), Batch, stage)
    brain.modules.encoder.forward = lambda wavs, lens: (wavs[..., None] / 0, lens)
    brain.batches = lambda _: [Batch()]
    with pytest.raises(MAMError, match=r"infinite values for x, y"):
        brain.features(None)


@pytest.fixture()
def said(caplog):
    caplog.set_level(logging.WARNING)
    return lambda what: [r.getMessage() for r in caplog.records if what in r.getMessage()]


@pytest.mark.parametrize("bad", [1, 7])
def test_training_names_what_it_leaves_out(bad, brain, sets, said):
    """Of seven batches; SpeechBrain gives up at the fourth unless more patience is asked for."""
    _, found, _ = sets
    brain.nonfinite_patience = 100
    compute, left = brain.compute_objectives, [bad]

    def spoilt(predictions, batch, stage):
        loss = compute(predictions, batch, stage)
        if stage == sb.Stage.TRAIN and left[0] > 0:
            left[0] -= 1
            return 0 * loss + NAN  # its gradient is 0: the model stays sound
        return loss

    brain.compute_objectives = spoilt
    fit = partial(brain.fit, [1], found["train"], train_loader_kwargs=dict(LOADER))
    if bad == 7:
        with pytest.raises(
            MAMError, match=r"no batch of the epoch has a finite t.* \(7 have none\)"
        ):
            fit()
    else:
        fit()
        assert 0 < brain.train_stats["loss"] < 1e3
    lines = said("left out of the mean")
    assert len(lines) == bad
    assert lines[0].startswith("the training loss of the batch XX001-0000, XX001-0001 is nan: ")


def test_a_label_that_is_longer_than_its_recording_is_named_once(sets, brain, said):
    encoder, found, folder = sets
    header, first, *rest = (folder / "save" / "test.csv").read_text().splitlines()
    (folder / "long.csv").write_text("\n".join([header, first + " AAAA" * 20, *rest]))
    long = speech_dataset(folder / "long.csv", folder / "lj", encoder)
    for _ in range(2):
        brain.test(long, "a test")
    lines = said("more labels than frames")
    assert len(lines) == 1 and lines[0].endswith(": XX001-0016")
    brain.test(found["test"], "another")
    assert len(said("more labels than frames")) == 1


def test_repeated_letters_need_a_blank_between_them(sets, brain, said):
    encoder, _, folder = sets
    header, first, *_ = (folder / "save" / "test.csv").read_text().splitlines()
    item = speech_dataset(folder / "save" / "test.csv", folder / "lj", encoder)[0]
    frames = encoder(item["sig"][None])[0].shape[1]
    start, longest = first.rpartition(",")[0], (frames + 1) // 2
    for letters in (longest, longest + 1):
        (folder / "m.csv").write_text(f"{header}\n{start},{'A' * letters}\n")
        brain.test(speech_dataset(folder / "m.csv", folder / "lj", encoder), "a test")
        assert len(said("more labels than frames")) == letters - longest
