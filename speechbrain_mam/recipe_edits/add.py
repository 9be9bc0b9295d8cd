"""MAM added to a recipe: worked out first, then written in place, into a copy, or as a diff."""

from __future__ import annotations

import ast
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from speechbrain_mam.atomic import check_output, new_folder, only_here, write_beside
from speechbrain_mam.errors import MAMError
from speechbrain_mam.recipe_edits.hyperparams import (
    edit_hyperparams,
    read_hyperparams,
    yaml_lines,
)
from speechbrain_mam.recipe_edits.lines import EditedFile
from speechbrain_mam.recipe_edits.notes import notes
from speechbrain_mam.recipe_edits.script import (
    IMPORT,
    Script,
    choose_brain,
    edit_script,
    read_script,
)


@dataclass(frozen=True)
class Addition:
    """What :func:`add_mam` found; nothing is written yet.

    Attributes
    ----------
    script, yaml : EditedFile
        The files with their edits; the script has none where it has MAM already.
    brain : str
        The class.
    notes : tuple of str
        What the recipe needs besides.
    """

    script: EditedFile
    yaml: EditedFile
    brain: str
    notes: tuple[str, ...]

    @property
    def files(self) -> tuple[EditedFile, EditedFile]:
        """The script first: with MAMBrain and without 'mam' it is the recipe that it was."""
        return self.script, self.yaml

    def diff(self) -> bytes:
        """For ``git apply --unidiff-zero``, with paths from the working directory."""
        return b"".join(file.diff(_from_here(file.path)) for file in self.files)

    def write_in_place(self) -> list[Path]:
        """Both files, or none; links stay links, modes stay."""
        changed = [(file.path.resolve(), file) for file in self.files if file.edits]
        written: list[tuple[Path, EditedFile]] = []
        with only_here(changed[-1][0]):
            for path, file in changed:
                if path.read_bytes() != file.former:
                    raise MAMError(f"'{path}' has been changed meanwhile; nothing is written")
            try:
                for path, file in changed:
                    _write(path, file.content)
                    written.append((path, file))
            except BaseException:
                for path, file in written:
                    _write(path, file.former)
                raise
        return [path for path, _ in changed]

    def write_copy(self, out: Path, force: bool = False) -> list[Path]:
        """Both files in a folder, as they lie to each other, with the modules beside the script.

        Raises
        ------
        MAMError
            If the folder cannot be written, or holds one of the files.
        """
        for file in self.files:
            if out.resolve() in file.path.resolve().parents:
                raise MAMError(f"--out '{out}' holds '{file.path}'; choose another one")
        out = check_output(out, force)
        script, yaml = (Path(os.path.abspath(file.path)) for file in self.files)
        below = yaml.parent.is_relative_to(script.parent)
        place = yaml.relative_to(script.parent) if below else Path(yaml.name)
        if place == Path(script.name):
            raise MAMError(f"'{script}' and '{yaml}' have one name")
        with new_folder(out, force) as folder:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(self.yaml.content)
            (folder / script.name).write_bytes(self.script.content)
            shutil.copymode(script, folder / script.name)
            modules = _modules_beside(script)
            for module in modules:
                shutil.copy(module, folder / module.name)
        return [out / script.name, out / place, *(out / module.name for module in modules)]


def add_mam(
    script: Path, yaml: Path, target: str, donor: str, brain: str | None = None
) -> Addition:
    """Find out what gives a SpeechBrain recipe Learnable-MAM. Nothing is written.

    Arguments
    ---------
    script, yaml : Path
        The recipe.
    target : str
        The YAML's key of the encoder.
    donor : str
        The donor's name or folder.
    brain : str, optional
        The class, where the script has several.

    Returns
    -------
    Addition
        Edits and notes.

    Raises
    ------
    MAMError
        If a file cannot be read, or the merge is there already.
    Unclear
        If the recipe is not understood.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "train.py").write_text(
    ...     "import speechbrain as sb\\nclass ASR(sb.Brain):\\n    pass\\n"
    ... )
    >>> _ = (folder / "train.yaml").write_text("encoder: !new:torch.nn.Identity\\n")
    >>> added = add_mam(folder / "train.py", folder / "train.yaml", "encoder", "my/bert")
    >>> print(added.script.content.decode(), end="")
    import speechbrain as sb
    from speechbrain_mam import MAMBrain
    class ASR(MAMBrain, sb.Brain):
        pass
    """
    if not donor.strip() or not donor.isprintable():
        raise MAMError(f"key 'donor': {donor!r} is no name of a model")
    parsed, keys = read_script(script), read_hyperparams(yaml)
    edited = edit_hyperparams(keys, target, donor)
    chosen: ast.ClassDef = choose_brain(parsed, brain)
    return Addition(
        edit_script(parsed, chosen),
        edited,
        chosen.name,
        tuple(notes(chosen, keys, target)),
    )


def by_hand(target: str, donor: str) -> str:
    """The nine lines, for a recipe that is not understood."""
    lines = "\n".join(f"    {line}" for line in yaml_lines(target, donor))
    return (
        "To add by hand. In the script, and of its Brain, whatever it is called:\n\n"
        f"    {IMPORT}\n    class ASR(MAMBrain, sb.Brain):  # was: class ASR(sb.Brain):\n\n"
        "or, where that is in another file, a class that is built in its place:\n\n"
        '    class MAMASR(MAMBrain, ASR):\n        """With MAM."""\n\n'
        f"In the YAML, with the key of the encoder as target:\n\n{lines}\n"
    )


def _write(path: Path, content: bytes) -> None:
    def write(part: Path) -> None:
        part.write_bytes(content)
        shutil.copymode(path, part)

    write_beside(path, write)


def _from_here(path: Path) -> str:
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return whole.relative_to(here if whole.is_relative_to(here) else whole.anchor).as_posix()


def _modules_beside(script: Path) -> list[Path]:
    """The modules in the script's folder that it imports, and that those import."""
    found: list[Path] = []
    waiting = [script]
    while waiting:
        parsed: Script = read_script(waiting.pop())
        for name in sorted({dotted.partition(".")[0] for dotted in parsed.names.values()}):
            module = script.parent / f"{name}.py"
            if name and module.is_file() and module != script and module not in found:
                found.append(module)
                waiting.append(module)
    return found
