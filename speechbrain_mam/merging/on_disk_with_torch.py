"""The merges on files that NumPy is not enough for: other methods, alignment, crops, fused targets,
donors in another basis.

They are the live merge's own functions, on tensors that are read from the files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from speechbrain_mam.donors.donor import IndexedSource, TensorKey, fingerprint
from speechbrain_mam.donors.rotation import RotatedDonor
from speechbrain_mam.merging.arithmetic import linear
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.prepare import donor_tensors, own_part, write_part
from speechbrain_mam.merging.tensor_file import TensorFile
from speechbrain_mam.model_files.folder import ModelFolder


class FolderSource:
    """A model folder's self-attention, as :class:`~speechbrain_mam.donors.donor.Donor` gives it."""

    def __init__(self, folder: ModelFolder):
        self.folder, self.index = folder, folder.attention()
        self.name = str(folder.path)

    def tensor(self, key: TensorKey) -> torch.Tensor:
        return self.folder.values(self.index.tensors[key])


def folder_source(folder: ModelFolder, rotate: str = "none", seed: int = 0) -> IndexedSource:
    """A donor's folder, in another basis where one is asked for."""
    source = FolderSource(folder)
    return source if rotate == "none" else RotatedDonor(source, rotate, seed)


def rewrite_any(
    plan: MergePlan,
    files: Mapping[str, TensorFile | None],
    donor: ModelFolder,
    rotate: str = "none",
    seed: int = 0,
) -> str:
    """Overwrite the plan's tensors in ``files``, which are open; the donor's fingerprint.

    Arguments
    ---------
    plan : MergePlan
        Any plan.
    files : mapping
        The file of each of the target's tensors.
    donor : ModelFolder
        Only read.
    rotate, seed
        As for :class:`~speechbrain_mam.donors.rotation.RotatedDonor`.
    """
    source = folder_source(donor, rotate, seed)

    def read(name: str) -> torch.Tensor:
        file = files[name]
        assert file is not None
        return torch.from_numpy(file.read(name).copy()).reshape(file.shape(name))

    for entry, theirs in donor_tensors(plan, source, read):
        if entry.lam == 1:
            continue
        file, whole = files[entry.target], read(entry.target)
        assert file is not None
        ours = own_part(entry, whole)
        write_part(entry, whole, linear(ours, theirs, entry.lam, plan.method))
        file.write(entry.target, whole.numpy().reshape(-1))
    return fingerprint(source, [entry.donor_key for entry in plan.entries])
