"""The packaged HuBERT-mini: its files, and that it recognises speech it has not heard."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import HubertForCTC, Wav2Vec2Processor

from speechbrain_mam.embedded.corpora import hubert_mini, mini_corpus
from tools.embedded.evaluate_hubert_mini import error_rates, read_corpus
from tools.embedded.hubert_mini_model import (
    VOCABULARY,
    export,
    make_model,
    normalise,
    transcribe,
)


@pytest.fixture(scope="module")
def model() -> HubertForCTC:
    return HubertForCTC.from_pretrained(hubert_mini()).eval()


def test_weights_are_small_and_half_precision():
    path = hubert_mini() / "model.safetensors"
    assert path.stat().st_size <= 30e6
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_folder_loads_in_single_precision(model):
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.hidden_size == 384
    assert model.config.vocab_size == len(VOCABULARY) == 32
    processor = Wav2Vec2Processor.from_pretrained(hubert_mini())
    assert processor.feature_extractor.do_normalize
    assert processor.feature_extractor.return_attention_mask
    assert processor.tokenizer.convert_tokens_to_ids("<pad>") == 0
    assert processor.tokenizer("A B'").input_ids == [5, 4, 6, 31]


def test_processor_hears_what_transcribe_hears(model):
    import soundfile

    processor = Wav2Vec2Processor.from_pretrained(hubert_mini())
    path, _ = read_corpus(mini_corpus())[0]
    wave, rate_hz = soundfile.read(path, dtype="float32")
    inputs = processor(wave, sampling_rate=rate_hz, return_tensors="pt")
    with torch.no_grad():
        labels = model(**inputs).logits.argmax(-1)
    assert processor.batch_decode(labels) == [transcribe(model, wave)]


@pytest.mark.slow
def test_word_error_rate_on_the_mini_corpus(model):
    """A third of the test part, about 10 s on two cores."""
    wer, _ = error_rates(model, read_corpus(mini_corpus())[::3])
    assert 5 <= wer <= 45


def test_padding_does_not_change_the_frames(model):
    torch.manual_seed(0)
    wave = torch.randn(1, 16000)
    alone, mask = normalise(wave, torch.ones(1))
    padded = torch.nn.functional.pad(wave, (0, 8000))
    batch, batch_mask = normalise(padded, torch.tensor([16000 / 24000]))
    with torch.no_grad():
        one = model(alone, attention_mask=mask).logits
        two = model(batch, attention_mask=batch_mask).logits[:, : one.shape[1]]
    torch.testing.assert_close(one, two, atol=2e-3, rtol=1e-3)


def test_export_writes_a_folder_that_loads(tmp_path):
    small = make_model("scratch")
    small.config.mask_time_prob = 0.0  # a training without masks; the folder has them all the same
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("a card")
    export(small, tmp_path / "model")
    loaded = HubertForCTC.from_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "a card"
    assert json.loads((tmp_path / "model" / "vocab.json").read_text())["<pad>"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert loaded.config.mask_time_prob > 0
    torch.testing.assert_close(
        loaded.hubert.masked_spec_embed, small.hubert.masked_spec_embed, atol=1e-3, rtol=1e-2
    )
    torch.testing.assert_close(loaded.lm_head.weight, small.lm_head.weight, atol=1e-3, rtol=1e-2)


def test_unknown_geometry():
    with pytest.raises(ValueError, match="whisper, scratch"):
        make_model("large")
