"""A donor in a BEATs checkpoint, ``{cfg, model}`` as its authors and SpeechBrain keep it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechbrain_mam.errors import MAMError
from speechbrain_mam.model_files.folder import DonorFolder
from speechbrain_mam.model_files.read import load_checkpoint, state_dict, stored_as
from speechbrain_mam.model_files.weight_files import WeightFiles

if TYPE_CHECKING:
    import torch


class BEATsFile(DonorFolder):
    """The weights of a BEATs checkpoint, read as those of a model folder are. No code in it is run.

    Arguments
    ---------
    path : Path
        The ``.pt`` file.

    Raises
    ------
    MAMError
        If the file is no such checkpoint, or would run code.

    Example
    -------
    >>> from speechbrain_mam import Donor
    >>> index = Donor("speechbrain_mam/beats-mini").index
    >>> index.architecture.name, index.num_layers, index.hidden_size
    ('BEATs', 4, 384)
    """

    def __init__(self, path: Path):
        self.path, self.weights = path, WeightFiles((path,))
        content = load_checkpoint(
            path, "load it, and torch.save({'cfg': a plain dict, 'model': its state dict}, file)"
        )
        parts = content if isinstance(content, dict) else {}
        cfg, state = parts.get("cfg"), parts.get("model")
        if not isinstance(cfg, dict) or not isinstance(state, dict):
            raise MAMError(
                f"'{path}': expected a BEATs checkpoint {{cfg, model}}; any other model comes as a "
                "folder with config.json"
            )
        self.config = {"model_type": "speechbrain/beats", "cfg": cfg}
        self._state: dict[str, torch.Tensor] = state_dict(state, f"'{path}': its 'model'")
        stored = {name: stored_as(tensor) for name, tensor in self._state.items()}
        self.shapes = {name: one.shape for name, one in stored.items()}
        self.types = {name: one.type for name, one in stored.items()}
        self.files = dict.fromkeys(self.shapes, path)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the precision that it is stored in."""
        return self._state[name]
