"""What a test measures, and what its parts are called: speech recognition, classification."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """An error rate in percent.

    Arguments
    ---------
    name : str
        As ``results.json`` and the tables call it.
    errors, units : str
        The fields of an utterance (a clip) that hold its errors, and out of how many.
    """

    name: str
    errors: str
    units: str


@dataclass(frozen=True)
class Task:
    """A kind of test.

    Arguments
    ---------
    name : str
        For messages.
    item : str
        What is tested one by one, and drawn by the bootstrap.
    metrics : tuple of Metric
        The first is the one that verdicts are about.
    groups : str
        What the clusters of its corpora are.
    published : float
        Percent by which Learnable-MAM lowered the first metric against fine-tuning without merging
        (arXiv 2312.14378; of speech recognition on LJ Speech).
    """

    name: str
    item: str
    metrics: tuple[Metric, ...]
    groups: str
    published: float

    @property
    def items(self) -> str:
        """Several of them."""
        return f"{self.item}s"

    @property
    def main(self) -> str:
        """The name of the metric that verdicts are about."""
        return self.metrics[0].name

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all metrics."""
        return tuple(metric.name for metric in self.metrics)


SPEECH = Task(
    "speech recognition",
    "utterance",
    (Metric("WER", "errors", "words"), Metric("CER", "char_errors", "chars")),
    "speakers or chapters",
    2.7,
)
CLASSIFICATION = Task(
    "classification", "clip", (Metric("error", "errors", "words"),), "recordings", 18.42
)
"""Each clip is one unit with at most one error; ``ref`` and ``hyp`` are names of classes."""
TASKS = (SPEECH, CLASSIFICATION)


def sentence(text: str) -> str:
    """With a capital, as a title has it.

    Example
    -------
    >>> sentence("error against λ"), sentence("WER against λ")
    ('Error against λ', 'WER against λ')
    """
    return text[:1].upper() + text[1:]
