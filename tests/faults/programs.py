"""What the faults are tried on: the package's commands, small, and what they leave."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import REPO, save_bert, save_corpus, save_speech_model
from processes import run_python
from test_esc50_recipe import command as event_command
from test_esc50_recipe import save_tones
from test_recipe import command as speech_command
from test_seeds import FAKE_RECIPE
from test_vctk_prepare import save_vctk
from tiny_beats import save_beats

from faults.harm import normalised

HARM = str(Path(__file__).with_name("harm.py"))
EVENTS = str(REPO / "recipes" / "ESC50" / "train.py")
SEARCH = {"lam_grid": "[0.2, 0.8]", "layer_choices": "['last:1']", "controls": "[random]"}
SEARCH["random_draws"] = "1"
SCRIPT = "import speechbrain as sb\n\n\nclass ASR(sb.Brain):\n    pass\n"
"""Of a recipe without MAM."""
SAME_KIND = re.compile(
    r"(?<=report_)\w+(?=\.png)|(?<=sweep/\.)[0-9a-f]{16}|(?<=sweep/)[0-9a-f]{16}"
)
UNEQUAL = ("log.txt", "env.log", ".running.lock", ".running.json", "environment.json")
"""Files that say when and how a run was made."""


@dataclass(frozen=True)
class Models:
    """Tiny models and corpora, made once."""

    folder: Path

    def make(self) -> None:
        """Write them."""
        save_corpus(self.folder / "speech", utterances=25)
        save_vctk(self.folder / "vctk", speakers=6, utterances=4)
        save_speech_model(self.folder / "hubert")
        save_bert(self.folder / "bert")
        save_tones(self.folder / "tones")
        save_beats(self.folder / "beats.pt")
        (self.folder / "train.py").write_text(SCRIPT)
        (self.folder / "train.yaml").write_text("encoder: !new:torch.nn.Identity\n")
        code = FAKE_RECIPE.format(tests=str(REPO / "tests"), starts=str(self.folder / "starts"))
        (self.folder / "fake.py").write_text(code, encoding="utf-8")
        for method in ("finetune", "mam_learnable"):
            (self.folder / f"{method}.yaml").write_text(f"method: {method}\n", encoding="utf-8")

    @property
    def speech(self) -> dict[str, str]:
        """Options of the recognisers' recipe."""
        names = {"data_folder": "speech", "speech_model": "hubert", "donor_model": "bert"}
        return {key: str(self.folder / name) for key, name in names.items()}

    @property
    def vctk(self) -> str:
        """The other corpus of speech."""
        return str(self.folder / "vctk")

    @property
    def events(self) -> dict[str, str]:
        """Options of the classifiers' recipe."""
        names = {"data_folder": "tones", "beats_checkpoint": "beats.pt", "donor_model": "bert"}
        small = {"num_classes": "3", "number_of_epochs": "2", "batch_size": "8", "lr": "0.001"}
        return {key: str(self.folder / name) for key, name in names.items()} | small


@dataclass(frozen=True)
class Program:
    """A command that writes into ``FOLDER``, and what was there before it.

    ``of_interest``: a regular expression for the names that no other program writes as well.
    """

    name: str
    arguments: Callable[[Models, Path], list[str]]
    before: tuple[str, ...] = ()
    of_interest: str = ""

    def prepare(self, models: Models, folder: Path) -> None:
        """Run what goes before."""
        folder.mkdir(parents=True)
        for name in self.before:
            done = run_python(*PROGRAMS[name].arguments(models, folder), merge_stderr=True)
            assert done.returncode == 0, done.stdout[-3000:]

    def run(self, models: Models, folder: Path, extra: tuple[str, ...] = (), **harm: Any):
        """Run it, with some harm or none."""
        arguments = [*self.arguments(models, folder), *extra]
        wanted = folder.with_name(f"{folder.name}.harm.json")
        wanted.write_text(json.dumps({"under": [str(folder)], **harm}))
        return run_python(HARM, wanted, *arguments, merge_stderr=True, timeout_s=120)

    def points(self, models: Models, folder: Path) -> list[tuple[int, str, str]]:
        """All different writes of an undisturbed run: number, kind, name.

        Of a name that is written more than once the first and the last time, and one of the
        pictures of a report, of the points of a sweep. Folders that are made and temporary files
        that are removed change nothing.
        """
        listed = folder.with_name(f"{folder.name}.list")
        done = self.run(models, folder, list=str(listed))
        assert done.returncode == 0, done.stdout[-3000:]
        found: dict[tuple[str, str], list[int]] = {}
        for line in listed.read_text().splitlines():
            number, kind, path = line.split("\t")
            name = normalised(path, [str(folder)])
            if not re.search(self.of_interest, name):
                continue
            key = kind, SAME_KIND.sub("…", name)
            if kind == "os.mkdir" or (path.endswith(".part") and kind == "os.remove"):
                continue
            if kind != "open" or not (folder / path).is_dir():  # opened for fsync
                found.setdefault(key, []).append(int(number))
        numbered = {
            (n, *key)
            for key, numbers in found.items()
            for n in (numbers[0], numbers[0 if "…." in key[1] else -1])
        }
        return sorted(numbered)


