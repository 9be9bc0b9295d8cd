"""The target's key in a recipe's YAML, and the six lines under it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from speechbrain_mam.errors import MAMError
from speechbrain_mam.recipe_edits.lines import EditedFile, Unclear, insertion
from speechbrain_mam.text_files import check_aliases, read_text

KEYS = ("mam", "mam_optimizer")
BUILT = ("!new:", "!apply:")
"""Tags of what can be a model."""
NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Hyperparams:
    """A recipe's YAML, composed: its keys' nodes, with their tags and places."""

    path: Path
    text: str
    keys: dict[str, tuple[Node, Node]]

    def value(self, key: str) -> Node:
        """The node of a key's value."""
        return self.keys[key][1]

    def setting(self, node: Node) -> str:
        """A scalar's text; of a reference to another key, that one's."""
        for _ in self.keys:
            if tag(node) != "!ref" or (name := _referred(node)) not in self.keys:
                break
            node = self.value(name)
        return node.value if isinstance(node, ScalarNode) else ""

    def refers(self, node: Node, key: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a node is, or holds, or leads to a reference to a key."""
        for part in leaves(node):
            if tag(part) == "!ref":
                for name in re.findall(r"<([^>\[]+)", part.value):
                    if name == key:
                        return True
                    if name in self.keys and name not in seen:
                        deeper = seen | {name}
                        if self.refers(self.value(name), key, deeper):
                            return True
        return False


def read_hyperparams(path: Path) -> Hyperparams:
    """Compose a recipe's YAML; nothing in it is built.

    Raises
    ------
    MAMError
        If there is none, or it is no YAML.
    """
    text = read_text(path).removeprefix("\ufeff")
    check_aliases(text, f"'{path}'")
    try:
        root = YAML().compose(text)
    except (YAMLError, ValueError, RecursionError) as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f", line {mark.line + 1}" if mark is not None else ""
        reason = (error.problem if isinstance(error, MarkedYAMLError) else None) or str(error)
        raise MAMError(f"'{path}'{where}: no YAML: {reason}") from error
    if not isinstance(root, MappingNode) or root.flow_style:
        raise Unclear(f"'{path}': expected keys and values, each key on a line of its own")
    if tag(root).startswith("!include:"):
        base = tag(root).partition(":")[2]
        raise Unclear(f"'{path}' includes '{base}' as a whole; run it on the file with the keys")
    keys: dict[str, tuple[Node, Node]] = {}
    for key, value in root.value:
        if key.value in keys:
            raise MAMError(f"'{path}', line {key.start_mark.line + 1}: '{key.value}' stands twice")
        keys[str(key.value)] = (key, value)
    return Hyperparams(path, text, keys)


def edit_hyperparams(yaml: Hyperparams, target: str, donor: str) -> EditedFile:
    """The keys ``mam`` and ``mam_optimizer`` after the target's.

    Raises
    ------
    Unclear
        If there is no such key, or it is not one that builds a model.
    """
    check_target(yaml, target)
    key, node = yaml.keys[target]
    content = yaml.path.read_bytes()
    lines = content.splitlines(keepends=True)
    last = _line_of(yaml.text, _end(key, node))
    indent = _indent(yaml, target)
    while last < len(lines) and re.match(rb"[ \t]+#", lines[last]):  # of the target's own block
        last += 1
    blank_follows = last < len(lines) and not lines[last].strip()
    added = [line.encode() for line in yaml_lines(target, donor, indent)]
    added = [*added, b""] if blank_follows else [b"", *added]
    edit = insertion(lines, last + 1 if blank_follows else last, added)
    edited = EditedFile(yaml.path, content, (edit,))
    if not _only_adds(yaml, edited.content):
        raise Unclear(
            f"'{yaml.path}', line {last}: keys cannot be added here without changing others"
        )
    return edited


def yaml_lines(target: str, donor: str, indent: str = "    ") -> list[str]:
    """What a recipe's YAML is given.

    Example
    -------
    >>> for line in yaml_lines("wav2vec2", "my bert: small"):
    ...     print(line)
    mam: !new:speechbrain_mam.MAM
        target: !ref <wav2vec2>
        donor: 'my bert: small'
    mam_optimizer: !name:torch.optim.Adam
        lr: 0.002
    """
    return [
        "mam: !new:speechbrain_mam.MAM",
        f"{indent}target: !ref <{target}>",
        f"{indent}donor: {_quoted(donor)}",
        "mam_optimizer: !name:torch.optim.Adam",
        f"{indent}lr: 0.002",
    ]


def check_target(yaml: Hyperparams, target: str) -> None:
    """That a key builds what can be a target, and that no merge is there.

    Raises
    ------
    MAMError
        If there is a merge.
    Unclear
        If the key is not there, or is something else.
    """
    where = f"'{yaml.path}'"
    for key in KEYS:
        if key in yaml.keys:
            line = yaml.keys[key][0].start_mark.line + 1
            raise MAMError(f"{where}, line {line}: the key '{key}' is there already")
    if target not in yaml.keys or not NAME.fullmatch(target):
        models = [k for k, (_, value) in yaml.keys.items() if tag(value).startswith("!new:")]
        near = difflib.get_close_matches(target, models, n=1) or difflib.get_close_matches(
            target, yaml.keys, n=1
        )
        hint = f"did you mean '{near[0]}'?" if near else f"what it builds: {', '.join(models)}"
        raise Unclear(f"{where} has no key '{target}' at its top; {hint}")
    node = yaml.value(target)
    line = f"{where}, line {node.start_mark.line + 1}: "
    if tag(node) == "!ref" and (other := _referred(node)) in yaml.keys:
        raise Unclear(f"{line}'{target}' is another name of '{other}'; use --target {other}")
    if not tag(node).startswith(BUILT):
        shown = tag(node) if tag(node).startswith("!") else repr(node.value)
        if not isinstance(node, ScalarNode) and not tag(node).startswith("!"):
            shown = "a list" if isinstance(node, SequenceNode) else "a mapping"
        raise Unclear(f"{line}'{target}' is {shown}, expected a model that '!new:' builds")


def tag(node: Node) -> str:
    """A node's tag, ``!new:torch.nn.Identity`` or one of YAML's own."""
    return node.tag or ""


def leaves(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield from leaves(key)
            yield from leaves(value)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            yield from leaves(value)


def argument(node: Node, name: str) -> Node | None:
    """The value that a node gives an argument, by its key."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == name:
                return value
    return None


def _referred(node: Node) -> str:
    found = re.fullmatch(r"<([^<>\[\]]+)>", str(node.value).strip())
    return found[1] if found else ""


def _quoted(text: str) -> str:
    """A string as YAML reads it back."""
    try:
        read = YAML(typ="safe", pure=True).load(f"donor: {text}")
    except YAMLError:
        read = None
    return text if read == {"donor": text} else "'" + text.replace("'", "''") + "'"


def _end(key: Node, node: Node) -> int:
    """The index behind the last character of a value; a block's own mark is behind what follows."""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(*last) if isinstance(last, tuple) else _end(last, last)
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        return node.start_mark.index + len(node.start_mark.buffer[node.start_mark.pointer :
                                           node.end_mark.pointer].rstrip())  # fmt: skip
    return max(key.end_mark.index if key is not node else 0, node.end_mark.index)


def _line_of(text: str, end: int) -> int:
    """The line, from 1, that a character is the end of."""
    return len(text[:end].encode().rstrip().splitlines())


def _indent(yaml: Hyperparams, target: str) -> str:
    """As the target's own block has it, or the first block that has one."""
    for _, node in [yaml.keys[target], *yaml.keys.values()]:
        if isinstance(node, MappingNode) and not node.flow_style and node.value:
            return " " * node.value[0][0].start_mark.column
    return "    "


def _only_adds(yaml: Hyperparams, content: bytes) -> bool:
    """Whether the new YAML has the former's keys, values and order, and the two new ones."""
    try:
        root = YAML().compose(content.decode("utf-8-sig"))
    except YAMLError:
        return False
    shown = [(key.value, _shown(value)) for key, value in root.value]
    former = [(name, _shown(value)) for name, (_, value) in yaml.keys.items()]
    names = [name for name, _ in shown]
    return [one for one in shown if one[0] not in KEYS] == former and all(
        names.count(key) == 1 for key in KEYS
    )


def _shown(node: Node) -> list[tuple[str, str]]:
    return [(tag(one), one.value if isinstance(one, ScalarNode) else "") for one in leaves(node)]
