"""The weights of a language model, chosen on the validation set of a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch import Tensor

from speechbrain_mam.ctc.beam_search import OPTIONS, Decoding, read_decoding
from speechbrain_mam.errors import MAMError
from speechbrain_mam.export.run import open_run
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.results.decoding import BEAM, BEAM_LM
from speechbrain_mam.results.fields import get
from speechbrain_mam.tasks.asr_data import speech_dataset
from speechbrain_mam.text_files import read_json


@dataclass(frozen=True)
class Weights:
    """A pair of weights, and the WER in percent that it gives.

    Arguments
    ---------
    alpha : float
        Of the language model's log-probability.
    beta : float
        Added for each word.
    wer : float
        Of the validation set.
    """

    alpha: float
    beta: float
    wer: float


def choose_weights(
    run: Path, alphas: Sequence[float], betas: Sequence[float], model: str | None = None
) -> tuple[float, list[Weights]]:
    """Decode a run's validation set with every pair of weights; the test set is not touched.

    Arguments
    ---------
    run : Path
        A finished run's output folder.
    alphas, betas : sequence of float
        What to try.
    model : str, optional
        The language model; the run's own by default.

    Returns
    -------
    tuple
        The WER of the beam search without a model, and all pairs, the best first. Of equal ones the
        smaller α is first, then the smaller β.

    Raises
    ------
    MAMError
        If the run is none of speech or cannot be opened, there is no language model, or nothing is
        to be tried.
    """
    opened = open_run(run)
    encoder = opened.encoder
    if not isinstance(encoder, HubertCTC):
        raise MAMError(f"'{run}' is no run of speech recognition: nothing is decoded with words")
    if not alphas or not betas:
        raise MAMError("nothing to try: give one alpha and one beta at least")
    given = dict(opened.hparams.get("test_beam_search") or {})
    given = {key: value for key, value in given.items() if key in OPTIONS}
    if model is not None:
        given["kenlm_model_path"] = model
    tried = [
        (a, b, _decoding(BEAM_LM, given | {"alpha": a, "beta": b})) for a in alphas for b in betas
    ]
    outputs = list(_outputs(run, encoder, int(opened.hparams.get("test_batch_size", 8))))
    plain = _wer(_decoding(BEAM, given), encoder, outputs)
    found = [Weights(a, b, _wer(decoding, encoder, outputs)) for a, b, decoding in tried]
    return plain, sorted(found, key=lambda one: (one.wer, one.alpha, one.beta))


def _decoding(name: str, options: dict[str, Any]) -> Decoding:
    return read_decoding({"test_decoding": name, "test_beam_search": options})


Output = tuple[list[str], list[str], Tensor, Tensor]


def _outputs(run: Path, encoder: HubertCTC, size: int) -> Iterable[Output]:
    """IDs, references, log-probabilities and frames of the validation set, batch by batch."""
    note = run / "save" / "prepared.json"
    root = get(read_json(note), "data_folder", str, note)
    dataset = speech_dataset(run / "save" / "valid.csv", root, encoder)
    dataset = dataset.filtered_sorted(sort_key="duration")
    items = [dataset[i] for i in range(len(dataset))]
    for start in range(0, len(items), size):
        batch = PaddedBatch(items[start : start + size])
        with torch.no_grad():
            log_probs, lens = encoder(batch.sig.data, batch.sig.lengths)
        yield batch.id, batch.wrd, log_probs, lens * log_probs.shape[1]


def _wer(decoding: Decoding, encoder: HubertCTC, outputs: Iterable[Output]) -> float:
    searcher = decoding.searcher(decoding.name, encoder.alphabet)
    errors = sb.utils.metric_stats.ErrorRateStats()
    for names, references, log_probs, frames in outputs:
        texts = searcher(log_probs, frames)
        errors.append(names, [t.split() for t in texts], [w.split() for w in references])
    return float(errors.summarize("error_rate"))
