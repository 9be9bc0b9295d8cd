"""A pretrained target of which a part is drawn anew, to be trained from nothing.

``attention``
    query, key, value and output of every layer, as ``torch.nn.Linear`` draws itself: uniform in
    ±1/√width, biases too;
``encoder``
    the whole Transformer layers, the rest of each as the model's own class draws it;
``all``
    every parameter of the model, its front end and its head too.

In each of them the attention is drawn by the same numbers, PyTorch's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from speechbrain_mam.architectures.index import PROJECTIONS, AttentionIndex, layer_path
from speechbrain_mam.architectures.live import find_attention
from speechbrain_mam.errors import MAMError, one_of

logger = logging.getLogger(__name__)

FRESH = ("none", "attention", "encoder", "all")


def check_fresh(fresh: str, trainable: str, front_end_is_frozen: bool = False) -> None:
    """That what is drawn anew is also trained.

    Raises
    ------
    MAMError
        Names the key that keeps it as it was drawn.

    Example
    -------
    >>> check_fresh("attention", trainable="head")
    Traceback (most recent call last):
    ...
    speechbrain_mam.errors.MAMError: key 'fresh': 'attention' with 'trainable: head' would leave
    random numbers as they are; change the latter
    """
    one_of("fresh", fresh, FRESH)
    if fresh != "none" and trainable != "all":
        key = f"trainable: {trainable}"
    elif fresh == "all" and front_end_is_frozen:
        key = "freeze_feature_extractor: True"
    else:
        return
    hint = "" if fresh != "all" or trainable != "all" else ", or draw the layers alone: encoder"
    raise MAMError(
        f"key 'fresh': '{fresh}' with '{key}' would leave random numbers as they are; change the "
        f"latter{hint}"
    )


@torch.no_grad()
def draw_anew(
    model: nn.Module, fresh: str, build: Callable[[], nn.Module], seed: int = 0
) -> list[str]:
    """Draw a part of a model anew, in place; the global random numbers stay where they were.

    Arguments
    ---------
    model : nn.Module
        With one supported encoder.
    fresh : str
        One of :data:`FRESH`.
    build : callable
        Makes another such model as its class draws it. Called for ``encoder`` and ``all``.
    seed : int
        Of all that is drawn.

    Returns
    -------
    list of str
        The names of the parameters that are new.

    Raises
    ------
    MAMError
        If ``fresh`` is unknown, or ``model`` holds no supported encoder.

    Example
    -------
    >>> from transformers import BertConfig, BertModel, HubertConfig, HubertModel
    >>> tiny = HubertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=8, conv_dim=(8,), conv_kernel=(4,), conv_stride=(4,),
    ...     num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    >>> model = HubertModel(tiny)
    >>> names = draw_anew(model, "attention", lambda: HubertModel(tiny))
    >>> len(names), names[0]
    (16, 'encoder.layers.0.attention.k_proj.weight')
    """
    one_of("fresh", fresh, FRESH)
    if fresh == "none":
        return []
    index = find_attention(model)
    former = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if fresh != "attention":
            _take_over(model, build(), index, whole=fresh == "all")
        torch.manual_seed(seed)
        _draw_attention(model, index)
    new = [n for n, p in model.named_parameters() if not torch.equal(p, former[n])]
    logger.info("fresh: %s: %d of %d tensors are drawn anew", fresh, len(new), len(former))
    return new


def _draw_attention(model: nn.Module, index: AttentionIndex) -> None:
    """Each module that holds projections once, in the order of the layers."""
    paths = {
        ref.name.rpartition(".")[0]: None
        for layer in range(index.num_layers)
        for projection in PROJECTIONS
        if (ref := index.tensors.get((layer, projection, "weight"))) is not None
    }
    for path in paths:
        module = model.get_submodule(path)
        draw = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if draw is None:
            kind = type(module).__name__
            raise MAMError(f"key 'fresh': '{path}', a {kind}, cannot be drawn anew")
        draw()


def _take_over(model: nn.Module, twin: nn.Module, index: AttentionIndex, whole: bool) -> None:
    """What a new model of the same shape has, in the layers or everywhere."""
    layers = tuple(f"{layer_path(index, layer)}." for layer in range(index.num_layers))
    theirs = twin.state_dict()
    for name, tensor in model.state_dict().items():
        if whole or name.startswith(layers):
            tensor.copy_(theirs[name])
