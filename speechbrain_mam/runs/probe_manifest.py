"""The first-order probe on a manifest of speech, without a recipe.

The recogniser and the batches serve the sweep, :mod:`speechbrain_mam.runs.sweep_manifest`, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from tqdm import tqdm

from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.donors.donor import Donor
from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.merging.planner import make_plan
from speechbrain_mam.search.place import Place, place
from speechbrain_mam.search.probe import Probe, probe
from speechbrain_mam.tasks.asr_data import check_recordings, speech_dataset
from speechbrain_mam.tasks.finite import check_outputs
from speechbrain_mam.tasks.task import kept


@dataclass(frozen=True)
class Recogniser:
    """A CTC recogniser in evaluation mode, and where it runs."""

    encoder: HubertCTC
    where: Place

    @classmethod
    def load(cls, target: str, device: str | None, precision: str) -> Recogniser:
        """Of a folder or a name; device and precision as
        :func:`~speechbrain_mam.search.place.place` takes them."""
        where = place(device, precision)
        return cls(HubertCTC(target, trainable="none").eval().to(where.device), where)

    def __call__(self, batch: PaddedBatch) -> tuple[PaddedBatch, torch.Tensor, torch.Tensor]:
        """A batch as it is on the device, its log-probabilities ``[B, T, C]`` and lengths.

        Raises
        ------
        MAMError
            If an utterance's are not finite.
        """
        batch = kept(batch).to(self.where.device)
        with self.where.autocast():
            log_probs, lens = self.encoder(*batch.sig)
        check_outputs(log_probs, batch.id, lens)
        return batch, log_probs, lens


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


def manifest_batches(
    encoder: HubertCTC, manifest: Path, data_folder: Path | None, batch_size: int
) -> SaveableDataLoader:
    """The utterances of a manifest in batches, in the order of their durations.

    Raises
    ------
    MAMError
        If the manifest cannot be used, or it is not known where its audio lies.
    """
    if not manifest.is_file():
        raise MAMError(f"--manifest '{manifest}': no such file")
    if batch_size < 1:
        raise MAMError(f"--batch-size {batch_size}: expected a number above 0")
    root = str(data_folder or _noted_folder(manifest))
    dataset = speech_dataset(manifest, root, encoder)
    check_recordings(dataset, manifest)
    dataset = dataset.filtered_sorted(sort_key="duration")
    return SaveableDataLoader(dataset, batch_size=batch_size, collate_fn=PaddedBatch)


def _noted_folder(manifest: Path) -> str:
    """The corpus's folder, out of the note that a preparation leaves beside its manifests."""
    note = manifest.with_name("prepared.json")
    if note.is_file():
        return json.loads(note.read_text(encoding="utf-8"))["data_folder"]
    if "$data_root" in manifest.read_text(encoding="utf-8", errors="replace"):
        raise MAMError(f"'{manifest}' names audio below $data_root: give its folder, --data-folder")
    return ""
