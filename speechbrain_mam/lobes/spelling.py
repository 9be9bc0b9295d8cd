"""Characters that people write in many ways: apostrophes, invisible marks, letters without accents.

What they become is a matter of the alphabet that they are to be written in, see
:class:`~speechbrain_mam.lobes.alphabet.CTCAlphabet`.
"""

from __future__ import annotations

import re
import unicodedata

APOSTROPHES = frozenset(
    "'`´\u02b9\u02bb\u02bc\u02bd\u02be\u02bf\u02c8\u02ca\u02cb\u055a\u05f3\u07f4\u07f5\u1fbd\u1fbf"
    "\u2018\u2019\u201b\u2032\u2035\u275b\u275c\ua78b\ua78c\uff07\uff40"
)
"""What is typed for an apostrophe: grave and acute accents, primes, quotes, modifier letters."""

HYPHENS = frozenset("-\u2010\u2011\ufe63\uff0d")
"""What joins two words into one. A dash, which parts them, is none."""

SPELLED_OUT = {
    **{"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ð": "d", "þ": "th"},
    **{"đ": "d", "ħ": "h", "ı": "i", "ł": "l", "ŧ": "t"},
}
"""Lower-case letters that Unicode does not take apart."""

CAPITAL = {"ß": "ẞ"}
"""Capitals that ``str.upper`` does not know: it makes SS of ß."""

BROKEN = "\ufffd"
"""What a decoder leaves where it could not read a character."""

_HALF_WIDTH = re.compile("[\uff61-\uff9f]+")
_UNSEEN = "\u034f\u115f\u1160\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_INVISIBLE = re.compile(f"[{_UNSEEN}]")


def is_invisible(char: str) -> bool:
    """Whether a character only says how others are shown: soft hyphen, zero-width space, …

    Byte-order marks, marks of direction, joiners and variation selectors are of this kind.

    Example
    -------
    >>> [is_invisible(char) for char in ("\\u00ad", "\\u200b", "\\ufeff", "\\ufe0f", " ", "a")]
    [True, True, True, True, False, False]
    """
    return unicodedata.category(char) == "Cf" or _INVISIBLE.match(char) is not None


def parts_words(char: str) -> bool:
    """Whether a character is a space between words: white space, punctuation, symbols, controls."""
    return unicodedata.category(char)[0] in "PZSC" and char != BROKEN


def apart(char: str) -> str:
    """A character in the pieces that Unicode sees in it, the gentlest way first; itself if none.

    Example
    -------
    >>> apart("é") == "e\\u0301", apart("ﬁ"), apart("x")
    (True, 'fi', 'x')
    """
    canonical = unicodedata.normalize("NFD", char)
    return canonical if canonical != char else unicodedata.normalize("NFKD", char)


def spelled_out(char: str) -> str | None:
    """A letter as two or one of the Latin alphabet's, in its own case; ``None`` for all others.

    Example
    -------
    >>> spelled_out("ß"), spelled_out("Æ"), spelled_out("a")
    ('ss', 'Ae', None)
    """
    small = SPELLED_OUT.get(char.lower())
    if small is None:
        return None
    return small.capitalize() if char.isupper() else small


def composed(text: str) -> str:
    """``text`` in Unicode's form NFC, half-width kana with their voicing marks in full width.

    Example
    -------
    >>> composed("e\u0301"), composed("\uff76\uff9e")
    ('é', 'ガ')
    """
    text = _HALF_WIDTH.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    return unicodedata.normalize("NFC", text)
