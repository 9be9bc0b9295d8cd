"""A run's ``hyperparams.yaml`` read as data: what it could execute is left out or refused.

HyperPyYAML calls whatever a file names, ``!apply:os.system`` included, and a run folder may come
from anywhere. Only the constructors listed here are called, which build the model and what its
checkpoint holds; every other tagged part becomes null before HyperPyYAML sees the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from speechbrain_mam.errors import MAMError

_METRICS = "speechbrain.utils.metric_stats."
_EPOCHS = "speechbrain.utils.epoch_loop."
_AUGMENT = "speechbrain.augment."
_SCHEDULERS = "speechbrain.nnet.schedulers."
CALLED = {
    "!new:": {
        "speechbrain_mam.MAM",
        "speechbrain_mam.lobes.beats.BEATsEncoder",
        "speechbrain_mam.lobes.hubert_ctc.HubertCTC",
        "speechbrain.nnet.linear.Linear",
        "speechbrain.utils.checkpoints.Checkpointer",
        "torch.nn.Sequential",
        "speechbrain.augment.augmenter.Augmenter",
        *(f"{_AUGMENT}freq_domain.{name}" for name in ("SpectrogramDrop", "Warping")),
        *(f"{_AUGMENT}time_domain.{name}" for name in ("SpeedPerturb", "DropFreq", "DropChunk")),
        *(f"{_EPOCHS}{name}" for name in ("EpochCounter", "EpochCounterWithStopper")),
        *(
            f"{_SCHEDULERS}{name}"
            for name in ("NewBobScheduler", "LinearScheduler", "NoamScheduler", "StepScheduler")
        ),
    },
    "!name:": {
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        f"{_METRICS}ErrorRateStats",
        f"{_METRICS}ClassificationStats",
    },
    "!apply:": {"speechbrain.utils.seed_everything"},  # a head that is new is drawn with its seed
}
"""What may be called, by tag; nothing of it runs code that it is handed."""
PLAIN = ("!ref", "!copy")
_STANDARD = "tag:yaml.org,2002:"
_TYPES = ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge", "value")


@dataclass(frozen=True)
class DataOnly:
    """A file without what may not be called.

    Arguments
    ---------
    text : str
        HyperPyYAML that calls nothing but :data:`CALLED`.
    left_out : dict
        The tags that were left out, by their top-level key.
    """

    text: str
    left_out: dict[str, list[str]]


def data_only(text: str, file: Path) -> DataOnly:
    """The part of a HyperPyYAML text that is data, or a call that is allowed.

    Arguments
    ---------
    text : str
        The whole file.
    file : Path
        Named in errors.

    Raises
    ------
    MAMError
        If it is no YAML mapping, or a key is no plain text.

    Example
    -------
    >>> found = data_only("seed: 1\\nlogger: !apply:os.system [true]\\n", Path("hyperparams.yaml"))
    >>> found.text, found.left_out
    ('seed: 1\\nlogger: null\\n', {'logger': ['!apply:os.system']})
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise MAMError(f"'{file}' is no YAML: {reason}") from error
    if not isinstance(root, yaml.MappingNode) or root.tag != f"{_STANDARD}map":
        raise MAMError(f"'{file}' is no YAML mapping of keys to values")
    left_out: dict[str, list[str]] = {}
    entries = []
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode) or _forbidden(key):
            raise MAMError(f"'{file}': line {key.start_mark.line + 1}: expected a plain key")
        tags = list(_forbidden_in(value))
        if tags and not isinstance(value, yaml.MappingNode | yaml.SequenceNode):
            value = _null()
        elif tags:
            value = _null() if _forbidden(value) else _without(value)
        if tags:
            left_out[str(key.value)] = tags
        entries.append((key, value))
    root.value = entries
    return DataOnly(yaml.serialize(root, width=10**6, allow_unicode=True), left_out)


def _null() -> yaml.ScalarNode:
    return yaml.ScalarNode(f"{_STANDARD}null", "null")


def _forbidden(node: yaml.Node) -> bool:
    """Whether a node's own tag may not reach HyperPyYAML."""
    tag = str(node.tag)
    if tag.startswith(_STANDARD):
        return tag.removeprefix(_STANDARD) not in _TYPES
    if tag in PLAIN:
        return False
    if tag == "!apply:getattr":  # what HyperPyYAML makes of `!ref <encoder.width>`
        of, *names = node.value if isinstance(node, yaml.SequenceNode) else [node]
        public = [n for n in names if isinstance(n, yaml.ScalarNode) and n.value[:1].isalpha()]
        return len(names) != 1 or public != names or any(_forbidden_in(of))
    if tag == "!tuple":  # its text is YAML once more, which an unsafe loader reads
        return not isinstance(node, yaml.ScalarNode) or "!" in node.value
    return not any(tag.startswith(kind) and tag[len(kind) :] in CALLED[kind] for kind in CALLED)


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """A node and all that is in it; an alias once."""
    seen, todo = set(), [node]
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += _parts(one)


def _forbidden_in(node: yaml.Node) -> Iterator[str]:
    """All tags of a node and what is in it that may not be used."""
    return (str(one.tag) for one in _nodes(node) if _forbidden(one))


def _without(node: yaml.Node) -> yaml.Node:
    """A list or mapping whose forbidden parts are null."""
    for one in _nodes(node):
        if isinstance(one, yaml.MappingNode):
            one.value = [
                (_null() if _forbidden(k) else k, _null() if _forbidden(v) else v)
                for k, v in one.value
            ]
        elif isinstance(one, yaml.SequenceNode):
            one.value = [_null() if _forbidden(v) else v for v in one.value]
    return node
