"""Numbers, years and days of the month in English words."""

from __future__ import annotations

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(number: int) -> str:
    """``number`` in words, 0 to 9999.

    Raises
    ------
    ValueError
        If it is outside that range.

    Example
    -------
    >>> number_words(45), number_words(1207)
    ('forty-five', 'one thousand two hundred seven')
    """
    if not 0 <= number < 10_000:
        raise ValueError(f"number_words takes 0 to 9999, not {number}")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    return f"{_ONES[number // size]} {name}" + (f" {number_words(rest)}" if rest else "")


def year_words(year: int) -> str:
    """A year between 1100 and 1999 as it is read aloud.

    Example
    -------
    >>> year_words(1945), year_words(1806), year_words(1900)
    ('nineteen forty-five', 'eighteen oh six', 'nineteen hundred')
    """
    century, rest = divmod(year, 100)
    if rest == 0:
        return f"{number_words(century)} hundred"
    return f"{number_words(century)} {'oh ' if rest < 10 else ''}{number_words(rest)}"


def ordinal_words(number: int) -> str:
    """``number`` from 1 to 31 as a day of the month.

    Example
    -------
    >>> ordinal_words(3), ordinal_words(20), ordinal_words(22)
    ('third', 'twentieth', 'twenty-second')
    """
    irregular = {1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth", 9: "ninth"}
    irregular |= {12: "twelfth", 20: "twentieth", 30: "thirtieth"}
    if number in irregular:
        return irregular[number]
    if number > 20:
        return f"{_TENS[number // 10 - 2]}-{ordinal_words(number % 10)}"
    return f"{number_words(number)}th"
