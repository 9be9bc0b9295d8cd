"""CTC recognisers as people save them: against transformers' own model and tokenizer."""

import json
import logging

import numpy as np
import pytest
import torch
import transformers
from conftest import TOKENS, build_speech_model, save_speech_model
from safetensors.torch import load_file, save_file
from speechbrain.dataio.encoder import CTCTextEncoder
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from speechbrain_mam import MAMError
from speechbrain_mam.export.speech import write_huggingface, write_speechbrain
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.lobes.ctc_folder import read_alphabet
from speechbrain_mam.lobes.hubert_ctc import HubertCTC

SMALL = "abcdefghijklmnopqrstuvwxyz'"
WEIGHTS = "model.safetensors"


def vocabulary(letters, *special):
    return {x: i for i, x in enumerate([*letters, *special])}


def save(folder, ids, size=None, pad=None, tokenizer=None, family="wav2vec2", **overrides):
    """A folder of a random model whose tokenizer is transformers', or that has none."""
    overrides |= {"vocab_size": size or len(ids)} | ({} if pad is None else {"pad_token_id": pad})
    save_speech_model(folder, family, **overrides)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    if tokenizer is not None:
        Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **tokenizer).save_pretrained(folder)
    return folder


def bracketed(folder):
    """As the notebooks on fine-tuning XLS-R write it: the tokenizer adds <s> and </s>."""
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|"}
    return save(folder, vocabulary(SMALL, "|", "[UNK]", "[PAD]"), 32, 29, names)


def forgotten_names(folder):
    """[PAD] in the vocabulary, but a tokenizer that was not told so, and adds its own <pad>."""
    ids = vocabulary(SMALL, "|")
    save(folder, ids, 32, 0, {})
    blank = Wav2Vec2CTCTokenizer.from_pretrained(folder).pad_token_id
    edit(folder, "config.json", pad_token_id=blank)
    return folder


def wider_head(folder):
    return save(folder, vocabulary(SMALL, "|", "<unk>", "<pad>"), 40, 29, {})


def no_tokenizer_files(folder):
    return save(folder, vocabulary(SMALL, "|", "[UNK]", "[PAD]"), pad=29)


def blank_of_one_character(folder):
    names = {"unk_token": "#", "pad_token": "_", "bos_token": None, "eos_token": None}
    return save(folder, vocabulary("_", *SMALL, "|", "#"), pad=0, tokenizer=names)


def other_delimiter(folder):
    names = {"word_delimiter_token": "▁"}
    return save(folder, vocabulary(["<pad>", "<unk>", "▁", *SMALL]), 31, 0, names)


def one_language(folder):
    return save(folder, {"eng": vocabulary(["<pad>", "|", "<unk>", *SMALL])}, 30, 0)


def two_languages(folder):
    save(folder, vocabulary(["<pad>", "|", "<unk>", *SMALL]), 30, 0)
    others = {"eng": vocabulary(["<pad>", "|", "<unk>", *SMALL[::-1]])}
    others["fra"] = vocabulary(["<pad>", "|", "<unk>", *SMALL[:-1], "é"])
    (folder / "vocab.json").write_text(json.dumps(others), encoding="utf-8")
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang="fra")
    tokenizer.save_pretrained(folder)
    return folder


def digraphs(folder):
    return save(
        folder, vocabulary(["<pad>", "|", "<unk>", *SMALL, "ch", "ll"]), pad=0, tokenizer={}
    )


def added_letters(folder):
    """é and ñ, which somebody added to the tokenizer of an English recogniser."""
    save(folder, vocabulary(["<pad>", "|", "<unk>", "<s>", "</s>", *SMALL]), 34, 0, {})
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["é", "ñ"])
    tokenizer.save_pretrained(folder)
    return folder


FOLDERS = [
    *(bracketed, forgotten_names, wider_head, no_tokenizer_files, blank_of_one_character),
    *(other_delimiter, one_language, two_languages, digraphs, added_letters),
]


def their_tokenizer(folder):
    """transformers' own; where the folder does not say the names, they are given."""
    file = folder / "tokenizer_config.json"
    if file.is_file():
        # transformers 5 forgets the delimiter that it wrote
        delimiter = json.loads(file.read_text(encoding="utf-8"))["word_delimiter_token"]
        if delimiter != "|":
            return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), word_delimiter_token=delimiter)
        return Wav2Vec2CTCTokenizer.from_pretrained(folder)
    ids = json.loads((folder / "vocab.json").read_text())
    if "eng" in ids:
        return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang="eng")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **names)


