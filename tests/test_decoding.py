"""Beam search and n-grams: against greedy decoding, against kenlm's own scores, with bad input."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import TOKENS
from made_up_runs import TestSet, stats, write_run

from speechbrain_mam import MAMError
from speechbrain_mam.ctc import language_model
from speechbrain_mam.ctc.beam_search import OPTIONS, Searcher, read_decoding, written_labels
from speechbrain_mam.ctc.language_model import check_language_model, check_words, unigrams
from speechbrain_mam.embedded.corpora import packaged_language_model
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.report import make_report
from speechbrain_mam.report.document import Table
from tools.embedded.ngram import BEGIN, END, UNKNOWN, NGram

LABELS = CTCAlphabet({token: i for i, token in enumerate(TOKENS)})
TEXTS = ["THE CAT SAT", "THE CAT RAN", "A CAT SAT", "THE DOG", "A DOG RAN HERE"]


def frames_of(text: str, repeat: int = 2) -> torch.Tensor:
    """The labels of a text, each held, with a blank after it."""
    labels = LABELS.encode(text)
    return torch.tensor([x for i in labels for x in [i] * repeat + [LABELS.blank_index]])


def log_probs_of(text: str, sharp: float = 12.0) -> torch.Tensor:
    return (torch.eye(len(TOKENS))[frames_of(text)] * sharp).log_softmax(-1)


@pytest.fixture()
def arpa(tmp_path) -> Path:
    file = tmp_path / "texts.arpa"
    file.write_text(NGram(TEXTS).arpa())
    return file


def test_where_nothing_is_doubtful_a_search_writes_what_greedy_decoding_does() -> None:
    texts = ["THE CAT SAT", "AA BB", "I'M"]
    several = [log_probs_of(text) for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(several, batch_first=True)
    lens = torch.tensor([len(one) for one in several])
    assert Searcher(LABELS, OPTIONS)(padded, lens) == texts
    # 48.9999 frames are 49: SpeechBrain's own lengths would cut the last letter
    short = torch.tensor([len(several[2]) - 1e-4])
    assert Searcher(LABELS, OPTIONS)(several[2][None], short) == ["I'M"]


def test_labels_that_are_no_text_are_written_as_nothing() -> None:
    labels = CTCAlphabet({"<s>": 0, "<pad>": 1, "|": 2, "A": 3, "<unk>": 5})
    assert written_labels(labels) == ["", "<pad>", " ", "A", "", ""]


def test_a_search_adds_up_paths_that_greedy_decoding_does_not() -> None:
    """Two frames: A and blank in all orders are more likely together than two blanks."""
    labels = CTCAlphabet({"<pad>": 0, "|": 1, "A": 2})
    log_probs = torch.tensor([[[0.55, 1e-6, 0.45]] * 2]).log()
    assert Searcher(labels, OPTIONS)(log_probs, torch.tensor([2])) == ["A"]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_an_n_gram_sums_to_one_after_every_history(order) -> None:
    model = NGram(TEXTS, order)
    words = [*model.words, UNKNOWN]
    for history in (*model.after, ("NEVER",), ("CAT", "NEVER")):
        assert sum(model.probability(w, history) for w in words) == pytest.approx(1, abs=1e-12)
    assert BEGIN not in words and END in words


def test_witten_and_bells_formula() -> None:
    """c(THE) = 3, followed by CAT twice and DOG once: T = 2."""
    model = NGram(TEXTS, 2)
    cat = model.probability("CAT", ())
    total, types = sum(len(t.split()) + 1 for t in TEXTS), len(model.words)
    assert cat == pytest.approx((3 + types / (types + 1)) / (total + types))
    assert model.probability("CAT", ("THE",)) == pytest.approx((2 + 2 * cat) / (3 + 2))
    sat = model.probability("SAT", ())
    assert model.probability("SAT", ("THE",)) == pytest.approx(2 / 5 * sat)


@pytest.mark.parametrize("order", [2, 3])
def test_the_arpa_file_has_kenlms_scores(order, tmp_path) -> None:
    kenlm = pytest.importorskip("kenlm")
    model = NGram(TEXTS, order)
    (tmp_path / "m.arpa").write_text(model.arpa())
    read = kenlm.Model(str(tmp_path / "m.arpa"))
    assert read.order == order
    for text in (*TEXTS, "HERE THE SAT", "A BIRD SAT", "DOG DOG DOG"):
        words, expected = [*text.split(), END], 0.0
        past: tuple[str, ...] = (BEGIN,)
        for word in words:
            known = word if word in model.words else UNKNOWN
            expected += math.log10(model.probability(known, past))
            past = (*past, known)
        assert read.score(text) == pytest.approx(expected, abs=2e-3), text


@pytest.mark.parametrize("name", ["mini_ljspeech", "mini_vctk"])
def test_the_embedded_models(name) -> None:
    file = packaged_language_model(name)
    assert file is not None and file.stat().st_size < 200_000
    words = unigrams(file)
    assert {UNKNOWN, BEGIN, END, "THE"} <= set(words) and len(words) > 400
    check_words(file, LABELS.letters)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini_ljspeech", "mini_vctk"])
def test_the_embedded_models_are_the_scripts(name, tmp_path, monkeypatch) -> None:
    """Of the training texts alone: no sentence of the test set is needed to make them."""
    from tools.embedded.ngram import main

    monkeypatch.setattr(sys, "path", [*sys.path])
    main(["--corpus", name, "--out", str(tmp_path / "again.arpa")])
    packaged = packaged_language_model(name)
    assert packaged is not None
    assert (tmp_path / "again.arpa").read_bytes() == packaged.read_bytes()


def test_a_language_model_decides_between_two_spellings(arpa) -> None:
    pytest.importorskip("kenlm")
    log_probs = log_probs_of("THE CAT SAT")
    at = (frames_of("THE CAT SAT") == LABELS.ids["C"]).nonzero().flatten()
    log_probs[at] = -1e9
    log_probs[at, LABELS.ids["C"]] = math.log(0.45)
    log_probs[at, LABELS.ids["R"]] = math.log(0.55)
    lens = torch.tensor([len(log_probs)])
    keys = {"test_decoding": "beam_lm", "test_beam_search": {"kenlm_model_path": str(arpa)}}
    decoding = read_decoding(keys)
    found = {
        name: decoding.searcher(name, LABELS)(log_probs[None], lens) for name in ("beam", "beam_lm")
    }
    assert found == {"beam": ["THE RAT SAT"], "beam_lm": ["THE CAT SAT"]}
    assert decoding.names == ("greedy", "beam", "beam_lm")
    described = decoding.described()
    assert len(described["lm_sha256"]) == 64 and "kenlm_model_path" not in described


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"test_decoding": "best"},
            "key 'test_decoding': 'best' is not one of greedy, beam, beam_lm",
        ),
        ({"test_beam_search": 3}, "key 'test_beam_search': expected keys and values, got 3"),
        ({"test_beam_search": {"beam": 3}}, "'beam' is not known; its keys are beam_size, topk"),
        ({"test_beam_search": {"beam_size": 0}}, "beam_size is 0, expected a whole number from 1"),
        ({"test_beam_search": {"beam_size": True}}, "beam_size is True"),
        ({"test_beam_search": {"alpha": "much"}}, "alpha is 'much', expected a number from -100"),
        ({"test_beam_search": {"beta": float("nan")}}, "beta is nan"),
        ({"test_beam_search": {"beam_prune_logp": 1}}, "beam_prune_logp is 1, expected .* up to 0"),
        ({"test_beam_search": {"prune_history": 1}}, "prune_history is 1, expected True or False"),
        ({"test_decoding": "beam_lm"}, "key 'kenlm_model_path': .* needs an n-gram model"),
        (
            {"test_decoding": "beam_lm", "test_beam_search": {"kenlm_model_path": "no.arpa"}},
            "key 'kenlm_model_path': 'no.arpa': no such file, and the package embeds mini_ljspeech",
        ),
    ],
)
def test_options_that_cannot_be_had(keys, message) -> None:
    with pytest.raises(MAMError, match=message):
        read_decoding({"test_decoding": "beam", **keys})


def test_upstreams_other_keys_are_no_mistake() -> None:
    keys = {"beam_size": 3, "blank_index": 0, "space_token": " "}
    assert (
        read_decoding({"test_decoding": "beam", "test_beam_search": keys}).options["beam_size"] == 3
    )


@pytest.mark.parametrize("package", ["kenlm", "pygtrie"])
def test_without_a_package_the_extra_is_named(package, arpa, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", object())
    monkeypatch.setitem(sys.modules, "pygtrie", object())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MAMError, match=rf"needs the package {package}: pip install 'speechbrain_mam\[lm\]'"
    ):
        check_language_model(arpa)


def test_files_that_are_no_language_model(arpa, tmp_path) -> None:
    pytest.importorskip("kenlm")
    check_language_model(arpa)
    text = arpa.read_text()
    for content, message in (
        (text[:-8], "is cut: its last line"),
        ("once upon a time", "is no n-gram model: expected an ARPA file"),
        ("", "is no n-gram model"),
        (text.replace("ngram 2=", "ngram 2=9"), "is no n-gram model that kenlm can read"),
        (text.replace("THE CAT", "THE"), "is no n-gram model that kenlm can read"),
    ):
        arpa.write_text(content)
        with pytest.raises(MAMError, match=message):
            check_language_model(arpa)
    arpa.write_bytes(language_model.BINARY + b" 5.0 half of a model")
    with pytest.raises(MAMError, match=r"that kenlm can read"):
        check_language_model(arpa)
    arpa.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MAMError, match=r"is not UTF-8 text"):
        check_language_model(arpa)
    (tmp_path / "texts.lm").write_text(text)
    with pytest.raises(MAMError, match=r"its name must end with \.arpa"):
        check_language_model(tmp_path / "texts.lm")


def test_words_in_another_case(arpa) -> None:
    check_words(arpa, LABELS.letters)
    arpa.write_text(arpa.read_text().lower())
    with pytest.raises(MAMError, match=r"7 of its 7 words cannot be written by .* in another case"):
        check_words(arpa, LABELS.letters)


def decoded(seed: int, wers: dict[str, float]) -> dict[str, dict]:
    """A test's utterances with simpler decoders; the last of ``wers`` is the test's own."""
    *others, main = wers
    found = TestSet().utterances(wers[main], seed)
    for name in others:
        for key, row in TestSet().utterances(wers[name], seed).items():
            own = {field: row[field] for field in ("errors", "char_errors", "hyp")}
            found[key].setdefault("decoders", {})[name] = own
    return found


def write_decoded(
    folder: Path, method: str, wers: dict[str, float], seed: int = 1, **decoding
) -> Path:
    run = write_run(folder, {method: decoded(seed, wers)}, method, seed, donor="bert")
    file = run / "results.json"
    content = json.loads(file.read_text())
    content["decoding"] = {"name": list(wers)[-1], "alpha": 0.5} | decoding
    file.write_text(json.dumps(content))
    return run


def test_the_report_has_every_decoder_and_the_language_model_as_a_rival(tmp_path) -> None:
    base = {"greedy": 0.5, "beam": 0.48, "beam_lm": 0.25}
    merged = {"greedy": 0.42, "beam": 0.41, "beam_lm": 0.245}
    runs = [
        write_decoded(tmp_path / f"{method}{seed}", method, wers, seed)
        for seed in (1, 2, 3)
        for method, wers in (("finetune", base), ("mam_learnable", merged))
    ]
    report = make_report(runs, 499)
    tables = {block.header[0]: block for block in report.blocks if isinstance(block, Table)}
    by_decoder = next(
        block for block in report.blocks
        if isinstance(block, Table) and "WER %, beam + LM" in block.header
    )  # fmt: skip
    assert [cell for cell in by_decoder.header if "%," in cell] == [
        "WER %, greedy", "WER %, beam", "WER %, beam + LM"
    ]  # fmt: skip
    row = next(row for row in by_decoder.rows if row[0] == "finetune")
    rates = [
        sum(stats(TestSet().utterances(wer, seed))["WER"] for seed in (1, 2, 3)) / 3
        for wer in base.values()
    ]
    assert [float(cell.split()[0]) for cell in row[2::2]] == pytest.approx(rates, abs=0.006)
    rivals = tables["what"]
    pairs = {(row[0], row[1]): row[2] for row in rivals.rows}
    assert pairs["finetune + LM", "finetune"] == "lower"
    assert pairs["mam_learnable", "finetune"] == "lower"
    assert pairs["mam_learnable", "finetune + LM"] == "higher"
    assert ("mam_learnable + LM", "finetune + LM") in pairs
    assert "finetune + LM" in report.table and "WER %, beam + LM" in report.table
    # They are corrected with the others, and of the same clusters
    assert report.family.corrected == len(report.rows) + len(rivals.rows)
    for run in runs:
        for file in run.glob("utterances_*.json"):
            content = json.loads(file.read_text())
            for i, utterance in enumerate(content["utterances"].values()):
                utterance["cluster"] = f"p{i % 8}"
            file.write_text(json.dumps(content))
    assert {found.n_clusters for found in make_report(runs, 99).family.further} == {8}


def test_runs_with_other_decoders_are_not_compared(tmp_path) -> None:
    wers = {"greedy": 0.5, "beam": 0.48}
    one = write_decoded(tmp_path / "one", "finetune", wers)
    other = write_decoded(tmp_path / "other", "mam_learnable", wers, alpha=0.7)
    with pytest.raises(MAMError, match=r"different decoders .* tested with alpha 0.5 and 0.7"):
        make_report([one, other], 99)
    greedy = write_run(tmp_path / "greedy", {"finetune": TestSet().utterances(0.5, 1)})
    with pytest.raises(MAMError, match=r"tested with name greedy and beam"):
        make_report([greedy, one], 99)
    content = json.loads((one / "results.json").read_text())
    (one / "results.json").write_text(json.dumps(content | {"decoding": {"name": "best"}}))
    with pytest.raises(MAMError, match=r"field 'decoding' is .* expected one of greedy, beam"):
        make_report([one], 99)


def test_a_decoder_that_an_utterance_lacks(tmp_path) -> None:
    run = write_decoded(tmp_path / "run", "finetune", {"greedy": 0.5, "beam": 0.48})
    file = run / "utterances_finetune.json"
    content = json.loads(file.read_text())
    last = sorted(content["utterances"])[-1]
    content["utterances"][last]["decoders"]["greedy"].pop("errors")
    file.write_text(json.dumps(content))
    with pytest.raises(MAMError, match=rf"utterance '{last}', decoder 'greedy': .*errors"):
        make_report([run], 99)
