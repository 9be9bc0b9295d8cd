"""Files that anybody may have written: one line for each way in which they are wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from speechbrain_mam import MAMError
from speechbrain_mam.cli import main
from speechbrain_mam.model_files.read import load_checkpoint
from speechbrain_mam.tasks.audio import load_audio
from speechbrain_mam.text_files import read_json, read_table, read_text

JSON = {
    "another encoding": ('{"a": "é"}'.encode("utf-16"), "is not UTF-8 text"),
    "cut": (b'{"a": [1', "is not valid JSON"),
    "4,400 digits": (b'{"a": ' + b"9" * 4400 + b"}", "is not valid JSON: Exceeds the limit"),
    "deep": (b'{"a": ' + b"[" * 20_000, "is not valid JSON: maximum recursion depth"),
    "a list": (b"[1]", "expected a JSON object, found list"),
}


@pytest.mark.parametrize("kind", JSON)
def test_json(kind, tmp_path):
    content, message = JSON[kind]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MAMError, match=rf"a\.json'.* {message}|a\.json': {message}"):
        read_json(tmp_path / "a.json")


def test_no_file(tmp_path):
    (tmp_path / "a").write_text("")
    for file in (tmp_path / "none.json", tmp_path / "a" / "b.json"):
        with pytest.raises(MAMError, match=rf"{file.name}': no such file"):
            read_text(file)


def test_a_table(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'epoch,"layer\n0"\r\n0,0.5\r\n')
    assert read_table(file) == [{"epoch": "0", "layer\n0": "0.5"}]
    wrong = {
        b"a,b\n1\n": r"line 2: expected 2 fields",
        b"a,b\n1,2,3\n": r"line 2: expected 2 fields",
        b"a,b\n" + b"1" * 200_000: r"is not a CSV table: field larger than",
        "λ\n1\n".encode("utf-16"): r"is not UTF-8 text",
    }
    for content, message in wrong.items():
        file.write_bytes(content)
        with pytest.raises(MAMError, match=rf"a\.csv'.* ?{message}"):
            read_table(file)


@pytest.mark.parametrize("stream", [b"\x80\x02cos\xff\n", b"\x80\x02a", b"\x80\x02h\7."])
def test_a_spoiled_pickle(stream, tmp_path):
    """Each leads torch's unpickler to an exception of its own."""
    (tmp_path / "a.bin").write_bytes(stream)
    with pytest.raises(MAMError, match=r"^'.*a\.bin' (is not a whole PyTorch|holds pickled code)"):
        load_checkpoint(tmp_path / "a.bin", "x")