@pytest.mark.slow
@pytest.mark.parametrize("make", FOLDERS)
def test_the_alphabet_is_transformers_own(make, tmp_path):
    folder = make(tmp_path / "model")
    lobe, tokenizer = HubertCTC(folder, trainable="none").eval(), their_tokenizer(folder)
    assert lobe.alphabet.blank_index == lobe.model.config.pad_token_id == tokenizer.pad_token_id
    # Within words: around a digraph, transformers loses the space
    text = "hello achoco ballo it's" if "é" not in lobe.alphabet.letters else "hello achoco été"
    assert lobe.alphabet.encode(lobe.alphabet.spell(text.upper())) == tokenizer(text).input_ids
    # Any sequence of the head's labels: theirs without the special ones and those without a name
    size = lobe.model.config.vocab_size
    for row in torch.randint(0, size, (20, 30), generator=torch.Generator().manual_seed(0)):
        labels = row[row != lobe.alphabet.blank_index]
        collapsed = [a for a, b in zip(labels, [None, *labels[:-1]], strict=True) if a != b]
        known = [i for i in map(int, collapsed) if i in lobe.alphabet.ids.values()]
        theirs = tokenizer.decode(known, skip_special_tokens=True, group_tokens=False)
        assert lobe.alphabet.decode(list(map(int, collapsed))) == " ".join(theirs.split())
    log_probs, _ = lobe(torch.randn(1, 4000))
    assert log_probs.shape[2] == size
    assert ("é" in lobe.alphabet.letters) == (make in (two_languages, added_letters))


@pytest.mark.parametrize("value", ["#", {"content": "#", "lstrip": False}])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_names_in_either_file(file, value, tmp_path):
    save(tmp_path, vocabulary("#_", SMALL[0], "|"), pad=1)
    edit(tmp_path, file, unk_token=value, pad_token="_")
    found = HubertCTC(tmp_path).alphabet
    assert (found.blank, found.letters, found.decode([0, 2, 3, 0, 2])) == ("_", {"a"}, "a a")


def test_a_new_alphabet_has_its_own_blank(tmp_path):
    lobe = HubertCTC(bracketed(tmp_path), new_alphabet="ab c")
    assert lobe.alphabet.blank_index == lobe.model.config.pad_token_id == 0


def edit(folder, name, **changes):
    file = folder / name
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def another_blank(folder):
    edit(bracketed(folder), "config.json", pad_token_id=0)


def blank_without_a_name(folder):
    edit(bracketed(folder), "config.json", pad_token_id=31)
    (folder / "added_tokens.json").unlink(missing_ok=True)
    edit(folder, "tokenizer_config.json", added_tokens_decoder={})


def no_language(folder):
    edit(two_languages(folder), "tokenizer_config.json", target_lang=None)


def unknown_language(folder):
    edit(two_languages(folder), "tokenizer_config.json", target_lang="deu")


def phonemes(folder):
    edit(bracketed(folder), "tokenizer_config.json", tokenizer_class="Wav2Vec2PhonemeCTCTokenizer")


def one_index_twice(folder):
    save(folder, {"<pad>": 0, "|": 1, "a": 2, "b": 2}, 4, 0)


def a_word_for_an_index(folder):
    save(folder, {"<pad>": 0, "|": 1, "a": "2"}, 4, 0)


def no_delimiter(folder):
    save(folder, {"<pad>": 0, "a": 1}, 4, 0)


def no_preprocessor(folder):
    (bracketed(folder) / "preprocessor_config.json").unlink()


def an_image_processor(folder):
    edit(bracketed(folder), "preprocessor_config.json", feature_extractor_type="None")
    edit(folder, "processor_config.json", feature_extractor={"feature_extractor_type": "Nobodys"})


def not_ctc(folder):
    edit(bracketed(folder), "config.json", model_type="whisper")


def rename(folder, change):
    tensors = load_file(folder / WEIGHTS)
    changed = {change(name): tensor for name, tensor in tensors.items() if change(name)}
    save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def no_head(folder):
    rename(bracketed(folder), lambda n: n if not n.startswith("lm_head") else "")


