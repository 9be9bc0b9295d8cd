"""A grammar of everyday English sentences, the text of the project's own mini corpora.

All sentences are the grammar's; none is taken from elsewhere. A sentence comes in two forms, as in
LJ Speech's ``metadata.csv``: raw (``Dr. Hale paid 45 dollars.``) and normalised, with numbers and
abbreviations written out (``Doctor Hale paid forty-five dollars.``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tools.embedded import words
from tools.embedded.spoken_numbers import number_words, ordinal_words, year_words

#: Slots that are written differently from how they are said, as ``written|said``.
_ABBREVIATIONS = {
    "title": ("Dr.|Doctor", "Mr.|Mister", "Mrs.|Missus", "Capt.|Captain", "Prof.|Professor"),
    "weight": ("kg|kilograms", "lbs.|pounds", "oz.|ounces"),
    "size": ("cm|centimeters", "ft.|feet", "mm|millimeters"),
    "distance": ("km|kilometers", "mi.|miles", "yd.|yards"),
    "road": ("St.|Street", "Ave.|Avenue", "Rd.|Road", "Sq.|Square"),
    "versus": ("vs.|versus",),
    "and": ("&|and",),
}

_PHRASES = {
    "who": """
        {name}; {name}; the {person}; my {person}; our {person}; the {padj} {person};
        a {padj} {person}; his {person}; her {padj} {person}; {name}'s {person}; {title} {surname};
        the {person} from {town}""",
    "they": "the {group}; {name} and {name}; our {group}; two of the {group}; many {group}",
    "whom": """
        the {person}; my {person}; the {padj} {person}; our {group}; {name}; her {person}""",
    "what": """
        the {thing}; a {adj} {thing}; the {adj} {thing}; his {thing}; her {adj} {thing}; my {thing};
        their {adj} {thing}; the {person}'s {thing}; our {thing}""",
    "where": """
        in the {place}; near the {place}; behind the {place}; outside the {place}; at the {place};
        beside the old {place}; not far from the {place}; across from the {place}""",
    "onto": "on the {thing}; under the {thing}; behind the {thing}; inside the {thing}",
    "toward": """
        to the {place}; toward the {place}; through the {place}; past the {place};
        around the {place}; from the {place} to the {place}; into the {place}; to {town}""",
    "beast": """
        the {person}'s {animal}; the {aadj} {animal}; a {aadj} {animal}; an {animal};
        their {animal}""",
}

_TEMPLATES = """
{who} {handle.past} {what} {when}
{who} {handle.past} {what} {where}
{who} {adverb} {handle.past} {what} and {handle.past} {what}
{who} will {handle} {what} {soon}
{who} was {handle.ing} {what} when {beast} {prowl.past} {where}
{who} {meet.past} {whom} {where} {when}
{who} {meet.past} {whom} because {they} were {mood}
{they} {go.past} {toward} {when}
{they} {adverb} {go.past} {toward} and {stay.past} {where}
{who} {stay.past} {adverb} {where} while {they} {go.past} {toward}
{beast} {prowl.past} {adverb} {where}
{beast} and {beast} {prowl.past} {onto} {when}
{who} {cook.past} {food} and {food} for {whom}
{who} likes to {cook} {food} with {food} {when}
{they} are {cook.ing} {food} {where}
did {who} {handle} {what} {when}?
why did {who} {meet} {whom} {where}?
where did {who} {handle} {what}?
when will {they} {go} {toward}?
who {handle.past} {what} {onto}?
can you {handle} {what} before {who} {go.past} {toward}?
have you ever seen a {adj} {thing} like {what}?
do you think {who} will be {mood} {soon}?
how many {group} can {stay} {where} at once?
{what} and {what} were lying {onto}
{what} {where} belongs to {whom}
there was a {adj} {thing} {onto} {where}
there is no {thing} {where}, so {who} must {handle} {what}
if the weather is {weather}, {they} will {go} {toward}
it was a {weather} day, and {they} {stay.past} {where}
the {nature} and the {nature} made {whom} feel {mood}
{who} said that {they} had never {speak.past} about the {topic}
{who} {speak.past} about the {topic} with {whom} {when}
nobody {where} {speak.past} about the {topic} of {name}
the {topic} made {whom} very {mood}
{who} is too {padj} to {stay} {where}
{who} looked {mood} after the {topic}
although {who} was {mood}, {they} {stay.past} {where}
please {handle} {what} and {handle} {what} {soon}
don't {handle} {what} without asking {whom}
let's {go} {toward} and {handle} {what}
{who} studies {subject} and {subject} in {town}
{who} would rather play {sport} than learn {subject}
the {material} {thing} is not as {adj} as {what}
they make the {thing} out of {material} and {material}
we took the {vehicle} from {town} to {town} on {day}
{who} missed the {vehicle} to {town} {when}
the {vehicle} stopped {where} because of the {nature}
{who} couldn't {handle} {what}, but {name} could
{who} wants to {go} {toward} with {whom} {soon}
{title} {surname} paid {number} dollars for {what}
{title} {surname} lives at {number} {surname} {road} with {whom}
the {thing} weighs {number} {weight} and is {number} {size} long
{who} bought {number} {adj} stamps on {month} {ordinal}
{who} was born in {year} and moved to {town} in {year}
the {vehicle} to {town} leaves at {hour} on {day}
it is about {number} {distance} from the {place} to the {place}
chapter {number} tells about the {topic} of {year}
we watched {town} {versus} {town} {where}
{surname} {and} {surname} sell {food} and {food} {where}
{who} {go.past} {number} {distance} {when} {where}
"""


