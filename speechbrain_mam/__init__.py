"""speechbrain_mam: Multimodal Attention Merging (arXiv 2312.14378) for SpeechBrain recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechbrain_mam.attention import ARCHITECTURES, find_attention, index_attention
from speechbrain_mam.donor import Donor
from speechbrain_mam.errors import MAMError
from speechbrain_mam.learnable import LearnableMAM, MergedLinear
from speechbrain_mam.mam import MAM
from speechbrain_mam.merge import Merge
from speechbrain_mam.plan import MergePlan, make_plan

if TYPE_CHECKING:
    from speechbrain_mam.brain import MAMBrain

__version__ = "0.1.0"

__all__ = [
    "ARCHITECTURES",
    "MAM",
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
]


def __getattr__(name: str) -> Any:
    # The core serves plain PyTorch users too: SpeechBrain comes with the one class that needs it.
    if name == "MAMBrain":
        from speechbrain_mam.brain import MAMBrain

        return MAMBrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
