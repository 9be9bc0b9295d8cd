r"""An n-gram language model of a corpus's training texts, with Witten-Bell smoothing, as ARPA.

To run this:

> python -m tools.embedded.ngram SAVE/train.csv --out train.arpa
> python -m tools.embedded.ngram --corpus mini_ljspeech     # what the package embeds

The first takes the manifest of a recipe's run, ``wrd`` of each row. With h' the history h without
its first word, c(·) a count and T(h) the number of different words after h,

    P(w | h) = (c(h, w) + T(h) · P(w | h')) / (c(h) + T(h))

down to 1 / V for all V words, the end of a sentence and the unknown word (Witten and Bell, IEEE
Transactions on Information Theory 37(4), 1991). What was never seen after h has
P(w | h) = T(h) / (c(h) + T(h)) · P(w | h'): its factor is the back-off weight of h.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ORDER = 2
NEVER = -99.0
"""The logarithm that ARPA files give to what is never predicted: the beginning."""

Words = tuple[str, ...]


class NGram:
    """Counts of n-grams, and the probabilities made of them.

    Arguments
    ---------
    texts : iterable of str
        Sentences, words parted by spaces.
    order : int
        The longest n.

    Example
    -------
    >>> model = NGram(["A B", "A C"], order=2)
    >>> round(model.probability("B", ("A",)), 4)
    0.34
    """

    def __init__(self, texts: Iterable[str], order: int = ORDER):
        self.order = order
        self.after: dict[Words, Counter[str]] = defaultdict(Counter)
        for text in texts:
            words = (BEGIN, *text.split(), END)
            for i in range(1, len(words)):
                for n in range(min(order, i + 1)):
                    self.after[words[i - n : i]][words[i]] += 1
        self.words = sorted(self.after[()])
        self.size = len({*self.words, UNKNOWN})

    def probability(self, word: str, history: Words) -> float:
        """P(word | history), whether it was seen or not."""
        if len(history) >= self.order:
            history = history[len(history) - self.order + 1 :]
        if history not in self.after:
            return self.probability(word, history[1:])
        shorter = self.probability(word, history[1:]) if history else 1 / self.size
        found = self.after[history]
        return (found[word] + len(found) * shorter) / (found.total() + len(found))

    def back_off(self, history: Words) -> float:
        """What the shorter history's probability is multiplied by, for words unseen after this."""
        found = self.after.get(history)
        return 1.0 if found is None else len(found) / (found.total() + len(found))

    def arpa(self) -> str:
        """The model as an ARPA file."""
        grams: list[list[Words]] = [[(UNKNOWN,), (BEGIN,), *((w,) for w in self.words)]]
        for n in range(1, self.order):
            histories = sorted(h for h in self.after if len(h) == n)
            grams.append([(*h, w) for h in histories for w in sorted(self.after[h])])
        lines = ["\\data\\", *(f"ngram {n}={len(g)}" for n, g in enumerate(grams, 1)), ""]
        for n, several in enumerate(grams, 1):
            lines.append(f"\\{n}-grams:")
            for gram in several:
                p = self.probability(gram[-1], gram[:-1])
                chance = NEVER if gram == (BEGIN,) else math.log10(p)
                line = f"{chance:.5g}\t{' '.join(gram)}"
                weight = self.back_off(gram)
                lines.append(line + (f"\t{math.log10(weight):.5g}" if n < self.order else ""))
            lines.append("")
        return "\n".join([*lines, "\\end\\", ""])


def training_texts(corpus: str, save_folder: Path) -> list[str]:
    """The training transcripts of an embedded corpus, as its recipe writes them."""
    import sys

    from speechbrain_mam.embedded.corpora import hubert_mini, mini_corpus
    from speechbrain_mam.lobes.hubert_ctc import HubertCTC

    recipe = {"mini_ljspeech": "LJSpeech", "mini_vctk": "VCTK"}[corpus]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / recipe))
    alphabet = HubertCTC(hubert_mini()).alphabet
    if corpus == "mini_ljspeech":
        from ljspeech_prepare import prepare_ljspeech

        prepare_ljspeech(mini_corpus(corpus), save_folder, alphabet)
    else:
        from vctk_prepare import prepare_vctk

        prepare_vctk(mini_corpus(corpus), save_folder, alphabet)
    return manifest_texts(save_folder / "train.csv")


def manifest_texts(file: Path) -> list[str]:
    """The words of every row of a manifest."""
    from speechbrain_mam.text_files import read_table

    return [row["wrd"] for row in read_table(file)]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    import tempfile

    from speechbrain_mam import embedded

    parser = argparse.ArgumentParser("python -m tools.embedded.ngram", description=__doc__)
    parser.add_argument("manifest", nargs="?", type=Path, help="a run's save/train.csv")
    parser.add_argument("--corpus", choices=("mini_ljspeech", "mini_vctk"))
    parser.add_argument("--order", type=int, default=ORDER)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if (options.manifest is None) == (options.corpus is None):
        parser.error("give a manifest, or --corpus")
    out = options.out
    if options.corpus is not None:
        with tempfile.TemporaryDirectory() as folder:
            texts = training_texts(options.corpus, Path(folder))
        out = out or Path(str(embedded.__file__)).parent / "data" / f"{options.corpus}.arpa"
    else:
        texts = manifest_texts(options.manifest)
    if out is None:
        parser.error("--out: where to")
    out.write_text(NGram(texts, options.order).arpa(), encoding="utf-8")


if __name__ == "__main__":
    main()
