"""The Brain in a recipe's script: which class it is, and the two lines that give it MAM."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechbrain_mam.errors import MAMError
from speechbrain_mam.recipe_edits.lines import Edit, EditedFile, Unclear, insertion
from speechbrain_mam.text_files import read_text

BRAINS = {"speechbrain.Brain", "speechbrain.core.Brain"}
MAM_BRAINS = {f"speechbrain_mam.{place}MAMBrain" for place in ("", "brain.", "brain.brain.")}
IMPORT = "from speechbrain_mam import MAMBrain"
WRAPPED = ("init_optimizers", "freeze_optimizers", "fit_batch", "on_stage_end", "on_evaluate_start")
"""What a recipe may define without ``super()``."""
NEEDS_SUPER = ("__init__", "on_fit_start")
"""What it may not: MAMBrain's would not run."""
LOST = {
    "on_fit_batch_start": "'exact_resume' does nothing",
    "fit": "a signal that ends the training saves no checkpoint",
}
"""What is lost where a recipe defines these without ``super()``."""


@dataclass(frozen=True)
class Script:
    """A recipe's script, parsed.

    Attributes
    ----------
    path, content
        The file and its bytes.
    tree : ast.Module
        Its syntax.
    names : dict of str to str
        What each imported name stands for, dotted.
    """

    path: Path
    content: bytes
    tree: ast.Module
    names: dict[str, str]

    def classes(self) -> list[ast.ClassDef]:
        """Every class, wherever it stands."""
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    def dotted(self, node: ast.expr) -> str:
        """``sb.Brain`` as ``speechbrain.Brain``; empty for what is no name."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        return ".".join([self.names.get(node.id, node.id), *reversed(parts)])

    def derived(self, roots: set[str]) -> list[ast.ClassDef]:
        """The classes that derive from one of the roots, through others of this script too."""
        found: list[ast.ClassDef] = []
        known = set(roots)
        while more := [
            one
            for one in self.classes()
            if one not in found and any(self.dotted(base) in known for base in one.bases)
        ]:
            found += more
            known |= {one.name for one in more}
        return sorted(found, key=lambda one: one.lineno)

    def calls(self, name: str) -> list[ast.Call]:
        """Where a class is instantiated."""
        return [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            and node.func.id == name
        ]  # fmt: skip


def read_script(path: Path) -> Script:
    """Parse a recipe's script.

    Raises
    ------
    MAMError
        If there is none, or it is no Python.
    """
    text = read_text(path)
    try:
        tree = ast.parse(text.encode())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise MAMError(f"'{path}'{where}: no Python that this version reads: {reason}") from error
    return Script(path, text.encode(), tree, dict(_imported(tree)))


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or whole, whole
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = "." * node.level + (node.module or "")
                yield alias.asname or alias.name, f"{module}.{alias.name}"


def choose_brain(script: Script, name: str | None) -> ast.ClassDef:
    """The class that is trained: the one that is asked for, the only one, or the one that is built.

    Raises
    ------
    Unclear
        If there is none, or which one is open.
    """
    where, brains = f"'{script.path}'", script.derived(BRAINS | MAM_BRAINS)
    if name is not None:
        named = [one for one in script.classes() if one.name == name]
        if len(named) == 1 and named[0].bases:
            return named[0]
        known = ", ".join(one.name for one in brains) or "none"
        count = "no" if not named else f"{len(named)}" if len(named) > 1 else "no derived"
        raise Unclear(f"{where}: {count} class '{name}'; its Brains: {known}")
    built = [one for one in brains if script.calls(one.name)]
    found = brains if len(brains) == 1 else built
    if len(found) == 1 and sum(one.name == found[0].name for one in script.classes()) == 1:
        return found[0]
    if brains:
        names = ", ".join(f"{one.name} (line {one.lineno})" for one in brains)
        what = "builds several" if len(built) > 1 else "has several and builds none"
        raise Unclear(f"{where} {what} of its Brains, {names}; say which with --brain NAME")
    for call in (node for node in ast.walk(script.tree) if isinstance(node, ast.Call)):
        if {"modules", "hparams"} <= {keyword.arg for keyword in call.keywords}:
            used = script.dotted(call.func)
            raise Unclear(
                f"{where}, line {call.lineno}: the Brain '{ast.unparse(call.func)}' is no class of "
                f"this script, but '{used}'; run it on the script that has the class"
            )
    raise Unclear(f"{where}: no class derives from SpeechBrain's Brain; --brain NAME names one")


def edit_script(script: Script, brain: ast.ClassDef) -> EditedFile:
    """The import, and MAMBrain in front of the Brain's bases; nothing where it is there.

    Raises
    ------
    Unclear
        If the lines cannot be added so that nothing else changes, or would not do.
    """
    if brain in script.derived(MAM_BRAINS):
        return EditedFile(script.path, script.content)
    _check(script, brain)
    lines = script.content.splitlines(keepends=True)
    before = [
        node
        for node in script.tree.body
        if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno < brain.lineno
    ]
    if not before:
        raise Unclear(f"'{script.path}': no import at the top, before the class '{brain.name}'")
    imports = insertion(lines, before[-1].end_lineno or 0, [IMPORT.encode()])
    base = brain.bases[0]
    line, column = lines[base.lineno - 1], base.col_offset
    if base.lineno == 1:  # ast does not count a byte order mark
        column += len(line) - len(line.removeprefix(b"\xef\xbb\xbf"))
    bases = Edit(base.lineno, (line,), (line[:column] + b"MAMBrain, " + line[column:],))
    edited = EditedFile(script.path, script.content, (imports, bases))
    if not _only_adds(script, brain, edited.content):
        raise Unclear(
            f"'{script.path}', lines {before[-1].end_lineno} and {base.lineno}: more than an "
            "import and a plain list of bases"
        )
    return edited


def _check(script: Script, brain: ast.ClassDef) -> None:
    where = f"'{script.path}'"
    taken = [name for name in script.names if name == "MAMBrain"]
    taken += [one.name for one in script.classes() if one.name == "MAMBrain"]
    if taken:
        raise Unclear(f"{where} has another 'MAMBrain' already, {script.names.get('MAMBrain', '')}")
    for method in methods(brain):
        if method.name in NEEDS_SUPER and not calls_super(method):
            raise Unclear(
                f"{where}, line {method.lineno}: '{brain.name}.{method.name}' does not call "
                f"super().{method.name}, so that MAMBrain's would not run; let it"
            )
    for call in script.calls(brain.name):
        keywords = {keyword.arg for keyword in call.keywords}
        if not {"hparams", None} & keywords and len(call.args) < 3:
            raise Unclear(
                f"{where}, line {call.lineno}: '{brain.name}' is built without 'hparams', where "
                "MAMBrain looks for 'mam'"
            )


def methods(brain: ast.ClassDef) -> list[ast.FunctionDef]:
    """The methods that a class itself defines."""
    return [node for node in brain.body if isinstance(node, ast.FunctionDef)]


def calls_super(method: ast.FunctionDef) -> bool:
    """Whether a method calls the one that it overrides."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == method.name
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "super"
        for node in ast.walk(method)
    )


def _only_adds(script: Script, brain: ast.ClassDef, content: bytes) -> bool:
    """Whether the new syntax is the former with the import and the base."""
    try:
        tree = ast.parse(content)
    except SyntaxError:
        return False
    found = [node for node in tree.body if ast.unparse(node) == IMPORT]
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == brain.name]
    if len(found) != 1 or len(classes) != 1 or ast.unparse(classes[0].bases[0]) != "MAMBrain":
        return False
    tree.body.remove(found[0])
    del classes[0].bases[0]
    return ast.dump(tree) == ast.dump(script.tree)
