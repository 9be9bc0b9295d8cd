"""The files that the cases start from: tiny models, corpora and runs, made once."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from speechbrain_mam.lobes.alphabet import CTCAlphabet

TESTS = Path(__file__).resolve().parent.parent
REPO = TESTS.parent
for place in (TESTS, *(REPO / "recipes" / name for name in ("LJSpeech", "VCTK", "ESC50"))):
    if str(place) not in sys.path:
        sys.path.append(str(place))

ALPHABET = CTCAlphabet({t: i for i, t in enumerate(["<pad>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])})


def _of(module: str):
    """A module of the tests, imported when it is needed: some bring a library of their own."""
    return importlib.import_module(module)


def models(folder: Path) -> None:
    """A recogniser and a text model, each a folder."""
    _of("tiny_models").save_speech_model(folder / "target")
    _of("tiny_models").save_bert(folder / "donor")


def shards(folder: Path) -> None:
    """The recogniser's weights in several files, with their index."""
    models(folder)
    model = _of("tiny_models").build_speech_model()
    (folder / "target" / "model.safetensors").unlink()
    model.save_pretrained(folder / "target", max_shard_size="12kB")


def pickled(folder: Path) -> None:
    """The text model's weights in a ``pytorch_model.bin``."""
    models(folder)
    file = folder / "donor" / "model.safetensors"
    tensors = _of("safetensors.torch").load_file(file)
    file.unlink()
    torch.save(tensors, folder / "donor" / "pytorch_model.bin")


def vision(folder: Path) -> None:
    """A donor in an ONNX file."""
    _of("tiny_models").save_speech_model(folder / "target")
    (folder / "donor").mkdir()
    _of("test_vit_donors").save_onnx(folder / "donor" / "vit.onnx")


def sounds(folder: Path) -> None:
    """A donor, or a target, in a BEATs checkpoint."""
    _of("tiny_models").save_speech_model(folder / "target")
    (folder / "donor").mkdir()
    _of("tiny_beats").save_beats(folder / "donor" / "beats.pt")


def converted(folder: Path) -> None:
    """A donor in a CTranslate2 file, of integers with their scales."""
    tests = _of("test_ctranslate2_file")
    narrow = {"hidden_size": 8, "intermediate_size": 8}
    _of("tiny_models").save_speech_model(folder / "target", **narrow)
    tests.save_whisper(folder / "donor", tests.whisper(), "int8")


def tokens(folder: Path) -> None:
    """A recogniser with all that says how its labels are written and its input looks."""
    models(folder)
    shutil.rmtree(folder / "donor")
    target, names = folder / "target", {"unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "word_delimiter_token": "|",
        "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}},
        **names,
    }
    contents = {
        "tokenizer_config.json": tokenizer,
        "special_tokens_map.json": {**names, "bos_token": {"content": "<s>"}},
        "added_tokens.json": {"<s>": 1},
    }
    for name, content in contents.items():
        (target / name).write_text(json.dumps(content), encoding="utf-8")


def speech(folder: Path) -> None:
    """Recogniser, text model, four utterances and their manifest, as a preparation leaves it."""
    models(folder)
    _of("tiny_models").save_corpus(folder / "corpus", utterances=4)
    rows = [
        {"ID": f"u{i}", "duration": "0.5", "wav": f"$data_root/wavs/XX001-{i:04d}.wav",
         "wrd": "A CAT"}
        for i in range(4)
    ]  # fmt: skip
    with (folder / "speech.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    note = {"data_folder": "corpus", "identity": "x"}
    (folder / "prepared.json").write_text(json.dumps(note), encoding="utf-8")


def ljspeech(folder: Path) -> None:
    """A corpus in LJ Speech's layout."""
    _of("tiny_models").save_corpus(folder / "corpus", utterances=24)


def vctk(folder: Path) -> None:
    """A corpus in VCTK's layout."""
    _of("test_vctk_prepare").save_vctk(folder / "corpus")


def esc50(folder: Path) -> None:
    """A corpus in ESC-50's layout."""
    _of("test_esc50_prepare").save_esc50(folder / "corpus", takes=1)


def runs(folder: Path) -> None:
    """Finished runs with everything that a report reads."""
    _of("made_up_runs").write_experiment(folder, n=8, seeds=(1,))


def exported(folder: Path) -> None:
    """A finished run of the recipe for LJ Speech, and the models that it is made of."""
    models(folder)
    _of("tiny_models").save_corpus(folder / "corpus", utterances=25)
    recipe = _of("test_recipe")
    parts = {"data_folder": str(folder / "corpus"), "speech_model": str(folder / "target"),
             "donor_model": str(folder / "donor")}  # fmt: skip
    recipe.run(recipe.command("mam_learnable", parts, folder / "run", number_of_epochs="1"))
    shutil.rmtree(folder / "corpus")


def yamls(folder: Path) -> None:
    """The recipe's YAML and the models that it names."""
    ljspeech(folder)
    models(folder)
    shutil.copytree(REPO / "hparams", folder / "hparams")


Maker = Callable[[Path], None]


def language(folder: Path) -> None:
    """A tokenizer of SentencePiece and an n-gram."""
    import sentencepiece

    text = folder / "text.txt"
    text.write_text("\n".join(["A CAT IS HERE", "THE DOG IS NOT", "WHO SEES A BIRD"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "pieces"), vocab_size=24, model_type="bpe",
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    lines = ["-0.5\tA", "-0.7\tCAT", "-0.9\tDOG", "-1.2\t</s>", "-99\t<s>\t-0.3", "-2\t<unk>"]
    pairs = ["-0.2\t<s> A", "-0.4\tA CAT"]
    arpa = ["", "\\data\\", f"ngram 1={len(lines)}", f"ngram 2={len(pairs)}", "", "\\1-grams:",
            *lines, "", "\\2-grams:", *pairs, "", "\\end\\", ""]  # fmt: skip
    (folder / "words.arpa").write_text("\n".join(arpa))