def bare_encoder(folder):
    bracketed(folder)
    AutoModelForCTC.from_pretrained(folder).wav2vec2.save_pretrained(folder)


def half_a_head(folder):
    rename(bracketed(folder), lambda n: n if n != "lm_head.bias" else "")


def a_layer_less(folder):
    rename(bracketed(folder), lambda n: n if "layers.1.attention" not in n else "")


def another_models_names(folder):
    rename(bracketed(folder), lambda n: n.replace("wav2vec2.", "encoder_of_ours."))


def no_convolution_of_positions(folder):
    rename(bracketed(folder), lambda n: n if "pos_conv_embed" not in n else "")


REFUSED = {
    another_blank: r"makes label 0 \('a'\) the CTC blank, its vocabulary label 29 \('\[PAD\]'\)",
    blank_without_a_name: r"makes label 31 \(None\) the CTC blank, its vocabulary label 29",
    no_language: r"vocabularies for 2 languages \(eng, fra\).* asks for none: set its",
    unknown_language: r"vocabularies for 2 languages \(eng, fra\), and .* asks for 'deu'",
    phonemes: "writes phonemes, expected one that writes text",
    one_index_twice: "gives one index to two labels",
    a_word_for_an_index: "expected a number from 0 on for each label",
    no_delimiter: r"has no token '\|'",
    no_preprocessor: "has neither preprocessor_config.json nor a feature_extractor in proc",
    an_image_processor: "the feature extractor of '.*' cannot be read: .*Nobodys",
    not_ctc: "cannot be loaded as a CTC recogniser: ",
    no_head: r"has no CTC head: its weights lack lm_head\.bias, lm_head\.weight; give",
    bare_encoder: r"has no CTC head: its weights lack lm_head\.bias, lm_head\.weight; give",
    half_a_head: r"has no CTC head: its weights lack lm_head\.bias; give",
    a_layer_less: r"lack 8 tensors of a Wav2Vec2ForCTC: wav2vec2\.encoder\.layers\.1\.attention",
    another_models_names: r"lack \d+ tensors of a .*, …; the file is not|cannot be loaded as a CTC",
    no_convolution_of_positions: "lack 3 tensors of a Wav2Vec2ForCTC: .*pos_conv_embed",
}


@pytest.mark.slow
@pytest.mark.parametrize("make", REFUSED)
def test_what_is_not_clear_is_refused(make, tmp_path):
    make(tmp_path)
    theirs = transformers.utils.logging.get_logger("transformers")
    theirs.addHandler(said := Collected())
    try:
        with pytest.raises(MAMError, match=REFUSED[make]) as refusal:
            HubertCTC(tmp_path)
    finally:
        theirs.removeHandler(said)
    assert "\n" not in str(refusal.value) and said.lines == []


class Collected(logging.Handler):
    """What transformers says beside the one line."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.mark.parametrize("make", [no_head, bare_encoder])
def test_a_new_alphabet_needs_no_head(make, tmp_path):
    make(tmp_path)
    assert HubertCTC(tmp_path, new_alphabet="abc").alphabet.letters == {"a", "b", "c"}
    a_layer_less(tmp_path)
    with pytest.raises(MAMError, match="lack 8 tensors"):
        HubertCTC(tmp_path, new_alphabet="abc")


OLD_NAMES = {"parametrizations.weight.original0": "weight_g"}
OLD_NAMES |= {"parametrizations.weight.original1": "weight_v"}


def old_name(name):
    for new, old in OLD_NAMES.items():
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize(
    "change", [old_name, lambda n: n if "masked_spec_embed" not in n else ""], ids=["old", "mask"]
)
def test_what_does_no_harm(change, tmp_path):
    """transformers' former names of weight norm; an embedding that only masking reads."""
    masked = {"mask_time_prob": 0.1, "apply_spec_augment": True}
    save(tmp_path, vocabulary(["<pad>", "|", *SMALL]), pad=0, **masked)
    wav, before = torch.randn(1, 4000), set(load_file(tmp_path / WEIGHTS))
    expected, _ = HubertCTC(tmp_path).eval()(wav)
    rename(tmp_path, change)
    assert set(load_file(tmp_path / WEIGHTS)) != before
    assert torch.equal(HubertCTC(tmp_path).eval()(wav)[0], expected)


