"""The first-order probe on a manifest of speech, without a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from tqdm import tqdm

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.runs.manifest import Recogniser, manifest_batches
from speechbrain_mam.search.probe import Probe, probe


def probe_manifest(
    target: str,
    donor: str,
    manifest: Path,
    data_folder: Path | None = None,
    batch_size: int = 8,
    device: str | None = None,
    precision: str = "fp32",
    progress: bool = False,
    **options: Any,
) -> Probe:
    """Rank a CTC recogniser's layers, projections and heads by ∂L/∂(1 − λ) on given speech.

    Arguments
    ---------
    target, donor : str
        Folder or name of a ``HubertForCTC`` (or kin), and of the donor.
    manifest : Path
        SpeechBrain's CSV with ``ID, duration, wav, wrd``; a recipe leaves ``valid.csv`` in its save
        folder.
    data_folder : Path, optional
        What ``$data_root`` in the manifest stands for; what its recipe noted beside it by default.
    batch_size : int
        Utterances a batch, in the order of their durations.
    device : str, optional
        ``cpu``, ``cuda`` or ``cuda:1``; the GPU by default, where there is one.
    precision : str
        ``fp32``, ``fp16`` or ``bf16``.
    progress : bool
        Whether to show a progress bar.
    **options
        ``layers``, ``projections``, ``layer_map``, ``bias``, ``donor_scale``, ``method``,
        ``align``, ``width`` of :func:`speechbrain_mam.merging.planner.make_plan`.

    Raises
    ------
    MAMError
        If a file is missing, or an utterance's text does not fit the model's alphabet.
    """
    recogniser = Recogniser.load(target, device, precision)
    encoder = recogniser.encoder
    loader = manifest_batches(encoder, manifest, data_folder, batch_size)

    def losses() -> Iterator[tuple[torch.Tensor, int]]:
        blank = encoder.alphabet.blank_index
        for batch in tqdm(loader, desc="probe", disable=not progress, leave=False):
            batch, log_probs, lens = recogniser(batch)
            tokens, token_lens = batch.tokens
            loss = sb.nnet.losses.ctc_loss(log_probs, tokens, lens, token_lens, blank_index=blank)
            yield loss, len(batch)

    source = Donor(donor)
    plan = make_plan(find_attention(encoder), source.index, **options)
    return probe(encoder, plan, source, losses())
