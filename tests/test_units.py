"""Labels of SentencePiece: pieces, the tokenizer of a run, and whole runs of the recipes with each.

The runs are of tiny random models on noise; each is trained, resumed, exported, and loaded where
this package cannot be imported.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPO, TOKENS, made_once, save_corpus, save_speech_model
from speechbrain.utils.checkpoints import Checkpointer
from test_export import check_same
from test_recipe import command, run

from speechbrain_mam import MAMError
from speechbrain_mam.cli import main
from speechbrain_mam.ctc.units import NOTE, attach, set_units
from speechbrain_mam.export import open_run
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.lobes.pieces import FILE, Pieces

TEXTS = ["A CAT", "THE DOG", "NO BIRD IS HERE", "IT'S A FINE DAY", "WE GO", "WHO IS IT"] * 4
LETTERS = CTCAlphabet({token: i for i, token in enumerate(TOKENS)})


def manifest(folder: Path, texts: list[str] = TEXTS) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerows(
            [("ID", "duration", "wav", "wrd"), *((i, 1, "x", t) for i, t in texts_of(texts))]
        )
    return folder


def texts_of(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"u{i}", text) for i, text in enumerate(texts)]


@pytest.fixture()
def encoder(hubert_folder) -> HubertCTC:
    return HubertCTC(hubert_folder)


def hparams(save: Path, encoder: HubertCTC, **keys) -> dict:
    return {"save_folder": str(save), "encoder": encoder, "number_of_epochs": 1, **keys}


@pytest.mark.parametrize(("units", "size"), [("char", None), ("unigram", 21), ("bpe", 40)])
def test_every_training_text_comes_back(units, size, tmp_path, encoder) -> None:
    set_units(hparams(manifest(tmp_path / "save"), encoder, units=units, vocab_size=size))
    pieces = encoder.alphabet
    assert isinstance(pieces, Pieces)
    characters = {c for text in TEXTS for c in text} - {" "}
    assert len(pieces.ids) == (size or len(characters) + 2) == encoder.model.lm_head.out_features
    assert encoder.model.config.pad_token_id == pieces.blank_index == 0
    for text in TEXTS:
        found = pieces.encode(text.lower())
        assert pieces.decode(found) == text and pieces.blank_index not in found
        assert pieces.decode([0, *found, 0]) == text, "a blank is no text"
    assert pieces.unseen("A QUIZ") == {"Q", "U", "Z"} and not pieces.unseen("A CAT")
    assert pieces.decode(pieces.encode("A QCAT")) == "A CAT"
    with pytest.raises(MAMError, match=r"'A 7' has \['7'\], which the model's alphabet lacks"):
        pieces.encode("A 7")


def test_the_pretrained_head_stays_and_comes_back(tmp_path, encoder) -> None:
    wav = torch.randn(1, 8000)
    encoder.eval()
    own, names = encoder(wav)[0], set(encoder.state_dict())
    before = encoder.alphabet
    set_units(hparams(tmp_path, encoder))
    assert encoder.alphabet is before and not list(tmp_path.iterdir())
    set_units(hparams(manifest(tmp_path / "save"), encoder, units="bpe", vocab_size=30))
    assert encoder(wav)[0].shape[-1] == 30 and set(encoder.state_dict()) == names
    with encoder.pretrained_head():
        assert torch.equal(encoder(wav)[0], own) and encoder.alphabet is before
    assert encoder(wav)[0].shape[-1] == 30 and isinstance(encoder.alphabet, Pieces)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"units": "word"}, r"key 'units': 'word' is not one of pretrained, char, unigram, bpe"),
        ({"units": "bpe", "vocab_size": None}, "key 'vocab_size': 'units: bpe' needs a number"),
        (
            {"units": "bpe", "vocab_size": 9000},
            r"key 'vocab_size': 9000 pieces are more than .* or",
        ),
        ({"units": "unigram", "vocab_size": 5}, r"'vocab_size': 5 pieces are fewer .* use \d+ or"),
        (
            {"units": "char", "trainable": "none"},
            "key 'trainable': 'none' would leave the new head",
        ),
        ({"units": "char", "number_of_epochs": 0}, "number_of_epochs 0 would leave it untrained"),
    ],
)
def test_units_that_cannot_be_had(keys, message, tmp_path, encoder) -> None:
    save = manifest(tmp_path / "save")
    with pytest.raises(MAMError, match=message):
        set_units(hparams(save, encoder, **keys))
    assert not (save / NOTE).exists() and encoder.own_alphabet
    set_units(hparams(save, encoder, units="bpe", vocab_size=40))  # nothing is left in the way


def test_a_folder_is_of_one_kind_of_labels(tmp_path, encoder) -> None:
    save = manifest(tmp_path / "save")
    set_units(hparams(save, encoder, units="bpe", vocab_size=40))
    bits = (save / "40_bpe.model").read_bytes()
    set_units(hparams(save, encoder, units="bpe", vocab_size=40))
    assert (save / "40_bpe.model").read_bytes() == bits
    for keys, named in (
        ({"units": "pretrained"}, "key 'units': .* holds a run with bpe, now it is pretrained"),
        ({"units": "char"}, "key 'units': .* holds a run with bpe, now it is char"),
        ({"units": "bpe", "vocab_size": 30}, "key 'vocab_size': .* with 40, now it is 30"),
    ):
        with pytest.raises(MAMError, match=named):
            set_units(hparams(save, encoder, **keys))
    plain = manifest(tmp_path / "plain")
    (plain / "CKPT+1").mkdir()
    set_units(hparams(plain, encoder))
    with pytest.raises(MAMError, match=r"key 'units': .* with pretrained, now it is bpe"):
        set_units(hparams(plain, encoder, units="bpe", vocab_size=40))


def test_a_tokenizer_that_was_changed_lost_or_damaged(tmp_path, hubert_folder, encoder) -> None:
    save = manifest(tmp_path / "save")
    checkpointer = Checkpointer(tmp_path / "checkpoints", {"encoder": encoder})
    keys = {"units": "bpe", "vocab_size": 40}
    set_units(hparams(save, encoder, checkpointer=checkpointer, **keys))
    saved = checkpointer.save_checkpoint()
    model = save / "40_bpe.model"
    assert saved.paramfiles["tokenizer"].read_bytes() == model.read_bytes()

    def load(folder: Path) -> None:
        fresh = HubertCTC(hubert_folder)
        again = Checkpointer(tmp_path / "checkpoints", {"encoder": fresh})
        attach(folder, fresh, again)
        again.recover_if_possible()

    load(save)
    other = manifest(tmp_path / "other", [text for text in TEXTS if "CAT" not in text] + ["A CD"])
    set_units(hparams(other, HubertCTC(hubert_folder), **keys))
    with pytest.raises(MAMError, match=r"is not the tokenizer that the checkpoint .* was trained"):
        load(other)
    whole = model.read_bytes()
    model.write_bytes((other / "40_bpe.model").read_bytes())
    with pytest.raises(MAMError, match=r"is not the tokenizer that 'units.json' beside it"):
        load(save)
    model.write_bytes(whole[:100])
    with pytest.raises(MAMError, match=r"40_bpe.model'"):
        load(save)
    model.unlink()
    with pytest.raises(MAMError, match=r"40_bpe.model': no such file; it holds the SentencePiece"):
        load(save)
    model.write_bytes(whole)
    load(save)


def test_a_model_whose_unknown_piece_is_no_blank(tmp_path) -> None:
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=40,
        model_type="bpe", unk_id=3, bos_id=0, eos_id=1, pad_id=2, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(MAMError, match=r"its unknown piece is label 3, expected label 0"):
        Pieces(tmp_path / "m.model", LETTERS)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, bert_folder) -> dict[str, str]:
    def make(folder: Path) -> None:
        from transformers import HubertForCTC

        model = save_speech_model(folder / "hubert")
        hubert = HubertForCTC.from_pretrained(model)
        with torch.no_grad():  # so that any head is sure of something, and not of blanks alone
            hubert.hubert.encoder.layers[-1].final_layer_norm.weight *= 9
        hubert.save_pretrained(model)
        save_corpus(folder / "corpus", utterances=25)

    folder = made_once(tmp_path_factory, "units_speech", make)
    return {
        "data_folder": str(folder / "corpus"),
        "speech_model": str(folder / "hubert"),
        "donor_model": str(bert_folder),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("units", "size", "decoding"),
    [("char", "40", "greedy"), ("unigram", "20", "beam"), ("bpe", "40", "beam_lm")],
)
def test_trained_resumed_exported_and_transcribing(units, size, decoding, parts, tmp_path) -> None:
    if decoding == "beam_lm":
        pytest.importorskip("kenlm")
        arpa = tmp_path / "texts.arpa"
        texts = manifest(tmp_path / "texts") / "train.csv"
        from tools.embedded.ngram import main as build

        build([str(texts), "--out", str(arpa)])
        parts = parts | {"kenlm_model_path": str(arpa)}
    out = tmp_path / "run"
    beams = "{beam_size: 4, token_prune_min_logp: -3.0}"  # an untrained head is sure of nothing
    keys = {"units": units, "vocab_size": size, "test_decoding": decoding}
    keys |= {"test_beam_search": beams, "lr": "0.000001", "number_of_epochs": "1"}
    run(command("mam_learnable", parts, out, **keys))
    results = json.loads((out / "results.json").read_text())
    assert set(results["results"]) == {"untouched", "mam_learnable"}
    assert results.get("decoding", {"name": "greedy"})["name"] == decoding
    note = json.loads((out / "environment.json").read_text())
    assert note["tokenizer_sha256"] == json.loads((out / "save" / NOTE).read_text())["sha256"]
    # It goes on, and no other labels are taken for these
    run(command("mam_learnable", parts, out, **keys | {"number_of_epochs": "2"}))
    log = (out / "train_log.txt").read_text()
    assert log.count("epoch: 1,") == 1 and "epoch: 2," in log
    assert (next((out / "save").glob("CKPT*")) / "tokenizer.ckpt").is_file()
    if units == "char":
        before = (out / "hyperparams.yaml").read_bytes()
        done = run(command("mam_learnable", parts, out, **keys | {"units": "bpe"}), check=False)
        assert done.returncode == 2 and (out / "hyperparams.yaml").read_bytes() == before
        assert f"key 'units': '{out}/save' holds a run with char, now it is bpe" in done.stdout
    # What another environment writes is what the run wrote
    assert main(["export", str(out), "--out", str(tmp_path / "exported")]) == 0
    card = (tmp_path / "exported" / "speechbrain" / "README.md").read_text()
    assert f"pieces of SentencePiece (`{units}`)" in card
    check_units_elsewhere(out, tmp_path, decoding)


def check_units_elsewhere(out: Path, tmp_path: Path, decoding: str) -> None:
    exported = tmp_path / "exported"
    if decoding == "greedy":
        check_same(out, exported, ("ctc", "asr"), tmp_path)
        return
    # transformers decodes greedily: those are the figures of its card
    file = out / "utterances_mam_learnable.json"
    content = json.loads(file.read_text())
    rows = content["utterances"]
    assert set(next(iter(rows.values()))["decoders"]) >= {"greedy"}
    greedy = tmp_path / "greedy"
    shutil.copytree(out, greedy)
    for row in rows.values():
        row["hyp"] = row["decoders"]["greedy"]["hyp"]
    (greedy / file.name).write_text(json.dumps(content))
    for run_folder, form, kind in ((greedy, "hf", "ctc"), (out, "speechbrain", "asr")):
        check_form(run_folder, exported / form, kind, tmp_path)


def check_form(run_folder: Path, folder: Path, kind: str, scratch: Path) -> None:
    from test_export import elsewhere, recorded

    moved = folder.rename(folder.with_name(f"{folder.name}_moved"))
    expected, files = recorded(run_folder)
    first = dict(list(files.items())[:1])
    jobs = [(kind, str(moved), files), ("card", str(moved), first)]
    for (_, _, asked), found in zip(jobs, elsewhere(jobs, scratch), strict=True):
        words = {name: text.split() for name, text in found.items()}
        assert words == {name: expected[name].split() for name in asked}, kind


@pytest.mark.slow
def test_an_exported_recogniser_is_a_target_again(parts, tmp_path) -> None:
    """Its pieces are its own alphabet then, and a zero-shot merge needs no training."""
    out = tmp_path / "run"
    run(command("finetune", parts, out, units="bpe", vocab_size="40", lr="0.000001"))
    assert main(["export", str(out), "--out", str(tmp_path / "hf"), "--format", "hf"]) == 0
    again = HubertCTC(tmp_path / "hf").eval()
    wav = torch.randn(1, 8000)
    before = open_run(out).encoder
    assert isinstance(again.alphabet, Pieces) and again.own_alphabet
    torch.testing.assert_close(again(wav)[0], before(wav)[0])
    assert again.alphabet.spell("The cat?") == "THE CAT"
    zero = tmp_path / "zero"
    swapped = parts | {"speech_model": str(tmp_path / "hf")}
    run(command("mam_zeroshot", swapped, zero, search="False", lam="1"))
    found = json.loads((zero / "results.json").read_text())["results"]
    trained = json.loads((out / "results.json").read_text())["results"]
    assert found["untouched"]["WER"] == pytest.approx(trained["finetune"]["WER"])
    assert main(["export", str(zero), "--out", str(tmp_path / "again"), "--format", "hf"]) == 0
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "hf" / FILE).read_bytes()
    (tmp_path / "hf" / FILE).write_bytes(b"half")
    with pytest.raises(MAMError, match=r"is no SentencePiece model"):
        HubertCTC(tmp_path / "hf")


@pytest.mark.slow
def test_vctk_on_two_ranks(tmp_path, bert_folder, hubert_folder) -> None:
    """One rank trains the tokenizer; both have the same head."""
    out = tmp_path / "out"
    arguments = [
        *(str(REPO / "hparams" / "mam_learnable.yaml"), "--debug", "--output_folder", str(out)),
        *("--speech_model", str(hubert_folder), "--donor_model", str(bert_folder)),
        *("--units", "unigram", "--vocab_size", "60", "--test_decoding", "beam"),
        *("--test_beam_search", "{beam_size: 4, token_prune_min_logp: -3.0}"),
        *("--device", "cpu", "--distributed_backend", "gloo"),
    ]
    run(arguments, ranks=2, script=(str(REPO / "recipes" / "VCTK" / "train.py"),))
    assert json.loads((out / "save" / NOTE).read_text())["units"] == "unigram"
    found = json.loads((out / "results.json").read_text())["results"]["mam_learnable"]
    assert {"WER", "WER greedy", "CER greedy"} <= set(found)
