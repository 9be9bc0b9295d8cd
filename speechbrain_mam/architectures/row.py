"""One family of Transformers, as data: a row of the table of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("target", "donor")
QKV = ("query", "key", "value")


def named(query: str, key: str, value: str, output: str) -> dict[str, tuple[str, ...]]:
    """The ``names`` of a row; of each projection several, with blanks between them.

    Example
    -------
    >>> named("q query", "k", "v", "o")["query"]
    ('q', 'query')
    """
    several = zip((*QKV, "output"), (query, key, value, output), strict=True)
    return {projection: tuple(names.split()) for projection, names in several}


PROJ = named("q_proj", "k_proj", "v_proj", "out_proj")


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
        with ``vit``, ``ctranslate2/WhisperSpec`` for a CTranslate2 file of that specification.
    layer : str
        Regular expression for the path of layer ``(?P<layer>\\d+)``, from the encoder on. Where
        layers come in groups that are repeated (``repeats``), ``(?P<group>\\d+)`` is the group's.
    names : dict
        For each projection, the names that it has inside a layer, in any version of the library.
    heads : str
        Where the number of attention heads is kept, with dots between the steps: in the
        configuration, or from the live model on for a family that is recognised by ``classes``.
    classes : tuple of str
        Full names of the classes of live models that have no Hugging Face ``config``; a subclass is
        recognised too.
    attention : tuple of str
        Full names of the classes of attention inside, where ``classes`` alone do not tell; the
        number of heads is read from the first module of such a class.
    fused : dict
        Names of tensors that hold several projections on top of each other, and which, from the
        first row on. A name that ends in ``_`` is followed by ``weight`` or ``bias`` without a dot.
    interleaved : dict
        The same for tensors that hold the projections of the first head, then of the second, and so
        on.
    transposed : bool
        Whether weights are stored ``[in, out]``. Such a family can only be a donor.
    kv_heads : str
        Where the configuration keeps the number of heads of key and value, which may be fewer than
        the query's: each serves as many of the query's, one after another. Such a family can only
        be a donor.
    scale : str
        What the products of query and key are multiplied with: ``head`` is 1/√(width of a head),
        ``model`` 1/√(width of the model), ``none`` is 1, and anything else the configuration's key
        of an n in 1/√n. Where two models differ in it, the donor's query is scaled
        (:func:`~speechbrain_mam.merging.planner.make_plan`).
    terms : str
        Where the configuration names the terms of positions (``c2p``, ``p2c``) that scores have
        beside q·k: with n of them, all are divided by √(n + 1) too.
    requires : dict
        What the configuration must say for the row to hold, if it says anything of these keys.
    biases : dict
        For each projection, the name of a bias that does not lie beside its weight.
    heads_of_width : dict
        The number of heads for each width, for configurations that do not tell it.
    repeats : str
        Where the configuration keeps how many times the layers run that the model has once.
    towers : dict
        For a model of several encoders, what each is called and the module that it is. Its
        configuration is in ``NAME_config``.
    roles : tuple of str
        ``target``, ``donor`` or both.
    reads_weight : bool
        True where the attention does not call its projections but reads their ``weight``.
    front : tuple of str
        Modules that run before the first layer, from the encoder on; an evaluation of many merges
        computes them once. A live model may lack some of them.
    note : str
        What a plan says of a donor of this family, which a merge does not carry over.

    Example
    -------
    >>> row = Architecture("Mine", ("mine",), r"blocks\\.(?P<layer>\\d+)\\.attn",
    ...     {"query": ("q",), "key": ("k",), "value": ("v",)})
    >>> row.heads, row.projections
    ('num_attention_heads', ('query', 'key', 'value'))
    """

    name: str
    model_types: tuple[str, ...]
    layer: str
    names: Mapping[str, tuple[str, ...]]
    heads: str = "num_attention_heads"
    classes: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interleaved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: bool = False
    kv_heads: str = ""
    scale: str = "head"
    terms: str = ""
    requires: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    heads_of_width: Mapping[int, int] = field(default_factory=dict)
    repeats: str = ""
    towers: Mapping[str, str] = field(default_factory=dict)
    roles: tuple[str, ...] = ROLES
    reads_weight: bool = False
    front: tuple[str, ...] = ()
    note: str = ""

    @property
    def projections(self) -> tuple[str, ...]:
        """The projections that the row can name."""
        held = [
            p for several in (self.fused, self.interleaved) for ps in several.values() for p in ps
        ]
        return tuple(dict.fromkeys((*self.names, *held)))
