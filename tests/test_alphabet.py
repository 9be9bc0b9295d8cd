"""What becomes of a transcript in the alphabet of a CTC head: every kind of letter and of mark."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_hubert_ctc import ALPHABET

from speechbrain_mam import MAMError
from speechbrain_mam.lobes.alphabet import CTCAlphabet
from speechbrain_mam.lobes.spelling import APOSTROPHES
from speechbrain_mam.tasks.corpus import normalize_text

LATIN = "abcdefghijklmnopqrstuvwxyz"


def alphabet(letters, **options):
    return CTCAlphabet({x: i for i, x in enumerate(["<pad>", "<unk>", "|", *letters])}, **options)


OWN_LETTERS = {
    "German": (LATIN + "äöüß", "Die Straße über die Brücke", "die straße über die brücke"),
    "German, capitals": (LATIN.upper() + "ÄÖÜß", "Straße, Öl", "STRAßE ÖL"),
    "German, capital ß": (LATIN.upper() + "ÄÖÜẞ", "Straße", "STRAẞE"),
    "French": (
        LATIN + "àâçéèêëîïôûù'-",
        "Où est l’élève du lycée-là ?",
        "où est l'élève du lycée-là",
    ),
    "French, curly": (LATIN + "éè’", "l'élève l´été", "l’élève l’été"),
    "Spanish": (LATIN + "ñáéíóú", "El NIÑO cumplió", "el niño cumplió"),
    "Russian": ("абвгдежзийклмнопрстуфхцчшщъыьэюяё", "Мой чай ЁЖ", "мой чай ёж"),
    "Russian without ё": ("абвгдежзийклмнопрстуфхцчшщъыьэюя", "ещё", "еще"),
    "Japanese": ("あかがきぎくぐ", "がぎぐ かきく", "がぎぐ かきく"),
    "Japanese, half width": ("アカガキギ", "\uff76\uff9e\uff77", "ガキ"),
    "Czech": (LATIN + "áčďéěíňóřšťúůýž", "Příliš žluťoučký", "příliš žluťoučký"),
    "Vietnamese": (LATIN + "ếộđơư", "Đồng hế", "đong hế"),
    "Hindi": ("कखगषिु्ा", "क्षि कु", "क्षि कु"),
    "Arabic": ("ابتك", "كَتَبَ", "كتب"),
    "Arabic with vowels": ("ابتكَ", "كَتَبَ", "كَتَبَ"),
    "Persian, joiner": ("می\u200cروم", "می\u200cروم", "می\u200cروم"),
    "Hawaiian": (LATIN + "ʻāēīōū", "Hawaiʻi", "hawaiʻi"),
    "Hawaiian, typed": (LATIN + "ʻ", "Hawai‘i", "hawaiʻi"),
    "Greek": ("αβγδεζηθικλμνξοπρστυφχψωςά", "Ο ΟΔΟΣ ΣΑΣ", "ο οδος σας"),
    "Greek without ς": ("αβγδεζηθικλμνξοπρστυφχψω", "οδος", "οδοσ"),
    "Turkish": (LATIN + "çğıöşü", "ISPARTA İzmir ılık", "ısparta izmir ılık"),
    "Turkish, capitals": (LATIN.upper() + "ÇĞİÖŞÜ", "Isparta izmir ılık", "ISPARTA İZMİR ILIK"),
    "English with a stray ı": (LATIN + "ı", "I AM", "i am"),
    "dotted I, Latin": (LATIN, "İstanbul", "istanbul"),
    "Afrikaans": (LATIN.upper() + "'", "ŉ mens", "'N MENS"),
    "Afrikaans ŉ": (LATIN + "ŉ", "ŉ mens", "ŉ mens"),
    "both cases": (LATIN + LATIN.upper() + "é", "Été IN", "été IN"),
    "stray capital": (LATIN + "İ", "IN", "in"),
    "letters in pieces": ("аи\u0306", "Йа", "и\u0306а"),
    "é in two characters": (["e\u0301", "t"], "été", "été"),
    "letters without a form of their own": (["ɛ\u0303", "ɛ", "b"], "Bɛ\u0303ɛ", "bɛ\u0303ɛ"),
    "digraphs": ([*"chilo", "ch", "ll"], "CHOLLO Hoch", "chollo hoch"),
    "digits": (LATIN + "12", "Nr. 12", "nr 12"),
}


@pytest.mark.parametrize("case", OWN_LETTERS)
def test_a_letter_that_the_alphabet_has_stays(case):
    letters, text, expected = OWN_LETTERS[case]
    found = alphabet(letters)
    for form in ("NFC", "NFD"):  # however it was typed
        assert found.spell(unicodedata.normalize(form, text)) == expected
    assert found.decode(found.encode(expected)) == expected


def test_a_digraph_is_one_label():
    found = alphabet(["c", "h", "o", "ch"])
    assert found.encode("choc") == [found.ids["ch"], found.ids["o"], found.ids["c"]]


FOLDED = {
    "Müller's café": "MULLER'S CAFE",
    "Straße": "STRASSE",
    "STRAẞE": "STRASSE",
    "Æsop æsop Œuvre œuvre": "AESOP AESOP OEUVRE OEUVRE",
    "Øre Łódź Đà þing": "ORE LODZ DA THING",
    "ﬁn Ａｂ": "FIN AB",
    "R&D": "R AND D",
    "con\u00adtinue zero\u200bwidth": "CONTINUE ZEROWIDTH",
    "\ufeffbom a\u200db a\u200cb": "BOM AB AB",
    "\u202aleft\u202c \u2067right\u2069 \u200e\u200f": "LEFT RIGHT",
    "heart\ufe0f \u2764\ufe0f x\U000e0101": "HEART X",
    "non\u00a0breaking\u2009thin": "NON BREAKING THIN",
    "line\u2028one\u2029two\x0bthree\x1cfour\x85five": "LINE ONE TWO THREE FOUR FIVE",
    "well-known non\u2011breaking — dash": "WELL KNOWN NON BREAKING DASH",
    "rock ' roll ’ ‘ 'twas": "ROCK ROLL 'TWAS",
    "5′ tall".replace("5", "five"): "FIVE' TALL",
    "ten ″ wide": "TEN WIDE",
}


@pytest.mark.parametrize("text", FOLDED)
def test_what_the_alphabet_lacks_is_folded(text):
    assert normalize_text(text, ALPHABET, "utterance X") == FOLDED[text]


@pytest.mark.parametrize("mark", sorted(APOSTROPHES))
def test_every_apostrophe_is_the_alphabets(mark):
    assert ALPHABET.spell(f"don{mark}t") == "DON'T"
    assert alphabet(LATIN).spell(f"don{mark}t") == "dont"
    assert alphabet(LATIN + "ʼ").spell(f"don{mark}t") == "donʼt"


@pytest.mark.parametrize("text", ["x 4", "½", "Привет", "caf\ufffd", "R & D"])
def test_what_cannot_be_written_is_named(text):
    letters = CTCAlphabet({x: i for i, x in enumerate(["<pad>", "|", *"XCAFRBD"])})
    with pytest.raises(MAMError, match=r"utterance X: the transcript .* alphabet lacks"):
        normalize_text(text, letters, "utterance X")


def test_a_label_is_never_a_special_token():
    ids = {"_": 0, "|": 1, "?": 2, "A": 3, "<s>": 4, "[UNK]": 5}
    found = CTCAlphabet(ids, blank="_", special=frozenset("?"))
    assert found.letters == {"A"}
    assert found.spell("A_?|A") == "A A"
    assert found.decode([0, 3, 2, 4, 5, 1, 3, 99]) == "A A"
    with pytest.raises(MAMError, match=r"has \['\?'\], which the model's alphabet lacks"):
        found.encode("A?")


TEXT = st.text(
    st.characters(codec="utf-8") | st.sampled_from("İıßẞŉΣςéй'’-´\u0301\u200b\u3099ｶﾞ& "),
    max_size=12,
)


@pytest.mark.slow
@given(TEXT, st.sampled_from(sorted(OWN_LETTERS)))
def test_done_twice_it_changes_nothing(text, case):
    found = alphabet(OWN_LETTERS[case][0])
    once = found.spell(text)
    assert found.spell(once) == once
    if not found.unknown(once):
        assert found.decode(found.encode(once)) == once
