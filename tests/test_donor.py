"""Donors are read from disk, lazily, and never as code."""

import json
import pickle

import pytest
import torch
from conftest import save_bert
from transformers import BertModel

from speechbrain_mam import Donor, MAMError
from speechbrain_mam.model_files.find import WHEELS, resolve_model


def test_tensors_are_those_of_the_model(bert_folder):
    donor = Donor(bert_folder)
    model = BertModel.from_pretrained(bert_folder)
    attention = model.encoder.layer[2].attention.self
    assert torch.equal(donor.tensor((2, "key", "weight")), attention.key.weight)
    assert torch.equal(donor.tensor((2, "value", "bias")), attention.value.bias)


def test_sharded_and_bin_give_the_same(bert_folder, tmp_path):
    model = BertModel.from_pretrained(bert_folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    model.config.save_pretrained(tmp_path / "bin")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    whole = Donor(bert_folder)
    keys = list(whole.index.tensors)
    for name in ("sharded", "bin"):
        other = Donor(tmp_path / name)
        assert other.fingerprint(keys) == whole.fingerprint(keys)


def test_half_precision_is_widened_first(bert_folder, tmp_path):
    BertModel.from_pretrained(bert_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    tensor = Donor(tmp_path).tensor((0, "query", "weight"))
    assert tensor.dtype == torch.float32
    exact = Donor(bert_folder).tensor((0, "query", "weight"))
    assert torch.equal(tensor, exact.bfloat16().float())


def test_the_fingerprint_tells_donors_apart(bert_folder, tmp_path):
    keys = [(0, "query", "weight")]
    other = Donor(save_bert(tmp_path, seed=3))
    assert Donor(bert_folder).fingerprint(keys) != other.fingerprint(keys)


def test_a_pickle_that_runs_code_is_refused(bert_folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    (tmp_path / "config.json").write_bytes((bert_folder / "config.json").read_bytes())
    with (tmp_path / "pytorch_model.bin").open("wb") as stream:
        pickle.dump({"weight": Evil()}, stream)
    with pytest.raises(MAMError, match=r"pytorch_model\.bin"):
        Donor(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MAMError, match=r"holds pickled code and is not read\. Convert it"):
        Donor(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_broken_folders_are_named(bert_folder, tmp_path):
    with pytest.raises(MAMError, match=r"has no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MAMError, match=r"config\.json' is not valid JSON"):
        Donor(tmp_path)
    (tmp_path / "config.json").write_bytes((bert_folder / "config.json").read_bytes())
    with pytest.raises(MAMError, match=r"has no weights: expected model\.safetensors"):
        Donor(tmp_path)
    content = (bert_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(MAMError, match=r"model\.safetensors' is not a whole safetensors file"):
        Donor(tmp_path)


def test_a_config_without_heads_is_named(bert_folder, tmp_path):
    config = json.loads((bert_folder / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((bert_folder / "model.safetensors").read_bytes())
    with pytest.raises(MAMError, match="has no 'num_attention_heads'"):
        Donor(tmp_path)


def test_minilm_comes_out_of_the_wheel_without_a_network():
    donor = Donor("sentence-transformers/all-MiniLM-L6-v2")
    assert (donor.index.hidden_size, donor.index.num_layers, donor.index.heads) == (384, 6, 12)


def test_a_wheel_with_another_file_is_refused(monkeypatch):
    from dataclasses import replace

    name = "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setitem(WHEELS, name, replace(WHEELS[name], sha256="0" * 64))
    with pytest.raises(MAMError, match="is not the expected"):
        resolve_model(name)


def test_a_single_file_is_a_donor_and_no_folder(bert_folder, tmp_path):
    keys, file = [(0, "query", "weight")], bert_folder / "model.safetensors"
    assert Donor(file).fingerprint(keys) == Donor(bert_folder).fingerprint(keys)
    with pytest.raises(MAMError, match=r"model\.safetensors' is a single file, which only a donor"):
        resolve_model(file)
    (tmp_path / "bert.gguf").write_bytes(b"")
    with pytest.raises(MAMError, match=r"bert\.gguf' is a single file, expected one of \.safeten"):
        Donor(tmp_path / "bert.gguf")


def test_a_name_that_is_nowhere_says_what_was_tried():
    with pytest.raises(MAMError, match="neither in local folders, the Hugging Face cache"):
        resolve_model("nobody/no-such-model")
    with pytest.raises(MAMError, match="no such folder, and not a name on the Hugging Face Hub"):
        resolve_model("/no/such/folder")
