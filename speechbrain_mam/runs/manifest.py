"""A recogniser and a manifest of speech, without a recipe: what the probe and the sweep share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from torch import Tensor

from speechbrain_mam.errors import MAMError
from speechbrain_mam.lobes.hubert_ctc import HubertCTC
from speechbrain_mam.results.fields import get
from speechbrain_mam.runs.place import Place, place
from speechbrain_mam.tasks.asr_data import check_recordings, speech_dataset
from speechbrain_mam.tasks.finite import check_outputs
from speechbrain_mam.tasks.task import kept
from speechbrain_mam.text_files import read_json


@dataclass(frozen=True)
class Recogniser:
    """A CTC recogniser in evaluation mode, and where it runs."""

    encoder: HubertCTC
    where: Place

    @classmethod
    def load(cls, target: str, device: str | None, precision: str) -> Recogniser:
        """Of a folder or a name; device and precision as :func:`~speechbrain_mam.runs.place.place`
        takes them."""
        where = place(device, precision)
        return cls(HubertCTC(target, trainable="none").eval().to(where.device), where)

    def __call__(self, batch: PaddedBatch) -> tuple[PaddedBatch, Tensor, Tensor]:
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
        return get(read_json(note), "data_folder", str, note)
    if "$data_root" in manifest.read_text(encoding="utf-8", errors="replace"):
        raise MAMError(f"'{manifest}' names audio below $data_root: give its folder, --data-folder")
    return ""
