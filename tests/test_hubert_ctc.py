"""The HuBERT-CTC lobe: alphabet, masks, normalisation, what trains."""

import json

import pytest
import torch
from conftest import FAMILIES, TOKENS, save_speech_model
from transformers import AutoFeatureExtractor, AutoModelForCTC

from speechbrain_mam import MAMError
from speechbrain_mam.lobes.hubert_ctc import CTCAlphabet, HubertCTC

ALPHABET = CTCAlphabet({token: i for i, token in enumerate(TOKENS)})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_log_probabilities_are_transformers_own(family, tmp_path):
    folder = save_speech_model(tmp_path, family)
    wavs = [torch.randn(8000), torch.randn(5000)]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lobe = HubertCTC(folder).eval()
    log_probs, lens = lobe(batch, torch.tensor([1.0, 5000 / 8000]))

    model = AutoModelForCTC.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(
        [w.numpy() for w in wavs], sampling_rate=16000, padding=True, return_tensors="pt"
    )
    expected = model(**inputs).logits.log_softmax(-1)
    frames = model._get_feat_extract_output_lengths(torch.tensor([8000, 5000]))
    for i in range(2):
        torch.testing.assert_close(
            log_probs[i, : frames[i]], expected[i, : frames[i]], atol=1e-4, rtol=1e-4
        )
    assert (lens * log_probs.shape[1]).round().long().tolist() == frames.tolist()


def test_padding_changes_nothing(hubert_folder):
    lobe, wav = HubertCTC(hubert_folder).eval(), torch.randn(1, 6400)
    alone, _ = lobe(wav)
    padded, _ = lobe(torch.nn.functional.pad(wav, (0, 6400)), torch.tensor([0.5]))
    torch.testing.assert_close(padded[:, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)


def test_what_trains(hubert_folder):
    def trained(**options):
        lobe = HubertCTC(hubert_folder, **options).train()
        log_probs, _ = lobe(torch.randn(1, 8000))
        if not log_probs.requires_grad:
            return set()
        log_probs.sum().backward()
        with_grad = {n for n, p in lobe.named_parameters() if p.grad is not None}
        assert with_grad == {n for n, p in lobe.named_parameters() if p.requires_grad}  # DDP waits
        return {
            name.split(".")[2] if "hubert" in name else name.split(".")[1] for name in with_grad
        }

    assert trained() == {"feature_projection", "encoder", "lm_head"}
    assert trained(freeze_feature_extractor=False) == {
        "feature_extractor",
        "feature_projection",
        "encoder",
        "lm_head",
    }
    assert trained(trainable="head") == {"lm_head"}
    assert trained(trainable="none") == set()
    with pytest.raises(MAMError, match="key 'trainable': 'some'"):
        HubertCTC(hubert_folder, trainable="some")


def test_the_weights_are_float32_whatever_the_file_holds(hubert_folder, tmp_path):
    folder = save_speech_model(tmp_path)
    AutoModelForCTC.from_pretrained(folder).half().save_pretrained(folder)
    assert {p.dtype for p in HubertCTC(folder).parameters()} == {torch.float32}


def test_a_new_alphabet_makes_a_new_head(hubert_folder):
    lobe = HubertCTC(hubert_folder, new_alphabet="abcé ")
    assert lobe.alphabet.encode("Bé a") == [3, 5, 1, 2]
    assert lobe(torch.randn(1, 4000))[0].shape[2] == 6


def test_alphabet():
    text = "IT'S A DAY"
    assert ALPHABET.decode(ALPHABET.encode(text)) == text
    assert ALPHABET.decode([0, 4, 4, 5, 3, 4]) == "A"
    assert ALPHABET.unknown("naïve 2") == {"Ï", "2"}
    lower = CTCAlphabet({"<pad>": 0, "|": 1, "a": 2})
    assert lower.encode("A") == [2]
    with pytest.raises(MAMError, match=r"has no token '\|'"):
        CTCAlphabet({"<pad>": 0, "a": 1})


def test_a_vocabulary_that_does_not_fit(tmp_path):
    folder = save_speech_model(tmp_path)
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "A": 99}))
    with pytest.raises(MAMError, match=r"has the index 99, the CTC head only 32 labels"):
        HubertCTC(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(MAMError, match=r"vocab\.json': no such file"):
        HubertCTC(folder)
