"""Word error rates of HuBERT-mini, or of another ``HubertForCTC`` folder, without a language model.

> python -m tools.embedded.evaluate_hubert_mini
> python -m tools.embedded.evaluate_hubert_mini --corpus LJSPEECH_LAYOUT_FOLDER
> python -m tools.embedded.evaluate_hubert_mini --csv training_speech/dev_heard.csv

A corpus in LJ Speech's layout is evaluated on its test part, the last 20 % of its utterances; a CSV
of ``make_training_speech`` as a whole. One utterance a batch, greedy CTC.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import soundfile
import torch
from speechbrain.utils.metric_stats import ErrorRateStats
from transformers import HubertForCTC

from speechbrain_mam.embedded.corpora import hubert_mini, mini_corpus
from tools.embedded.hubert_mini_model import transcribe
from tools.embedded.make_training_speech import to_alphabet
from tools.embedded.synthesise import to_sample_rate

TEST_SHARE = 0.2


def read_corpus(folder: Path, share: float = TEST_SHARE) -> list[tuple[Path, str]]:
    """The last ``share`` of an LJ-Speech-layout corpus as ``(wav, normalised text)``.

    Raises
    ------
    FileNotFoundError
        If there is no ``metadata.csv``.
    """
    lines = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if line]
    rows = rows[len(rows) - int(len(rows) * share) :]
    return [(folder / "wavs" / f"{row[0]}.wav", to_alphabet(row[-1])) for row in rows]


def read_csv(path: Path) -> list[tuple[Path, str]]:
    """All rows of a CSV of ``make_training_speech`` as ``(wav, text)``."""
    with open(path, newline="", encoding="utf-8") as file:
        return [(Path(row["wav"]), row["words"]) for row in csv.DictReader(file)]


def error_rates(model: HubertForCTC, rows: Iterable[tuple[Path, str]]) -> tuple[float, float]:
    """Word and character error rate of ``model`` in percent.

    Arguments
    ---------
    model : HubertForCTC
        In evaluation mode, with HuBERT-mini's vocabulary.
    rows : iterable of (Path, str)
        Audio files (mixed down and resampled to 16 kHz) and what is said in them.
    """
    words, letters = ErrorRateStats(), ErrorRateStats()
    for path, text in rows:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        heard = transcribe(model, to_sample_rate(samples.mean(1), rate_hz))
        words.append([path.stem], [heard.split()], [text.split()])
        letters.append([path.stem], [list(heard)], [list(text)])
    return words.summarize("error_rate"), letters.summarize("error_rate")


def main() -> None:
    """Read the command line, evaluate, print one line."""
    parser = argparse.ArgumentParser(description="Evaluate HuBERT-mini.")
    parser.add_argument("--model", type=Path, help="folder; the packaged model by default")
    parser.add_argument("--corpus", type=Path, help="LJ Speech layout; the mini corpus by default")
    parser.add_argument("--csv", type=Path, help="a CSV of make_training_speech instead")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = HubertForCTC.from_pretrained(args.model or hubert_mini()).eval()
    rows = read_csv(args.csv) if args.csv else read_corpus(args.corpus or mini_corpus())
    wer, cer = error_rates(model, rows)
    name = args.csv or args.corpus or "mini_ljspeech"
    print(f"{name}: {len(rows)} utterances, WER {wer:.2f} %, CER {cer:.2f} %")


if __name__ == "__main__":
    main()