@dataclass(frozen=True)
class Sentence:
    """A sentence as it is written and as it is said."""

    raw: str
    normalised: str


def _figure(slot: str, rng: random.Random) -> tuple[str, str] | None:
    """A number as it is written and said, or None if the slot is not one of a number."""
    if slot == "number":
        number = rng.choice((rng.randint(2, 99), rng.randint(100, 990), rng.randint(2, 20)))
        return str(number), number_words(number)
    if slot == "year":
        year = rng.randint(1700, 1999)
        return str(year), year_words(year)
    if slot == "ordinal":
        day = rng.randint(1, 31)
        suffix = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
        return f"{day}{suffix}", ordinal_words(day)
    if slot == "hour":
        hour, minute = rng.randint(1, 12), rng.choice((10, 15, 20, 30, 40, 45, 50))
        return f"{hour}:{minute}", f"{number_words(hour)} {number_words(minute)}"
    return None


@lru_cache(maxsize=1)
def _lexicon() -> dict[str, tuple[str, ...]]:
    """Every slot's choices: word lists, verb forms, abbreviations and phrases."""
    lists = {
        **{"name": words.NAMES, "surname": words.SURNAMES, "town": words.TOWNS},
        **{"person": words.PEOPLE, "group": words.GROUPS, "animal": words.ANIMALS},
        **{"food": words.FOODS, "thing": words.THINGS, "place": words.PLACES},
        **{"adj": words.THING_ADJECTIVES, "padj": words.PERSON_ADJECTIVES, "mood": words.MOODS},
        **{"aadj": words.ANIMAL_ADJECTIVES, "adverb": words.ADVERBS, "when": words.WHEN},
        **{"soon": words.SOON, "day": words.DAYS, "month": words.MONTHS, "nature": words.NATURE},
        **{"subject": words.SUBJECTS, "topic": words.TOPICS, "vehicle": words.VEHICLES},
        **{"weather": words.WEATHER, "material": words.MATERIALS, "sport": words.SPORTS},
    }
    lexicon = {
        slot: tuple(w.replace("_", " ") for w in text.split()) for slot, text in lists.items()
    }
    for verb in ("handle", "cook", "meet", "go", "stay", "prowl", "speak"):
        forms = [entry.split("/") for entry in getattr(words, verb.upper()).split()]
        for suffix, column in zip(("", ".past", ".ing"), zip(*forms, strict=True), strict=True):
            lexicon[verb + suffix] = tuple(column)
    phrases = {
        slot: tuple(" ".join(phrase.split()) for phrase in text.split(";"))
        for slot, text in _PHRASES.items()
    }
    return lexicon | _ABBREVIATIONS | phrases


def _expand(text: str, rng: random.Random) -> tuple[str, str]:
    """``text`` with its slots filled, written and said."""
    written, said = [], []
    for i, piece in enumerate(re.split(r"\{([^}]+)\}", text)):
        pair = (piece, piece) if i % 2 == 0 else _figure(piece, rng) or _choose(piece, rng)
        written.append(pair[0])
        said.append(pair[1])
    return "".join(written), "".join(said)


def _choose(slot: str, rng: random.Random) -> tuple[str, str]:
    choice = rng.choice(_lexicon()[slot])
    if "|" in choice:
        written, _, said = choice.partition("|")
        return written, said
    return _expand(choice, rng)


def _finish(text: str) -> str:
    """Articles, capital and full stop."""
    text = re.sub(r"\b([Aa])n? (?=(?!use|uni|one)[aeiou])", r"\1n ", text)
    text = re.sub(r"\b([Aa])n (?=[^aeiou]|use|uni|one)(?!hour|honest)", r"\1 ", text)
    text = text if text.endswith(("?", ".")) else text + "."
    return text[0].upper() + text[1:]


def sentences(count: int, seed: int, shortest: int = 4, longest: int = 16) -> Iterator[Sentence]:
    """``count`` different sentences, the same ones for the same seed.

    Arguments
    ---------
    count : int
        How many.
    seed : int
        Which ones. Different seeds may share a few.
    shortest, longest : int
        Bounds on the number of words said.

    Yields
    ------
    Sentence
        In the order drawn.

    Example
    -------
    >>> first, second = sentences(2, seed=1)
    >>> first != second and first == next(sentences(1, seed=1))
    True
    """
    rng = random.Random(seed)
    templates = [line for line in _TEMPLATES.splitlines() if line]
    seen: set[str] = set()
    while len(seen) < count:
        written, said = map(_finish, _expand(rng.choice(templates), rng))
        if said not in seen and shortest <= len(said.split()) <= longest:
            seen.add(said)
            yield Sentence(written, said)
