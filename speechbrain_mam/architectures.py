"""The table of architectures: how each family of Transformers names its self-attention.

A new family is a new row of :data:`ARCHITECTURES`. What reads the rows is in
:mod:`speechbrain_mam.attention`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from speechbrain_mam.errors import MAMError


@dataclass(frozen=True)
class Architecture:
    """One family of Transformers: a row of the table.

    Arguments
    ---------
    name : str
        What the family is called in plans and messages.
    model_types : tuple of str
        ``model_type`` in its Hugging Face ``config.json``; a live model is recognised by the same
        field of its ``config``. ``timm/vit`` stands for a timm model whose ``architecture`` starts
        with ``vit``.
    layer : str
        Regular expression for the path of layer ``(?P<layer>\\d+)``, from the encoder on.
    names : dict
        For each projection, the names that it has inside a layer, in any version of the library.
    heads : str
        Where the number of attention heads is kept, with dots between the steps: in the
        configuration, or from the live model on for a family that is recognised by ``classes``.
    classes : tuple of str
        Full names of the classes of live models that have no Hugging Face ``config``; a subclass is
        recognised too.
    fused : dict
        Names of tensors that hold several projections on top of each other, and which, from the
        first row on.
    heads_of_width : dict
        The number of heads for each width, for configurations that do not tell it.
    reads_weight : bool
        True where the attention does not call its projections but reads their ``weight``.
    front : tuple of str
        Modules that run before the first layer, from the encoder on; an evaluation of many merges
        computes them once. A live model may lack some of them.
    """

    name: str
    model_types: tuple[str, ...]
    layer: str
    names: Mapping[str, tuple[str, ...]]
    heads: str = "num_attention_heads"
    classes: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heads_of_width: Mapping[int, int] = field(default_factory=dict)
    reads_weight: bool = False
    front: tuple[str, ...] = ()


_PROJ = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "output": ("out_proj",),
}
_WAV2VEC2_FRONT = ("feature_extractor", "feature_projection", "encoder.pos_conv_embed")
_WAV2VEC2_LAYER = r"encoder\.layers\.(?P<layer>\d+)\.attention"

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("HuBERT", ("hubert",), _WAV2VEC2_LAYER, _PROJ, front=_WAV2VEC2_FRONT),
    Architecture("wav2vec 2.0", ("wav2vec2",), _WAV2VEC2_LAYER, _PROJ, front=_WAV2VEC2_FRONT),
    Architecture(
        "WavLM",
        ("wavlm",),
        _WAV2VEC2_LAYER,
        _PROJ,
        reads_weight=True,
        front=_WAV2VEC2_FRONT,
    ),
    Architecture(
        "BEATs",
        (),
        r"encoder\.layers\.(?P<layer>\d+)\.self_attn",
        _PROJ,
        heads="cfg.encoder_attention_heads",
        classes=("speechbrain.lobes.models.beats.BEATs",),
        front=("filter_banks", "patch_embedding", "post_extract_proj", "encoder.pos_conv"),
    ),
    Architecture(
        "BERT",
        ("bert",),
        r"encoder\.layer\.(?P<layer>\d+)\.attention",
        {
            "query": ("self.query",),
            "key": ("self.key",),
            "value": ("self.value",),
            "output": ("output.dense",),
        },
    ),
    # On disk, `encoder.layer.0.attention.attention.query` whatever wrote it; a live model of
    # transformers 5 says `layers.0.attention.q_proj` (DINOv2: `encoder.layer.0.attention.q_proj`).
    Architecture(
        "ViT",
        ("vit", "deit", "dinov2", "dinov2_with_registers"),
        r"(?:encoder\.layer|layers)\.(?P<layer>\d+)\.attention",
        {
            "query": ("attention.query", "q_proj"),
            "key": ("attention.key", "k_proj"),
            "value": ("attention.value", "v_proj"),
            "output": ("output.dense", "o_proj"),
        },
    ),
    Architecture(
        "ViT (timm)",
        ("timm/vit", "timm/deit", "timm/deit3", "timm/flexivit"),
        r"blocks\.(?P<layer>\d+)\.attn",
        {"output": ("proj",)},
        heads="model_args.num_heads",
        fused={"qkv": ("query", "key", "value")},
        # timm's configuration tells no number of heads. Heads are 64 wide, but for So400m's (1152),
        # huge's (1280), giant's (1408) and gigantic's (1664), which have 16 of them
        heads_of_width={
            **{64 * heads: heads for heads in (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 24)},
            **dict.fromkeys((1152, 1280, 1408, 1664), 16),
        },
    ),
)


def architecture(model_type: str | None) -> Architecture:
    """The table's row for a ``model_type``.

    Raises
    ------
    MAMError
        If no row has that ``model_type``.

    Example
    -------
    >>> architecture("bert").name
    'BERT'
    """
    for row in ARCHITECTURES:
        if model_type in row.model_types:
            return row
    known = [name for row in ARCHITECTURES for name in row.model_types]
    near = difflib.get_close_matches(str(model_type), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise MAMError(
        f"model_type {model_type!r} is not in the table of architectures "
        f"(known: {', '.join(known)}){hint}"
    )
