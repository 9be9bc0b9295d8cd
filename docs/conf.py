"""Sphinx's configuration, and what of the pages is generated: tables, options, the API's modules.

A page asks for a generated part by a comment, ``<!-- generated: supported models -->`` (in reST
``.. generated: core``). It is made from the code at every build, so it cannot go stale.
"""

from __future__ import annotations

import contextlib
import io
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speechbrain_mam
from speechbrain_mam.architectures import registry as architectures
from speechbrain_mam.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.draw_rooms import svg
from tools.rooms import module_graph, room_graph

project = "speechbrain_mam"
author = "The speechbrain_mam authors"
copyright = "The speechbrain_mam authors, Apache-2.0"
release = version = speechbrain_mam.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["build"]
html_theme = "furo"
html_title = "MAM for SpeechBrain"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["wrap.css"]

napoleon_google_docstring = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Names of this package must lead somewhere; those of others would need a network to be looked up.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!speechbrain_mam\.).*"),
    # a page of its own: models
    ("py:data", r"speechbrain_mam\.architectures\.registry\.ARCHITECTURES"),
    # type variables
    (
        "py:class",
        r"speechbrain_mam\.(architectures\.tensor_checks\.Values|learning\.once_a_forward\.Result|merging\.methods\.Function)",
    ),
]
# Two classes of one name, in search and in report, are told apart by their modules.
suppress_warnings = ["ref.python"]

GROUPS = {
    "core": ("mam", "architectures", "model_files", "donors", "options", "merging", "learning"),
    "speechbrain": ("brain", "tasks", "lobes", "runs", "recipe_edits", "integrations", "testing"),
    "evidence": ("search", "results", "report", "export"),
}
"""The API's pages and their rooms; the page ``further`` has all the others."""
FACES = ("corpus", "recipe", "precision", "seeds")
"""Names that stay for YAMLs and commands; the rooms have what they give."""


def module_names() -> list[str]:
    """The package's modules that are documented."""
    found = []
    for module in pkgutil.walk_packages(speechbrain_mam.__path__, "speechbrain_mam."):
        name = module.name.removeprefix("speechbrain_mam.")
        if name not in FACES and not name.endswith("__main__"):
            found.append(name)
    return found


def modules_of(group: str) -> str:
    """The reST that documents a group's modules, room by room."""
    of = {room: page for page, rooms in GROUPS.items() for room in rooms}
    rooms = list(GROUPS.get(group, ()))
    names = [n for n in module_names() if of.get(n.partition(".")[0], "further") == group]
    if rooms:
        names.sort(key=lambda name: rooms.index(name.partition(".")[0]))
    blocks = []
    for name in names:
        title = f"``{name}``"
        module = f".. automodule:: speechbrain_mam.{name}"
        blocks.append(f"{title}\n{'-' * len(title)}\n\n{module}\n")
    return "\n".join(blocks)


def supported_models() -> str:
    """The table of architectures as Markdown."""
    rows = [
        (
            row.family,
            ", ".join(f"`{name}`" for name in (*row.model_types, *row.classes))
            + "".join(f" with `{name}` inside" for name in row.attention),
            ", ".join(row.roles),
            "yes" if row.fused else "",
            ", ".join(row.towers),
        )
        for row in architectures.supported_models()
    ]
    return table(("family", "recognised by", "as", "fused", "towers"), rows)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Some rows as Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verbs() -> list[str]:
    """The commands of ``speechbrain-mam``, from its own help."""
    listed = help_of().partition("\ncommands:")[2].partition("\n\n")[0]
    return re.findall(r"^    (\w[\w-]*)(?:  .*|$)", listed, flags=re.M)


def help_of(*verb: str) -> str:
    """What ``speechbrain-mam VERB --help`` prints."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "90"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main([*verb, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return out.getvalue()


def command_line() -> str:
    """Every command's help, each under its own heading."""
    parts = [f"```none\n{help_of().rstrip()}\n```"]
    for verb in verbs():
        text = help_of(verb).rstrip()
        parts.append(f"## `speechbrain-mam {verb}`\n\n```none\n{text}\n```")
    return "\n\n".join(parts)


GENERATED: dict[str, Callable[[], str]] = {
    "supported models": supported_models,
    "command line": command_line,
    **{group: (lambda group=group: modules_of(group)) for group in (*GROUPS, "further")},
}
"""What a page can ask for."""


def fill_in(text: str) -> str:
    """A page with its generated parts; an unknown one is an error.

    A Mermaid block is what GitHub draws. There is one, of the rooms, and the built page has the
    same arrows as a picture: Mermaid would have to be loaded from another host.
    """
    pattern = r"^(?:<!-- generated: (.*?) -->|\.\. generated: (.*?))$"
    text = re.sub(pattern, lambda m: GENERATED[m[1] or m[2]](), text, flags=re.M)
    return re.sub(r"^```mermaid\n.*?^```$", lambda _: rooms_picture(), text, flags=re.M | re.S)


def rooms_picture() -> str:
    """The rooms, drawn from the imports."""
    return f"```{{raw}} html\n{svg(room_graph(module_graph()))}\n```"


def setup(app: Any) -> None:
    """Let Sphinx fill the generated parts in."""

    def read(_: Any, __: str, source: list[str]) -> None:
        source[0] = fill_in(source[0])

    app.connect("source-read", read)
