"""A donor whose query, key and value lie head by head in one tensor: shown with one tensor each.

DeBERTa's ``in_proj`` has the rows of the first head's query, key and value, then the second head's.
No range of rows is one projection, so they are gathered as they are read:

    projection j = concat_h in_proj[(n·h + j)·d : (n·h + j + 1)·d]

with n projections and heads of width d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechbrain_mam.architectures.names import Names, part_name
from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.folder import DonorFolder

if TYPE_CHECKING:
    import torch


class HeadsTakenApart(DonorFolder):
    """The tensors of another folder, with interleaved ones replaced by their parts.

    Arguments
    ---------
    folder : DonorFolder
        Of a family that has interleaved tensors.

    Raises
    ------
    MAMError
        If the configuration tells no heads, or they do not divide the rows.
    """

    def __init__(self, folder: DonorFolder):
        self.path, self.config, self.weights = folder.path, folder.config, folder.weights
        self.shapes, self.files = dict(folder.shapes), dict(folder.files)
        self.types = dict(folder.types)
        self._parts: dict[str, tuple[str, int, int]] = {}
        row = self.row()
        names, heads = Names(row), self.number(row.heads)
        for name, shape in folder.shapes.items():
            found = names.match(name)
            if found is None or not found.interleaved:
                continue
            count = len(found.projections)
            if not heads or not shape or shape[0] % (heads * count):
                raise MAMError(
                    f"'{self.path}': '{name}' has shape {list(shape)}, which '{row.heads}' "
                    f"({heads}) does not divide into {', '.join(found.projections)} of each head"
                )
            stem = name.removesuffix(found.kind).removesuffix(".")
            for j, projection in enumerate(found.projections):
                part = f"{part_name(stem, projection)}.{found.kind}"
                self._parts[part] = (name, j, count)
                self.shapes[part] = (shape[0] // count, *shape[1:])
                # whoever opens files by themselves finds none of tensors here, and calls `read`
                self.files[part], self.types[part] = self.path, self.types[name]
            del self.shapes[name], self.files[name], self.types[name]
        self._folder, self._heads = folder, heads or 0

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the precision that it is stored in."""
        if name not in self._parts:
            return self._folder.read(name)
        whole, j, count = self._parts[name]
        tensor = self._folder.read(whole)
        return tensor.unflatten(0, (self._heads, count, -1))[:, j].flatten(0, 1)
