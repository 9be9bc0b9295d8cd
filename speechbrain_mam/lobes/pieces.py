"""The labels of a CTC head over the pieces of a SentencePiece model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.alphabet import CTCAlphabet

FILE = "sentencepiece.model"
"""In an exported recogniser's folder."""
SPACE = "▁"


class Pieces:
    """Pieces of words as labels; the unknown piece, label 0, is the CTC blank, as in SpeechBrain.

    It takes a :class:`~speechbrain_mam.lobes.alphabet.CTCAlphabet`'s place in a recogniser.

    Arguments
    ---------
    file : Path
        What SentencePiece wrote: ``….model``.
    spelling : CTCAlphabet
        The letters that texts are brought into before they are cut into pieces.

    Raises
    ------
    MAMError
        If the file is missing, is no SentencePiece model, or its label 0 is not the unknown piece.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "text.txt").write_text("AB BA ABBA\\n" * 9)
    >>> options = {"model_type": "char", "unk_id": 0, "bos_id": -1, "eos_id": -1, "minloglevel": 2}
    >>> sentencepiece.SentencePieceTrainer.train(
    ...     input=str(folder / "text.txt"), model_prefix=str(folder / "ab"), vocab_size=4, **options
    ... )
    >>> letters = CTCAlphabet({"<pad>": 0, "|": 1, "A": 2, "B": 3})
    >>> pieces = Pieces(folder / "ab.model", letters)
    >>> pieces.decode(pieces.encode("ab ba")), pieces.blank_index, len(pieces.ids)
    ('AB BA', 0, 4)
    """

    blank_index = 0

    def __init__(self, file: Path, spelling: CTCAlphabet):
        self.file, self.spelling = file, spelling
        if not file.is_file():
            raise MAMError(f"'{file}': no such file; it holds the SentencePiece tokenizer")
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.load(str(file))
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise MAMError(f"'{file}' is no SentencePiece model: {reason}") from error
        if self.processor.unk_id() != self.blank_index:
            raise MAMError(
                f"'{file}': its unknown piece is label {self.processor.unk_id()}, expected label "
                "0, which is the CTC blank; train it with 'unk_id=0'"
            )

    @property
    def labels(self) -> list[str]:
        """The piece of each label; one that begins a word begins with ``▁``."""
        return [self.processor.id_to_piece(i) for i in range(self.processor.vocab_size())]

    @property
    def ids(self) -> dict[str, int]:
        """The label of each piece."""
        return {piece: i for i, piece in enumerate(self.labels)}

    @property
    def letters(self) -> set[str]:
        """All that a text may hold, spaces aside."""
        return self.spelling.letters

    def spell(self, text: str) -> str:
        """``text`` in the letters, as :meth:`CTCAlphabet.spell` writes it."""
        return self.spelling.spell(text)

    def unknown(self, text: str) -> set[str]:
        """The characters of ``text`` that are none of the letters."""
        return self.spelling.unknown(text)

    def unseen(self, text: str) -> set[str]:
        """The characters of ``text`` that no piece has: the training texts had none of them."""
        return {c for c in self.spelling.case(text) if self.processor.encode_as_ids(c)[-1:] == [0]}

    def encode(self, text: str) -> list[int]:
        """Labels of a text; what no piece has is left out.

        Raises
        ------
        MAMError
            If it has a character that is none of the letters.
        """
        if unknown := self.unknown(text):
            raise MAMError(f"{text!r} has {sorted(unknown)}, which the model's alphabet lacks")
        found = self.processor.encode_as_ids(self.spelling.case(text))
        return [index for index in found if index != self.blank_index]

    def decode(self, indices: Sequence[int]) -> str:
        """The text of label indices (repeats and blanks removed already)."""
        written = self.processor.decode_ids([i for i in indices if i != self.blank_index])
        return " ".join(written.split())


def read_pieces(folder: Path, config: Any) -> Pieces | None:
    """The labels of a recogniser that this package exported with SentencePiece's; else ``None``.

    Raises
    ------
    MAMError
        If the file is damaged, or its pieces are not as many as the CTC head's labels.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    pieces = Pieces(file, CTCAlphabet({"<pad>": 0, "|": 1}))
    if len(pieces.ids) != config.vocab_size:
        raise MAMError(
            f"'{file}' has {len(pieces.ids)} pieces, the CTC head {config.vocab_size} labels"
        )
    letters = sorted({c for piece in pieces.labels[1:] for c in piece} - {SPACE})
    pieces.spelling = CTCAlphabet({c: i for i, c in enumerate(["<pad>", "|", *letters])})
    return pieces
