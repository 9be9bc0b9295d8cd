"""Lines of a file that are inserted or replaced: as new content, and as a diff.

Bytes, so that line ends, tabs, byte order marks and a missing last line end stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speechbrain_mam.errors import MAMError

NO_LINE_END = b"\\ No newline at end of file\n"


class Unclear(MAMError):
    """A recipe that is not understood; its lines can still be added by hand."""


@dataclass(frozen=True)
class Edit:
    """Some lines in the place of others.

    Attributes
    ----------
    line : int
        The first line that is removed, from 1; without one, the line after which lines are added.
    removed, added : tuple of bytes
        With their line ends.
    """

    line: int
    removed: tuple[bytes, ...]
    added: tuple[bytes, ...]


@dataclass(frozen=True)
class EditedFile:
    """A file and its edits, in their order.

    Example
    -------
    >>> edited = EditedFile(Path("train.py"), b"import os\\nrun()\\n", (Edit(1, (), (b"#\\n",)),))
    >>> edited.content
    b'import os\\n#\\nrun()\\n'
    >>> print(edited.diff("train.py").decode(), end="")
    --- a/train.py
    +++ b/train.py
    @@ -1,0 +2 @@
    +#
    """

    path: Path
    former: bytes
    edits: tuple[Edit, ...] = field(default=())

    @property
    def content(self) -> bytes:
        """The file with its edits."""
        lines = self.former.splitlines(keepends=True)
        for edit in reversed(self.edits):
            start = edit.line - 1 if edit.removed else edit.line
            lines[start : start + len(edit.removed)] = edit.added
        return b"".join(lines)

    def diff(self, name: str) -> bytes:
        """The edits as ``git apply --unidiff-zero`` takes them; empty where there are none."""
        if not self.edits:
            return b""
        parts = [f"--- a/{name}\n+++ b/{name}\n".encode()]
        moved = 0
        for edit in self.edits:
            removed, added = len(edit.removed), len(edit.added)
            new = edit.line + moved + (0 if edit.removed else 1)
            parts.append(f"@@ -{_range(edit.line, removed)} +{_range(new, added)} @@\n".encode())
            parts += [_marked(b"-", line) for line in edit.removed]
            parts += [_marked(b"+", line) for line in edit.added]
            moved += added - removed
        return b"".join(parts)


def _range(line: int, count: int) -> str:
    return str(line) if count == 1 else f"{line},{count}"


def _marked(sign: bytes, line: bytes) -> bytes:
    return sign + line if line.endswith((b"\n", b"\r")) else sign + line + b"\n" + NO_LINE_END


def line_end(lines: Sequence[bytes]) -> bytes:
    r"""How a file's lines end.

    Example
    -------
    >>> line_end([b"import os\r\n"]), line_end([b"import os"])
    (b'\r\n', b'\n')
    """
    first = lines[0] if lines else b""
    return first[len(first.rstrip(b"\r\n")) :] or b"\n"


def insertion(lines: Sequence[bytes], after: int, added: Sequence[bytes]) -> Edit:
    """Lines after line ``after`` (from 1), which is given an end where it has none."""
    end = line_end(lines)
    whole = tuple(line + end for line in added)
    last = lines[after - 1]
    if last.endswith((b"\n", b"\r")):
        return Edit(after, (), whole)
    return Edit(after, (last,), (last + end, *whole))
