"""speechbrain_mam: Multimodal Attention Merging (arXiv 2312.14378) for SpeechBrain recipes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from speechbrain_mam.version import __version__ as __version__

if TYPE_CHECKING:
    from speechbrain_mam.architectures.index import index_attention
    from speechbrain_mam.architectures.live import find_attention
    from speechbrain_mam.architectures.registry import (
        ARCHITECTURES,
        Architecture,
        register_architecture,
        supported_models,
    )
    from speechbrain_mam.brain.brain import MAMBrain
    from speechbrain_mam.donors.donor import Donor
    from speechbrain_mam.errors import MAMError
    from speechbrain_mam.learning.learnable import LearnableMAM
    from speechbrain_mam.learning.linear import MergedLinear
    from speechbrain_mam.mam import MAM
    from speechbrain_mam.merging.apply import Merge
    from speechbrain_mam.merging.plan import MergePlan
    from speechbrain_mam.merging.planner import make_plan

__all__ = [
    "ARCHITECTURES",
    "MAM",
    "Architecture",
    "Donor",
    "LearnableMAM",
    "MAMBrain",
    "MAMError",
    "Merge",
    "MergePlan",
    "MergedLinear",
    "find_attention",
    "index_attention",
    "make_plan",
    "register_architecture",
    "supported_models",
]


_MODULES = {
    "ARCHITECTURES": "architectures.registry",
    "Architecture": "architectures.registry",
    "MAM": "mam",
    "Donor": "donors.donor",
    "LearnableMAM": "learning.learnable",
    "MAMBrain": "brain.brain",
    "MAMError": "errors",
    "Merge": "merging.apply",
    "MergePlan": "merging.plan",
    "MergedLinear": "learning.linear",
    "find_attention": "architectures.live",
    "index_attention": "architectures.index",
    "make_plan": "merging.planner",
    "register_architecture": "architectures.registry",
    "supported_models": "architectures.registry",
}


def __getattr__(name: str) -> Any:
    # Each name is loaded with its first use: plain PyTorch users need no SpeechBrain, and the
    # command line needs neither it nor torch (half a gigabyte and seconds of start-up).
    if name in _MODULES:
        return getattr(importlib.import_module(f"speechbrain_mam.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
