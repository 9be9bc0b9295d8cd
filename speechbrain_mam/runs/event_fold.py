"""The stages of one test fold of an audio-event recipe, once the trainer stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.runs.environment import write_environment
from speechbrain_mam.runs.recipe import Datasets, final_test, fit, summarize
from speechbrain_mam.runs.zeroshot import search, search_of
from speechbrain_mam.tasks.audio_events import AudioEvents

MERGE_INTO = ("untouched", "finetuned", "pretrained")
"""What a zero-shot merge goes into: the untouched encoder, with nothing trained but the linear
classifier; the fine-tuned classifier; or the pretrained encoder, before it is fine-tuned."""


def run_fold(brain: AudioEvents, hparams: Mapping[str, Any], datasets: Datasets) -> None:
    """Test the untouched encoder, train, merge, test, and say what came out.

    The untouched encoder has a linear classifier, fitted to the training clips' fixed features;
    fine-tuning starts from it, and Learnable-MAM from one that is fitted to the features of λ's
    start. λ, layers, penalty and epoch are chosen on validation clips.

    Arguments
    ---------
    brain : AudioEvents
        With the model, and the merge stage done.
    hparams : mapping
        What the YAML gave.
    datasets : mapping
        ``train``, ``valid`` and ``test``.

    Raises
    ------
    MAMError
        If ``merge_into`` or the search's keys say nothing that can be done.
    """
    mam, method = brain.mam, hparams["method"]
    fixed = mam is not None and not mam.learnable and not mam.is_start
    if fixed:
        _check_merge(brain, hparams)
    results: dict[str, dict[str, float]] = {}
    write_environment(brain)
    with mam.taken_back() if mam is not None else nullcontext():
        brain.fit_classifier(datasets["train"], datasets["valid"])
    results["untouched"] = brain.test(datasets["test"], "untouched", untouched=True)
    if fixed:
        results |= _merge(brain, hparams, datasets)
    else:
        if mam is not None:
            # λ starts below 1, or attention is the donor's: the classifier is to fit the features
            # that training starts from, as it does without merging.
            brain.fit_classifier(datasets["train"], datasets["valid"])
        fit(brain, hparams, datasets)
        results[method] = brain.test(datasets["test"], method)
    summarize(brain, results)


def _check_merge(brain: AudioEvents, hparams: Mapping[str, Any]) -> None:
    """A mistake is told before any work."""
    assert brain.mam is not None
    into = str(hparams.get("merge_into"))
    one_of("merge_into", into, MERGE_INTO)
    if (into == "untouched") != (hparams["number_of_epochs"] == 0):
        raise MAMError(
            f"key 'merge_into': '{into}' with number_of_epochs {hparams['number_of_epochs']}; "
            "expected 0 epochs for 'untouched', and some to fine-tune for the others"
        )
    if hparams["search"]:
        search_of(brain)


def _merge(
    brain: AudioEvents, hparams: Mapping[str, Any], datasets: Datasets
) -> dict[str, dict[str, float]]:
    """A zero-shot merge, before or after fine-tuning; the metrics of each test."""
    mam, method, results = brain.mam, hparams["method"], {}
    assert mam is not None
    into = hparams["merge_into"]
    if into == "finetuned":
        with mam.taken_back(), _as_plain(brain):
            fit(brain, hparams, datasets)
            results["finetune"] = brain.test(datasets["test"], "finetune")
    if into != "pretrained":
        return results | final_test(brain, hparams, datasets)
    if hparams["search"]:
        # Its controls would have to be fine-tuned too: runs of their own, with --control.
        found = search(brain, datasets["valid"], with_controls=False)
        found.sweep.apply(found.best)
        brain.write_plan()
    with _as_plain(brain):  # the merged weights are the encoder's own from here on
        brain.fit_classifier(datasets["train"], datasets["valid"])
        fit(brain, hparams, datasets)
        return {method: brain.test(datasets["test"], method)}


@contextmanager
def _as_plain(brain: AudioEvents) -> Iterator[None]:
    """Within the block the Brain knows of no merge; the weights are what they are."""
    mam, brain.mam = brain.mam, None
    if mam is not None:
        # A merge that is there is done again whenever weights are loaded, but a checkpoint of
        # these weights has it in it.
        mam.adopt()
    try:
        yield
    finally:
        brain.mam = mam
