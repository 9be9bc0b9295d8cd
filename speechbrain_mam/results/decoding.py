"""The decoders of speech recognition, from the simplest on: names that files and reports share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain_mam.errors import MAMError

GREEDY, BEAM, BEAM_LM = "greedy", "beam", "beam_lm"
DECODINGS = (GREEDY, BEAM, BEAM_LM)
"""A test reports its own decoder and those before it."""
TITLES = {GREEDY: "greedy", BEAM: "beam", BEAM_LM: "beam + LM"}


def decoding_of(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What ``results.json`` says of a run's decoder; runs of before it was noted are greedy.

    Raises
    ------
    MAMError
        If it is no decoder.

    Example
    -------
    >>> decoding_of({}, Path("results.json"))
    {'name': 'greedy'}
    """
    found = content.get("decoding") or {"name": GREEDY}
    if not isinstance(found, dict) or found.get("name") not in DECODINGS:
        raise MAMError(
            f"'{file}': field 'decoding' is {found!r}, expected one of {', '.join(DECODINGS)} as "
            "its 'name'"
        )
    return found


def differing_decoders(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what two decoders differ, in words; nothing where they do not.

    Example
    -------
    >>> differing_decoders({"name": "beam", "beam_size": 10}, {"name": "beam", "beam_size": 20})
    'beam_size 10 and 20'
    """
    keys = [*one, *(key for key in other if key not in one)]
    changed = [key for key in keys if one.get(key) != other.get(key)]
    return ", ".join(
        f"{key} {_short(one.get(key))} and {_short(other.get(key))}" for key in changed
    )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
