"""A merged target in a recipe's hands: what freezes it, loads into it, or replaces its parts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from speechbrain_mam.errors import MAMError
from speechbrain_mam.mam import MAM

logger = logging.getLogger(__name__)


def apply_merge(mam: MAM) -> None:
    """``mam.apply()``; where projections are inside of adapters, the error says so."""
    try:
        mam.apply()
    except MAMError as error:
        if not isinstance(mam.target, nn.Module):
            raise
        adapted = [
            f"'{name}' is inside a {type(module).__name__}"
            for name, module in mam.target.named_modules()
            if "adapter_down_proj" in module._modules
        ]
        if not adapted:
            raise
        raise MAMError(
            f"{error}. The target has adapters ({adapted[0]}): a projection has either an adapter "
            "or MAM, so give the adapters the names of other modules ('target_layers')"
        ) from error


def check_in_place(mam: MAM) -> None:
    """That each learnable projection is where it was put.

    Raises
    ------
    MAMError
        If something else is there now: folding would take it out without a word.
    """
    for entry in mam.plan.entries:
        path = entry.target.rpartition(".")[0]
        found = mam.target.get_submodule(path)
        if "lam" not in found._parameters:
            raise MAMError(
                f"'{path}' carries λ no more: it was replaced by a {type(found).__name__} after "
                "the merge. Give adapters the names of other modules ('target_layers'), or leave "
                f"{entry.projection} out of your MAM's 'projections'"
            )


def open_to_gradients(mam: MAM, modules: nn.Module) -> None:
    """Let gradients reach λ in a target that the recipe freezes; its weights stay frozen.

    SpeechBrain's lobes run under ``torch.no_grad()`` where their attribute ``freeze`` is true. It
    is false while they run and true again after it, since recipes ask it which optimizers to make.
    What a lobe trains beside its frozen encoder (the weights of its layers' sum) is left alone.
    """
    lams = {id(lam.requires_grad_(True)) for lam in mam.live.parameters()}
    for name, module in modules.named_modules():
        if getattr(module, "freeze", None) is not True or hasattr(module, "_mam_open"):
            continue
        if lams.isdisjoint(id(parameter) for parameter in module.parameters()):
            continue
        module.register_forward_pre_hook(_open)
        module.register_forward_hook(_close, always_call=True)
        module._mam_open = True  # type: ignore[assignment]
        own = {id(parameter) for parameter in module._parameters.values()}
        for parameter in module.parameters():
            if id(parameter) not in lams and id(parameter) not in own:
                parameter.requires_grad_(False)
        for part in module.modules():
            # The library asks for its front end's gradient all the same, unless told so.
            if getattr(part, "_requires_grad", None) is True and hasattr(
                part, "_freeze_parameters"
            ):
                part._freeze_parameters()
        logger.info("'%s' is frozen: of it, only λ is learned", name)


def _open(module: nn.Module, args: Any) -> None:
    module.freeze = False  # type: ignore[assignment]


def _close(module: nn.Module, args: Any, output: Any) -> None:
    module.freeze = True  # type: ignore[assignment]


def merge_again_after_loading(mam: MAM, started: Callable[[], bool]) -> None:
    """Whatever loads weights into the target, a pretrainer for example, loads the target's own.

    A fixed merge is taken back before and done again after it. A learnable one takes what is loaded
    as the target's weights; what was derived from those (the donor's scale, its alignment) is
    derived again, as long as ``started`` says that nothing has been trained.

    Arguments
    ---------
    mam : MAM
        A merge that has been applied.
    started : callable
        Whether training or evaluation has begun.
    """
    depth, merged = 0, False

    def before(module: nn.Module, state: Any, prefix: str, *_: Any) -> None:
        nonlocal depth, merged
        depth += 1
        if depth == 1:
            if mam.learnable and started():
                _check_lam_among(state, prefix, mam)
            merged = mam.is_merged
            if merged:
                mam.take_back()

    def after(*_: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth:
            return
        if merged:
            mam.apply()
        elif mam.learnable and not started() and _derives_from_target(mam):
            mam.rebuild()  # λ may have been among what was loaded, and stays

    for module in _holders(mam):
        module.register_load_state_dict_pre_hook(before)
        module.register_load_state_dict_post_hook(after)


def _check_lam_among(state: Any, prefix: str, mam: MAM) -> None:
    """Once λ are being learned, weights without λ are folded ones, or another training's."""
    names = [name for name in state if name.startswith(prefix)]
    merged = {tuple(entry.target.split(".")[-2:]) for entry in mam.plan.entries}
    ours = [name for name in names if tuple(name.split(".")[-2:]) in merged]
    if ours and not any(name.rpartition(".")[2] == "lam" for name in names):
        raise MAMError(
            f"weights without λ are loaded into a target whose λ are learned ('{ours[0]}' is among "
            "them, no '.lam' is): they were saved folded, or without Learnable-MAM, and would be "
            "merged once more. Load them before training starts, or use another checkpoint"
        )


def _holders(mam: MAM) -> list[nn.Module]:
    """The target and those of its parts that hold every merged projection."""
    modules = [entry.target.split(".")[:-1] for entry in mam.plan.entries]
    same = itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*modules, strict=False))
    paths = itertools.accumulate((steps[0] for steps in same), "{}.{}".format)
    return [mam.target, *(mam.target.get_submodule(path) for path in paths)]


def _derives_from_target(mam: MAM) -> bool:
    return mam.plan.donor_scale != "none" or mam.plan.align != "none"
