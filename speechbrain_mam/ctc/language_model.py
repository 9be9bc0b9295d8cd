"""An n-gram language model as a file: found, and checked before any work.

It is read by kenlm, which is an extra: ``pip install 'speechbrain_mam[lm]'``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from speechbrain_mam.embedded.corpora import packaged_language_model
from speechbrain_mam.errors import MAMError
from speechbrain_mam.text_files import read_text

BINARY = b"mmap lm http://kheafield.com/code"
"""How a file of KenLM's own begins."""


def resolve_language_model(name: str) -> Path:
    """A file as it is, or the model of an embedded corpus's training texts.

    Raises
    ------
    MAMError
        If there is neither.

    Example
    -------
    >>> resolve_language_model("mini_ljspeech").name
    'mini_ljspeech.arpa'
    """
    file = Path(name).expanduser()
    if file.is_file():
        return file
    packaged = packaged_language_model(name) if file.name == name else None
    if packaged is None:
        raise MAMError(
            f"key 'kenlm_model_path': '{name}': no such file, and the package embeds mini_ljspeech "
            "and mini_vctk only"
        )
    return packaged


def check_language_model(file: Path) -> None:
    """That a file is an n-gram model that can be read here.

    Raises
    ------
    MAMError
        If kenlm or pygtrie is not installed, or the file is cut or is something else.
    """
    try:
        import kenlm
        import pygtrie  # noqa: F401 - SpeechBrain's scorer imports it
    except ImportError as error:
        raise MAMError(
            f"a language model needs the package {error.name}: pip install "
            "'speechbrain_mam[lm]', or use 'test_decoding: beam'"
        ) from error
    with file.open("rb") as stream:
        binary = stream.read(len(BINARY)) == BINARY
    if not binary:
        _check_arpa(file)
    try:
        kenlm.Model(str(file))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise MAMError(f"'{file}' is no n-gram model that kenlm can read: {reason}") from error


def _check_arpa(file: Path) -> None:
    """What kenlm does not complain of, or not in words: no header, no end, no words.

    SpeechBrain tells an ARPA file by its name's end, and takes the known words from it.
    """
    text = read_text(file)
    if not re.search(r"^\\data\\\s*$", text, flags=re.M):
        raise MAMError(
            f"'{file}' is no n-gram model: expected an ARPA file with a line \\data\\, or one of "
            "KenLM's own"
        )
    if not re.search(r"^\\end\\\s*$", text, flags=re.M):
        raise MAMError(f"'{file}' is cut: its last line, \\end\\, is missing")
    if file.suffix != ".arpa":
        raise MAMError(f"'{file}' is an ARPA file: its name must end with .arpa")


def check_words(file: Path, letters: Collection[str]) -> None:
    """That the words of an ARPA file are written in a model's letters.

    Raises
    ------
    MAMError
        If most of them are not, as words in another case.
    """
    if file.suffix != ".arpa":
        return
    known = {c for letter in letters for c in letter}
    words = [word for word in unigrams(file) if not (word.startswith("<") and word.endswith(">"))]
    odd = [word for word in words if not set(word) <= known]
    if 2 * len(odd) > len(words):
        shown = ", ".join(odd[:3])
        raise MAMError(
            f"'{file}': {len(odd)} of its {len(words)} words cannot be written by the model "
            f"({shown}); its letters are {''.join(sorted(known))[:60]}. Are they in another case?"
        )


def unigrams(file: Path) -> list[str]:
    """The words that an ARPA file lists."""
    found = re.search(r"^\\1-grams:\s*$(.*?)^\\", read_text(file), flags=re.M | re.S)
    lines = found[1].splitlines() if found else []
    return [parts[1] for line in lines if len(parts := line.split()) >= 2]