def _speech(
    kind: str, *extra: str, recipe: str = "LJSpeech", **options: str
) -> Callable[[Models, Path], list[str]]:
    def arguments(models: Models, folder: Path) -> list[str]:
        speech = models.speech | ({"data_folder": models.vctk} if recipe == "VCTK" else {})
        script = str(REPO / "recipes" / recipe / "train.py")
        return [script, *speech_command(kind, speech, folder / "out", *extra, **options)]

    return arguments


def _events(kind: str, *extra: str, **options: str) -> Callable[[Models, Path], list[str]]:
    def arguments(models: Models, folder: Path) -> list[str]:
        return [EVENTS, *event_command(kind, models.events, folder / "out", *extra, **options)]

    return arguments


def _verb(*words: str) -> Callable[[Models, Path], list[str]]:
    """A command line in which ``{models}`` and ``{folder}`` stand for the two."""

    def arguments(models: Models, folder: Path) -> list[str]:
        names = {"models": models.folder, "folder": folder}
        return ["-m", "speechbrain_mam", *(word.format(**names) for word in words)]

    return arguments


def _seeds(models: Models, folder: Path) -> list[str]:
    """A series of runs that only pretend: what is tried is the series."""
    yamls = [str(models.folder / f"{method}.yaml") for method in ("finetune", "mam_learnable")]
    script = str(models.folder / "fake.py")
    where = ["--seeds", "1", "2", "--out", str(folder / "out")]
    return ["-m", "speechbrain_mam.seeds", script, *yamls, *where]


_TWO = ("{models}/hubert", "{models}/bert")
_VALID = ("--manifest", "{folder}/out/save/valid.csv", "--device", "cpu")
PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "learnable",
            _speech("mam_learnable", "--ckpt_interval_steps", "2", max_batch_length_s="6"),
        ),
        Program(
            "search",
            _speech("mam_zeroshot", **SEARCH),
            of_interest="sweep|probe|report|results|utterances_mam|plan",
        ),
        Program("vctk", _speech("mam_learnable", recipe="VCTK")),
        Program(
            "events", _events("mam_learnable"), of_interest="classif|confusion|results|prepared"
        ),
        Program("events merged", _events("mam_zeroshot", **SEARCH)),
        Program(
            "folds",
            _events("mam_zeroshot", "--folds", "1,2", **SEARCH),
            of_interest="out/[^/]*$|out/report|fold_2/.*results",
        ),
        Program("merge", _verb("merge", *_TWO, "--lam", "0.5", "--out", "{folder}/merged")),
        Program(
            "merge --force",
            _verb("merge", *_TWO, "--lam", "0.5", "--out", "{folder}/merged", "--force"),
            ("merge",),
        ),
        Program(
            "export", _verb("export", "{folder}/out", "--out", "{folder}/model"), ("learnable",)
        ),
        Program(
            "export --force",
            _verb("export", "{folder}/out", "--out", "{folder}/model", "--force"),
            ("learnable", "export"),
        ),
        Program(
            "report --force",
            _verb("report", "{folder}/out", "--out", "{folder}/page", "--force"),
            ("learnable",),
        ),
        Program(
            "add",
            _verb(
                *("add", "{models}/train.py", "{models}/train.yaml", "--out", "{folder}/copy"),
                *("--target", "encoder", "--donor", "my/bert"),
            ),
        ),
        Program("probe", _verb("probe", *_TWO, *_VALID, "--out", "{folder}/probe"), ("learnable",)),
        Program(
            "sweep",
            _verb("sweep", *_TWO, *_VALID, "--grid", "0.5,0.9", "--out", "{folder}/sweep"),
            ("learnable",),
        ),
        Program("seeds", _seeds),
    )
}


def tree(folder: Path) -> dict[str, str]:
    """The bits of each file that a run left, by name, but for times and its own place."""
    return dict(_files(folder))


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or file.name in UNEQUAL:
            continue
        name = normalised(str(file), [str(folder)])
        if file.suffix == ".ckpt":
            content = _text_of(file).encode()
        elif file.name == "CKPT.yaml":
            meta = yaml.safe_load(file.read_text())
            content = repr(sorted((k, v) for k, v in meta.items() if k != "unixtime")).encode()
        elif file.name == "files.json":
            content = repr(sorted(json.loads(file.read_text()))).encode()
        elif file.name == "train_log.txt" or file.suffix == ".log":
            # An evaluation that is done again is logged again, a run that is started again, too.
            lines = file.read_text().replace(str(folder), "FOLDER").splitlines()
            content = repr(sorted(set(lines))).encode()
        else:
            content = file.read_bytes().replace(str(folder).encode(), b"FOLDER")
        yield name, hashlib.sha256(content).hexdigest()


def _text_of(file: Path) -> str:
    """What a recoverable holds; torch's archives name themselves after their file."""
    try:
        content = torch.load(file, weights_only=True)
    except Exception:  # a text, such as the epoch's number
        return file.read_text()
    return repr(_plain(content))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().view(-1).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return sorted((str(key), _plain(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def leftovers(folder: Path) -> list[str]:
    """Whatever should have been renamed or removed."""
    kinds = re.compile(r"\.(part|partial|old|lock|tmp)$|^damaged")
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if kinds.search(path.name) and path.name not in UNEQUAL
    ]


def copy(source: Path, destination: Path) -> Path:
    """A folder as it was before the command, with its own place in its files."""
    shutil.copytree(source, destination, symlinks=True)
    return destination
