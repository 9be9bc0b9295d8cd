"""A merge from folder to folder, in which only the bytes of the plan's tensors change.

    W = λ · W_target + (1 − λ) · W_donor

The target's files are copied, and in the copy the tensors of the plan are overwritten where they
lie, one at a time (:mod:`speechbrain_mam.merging.tensor_file`). NumPy does the arithmetic of the
paper's merge; torch is loaded only for what NumPy is not enough for, or to read a ``.bin``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from speechbrain_mam.architectures.index import TensorRef
from speechbrain_mam.architectures.tensor_checks import norm_ratio
from speechbrain_mam.donors.donor import add_to_fingerprint
from speechbrain_mam.errors import MAMError, one_of
from speechbrain_mam.merging.methods import method_named
from speechbrain_mam.merging.plan import MergePlan
from speechbrain_mam.merging.tensor_file import Array, TensorFile, mix
from speechbrain_mam.model_files.carry import carry_along
from speechbrain_mam.model_files.folder import ModelFolder
from speechbrain_mam.options import ROTATIONS


def merge_folders(
    plan: MergePlan,
    target: ModelFolder,
    donor: ModelFolder,
    out: Path,
    rotate: str = "none",
    seed: int = 0,
) -> None:
    """Write the merged model, with everything that lies beside the target's weights, into ``out``.

    ``out`` also gets ``mam_plan.json``: the plan, and the SHA-256 of the donor's tensors
    (:meth:`speechbrain_mam.donors.donor.Donor.fingerprint`).

    Arguments
    ---------
    plan : MergePlan
        Made from ``target.attention()`` and ``donor.attention()``.
    target, donor : ModelFolder
        Only read.
    out : Path
        An empty folder, such as :func:`~speechbrain_mam.atomic.new_folder` gives.
    rotate : str
        The donor in another basis of its residual stream, as ``MAM``'s: ``none``, ``random`` or
        ``hadamard``.
    seed : int
        Of that basis: ``MAM``'s ``control_seed``.

    Raises
    ------
    MAMError
        If a tensor is stored in a type that cannot be merged, or would not be finite, or if there
        is no such basis.
    OSError
        If a file cannot be read or written.
    """
    carry_along(target.path, out, set(target.files.values()))
    files = _copy_weights(target, out)
    one_of("rotate", rotate, ROTATIONS)
    content = json.loads(plan.to_json())
    content["donor_sha256"] = _rewrite(plan, files, target, donor, rotate, seed)
    if rotate != "none":
        content |= {"rotate": rotate, "control_seed": seed}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (out / "mam_plan.json").write_text(text + "\n", encoding="utf-8")


def _copy_weights(target: ModelFolder, out: Path) -> dict[str, Path]:
    """Copy the target's weights; where each of its tensors is now."""
    sources = target.weight_files()
    if sources[0].suffix != ".safetensors":
        _save_as_safetensors(target, out / "model.safetensors")
        return dict.fromkeys(target.files, out / "model.safetensors")
    if target.weights.index is not None:  # one that was not followed is of other weights
        sources.append(target.weights.index)
    for source in sources:
        if source.parent != target.path:
            raise MAMError(f"'{target.path}': the shard '{source}' lies outside of the folder")
        shutil.copyfile(source, out / source.name)
    return {name: out / file.name for name, file in target.files.items()}


def _save_as_safetensors(target: ModelFolder, file: Path) -> None:
    from safetensors.torch import save_file

    tensors, storages = {}, set()
    for name in target.files:
        tensor = target.read(name).contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()  # safetensors has no tied weights: each name gets its own
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


def _rewrite(
    plan: MergePlan,
    files: Mapping[str, Path],
    target: ModelFolder,
    donor: ModelFolder,
    rotate: str,
    seed: int,
) -> str:
    """Overwrite the plan's tensors in ``files``; the donor's fingerprint."""
    with ExitStack() as stack:
        # TensorFile.write finds what is not finite and names it; NumPy would only warn
        stack.enter_context(np.errstate(over="ignore", invalid="ignore"))
        touched = sorted({files[entry.target] for entry in plan.entries})
        read_from = {files[name]: file for name, file in target.files.items()}
        ours = {f: stack.enter_context(TensorFile(f, "r+b", read_from[f])) for f in touched}
        # float64's multiply-add is rounded once in PyTorch, and twice in NumPy
        wide = any(target.types[entry.target] == "float64" for entry in plan.entries)
        if wide or rotate != "none" or not _is_plain(plan):
            from speechbrain_mam.merging.on_disk_with_torch import rewrite_any

            opened = {name: ours.get(file) for name, file in files.items()}
            return rewrite_any(plan, opened, donor, rotate, seed)
        digest = hashlib.sha256()
        factors: dict[tuple[int, str], float] = {}
        read = {file for file in donor.files.values() if file.suffix == ".safetensors"}
        theirs = {file: stack.enter_context(TensorFile(file)) for file in sorted(read)}
        for entry in plan.entries:
            file = ours[files[entry.target]]
            ours_now = file.read(entry.target)
            source = theirs.get(donor.files[entry.donor])
            values = source.read(entry.donor) if source else _read_other(donor, entry.donor)
            if entry.donor_part is not None:  # of a flat tensor
                whole = values.reshape(donor.shapes[entry.donor])
                values = entry.donor_part.take(whole).reshape(-1)
            add_to_fingerprint(digest, entry.donor_key, values.reshape(entry.shape))
            if plan.donor_scale == "match_norm":
                if entry.kind == "weight":
                    factor = norm_ratio(_norm(ours_now), _norm(values), entry.donor)
                    factors[entry.layer, entry.projection] = factor
                # a bias is scaled with its weight, so that x ↦ W·x + b is scaled as a whole
                values = values * values.dtype.type(factors[entry.layer, entry.projection])
            if entry.lam != 1:
                file.write(entry.target, mix(ours_now, values, entry.lam))
    return digest.hexdigest()


def _is_plain(plan: MergePlan) -> bool:
    """Whether NumPy does: whole tensors of the target, λ·T + (1 − λ)·D, nothing turned or cropped.

    The rest takes torch, which is the larger part of a merge's memory and time.
    """
    whole = all(entry.target_part is None and entry.donor_factor == 1 for entry in plan.entries)
    same = plan.align == "none" and plan.donor_width == plan.hidden_size
    return whole and same and method_named(plan.method).is_linear


def _read_other(donor: ModelFolder, name: str) -> Array:
    values: Array = donor.values(TensorRef(name, donor.shapes[name])).numpy().reshape(-1)
    return values


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
