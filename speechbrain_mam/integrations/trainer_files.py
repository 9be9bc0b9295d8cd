"""``mam.safetensors`` in a checkpoint: λ, and the target's own projections that they mix.

The checkpoint's weights are those of the merged model. What λ and the merge would be after a
resumption cannot be had from them: the own projections are kept beside, with the donor's hash.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speechbrain_mam.atomic import write_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.learning.module import MergedModule
from speechbrain_mam.mam import MAM

FILE = "mam.safetensors"


def own_state(mam: MAM) -> dict[str, Tensor]:
    """What a live merge keeps in its modules: own tensors, λ, and a donor's where it is trained."""
    paths = [name for name, one in mam.target.named_modules() if isinstance(one, MergedModule)]
    return {
        name: tensor
        for name, tensor in mam.target.state_dict().items()
        if any(not path or name.startswith(f"{path}.") for path in paths)
    }


def save_own(mam: MAM, folder: Path) -> None:
    """Write λ and the own projections of a live merge."""
    about = {"donor": mam.plan.donor_name, "donor_hash": mam.donor_hash, "settings": _settings(mam)}
    tensors = {name: tensor.contiguous() for name, tensor in own_state(mam).items()}
    metadata = {"mam": json.dumps(about)}  # of several keys the order would be another each time
    write_beside(folder / FILE, lambda part: save_file(tensors, part, metadata=metadata))


def load_own(mam: MAM, folder: Path) -> None:
    """Read them back into a live merge.

    Raises
    ------
    MAMError
        If there are none, or they belong to another donor or another merge.
    """
    file = folder / FILE
    if not file.is_file():
        raise MAMError(
            f"'{folder}' has no '{FILE}': it was saved by a training without MAMCallback. To start "
            "from its weights, load them with from_pretrained"
        )
    try:
        with safe_open(file, framework="pt") as stream:
            about = json.loads((stream.metadata() or {}).get("mam", "{}"))
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise MAMError(f"'{file}' is not a whole safetensors file: {error}") from error
    _check(about, mam, file)
    expected = own_state(mam)
    for name, tensor in expected.items():
        if name not in state or state[name].shape != tensor.shape:
            found = f"{list(state[name].shape)}" if name in state else "nothing"
            raise MAMError(f"'{file}': '{name}' is {found}, expected {list(tensor.shape)}")
        tensor.copy_(state[name])


def _check(about: dict[str, Any], mam: MAM, file: Path) -> None:
    now, then = _settings(mam), about.get("settings", {})
    for key, value in now.items():
        if then.get(key) != value:
            raise MAMError(
                f"key '{key}': the checkpoint '{file.parent}' was trained with {then.get(key)!r}, "
                f"now it is {value!r}; use the former value, or another output_dir"
            )
    if about.get("donor_hash") != mam.donor_hash:
        raise MAMError(
            f"the checkpoint '{file.parent}' belongs to another donor, '{about.get('donor')}'; the "
            f"key 'donor' gives '{mam.plan.donor_name}'"
        )


def _settings(mam: MAM) -> dict[str, Any]:
    """As JSON gives them back: lists, no tuples."""
    settings: dict[str, Any] = json.loads(json.dumps(mam.settings()))
    return settings
