"""A report's blocks, and the two ways to write them: Markdown, and one HTML file without links."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

CSS = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 22%, transparent); }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 84rem; margin: 0 auto;
       padding: 1rem 1.2rem 4rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p, li { max-width: 48rem; }
p { margin: .6rem 0; }
ul { margin: .3rem 0 1rem; padding-left: 1.3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .94rem;
        font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
         text-align: left; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; }
td:not(.number) { min-width: 7rem; }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
footer { margin-top: 3rem; opacity: .7; font-size: .9rem; }
@media (max-width: 46rem) {
  thead { position: absolute; left: -999rem; }
  table, tbody, tr, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .6rem 0; }
  td { border: 0; padding: .1rem 0; display: flex; justify-content: space-between; gap: 1rem;
       text-align: right; }
  td::before { content: attr(data-label); opacity: .7; flex: none; max-width: 45%; }
  td:first-child { font-weight: 600; }
  td:empty { display: none; }
  .number { white-space: normal; }
}
"""


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of strings; columns in ``numeric`` are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A PNG with its file name and what it shows."""

    name: str
    png: bytes
    alt: str


Block = Heading | Text | Items | Table | Picture


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Blocks as Markdown; pictures are links to files beside it.

    Example
    -------
    >>> print(to_markdown("Report", [Table(["run", "WER"], [["a|b", "3.1"]], frozenset([1]))]))
    # Report
    <BLANKLINE>
    | run | WER |
    | --- | ---: |
    | a\\|b | 3.1 |
    <BLANKLINE>
    """
    parts = [f"# {_no_markup(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {_no_markup(block.text)}")
        elif isinstance(block, Text):
            text = _no_markup(block.text)
            parts.append(f"**{text}**" if block.bold else text)
        elif isinstance(block, Items):
            parts.append("\n".join(f"- {_no_markup(item)}" for item in block.items))
        elif isinstance(block, Picture):
            parts.append(f"![{_no_markup(block.alt)}]({block.name})")
        else:
            parts.append(table_to_markdown(block))
    return "\n\n".join(parts) + "\n"


def table_to_markdown(table: Table) -> str:
    """One table as Markdown.

    Example
    -------
    >>> print(table_to_markdown(Table(["run"], [["a"]])))
    | run |
    | --- |
    | a |
    """
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.header))]
    rows = [[_cell(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _no_markup(text: str) -> str:
    """A text whose names, which come from runs, are neither HTML nor links.

    Example
    -------
    >>> print(_no_markup("p < 0.05 <b>[x](https://example.org)"))
    p < 0.05 \\<b>[x]\\(https://example.org)
    """
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text).replace("](", "]\\(").replace("][", "]\\[")


def _cell(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("|", "\\|")
    return _no_markup(" ".join(text.splitlines()))


def to_html(title: str, blocks: Sequence[Block], footer: str = "") -> str:
    """Blocks as one HTML page that holds its style and its pictures: no other file is read.

    On a narrow screen each row of a table becomes a list of its cells.

    Example
    -------
    >>> page = to_html("Report", [Text("a < b", bold=True)])
    >>> "<p><strong>a &lt; b</strong></p>" in page, "http" in page
    (True, False)
    """
    body = "\n".join(_block_to_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def _block_to_html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Text):
        text = escape(block.text)
        return f"<p><strong>{text}</strong></p>" if block.bold else f"<p>{text}</p>"
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode("ascii")
        return (
            f'<figure><img alt="{escape(block.alt)}" src="data:image/png;base64,{data}"></figure>'
        )
    kinds = [' class="number"' if i in block.numeric else "" for i in range(len(block.header))]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, block.header, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            f'<td{kind} data-label="{escape(name)}">{escape(cell)}</td>'
            for kind, name, cell in zip(kinds, block.header, row, strict=True)
        )
        + "</tr>"
        for row in block.rows
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
