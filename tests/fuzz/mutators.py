"""Files made wrong in one place, or a few, as a random generator says.

A mutator takes a file's content and gives another one, with a few words on what it did.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import re
import struct
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, random.Random], tuple[str, bytes]]

EXECUTED = "EXECUTED"
"""A folder that code in a mutated file would make, in the folder of its case."""

DIGITS = "@4301 digits@"
"""Stands for a number that Python's ``int`` refuses to read."""

ODD_NUMBERS = [
    *(-1, 0, 1, 2, 7, 0.5, -0.5, 2**31, 2**32 - 1, 2**63, -(2**63), 10**30, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), DIGITS),
]
ODD_WORDS = [
    *("", " ", ".", "..", "../..", "../../etc/passwd", "/etc/passwd", "/dev/null", "a/b", "\\"),
    *("\0", "a\0b", "\n", "a\nb", "\r", "\u202e", "\ufeff", "\u2028", "λ", "ß", "Ω" * 300),
    *("a" * 5000, "$x_1^$", "$", "%s", "%(a)s", "{0}", "<b>&", "[x](y)", "|", "'", '"', "`", ","),
    *("-", "--", "---", "#", "nan", "inf", "1e400", "0x10", "1_0", "٣", "None", "true", "null"),
    *("0", "-1", "1.5", "9" * 30, "9" * 4400, "hubert", "__class__", "model.safetensors"),
    *("C:\\a", "~", "$data_root", "$nothing", "😀", "é", "e\u0301", "1,2", "[", "{", "!ref <a>"),
]
ODD_VALUES = [
    *ODD_NUMBERS,
    *ODD_WORDS,
    *(None, True, False, [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": []}}, "\ud800"),
]


class Code:
    """Makes the folder :data:`EXECUTED` wherever it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (EXECUTED,)


# --- any file


def cut(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The file ends too early, or holds nothing."""
    at = rng.choice([0, 1, 8, len(content) // 2, len(content) - 1, rng.randrange(len(content) + 1)])
    return f"cut at {at}", content[: max(0, at)]


def flip(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Some bytes are others, often near the start."""
    changed = bytearray(content or b"\0")
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 256)
    places = [rng.randrange(end) for _ in range(rng.choice([1, 1, 2, 4, 16]))]
    for place in places:
        changed[place] = rng.randrange(256)
    return f"bytes {places}", bytes(changed)


def number_in_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A huge, negative or zero number in two to eight bytes."""
    code, value = rng.choice(
        [("<H", 0xFFFF), ("<I", 0xFFFFFFFF), ("<I", 0x80000000), ("<I", 0), ("<q", -1), ("<q", 0),
         ("<Q", 2**62), ("<I", 0x7FFFFFFF), ("<H", 0), (">I", 0xFFFFFFFF), ("<B", 0xFF)]
    )  # fmt: skip
    raw = struct.pack(code, value)
    end = len(content) if rng.random() < 0.3 else min(len(content), 128)
    at = rng.randrange(max(1, end))
    return f"{value} as {code} at {at}", content[:at] + raw + content[at + len(raw) :]


def insert(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Some bytes more, or some stand there twice."""
    at = rng.randrange(len(content) + 1)
    more = rng.choice([b"\0", b"\xff\xfe", b"\n", content[:64], b"\x80\x04", b"{" * 9])
    return f"{more[:8]!r} inserted at {at}", content[:at] + more + content[at:]


def another_file(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What begins like a file of another kind."""
    heads = [b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08", b"RIFF", b"OggS", b"fLaC", b"{}",
             b"\x80\x02}q\0.", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"[]",
             b"null", b"\0" * 64, b"\xff" * 64, b"ID3", b"FORM"]  # fmt: skip
    head = rng.choice(heads)
    return f"{head[:8]!r} in its place", head + rng.choice([b"", content[len(head) :], b"\0" * 99])


def code(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A pickle that would run something."""
    return "pickled code", pickle.dumps(rng.choice([Code(), {"model": Code(), "cfg": {}}]), 2)


BYTES: list[Mutator] = [cut, flip, flip, number_in_bytes, number_in_bytes, insert, another_file]

# --- text


def encoding(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The same text in another encoding, some letters outside of ASCII."""
    text = content.decode("utf-8", errors="replace")
    at = rng.randrange(len(text) + 1)
    text = text[:at] + rng.choice(["", "é", "λ", "ÿ"]) + text[at:]
    name = rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "cp037"])
    return f"in {name}", text.encode(name, errors="replace")


def word(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A word or a number of it is an odd one."""
    text = content.decode("utf-8", errors="replace")
    found = list(re.finditer(r"[^\s,|:;\"'{}\[\]()<>]+", text))
    if not found:
        return "nothing", content
    match, odd = rng.choice(found), str(rng.choice([*ODD_WORDS, *ODD_NUMBERS]))
    odd = odd.replace(DIGITS, "9" * 4400)
    changed = text[: match.start()] + odd + text[match.end() :]
    return f"{odd[:40]!r} for {match[0][:40]!r}", changed.encode("utf-8", errors="surrogatepass")


def line(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A line is missing, stands there twice, or is joined, moved, quoted or made long."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    what = rng.choice(["gone", "twice", "joined", "first", "quoted", "long", "cut", "indented"])
    one = lines.pop(at)
    if what == "twice":
        lines[at:at] = [one, one]
    elif what == "joined" and lines:
        lines[at % len(lines)] += one
    elif what == "first":
        lines.insert(0, one)
    elif what != "gone":
        changed = {
            "quoted": b'"' + one,
            "long": one + b"a" * 140_000,
            "cut": one[: len(one) // 2],
            "indented": b"\t  " + one,
        }
        lines.insert(at, changed.get(what, one))
    return f"line {at + 1} {what}", b"\n".join(lines)


def field(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A line has one field too many, one too few, or two that have changed places."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    mark = b"|" if lines[at].count(b"|") else b","
    fields = lines[at].split(mark)
    what = rng.choice(["too many", "too few", "swapped", "empty", "odd"])
    i, j = rng.randrange(len(fields)), rng.randrange(len(fields))
    if what == "too many":
        fields.insert(i, b"x")
    elif what == "too few":
        fields.pop(i)
    elif what == "swapped":
        fields[i], fields[j] = fields[j], fields[i]
    else:
        odd = "" if what == "empty" else rng.choice(ODD_WORDS)
        fields[i] = odd.encode("utf-8", errors="surrogatepass")
    lines[at] = mark.join(fields)
    return f"line {at + 1}: field {i} {what}", b"\n".join(lines)


def deep(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Brackets within brackets, as the whole or in the place of a value."""
    depth = rng.choice([50, 900, 20_000])
    brackets = rng.choice([("[", "]"), ('{"a":', "}"), ("[", "")])
    nest = (brackets[0] * depth + "1" + brackets[1] * depth).encode()
    values = list(re.finditer(rb":\s*([^\s,{}\[\]]+)", content))
    if not values or rng.random() < 0.3:
        return f"{depth} deep", nest
    match = rng.choice(values)
    return f"a value {depth} deep", content[: match.start(1)] + nest + content[match.end(1) :]


TEXT: list[Mutator] = [encoding, word, word, word, line, field, cut, flip]

# --- JSON


def tree(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A value or a name in it is odd, missing, of another kind or there twice."""
    changed, what = odd_tree(json.loads(content), rng)
    text = json.dumps(changed).replace(f'"{DIGITS}"', "9" * 4400)
    if what.endswith("twice"):
        name = json.dumps(what.split("'")[1]) if "'" in what else '"a"'
        text = text.replace("{", "{" + f"{name}: 7, ", 1)
    return what, text.encode()


def odd_tree(content: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy of lists and mappings, odd somewhere."""
    content = copy.deepcopy(content)
    places = [(node, key) for node in _nodes(content) for key in _keys(node)]
    if not places or rng.random() < 0.03:
        return rng.choice(ODD_VALUES), "something else"
    # names of the same level are as likely as what lies deep: long lists do not take it all
    by_node: dict[int, list] = {}
    for place in places:
        by_node.setdefault(id(place[0]), []).append(place)
    node, key = rng.choice(rng.choice([*by_node.values(), *by_node.values(), places]))
    what = rng.choice(["odd", "odd", "odd", "gone", "renamed", "wrapped", "twice", "empty"])
    if what == "gone":
        node.pop(key)
    elif what == "renamed" and isinstance(node, dict):
        node[str(rng.choice(ODD_WORDS))] = node.pop(key)
    elif what == "wrapped":
        node[key] = rng.choice([[node[key]], {"a": node[key]}, str(node[key])])
    elif what == "empty":
        node[key] = type(node[key])()
    elif what != "twice":
        node[key] = rng.choice(ODD_VALUES)
        what = f"is {str(node[key])[:40]!r}"
    return content, f"{str(key)[:60]!r} {what}"


def _nodes(content: Any):
    if isinstance(content, dict | list):
        yield content
        for value in content.values() if isinstance(content, dict) else content:
            yield from _nodes(value)


def _keys(node: Any) -> list:
    return list(node) if isinstance(node, dict) else list(range(min(len(node), 50)))


JSON: list[Mutator] = [tree, tree, tree, tree, deep, encoding, word, cut, flip]

# --- YAML


def tag(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A value that would be executed, refers to another, or is many times itself."""
    bomb = "[&a [x,x,x,x,x,x,x,x]" + "".join(
        f", &{b} [{','.join(f'*{a}' for _ in range(8))}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    odd = rng.choice(
        [f"!apply:os.mkdir [{EXECUTED}]", f"!!python/object/apply:os.mkdir [{EXECUTED}]",
         f"!new:pathlib.Path [{EXECUTED}]", "!ref <nothing>", "!ref <a", "!new:nothing.at.all",
         "!name:os.mkdir", "!include:../../a.yaml", "!PLACEHOLDER", "!tuple", "*nothing", "&a *a",
         bomb + "]", "!copy <a>", "!!binary x", "!!int a", "2001-99-99", "!!timestamp x",
         "!!float a", "? a", "%", "@", "!!set {a, b}", "9" * 4400, "{[]: 1}", "\t", "'"]
    ).encode()  # fmt: skip
    values = list(re.finditer(rb"(?m)^( *[\w.]+):[ \t]*(.*)$", content))
    if not values:
        return f"{odd[:40]!r}", odd
    match = rng.choice(values)
    changed = content[: match.start(2)] + odd + content[match.end(2) :]
    return f"{match[1]!r} is {odd[:60]!r}", changed


YAML: list[Mutator] = [tag, tag, word, word, line, encoding, deep, cut, flip]

# --- a command line


def odd_argument(argv: list[str], rng: random.Random, options: list[str]) -> tuple[str, list[str]]:
    """A command line with a word more, less, twice or other."""
    argv, at = list(argv), rng.randrange(len(argv))
    what = rng.choice(["other", "other", "other", "gone", "twice", "option", "option", "more"])
    odd = str(rng.choice([*ODD_WORDS, *ODD_NUMBERS, "[0,1]", "0-99", "last:99", "first:-1", "5-1"]))
    odd = odd.replace(DIGITS, "9" * 4400)
    if odd in ("/etc/passwd", "~"):  # nothing is to be written outside of the case's folder
        odd = "0.5,0.6"
    if what == "other":
        argv[at] = odd
    elif what == "gone":
        argv.pop(at)
    elif what == "twice":
        argv.insert(at, argv[at])
    elif what == "more":
        argv.insert(at, odd)
    else:
        option = rng.choice(options)
        argv += [option, odd]
        odd = f"{option} {odd}"
    return f"argument {at} {what}: {odd[:60]!r}", argv
