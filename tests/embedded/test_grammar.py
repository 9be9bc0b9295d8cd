"""The grammar: many words, deterministic, and a spoken form without figures."""

import re
from itertools import islice

import pytest

from tools.embedded.grammar import sentences
from tools.embedded.spoken_numbers import number_words, ordinal_words, year_words


def test_reaches_a_thousand_words():
    said = " ".join(s.normalised for s in sentences(6000, seed=3)).lower()
    assert len(set(re.findall(r"[a-z']+", said))) >= 1000


def test_same_seed_same_sentences():
    first = list(sentences(50, seed=7))
    assert first == list(sentences(50, seed=7))
    assert first != list(sentences(50, seed=8))
    assert first[:10] == list(islice(sentences(1000, seed=7), 10))


def test_sentences_are_different_and_of_the_asked_length():
    drawn = [s.normalised for s in sentences(2000, seed=4, shortest=5, longest=9)]
    assert len(set(drawn)) == 2000
    assert all(5 <= len(text.split()) <= 9 for text in drawn)


def test_normalised_has_letters_only_and_raw_sometimes_figures():
    drawn = list(sentences(4000, seed=5))
    assert all(re.fullmatch(r"[A-Z][A-Za-z',\- ]+[.?]", s.normalised) for s in drawn)
    assert any(re.search(r"\d", s.raw) for s in drawn)
    assert any("Dr." in s.raw and "Doctor" in s.normalised for s in drawn)


def test_articles_fit_the_next_word():
    said = " ".join(s.normalised for s in sentences(4000, seed=6))
    assert not re.search(r"\b[Aa] (?!use|uni|one)[aeiou]", said)
    assert not re.search(r"\b[Aa]n (?!hour|honest)[^aeiouAEIOU]", said)


def test_numbers_in_words():
    assert number_words(0) == "zero"
    assert number_words(110) == "one hundred ten"
    assert number_words(9999) == "nine thousand nine hundred ninety-nine"
    assert [ordinal_words(n) for n in (1, 9, 12, 13, 30, 31)] == [
        *("first", "ninth", "twelfth", "thirteenth", "thirtieth", "thirty-first")
    ]
    assert year_words(1801) == "eighteen oh one"
    with pytest.raises(ValueError, match="10000"):
        number_words(10_000)
