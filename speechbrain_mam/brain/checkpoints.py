"""A checkpoint holds the target's own weights and λ, whenever it is saved, and is read as such.

Many recipes save at the end of a test, where λ is folded into the weights. Those weights would be
merged once more when the checkpoint is loaded; so the target is as in training while it is saved.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.logger import get_logger

from speechbrain_mam.errors import MAMError
from speechbrain_mam.mam import MAM
from speechbrain_mam.text_files import read_yaml

logger = get_logger(__name__)


def guard(checkpointer: Checkpointer, mam: MAM) -> None:
    """Let a checkpointer save and load a merged target's own weights.

    Arguments
    ---------
    checkpointer : Checkpointer
        A recipe's; several Brains after each other may have the same.
    mam : MAM
        The merge of its target.
    """
    first = not hasattr(checkpointer, "mam")
    checkpointer.mam = mam
    if not first:
        return
    save, load = checkpointer.save_checkpoint, checkpointer.load_checkpoint

    @functools.wraps(save)
    def save_own(*args: Any, **kwargs: Any) -> Any:
        with checkpointer.mam.own_weights():
            return save(*args, **kwargs)

    @functools.wraps(load)
    def load_own(checkpoint: Any) -> Any:
        merge: MAM = checkpointer.mam
        if not merge.learnable and not merge.is_start:
            return load(checkpoint)  # whatever loads into the target merges again
        file = checkpoint.paramfiles.get("mam")
        content = read_yaml(Path(file)) if file else {}
        check_kind(content, merge, checkpoint.path)
        check_settings(content, merge, file)
        if merge.is_start:
            merge.adopt()  # what is loaded has it in it
            return load(checkpoint)
        folded = merge.is_folded
        if folded:
            merge.apply()
        loaded = load(checkpoint)
        check_lambdas(content, merge, file)
        if folded:
            merge.fold()
        return loaded

    checkpointer.save_checkpoint = save_own
    checkpointer.load_checkpoint = load_own


def describe(mam: MAM) -> dict[str, Any]:
    """What a checkpoint says of its λ: whose they are, what they mean, and their values.

    Of a training that has only begun with a donor there are none.
    """
    lams = None if mam.is_start else [p.detach().cpu().tolist() for p in mam.live.parameters()]
    return {
        "donor": mam.plan.donor_name,
        "donor_hash": mam.donor_hash,
        "settings": {key: _plain(value) for key, value in mam.settings().items()},
        "ranks": _ranks(),
        **({"start": mam.start} if lams is None else {"lam": lams}),
    }


def check_kind(content: dict[str, Any], mam: MAM, folder: Path) -> None:
    """That a checkpoint has λ where they are learned, and began with a donor where that is asked.

    Raises
    ------
    MAMError
        Says what the checkpoint is.
    """
    if mam.is_start:
        fits, what = "start" in content, "did not begin with a donor (key 'start')"
    else:
        what = "holds no λ: it was saved by a training without Learnable-MAM"
        fits = bool(content) and "start" not in content
    if not fits:
        raise MAMError(
            f"the checkpoint '{folder}' {what}. Choose another output_folder; to start from its "
            "weights, load them with a Pretrainer"
        )


def check_settings(content: dict[str, Any], mam: MAM, file: Path) -> None:
    """That a checkpoint's λ were learned in the merge that is configured now.

    Raises
    ------
    MAMError
        Names the key that differs, or the donor.
    """
    if "settings" in content:  # not in those of earlier versions
        for key, value in mam.settings().items():
            now, then = _plain(value), content["settings"].get(key)
            if now != then:
                raise MAMError(
                    f"key '{key}': the checkpoint '{file}' was trained with {_short(then)}, now it "
                    f"is {_short(now)}. Use the former value, or another output_folder"
                )
        ranks = content.get("ranks", 1)
        if ranks != _ranks():
            logger.warning(
                "the checkpoint '%s' was saved by %s processes, now there are %s: the training "
                "goes on with other batches than an uninterrupted one, 'exact_resume' or not",
                file,
                ranks,
                _ranks(),
            )
    if content["donor_hash"] != mam.donor_hash:
        raise MAMError(
            f"the checkpoint {file} belongs to another donor: it was trained with "
            f"'{content['donor']}' (sha256 {content['donor_hash'][:12]}…), the key 'donor' "
            f"gives '{mam.plan.donor_name}' (sha256 {mam.donor_hash[:12]}…). Use "
            "that donor and the same layers and projections, or another output_folder"
        )


def check_lambdas(content: dict[str, Any], mam: MAM, file: Path) -> None:
    """That the λ which came with the weights are those that were noted beside them.

    Raises
    ------
    MAMError
        If they differ, which they do where the weights were saved without λ.
    """
    if "lam" not in content:
        return
    lams = mam.live.parameters()
    noted = [
        torch.tensor(values, dtype=lam.dtype)
        for values, lam in zip(content["lam"], lams, strict=False)
    ]
    if len(noted) != len(lams) or not all(
        torch.equal(one, lam.detach().cpu()) for one, lam in zip(noted, lams, strict=True)
    ):
        raise MAMError(
            f"the checkpoint '{file.parent}' contradicts itself: '{file.name}' notes λ "
            f"{_short(content['lam'])}, its weights come with "
            f"{_short([lam.tolist() for lam in lams])}. They were saved without λ, or at another "
            "time; use another checkpoint"
        )


def _plain(value: Any) -> Any:
    """As YAML gives it back: lists, no tuples."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "…"


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
