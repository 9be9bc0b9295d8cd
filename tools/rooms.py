#!/usr/bin/env python3
"""The package's rooms: who imports whom, on how many floors, in files of which length.

> python tools/rooms.py                # floors, circles, file lengths; exit 1 if a rule is broken
> python tools/rooms.py --mermaid      # the picture in docs/design.md

A room is a package or a module right under ``speechbrain_mam``. Its floor is one above the highest
room that it imports, also inside functions and for type checking. The face (``__init__``,
``__main__``) gives out the rooms' names and belongs to none of them.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "speechbrain_mam"
FACE = ("__init__", "__main__")
MAX_FLOORS, MAX_LINES, MIN_LINES, MAX_MODULES = 12, 300, 40, 12
SMALL = {
    "version": "one line that reports and exports read without the whole face",
    "recipe": "a name that YAMLs call", "precision": "a name that YAMLs call",
    "corpus": "a name that scripts call",
    "seeds": "a name that users run", "__main__": "a name that users run",
    "runs.end_with_parent": "a program of its own, which may import nothing",
}  # fmt: skip
"""Files that are short for a reason; every ``__init__.py`` is one, too."""

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Each module's dotted name under the package, and its file."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path) -> Iterator[str]:
    """Every name that a file imports, ``module.name`` where it is a name of a module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_graph() -> Graph:
    """Which module imports which."""
    files = modules()
    graph: Graph = {name: set() for name in files if name not in FACE}
    for name in graph:
        for path in imports(files[name]):
            head, _, inside = path.partition(".")
            if head != PACKAGE.name or not inside:
                continue
            other = inside if inside in files else inside.rpartition(".")[0]
            if other and other != name and other not in FACE:
                graph[name].add(other)
    return graph


def room_graph(graph: Graph) -> Graph:
    """The same between rooms."""
    rooms: Graph = {name.partition(".")[0]: set() for name in graph}
    for name, others in graph.items():
        room = name.partition(".")[0]
        rooms[room] |= {other.partition(".")[0] for other in others} - {room}
    return rooms


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each node, from 1 on. Raises ``graphlib.CycleError`` where there is a circle."""
    found: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[other] for other in graph[name]), default=0)
    return found


def circle(graph: Graph) -> list[str]:
    """One circle of imports, or nothing."""
    try:
        floors(graph)
    except CycleError as error:
        return list(error.args[1])
    return []


def size_faults(files: Mapping[str, Path]) -> list[str]:
    """Files that are too long, too short without a reason, and folders with too many modules."""
    faults, inside = [], dict[Path, int]()
    for name, file in files.items():
        lines = len(file.read_text(encoding="utf-8").splitlines())
        inside[file.parent] = inside.get(file.parent, 0) + (file.stem not in FACE)
        short = lines < MIN_LINES and file.stem != "__init__" and name not in SMALL
        if lines > MAX_LINES or short:
            faults.append(f"{name}: {lines} lines")
    faults += [
        f"{folder.relative_to(PACKAGE.parent)}: {count} modules"
        for folder, count in inside.items()
        if count > MAX_MODULES
    ]
    return faults


def reduced(rooms: Graph) -> Graph:
    """The arrows that do not follow from others."""
    level = floors(rooms)
    reach: dict[str, set[str]] = {}
    for name in sorted(level, key=level.__getitem__):
        reach[name] = {other for o in rooms[name] for other in reach[o]} | rooms[name]
    return {
        name: {o for o in others if not any(o in reach[p] for p in others - {o})}
        for name, others in rooms.items()
    }


def mermaid(rooms: Graph) -> str:
    """The rooms as a Mermaid graph, arrows that follow from others left out."""
    level, direct = floors(rooms), reduced(rooms)
    lines = ["graph TD"]
    for name in sorted(rooms, key=lambda n: (-level[n], n)):
        lines += [f"    {name} --> {other}" for other in sorted(direct[name])]
    return "\n".join(lines)


def main() -> int:
    """Print what is asked for; 1 if a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mermaid", action="store_true", help="print the picture's source")
    asked = parser.parse_args()
    graph = module_graph()
    rooms = room_graph(graph)
    if asked.mermaid:
        print(mermaid(rooms))
        return 0
    faults = [
        f"a circle of imports: {' -> '.join(found)}"
        for found in (circle(graph), circle(rooms))
        if found
    ]
    if not faults:
        level = floors(rooms)
        for floor in range(max(level.values()), 0, -1):
            print(f"{floor:>2}  " + "  ".join(sorted(n for n in level if level[n] == floor)))
        print(f"{len(rooms)} rooms on {max(level.values())} floors, no circle")
        if max(level.values()) > MAX_FLOORS:
            faults.append(f"{max(level.values())} floors")
    files = modules()
    lengths = sorted((len(f.read_text(encoding="utf-8").splitlines()), n) for n, f in files.items())
    print(f"{len(files)} files, {sum(n for n, _ in lengths)} lines")
    print("longest: " + ", ".join(f"{name} {n}" for n, name in lengths[:-6:-1]))
    faults += size_faults(files)
    for fault in faults:
        print(f"BROKEN  {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