@pytest.mark.parametrize("content", [b"ID3", b"RIFF", b"", b"fLaC" + bytes(40)])
def test_what_is_no_audio(content, tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(content)
    with pytest.raises(MAMError, match=r"^utterance u: '.*a\.wav' is not readable audio: \S+"):
        load_audio(str(file), 16000, "utterance u")


def test_a_line_is_one_and_no_longer_than_can_be_read(capsys, hubert_folder):
    argument = "a" * 9000 + "\nb"
    assert main(["plan", str(hubert_folder), str(hubert_folder), argument]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 1700 and " … " in line and line.startswith("speechbrain-mam: error: unrec")


WRONG_YAMLS = {
    "width: !apply:math.sqrt [-1]": "cannot be loaded: .*math domain error",
    "width: !new:nothing.at.all": "cannot be loaded: .*nothing",
    "width: " + "[" * 500: "cannot be loaded: .*recursion",
    "width: \x01": "cannot be loaded: .*special characters",
    "width: 'λ": "line 1: found unexpected end of stream",
}


@pytest.mark.parametrize("text", WRONG_YAMLS, ids=list(WRONG_YAMLS.values()))
def test_yaml(text, tmp_path):
    from speechbrain_mam.runs.yaml_files import load_yaml

    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MAMError, match=rf"a\.yaml'.* ?{WRONG_YAMLS[text]}"):
        load_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("width: λ", encoding="utf-16")
    with pytest.raises(MAMError, match=r"a\.yaml' is not UTF-8 text"):
        load_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("entry", [{"<x>": "a"}, {"<x>": [1]}, {"<x>": -1}, {"<x>": True}])
def test_an_added_token_has_an_index(entry, tmp_path):
    from speechbrain_mam.lobes.ctc_folder import _added_tokens

    (tmp_path / "added_tokens.json").write_text(json.dumps(entry))
    with pytest.raises(MAMError, match=r"added_tokens\.json': the index of '<x>' is .*, expected"):
        _added_tokens(tmp_path, {})


@pytest.mark.parametrize("decoder", [[], {"0": []}, {"0": {"content": 1}}, {"a": {"content": "b"}}])
def test_a_decoder_of_added_tokens_has_contents(decoder, tmp_path):
    from speechbrain_mam.lobes.ctc_folder import _added_tokens

    with pytest.raises(MAMError, match=r"tokenizer_config\.json'"):
        _added_tokens(tmp_path, {"added_tokens_decoder": decoder})


@pytest.mark.parametrize("to", [torch.Tensor.to_sparse, lambda tensor: tensor.to("meta")])
def test_a_beats_of_tensors_without_their_values(to, tmp_path):
    from tiny_beats import CFG, tiny_state

    from speechbrain_mam.lobes.beats import BEATsEncoder

    state = tiny_state()
    name = next(n for n in state if n.endswith("q_proj.weight"))
    state[name] = to(state[name])
    torch.save({"cfg": CFG, "model": state}, tmp_path / "a.pt")
    with pytest.raises(MAMError, match=rf"a\.pt': its 'model': '{re.escape(name)}' is stored"):
        BEATsEncoder(tmp_path / "a.pt")


def test_an_onnx_file_of_names_that_are_none(tmp_path):
    from test_vit_donors import save_onnx

    from speechbrain_mam import Donor

    file: Path = tmp_path / "vit.onnx"
    save_onnx(file)
    file.write_bytes(file.read_bytes().replace(b"/query/MatMul", b"/qu\xffry/MatMul"))
    with pytest.raises(MAMError, match=r"vit\.onnx' is not a whole ONNX file"):
        Donor(file)


def test_a_ctranslate2_file_of_too_many_axes(tmp_path):
    import struct

    from test_ctranslate2_file import name

    from speechbrain_mam.model_files.ctranslate2_file import read_model

    head = struct.pack("<I", 6) + name("TestSpec") + struct.pack("<II", 3, 1)
    axes = struct.pack("<B", 70) + struct.pack("<I", 1) * 70
    content = head + name("w") + axes + struct.pack("<BI", 0, 4) + bytes(4) + bytes(4)
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(MAMError, match=r"model\.bin: variable 'w' has 70 axes"):
        read_model(tmp_path / "model.bin")


def test_figures_that_are_none(tmp_path):
    from made_up_runs import TestSet, write_run, write_sweep

    from speechbrain_mam.results.runs import read_run

    test_set = TestSet(4)
    run = write_run(tmp_path / "run", {"finetune": test_set.utterances(0.5, 1)})
    write_sweep(run, test_set)
    sweep, results = run / "sweep.json", run / "results.json"
    wrong = [
        (sweep, '"words": [', '"words": [null, ', r"'words': None is no number of errors"),
        (sweep, '"errors": [', '"errors": ["7", ', r"'errors': '7' is no number of errors"),
        (sweep, '"errors": [', f'"errors": [{10**30}, ', r"'errors': 1000.* is no number"),
        (sweep, '"lam": 0.8', '"lam": NaN', r"field 'lam' is nan, expected a finite number"),
        (results, '"WER": ', f'"WER": {10**400}, "x": ', r"'WER' is 1000.*, expected a finite"),
    ]
    for file, old, new, message in wrong:
        text = file.read_text()
        changed = text.replace(old, new, 1)
        if "[" in old:  # one more is one less behind it
            head, _, tail = changed.partition(new)
            changed = head + new + tail.partition(",")[2].lstrip()
        file.write_text(changed)
        with pytest.raises(MAMError, match=rf"{file.name}'.*{message}"):
            read_run(run)
        file.write_text(text)
    read_run(run)
