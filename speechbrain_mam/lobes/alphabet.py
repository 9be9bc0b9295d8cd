"""The alphabet of a CTC head, and the one way in which a text is brought into it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.spelling import (
    APOSTROPHES,
    CAPITAL,
    HYPHENS,
    apart,
    composed,
    is_invisible,
    parts_words,
    spelled_out,
)

_BRACKETED = re.compile(r"<.+>|\[.+\]")


@dataclass(frozen=True)
class CTCAlphabet:
    """The labels of a CTC head: letters, a word delimiter, a blank.

    Arguments
    ---------
    ids : dict of str to int
        As in ``vocab.json``: ``{"<pad>": 0, …, "|": 4, "E": 5, …}``.
    blank : str
        The CTC blank.
    delimiter : str
        Stands for the space between words.
    special : frozenset of str
        Further labels that are no text: beginning and end of a sentence, unknown. Whatever is in
        pointed or square brackets is one too.

    Example
    -------
    >>> alphabet = CTCAlphabet({"<pad>": 0, "|": 1, "A": 2, "B": 3})
    >>> alphabet.encode("ab a"), alphabet.decode([2, 3, 1, 2])
    ([2, 3, 1, 2], 'AB A')
    >>> alphabet.unknown("Abc")
    {'C'}
    """

    ids: dict[str, int]
    blank: str = "<pad>"
    delimiter: str = "|"
    special: frozenset[str] = frozenset()

    def __post_init__(self):
        for token in (self.blank, self.delimiter):
            if token not in self.ids:
                raise MAMError(f"the vocabulary has no token '{token}': {sorted(self.ids)[:8]}…")

    @property
    def blank_index(self) -> int:
        """Index of the blank."""
        return self.ids[self.blank]

    @property
    def spelling(self) -> CTCAlphabet:
        """The letters that a text is brought into: these, as labels over them have letters too."""
        return self

    @cached_property
    def _labels(self) -> dict[str, int]:
        """The index of each letter. A vocabulary may have é in two characters, a text in one."""
        found: dict[str, int] = {}
        silent = {self.blank, self.delimiter, *self.special}
        for token, index in self.ids.items():
            letter = composed(token)
            # Digraphs are labels of their own: transformers' tokenizer takes the longest first
            whole = len(letter) == 1 or all(unicodedata.category(c)[0] in "LM" for c in letter)
            known = letter in found and letter != token
            if token not in silent and token.strip() and whole and not known:
                found[letter] = index
        return found

    @cached_property
    def letters(self) -> set[str]:
        """All that can be written, the delimiter aside: characters, some with their marks."""
        return set(self._labels)

    def text_of(self, token: str) -> str:
        """What a label is written as: a special one as nothing, the delimiter as a space."""
        if token == self.delimiter:
            return " "
        silent = token == self.blank or token in self.special or _BRACKETED.fullmatch(token)
        return "" if silent else composed(token)

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {index: self.text_of(token) for token, index in self.ids.items()}

    def case(self, text: str) -> str:
        """``text`` in the alphabet's own case, letter by letter; what it lacks stays.

        Example
        -------
        >>> capital = CTCAlphabet({"<pad>": 0, "|": 1, "S": 2, "A": 3, "ß": 4})
        >>> capital.case("saß")
        'SAß'
        """
        return "".join(self._cased(unit) for unit in self._units(text))

    def unknown(self, text: str) -> set[str]:
        """The characters of ``text`` that cannot be written."""
        return set(self._units(self.case(text))) - self.letters - {" "}

    def spell(self, text: str) -> str:
        """``text`` in this alphabet: what a label says, and what errors are counted against.

        What the alphabet has stays as it is, in the alphabet's case. Of the rest, apostrophes of
        all kinds become the alphabet's, accents are left off, letters like ß are spelled out,
        invisible characters vanish, and punctuation parts words. What is then still not in the
        alphabet stays; :meth:`unknown` tells it.

        Example
        -------
        >>> plain = CTCAlphabet({c: i for i, c in enumerate(["<pad>", "|", *"ACEFORSTU'"])})
        >>> plain.spell("Café – ‘Straße’: foo\\u00adfoo")
        "CAFE 'STRASSE' FOOFOO"
        >>> accented = CTCAlphabet({c: i for i, c in enumerate(["<pad>", "|", *"aefrstßé"])})
        >>> accented.spell("FÉ straße"), accented.spell("fè")
        ('fé straße', 'fe')
        """
        text = self._with_final_sigma(composed(text))
        words = "".join(self._spelled(unit) for unit in self._units(text)).split()
        # An apostrophe on its own was a quotation mark, a hyphen on its own a dash.
        return " ".join(word for word in words if not set(word) <= APOSTROPHES | HYPHENS)

    def encode(self, text: str) -> list[int]:
        """Label indices of a text that :meth:`spell` gave.

        Raises
        ------
        MAMError
            If the alphabet lacks a character of it.
        """
        if unknown := self.unknown(text):
            raise MAMError(f"{text!r} has {sorted(unknown)}, which the model's alphabet lacks")
        between = self.ids[self.delimiter]
        units = self._units(self.case(text))
        return [between if unit == " " else self._labels[unit] for unit in units]

    def decode(self, indices: Sequence[int]) -> str:
        """The text of label indices (repeats and blanks removed already).

        A label that the vocabulary does not name, as of a head that is wider, is no text.
        """
        return " ".join("".join(self._texts.get(i, "") for i in indices).split())

    @cached_property
    def _clusters(self) -> re.Pattern[str]:
        """Letters of several characters first, the longest first, then any single one."""
        several = sorted((x for x in self.letters if len(x) > 1), key=len, reverse=True)
        cases = {case for x in several for case in (x, x.lower(), x.upper(), x.capitalize())}
        ordered = sorted(cases, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, ordered), "."]), flags=re.DOTALL)

    def _units(self, text: str) -> Iterator[str]:
        return (match[0] for match in self._clusters.finditer(text))

    @cached_property
    def _changes(self) -> tuple[str, str]:
        """The alphabet's own change of case and the other one; first none where it has both."""
        upper = sum(letter.isupper() for letter in self.letters)
        lower = sum(letter.islower() for letter in self.letters)
        if upper > 2 * lower:
            return "upper", "lower"
        return ("lower", "upper") if lower > 2 * upper else ("", "")

    @cached_property
    def _dotless(self) -> bool:
        """Whether I and ı are one letter, İ and i another, as in Turkish.

        All Latin alphabets in which it is so have a ğ. A ı alone may be a stray in a vocabulary.
        """
        return {"ı", "ğ"} <= self.letters or {"İ", "Ğ"} <= self.letters

    def _to(self, change: str, char: str) -> str | None:
        """A letter in another case; ``None`` where that is not one letter."""
        if self._dotless and char in "iıIİ":
            return {"upper": {"i": "İ", "ı": "I"}, "lower": {"I": "ı", "İ": "i"}}.get(
                change, {}
            ).get(char, char)
        changed = char.upper() if change == "upper" else char.lower()
        return changed if len(changed) == len(char) else None

    def _variants(self, unit: str) -> Iterator[str]:
        """A letter as it may stand in the alphabet, the likeliest first."""
        own, other = self._changes
        if own and (changed := self._to(own, unit)):
            yield changed
        yield unit
        for change in (other,) if other else ("lower", "upper"):
            if changed := self._to(change, unit):
                yield changed
        if unit in CAPITAL:
            yield CAPITAL[unit]
        folded = unit.casefold()
        if len(folded) == len(unit):
            yield folded
            yield folded.upper()

    def _cased(self, unit: str) -> str:
        found = next((v for v in self._variants(unit) if v in self.letters), None)
        if found is not None:
            return found
        own = self._changes[0]
        return (self._to(own, unit) if own else None) or unit

    @cached_property
    def _memory(self) -> dict[str, str]:
        return {}

    def _spelled(self, unit: str) -> str:
        if unit not in self._memory:
            self._memory[unit] = self._spell_out(unit)
        return self._memory[unit]

    def _spell_out(self, unit: str) -> str:
        if (found := self._cased(unit)) in self.letters:
            return found
        if len(unit) > 1:
            return "".join(map(self._spelled, unit))
        for kind in (APOSTROPHES, HYPHENS):
            if unit in kind:
                own = sorted(kind & self.letters)
                return own[0] if own else "" if kind is APOSTROPHES else " "
        if is_invisible(unit) or unicodedata.combining(unit):
            return ""
        if unit == "&":
            return unit if self.unknown("and") else f" {self.case('and')} "
        pieces = spelled_out(unit) or apart(unit)
        if pieces != unit and not set(pieces) <= APOSTROPHES:  # a double prime is a quotation mark
            return "".join(map(self._spelled, pieces))
        return " " if parts_words(unit) else found

    def _with_final_sigma(self, text: str) -> str:
        """Greek writes Σ as ς at the end of a word; which it is, a letter alone does not tell."""
        return re.sub(r"(?<=\w)Σ(?!\w)", "ς", text) if "ς" in self.letters else text