def test_a_language_in_a_file_of_its_own(tmp_path):
    """MMS: the head and the adapters of the language that the tokenizer names, not what lies in
    the model's own file."""
    two_languages(tmp_path)
    model = build_speech_model("wav2vec2", vocab_size=30, adapter_attn_dim=4)
    model.save_pretrained(tmp_path)
    own = {n: t for n, t in model.state_dict().items() if "lm_head" in n or "adapter_layer" in n}
    french = {name: torch.randn_like(tensor) for name, tensor in own.items()}
    save_file(french, tmp_path / "adapter.fra.safetensors", metadata={"format": "pt"})
    lobe = HubertCTC(tmp_path)
    state = lobe.model.state_dict()
    assert len(french) > 2 and all(torch.equal(state[name], french[name]) for name in french)
    assert "é" in lobe.alphabet.letters


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rate_hz", [16000, 8000])
def test_a_processor_as_transformers_5_writes_it(tmp_path, normalize, rate_hz):
    bracketed(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    extractor = Wav2Vec2FeatureExtractor(
        do_normalize=normalize, sampling_rate=rate_hz, return_attention_mask=normalize
    )
    if transformers.__version__.startswith("4."):
        edit(tmp_path, "processor_config.json", feature_extractor=extractor.to_dict())
    else:
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
        Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").is_file()
    lobe = HubertCTC(tmp_path)
    found = lobe.normalize_wav, lobe.wants_mask, lobe.sample_rate
    assert found == (normalize, normalize, rate_hz)


KINDS = ("Hubert", "Wav2Vec2", "WavLM", "UniSpeech", "UniSpeechSat", "Data2VecAudio")
KINDS += ("Wav2Vec2Conformer", "SEW")
HEAR_PADDING = ("Data2VecAudio", "Wav2Vec2Conformer", "SEW")


def save_kind(folder, kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **build_speech_model("hubert", mask_time_prob=0.5, layerdrop=0.5).config.to_diff_dict()
        | {"model_type": None, "num_codevectors_per_group": 4, "codevector_dim": 4}
        | {"proj_codevector_dim": 4, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 3}
    )
    if hasattr(getattr(transformers, f"{kind}Config")(), "apply_spec_augment"):
        config.apply_spec_augment = True
    else:
        del config.apply_spec_augment  # data2vec's has none, and its model masks
    model = getattr(transformers, f"{kind}ForCTC")(config)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(TOKENS)))
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def save_wav2vec2_bert(folder, **options):
    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32},
        **{"intermediate_size": 64, "feature_projection_input_dim": 160, "layerdrop": 0.0},
        **{"conv_depthwise_kernel_size": 5, "pad_token_id": 0, "mask_time_prob": 0.5, **options},
    )
    Wav2Vec2BertForCTC(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(TOKENS)))
    SeamlessM4TFeatureExtractor(feature_size=80).save_pretrained(folder)


def save_any(folder, kind):
    if kind.startswith("Wav2Vec2Bert"):
        adapter = {"add_adapter": True, "output_hidden_size": 32, "num_adapter_layers": 1}
        save_wav2vec2_bert(folder, **(adapter if kind.endswith("adapter") else {}))
    else:
        save_kind(folder, kind)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "Wav2Vec2Bert", "Wav2Vec2Bert with adapter"])
def test_every_family_gives_what_transformers_gives(kind, tmp_path):
    folder = save_any(tmp_path, kind)
    lobe = HubertCTC(folder, dropout=0.0).eval()
    lengths = (9000, 6000, 4321)
    rng = np.random.default_rng(0)
    wavs = [rng.standard_normal(n).astype("float32") for n in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, wavs)), batch_first=True)
    log_probs, lens = lobe(batch, torch.tensor(lengths) / max(lengths))
    frames = (lens * log_probs.shape[1]).round().long().tolist()

    model = AutoModelForCTC.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    # convolutions between or within the layers hear the padding; in others it changes nothing
    for group in [[0, 1, 2]] if kind in HEAR_PADDING else [[0], [1], [2]]:
        inputs = extractor(
            [wavs[i] for i in group], sampling_rate=16000, return_tensors="pt", padding=True
        )
        found = model(**inputs).logits.log_softmax(-1)
        for i, expected in zip(group, found, strict=True):
            assert len(group) > 1 or frames[i] <= len(expected) <= frames[i] + 1
            ours, theirs = log_probs[i, : frames[i]], expected[: frames[i]]
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "Wav2Vec2Bert"])
def test_training_neither_masks_nor_drops_layers(kind, tmp_path):
    lobe, wav = HubertCTC(save_any(tmp_path, kind), dropout=0.0), torch.randn(1, 16000)
    for module in lobe.modules():  # a Conformer's, whose statistics are the batch's in training
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum, module.track_running_stats = 0.0, False
            module.running_mean = module.running_var = None
    expected, _ = lobe.eval()(wav)
    for _ in range(3):
        torch.testing.assert_close(lobe.train()(wav)[0], expected)


@pytest.mark.parametrize("kind", ["Data2VecAudio", "Wav2Vec2Bert"])
def test_what_trains(kind, tmp_path):
    lobe = HubertCTC(save_any(tmp_path, kind)).train()
    log_probs, _ = lobe(torch.randn(2, 8000))
    log_probs.sum().backward()
    with_grad = {n for n, p in lobe.named_parameters() if p.grad is not None}
    assert with_grad == {n for n, p in lobe.named_parameters() if p.requires_grad}
    assert any("lm_head" in name for name in with_grad)


def test_an_alphabet_without_a_pad_token_id(tmp_path):
    folder = bracketed(tmp_path)
    config = AutoModelForCTC.from_pretrained(folder).config
    config.pad_token_id = None
    assert read_alphabet(folder, config).blank == "[PAD]"


def test_the_embedded_alphabet_is_what_it_was():
    ids = {token: i for i, token in enumerate(TOKENS)}
    found = HubertCTC("speechbrain_mam/hubert-mini").alphabet
    assert (found.ids, found.blank, found.delimiter) == (ids, "<pad>", "|")
    assert found.letters == CTCAlphabet(ids).letters == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ'")


@pytest.mark.slow
@pytest.mark.parametrize("make", FOLDERS)
@pytest.mark.parametrize("new_alphabet", [None, "abc"])
def test_an_exported_folder_is_the_same_recogniser(make, new_alphabet, tmp_path):
    """Also where a new alphabet, whose blank is another label, replaced the folder's."""
    lobe = HubertCTC(make(tmp_path / "model"), new_alphabet=new_alphabet).eval()
    (tmp_path / "out").mkdir()
    write_huggingface(lobe, tmp_path / "out")
    again, wav = HubertCTC(tmp_path / "out").eval(), torch.randn(1, 4000)
    assert torch.equal(again(wav)[0], lobe(wav)[0])
    assert again.alphabet.blank_index == lobe.alphabet.blank_index
    assert again.alphabet.letters == lobe.alphabet.letters
    labels = list(range(lobe.model.config.vocab_size))
    assert again.alphabet.decode(labels) == lobe.alphabet.decode(labels)


@pytest.mark.slow
@pytest.mark.parametrize("make", FOLDERS)
def test_speechbrains_labels_are_the_same_texts(make, tmp_path):
    lobe = HubertCTC(make(tmp_path / "model"))
    (tmp_path / "out").mkdir()
    write_speechbrain(lobe, tmp_path / "out")
    encoder = CTCTextEncoder()
    encoder.load(tmp_path / "out" / "tokenizer.ckpt")
    # A head may be wider than its vocabulary: each of its labels can come up
    labels = [i for i in range(lobe.model.config.vocab_size) if i != lobe.alphabet.blank_index]
    written = "".join(encoder.decode_ndim(labels))
    assert " ".join(written.split()) == lobe.alphabet.decode(labels)


def test_speechbrain_cannot_hear_filter_banks(tmp_path):
    lobe = HubertCTC(save_any(tmp_path / "model", "Wav2Vec2Bert")).eval()
    with pytest.raises(MAMError, match=r"Wav2Vec2BertForCTC hears filter banks .*--format hf"):
        write_speechbrain(lobe, tmp_path)
    (tmp_path / "out").mkdir()
    write_huggingface(lobe, tmp_path / "out")
    wav = torch.randn(1, 8000)
    assert torch.equal(HubertCTC(tmp_path / "out").eval()(wav)[0], lobe(wav)[0])
