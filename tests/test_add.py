"""``speechbrain-mam add``: nine lines in a recipe, and no other byte of it."""

import ast
import os
import subprocess
from pathlib import Path

import pytest
from test_diffs import OWN_YAMLS, RECIPES, changes, files_of

from speechbrain_mam.brain.brain import WRAPPERS, MAMBrain
from speechbrain_mam.cli import main
from speechbrain_mam.recipe_edits.script import LOST, NEEDS_SUPER, WRAPPED

SCRIPT = """\
#!/usr/bin/env python3
import sys

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml


class ASR(sb.Brain):
    def compute_forward(self, batch, stage):
        return self.modules.encoder(batch)


if __name__ == "__main__":
    brain = ASR(modules=hparams["modules"], hparams=hparams)
"""
YAML = """\
# Seed
seed: 1  # kept
freeze: True

encoder: !new:speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
  source: my/wav2vec2
  freeze: !ref <freeze>
  # more: of it

# The modules
modules: {encoder: !ref <encoder>}
other: [1, {a: b}]
"""
ADDED = """\
mam: !new:speechbrain_mam.MAM
  target: !ref <encoder>
  donor: my/bert
mam_optimizer: !name:torch.optim.Adam
  lr: 0.002

"""


@pytest.fixture()
def add(tmp_path, capsys, monkeypatch):
    """``add`` on a recipe in the working directory: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*options, script=SCRIPT, yaml=YAML, target="encoder"):
        for name, content in (("train.py", script), ("train.yaml", yaml)):
            if content is not None:
                Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        code = main(
            ["add", "train.py", "train.yaml", "--target", target, "--donor", "my/bert", *options]
        )
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def files():
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}


def with_lines(text, *pairs):
    for former, new in pairs:
        assert text.count(former) == 1
        text = text.replace(former, new)
    return text


HYPERPYYAML = "from hyperpyyaml import load_hyperpyyaml\n"
NEW_SCRIPT = with_lines(
    SCRIPT,
    (HYPERPYYAML, f"{HYPERPYYAML}from speechbrain_mam import MAMBrain\n"),
    ("(sb.Brain)", "(MAMBrain, sb.Brain)"),
)
NEW_YAML = with_lines(YAML, ("# The modules\n", f"{ADDED}# The modules\n"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_diffs_of_the_examples(recipe, tmp_path, monkeypatch, capsys):
    """To the byte, on files that have the right lines at the right places."""
    diff = RECIPES[recipe].read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, lines in changes(RECIPES[recipe]).items():
        hunks = diff.partition(f"+++ b/{name}\n")[2].partition("--- ")[0]
        first = int(hunks.partition("@@ -")[2].partition(",")[0])
        if name.endswith(".py"):
            bases = next(line[1:] for line in lines if line[0] == "-")
            gap = int(hunks.rpartition("@@ -")[2].partition(" ")[0]) - first - 1
            head = "#\n" * (first - 1)
            content = f"{head}import speechbrain as sb\n" + "\n" * gap + f"{bases}\n    pass\n"
        else:
            head, found, rest = OWN_YAMLS[recipe].partition("wav2vec2: !new")
            block, _, after = rest.partition("\navg_pool" if "avg_pool" in rest else "\nctc_lin")
            above = f"{head}{found}{block}".count("\n") + 1
            content = "#\n" * (first - above - 1) + f"{head}{found}{block}\n\nlast: {after[:4]!r}\n"
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    donor = diff.partition("donor: ")[2].partition("\n")[0]
    options = ["--target", "wav2vec2", "--donor", donor, "--diff"]
    assert main(["add", *files_of(RECIPES[recipe]), *options]) == 0
    assert capsys.readouterr().out == diff


def test_a_diff_writes_nothing_and_applies(add, tmp_path):
    code, diff, told = add("--diff")
    assert code == 0 and "Brain: ASR\n" in told
    assert files() == {"train.py": SCRIPT.encode(), "train.yaml": YAML.encode()}
    subprocess.run(
        ["git", "apply", "--unidiff-zero", "-"],
        input=diff.encode(),
        check=True,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
    )
    assert files() == {"train.py": NEW_SCRIPT.encode(), "train.yaml": NEW_YAML.encode()}


def test_in_place_and_once_only(add):
    Path("train.py").write_text(SCRIPT)
    Path("train.py").chmod(0o755)
    assert add("--in-place")[0] == 0
    assert files() == {"train.py": NEW_SCRIPT.encode(), "train.yaml": NEW_YAML.encode()}
    assert Path("train.py").stat().st_mode & 0o777 == 0o755
    code, out, err = add("--in-place", script=None, yaml=None)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "'train.yaml', line 10: the key 'mam' is there already" in err
    assert files() == {"train.py": NEW_SCRIPT.encode(), "train.yaml": NEW_YAML.encode()}


def test_a_second_yaml_of_a_script(add):
    code, out, _ = add("--in-place", script=NEW_SCRIPT)
    assert code == 0 and "it has MAM already" in out
    assert files() == {"train.py": NEW_SCRIPT.encode(), "train.yaml": NEW_YAML.encode()}


def test_a_copy(add, tmp_path):
    """With what the script imports from its folder, also where that is a link, and no more."""
    (tmp_path / "shared").mkdir()
    Path("shared/prepare.py").write_text("import numbers_of_it\n")
    Path("prepare.py").symlink_to("shared/prepare.py")
    Path("numbers_of_it.py").write_text("")
    Path("unrelated.py").write_text("")
    before = files()
    script = SCRIPT.replace("brain =", "from prepare import one\n    brain =")
    code, out, _ = add("--out", "copy", script=script)
    assert code == 0 and out.count("written: ") == 4
    written = {name: content for name, content in files().items() if name.startswith("copy/")}
    assert sorted(written) == [
        *("copy/numbers_of_it.py", "copy/prepare.py", "copy/train.py", "copy/train.yaml")
    ]
    assert written["copy/train.yaml"] == NEW_YAML.encode()
    assert b"class ASR(MAMBrain, sb.Brain)" in written["copy/train.py"]
    assert not Path("copy/prepare.py").is_symlink()
    left = {name: content for name, content in files().items() if name not in written}
    assert left == before | {"train.py": script.encode(), "train.yaml": YAML.encode()}
    assert "exists and is not empty" in add("--out", "copy", script=script)[2]
    assert add("--out", "copy", "--force", script=script)[0] == 0
    assert "holds" in add("--out", "..", "--force", script=script)[2]


def test_a_yaml_in_a_folder_below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hparams").mkdir()
    Path("train.py").write_text(SCRIPT)
    Path("hparams/train.yaml").write_text(YAML)
    options = ["--target", "encoder", "--donor", "my/bert"]
    assert main(["add", "train.py", "hparams/train.yaml", *options, "--out", "copy"]) == 0
    assert Path("copy/hparams/train.yaml").read_text() == NEW_YAML


def test_where_the_second_file_cannot_be_written_the_first_is_as_before(add, monkeypatch):
    from speechbrain_mam.recipe_edits import add as module

    real, calls = module.write_beside, []

    def fails(path, write):
        calls.append(path.name)
        if path.name == "train.yaml":
            raise OSError(28, "No space left on device", str(path))
        real(path, write)

    monkeypatch.setattr(module, "write_beside", fails)
    code, _, err = add("--in-place")
    assert code == 2 and "No space left" in err and calls == ["train.py", "train.yaml", "train.py"]
    assert files() == {"train.py": SCRIPT.encode(), "train.yaml": YAML.encode()}


def test_killed_between_the_two_files(add):
    """The same command then ends what it began; no lock and no half file is left."""
    from speechbrain_mam.recipe_edits import add as module

    assert add("--diff")[0] == 0
    if not (child := os.fork()):
        real = module.write_beside
        module.write_beside = lambda file, write: (
            os._exit(9) if file.name == "train.yaml" else real(file, write)
        )
        add("--in-place", script=None, yaml=None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert Path("train.py").read_text() == NEW_SCRIPT and Path("train.yaml").read_text() == YAML
    assert add("--in-place", script=None, yaml=None)[0] == 0
    assert files() == {"train.py": NEW_SCRIPT.encode(), "train.yaml": NEW_YAML.encode()}


def test_crlf_tabs_and_a_byte_order_mark_stay(add):
    script = "\ufeff" + NEW_SCRIPT.replace("    ", "\t").replace("\n", "\r\n")
    former = script.replace("MAMBrain, ", "").replace(
        "from speechbrain_mam import MAMBrain\r\n", ""
    )
    assert former != script and "\t" in former
    yaml = "\ufeff" + YAML.replace("\n", "\r\n")
    assert add("--in-place", script=former, yaml=yaml)[0] == 0
    assert Path("train.py").read_bytes() == script.encode()
    assert Path("train.yaml").read_bytes() == ("\ufeff" + NEW_YAML.replace("\n", "\r\n")).encode()


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_target_at_the_end(add, end):
    yaml = "modules: {encoder: !ref <encoder>}\nencoder: !new:torch.nn.Identity" + end
    added = "\n" + ADDED.rstrip("\n").replace("  ", "    ") + "\n"
    if end == "\n\n":
        added = added[1:] + "\n"
    code, diff, _ = add("--diff", yaml=yaml)
    assert code == 0 and ("No newline at end of file" in diff) == (not end)
    assert add("--in-place", yaml=yaml)[0] == 0
    assert Path("train.yaml").read_text() == yaml + ("" if end else "\n") + added


@pytest.mark.parametrize(
    "value",
    [
        "!new:torch.nn.Identity {a: [1,\n    2]}",
        "!new:torch.nn.Identity\n  text: |\n    a\n    b",
        "!new:torch.nn.Identity\n  - 1\n  - last:",
        "!new:torch.nn.Identity\n  name: 'it''s\n    long'",
        "!apply:torch.nn.Identity",
        "!new:torch.nn.Identity # with a remark",
    ],
)
def test_the_value_s_form(add, value):
    yaml = f"encoder: {value}\nmodules: {{encoder: !ref <encoder>}}\n"
    assert add("--in-place", yaml=yaml)[0] == 0
    head, _, tail = Path("train.yaml").read_text().partition("\nmam: !new:speechbrain_mam.MAM\n")
    assert head == f"encoder: {value}\n"
    assert tail.endswith("  lr: 0.002\nmodules: {encoder: !ref <encoder>}\n")


BRAINS = {
    "import speechbrain": "speechbrain.Brain",
    "import speechbrain.core": "speechbrain.core.Brain",
    "from speechbrain import Brain": "Brain",
    "from speechbrain.core import Brain as Base": "Base",
    "import speechbrain as sb": "sb.core.Brain",
    "from speechbrain import core": "core.Brain",
}


@pytest.mark.parametrize("line", BRAINS)
def test_however_the_brain_is_imported(add, line):
    base = BRAINS[line]
    script = SCRIPT.replace("import speechbrain as sb", line).replace("sb.Brain", f"Own, {base}")
    script = script.replace("class ASR", "class Own:\n    pass\n\n\nclass ASR")
    assert add("--in-place", script=script)[0] == 0
    assert f"class ASR(MAMBrain, Own, {base}):" in Path("train.py").read_text()


TWO = SCRIPT.replace("\nif __name__", "\nclass Other(sb.Brain):\n    pass\n\n\nif __name__")
CHAIN = TWO.replace("Other(sb.Brain)", "Other(ASR)").replace("brain = ASR", "brain = Other")
NO_GUARD = SCRIPT.replace('if __name__ == "__main__":\n    ', "")
IN_MAIN = SCRIPT.replace('if __name__ == "__main__":', "def main():") + "\n\nmain()\n"


@pytest.mark.parametrize(
    ("script", "options", "line"),
    [
        (TWO, [], "class ASR(MAMBrain, sb.Brain):"),
        (TWO, ["--brain", "Other"], "class Other(MAMBrain, sb.Brain):"),
        (CHAIN, [], "class Other(MAMBrain, ASR):"),
        (NO_GUARD, [], "class ASR(MAMBrain, sb.Brain):"),
        (IN_MAIN, [], "class ASR(MAMBrain, sb.Brain):"),
        (
            SCRIPT.replace("sb.Brain", "Theirs").replace("import sys", "from a import Theirs"),
            ["--brain", "ASR"],
            "class ASR(MAMBrain, Theirs):",
        ),
    ],
)
def test_which_class(add, script, options, line):
    assert add("--in-place", *options, script=script)[0] == 0
    changed = Path("train.py").read_text()
    assert line in changed and changed.count("MAMBrain") == 2
    ast.parse(changed)


def brain_with(method, script=SCRIPT):
    return script.replace("    def compute_forward", f"    {method}\n\n    def compute_forward")


REFUSED_SCRIPTS = {
    "builds several of its Brains, ASR (line 8), Other (line 13)": TWO + "    Other(hparams={})\n",
    "has several and builds none of its Brains": TWO.replace("brain = ASR", "brain = make"),
    "no class derives from SpeechBrain's Brain": SCRIPT.replace("sb.Brain", "Theirs").replace(
        "modules=", "m="
    ),
    "the Brain 'ASR' is no class of this script, but 'base.ASR'": (
        "from base import ASR\nASR(modules={}, hparams={})\n"
    ),
    "line 4: no Python that this version reads": SCRIPT.replace("import speech", "import = "),
    "has another 'MAMBrain' already, other.MAMBrain": "from other import MAMBrain\n" + SCRIPT,
    "'ASR.on_fit_start' does not call super().on_fit_start": brain_with(
        "def on_fit_start(self):\n        sb.Brain.on_fit_start(self)"
    ),
    "'ASR' is built without 'hparams'": SCRIPT.replace(", hparams=hparams", ""),
    "no import at the top": "try:\n    import speechbrain as sb\nfinally:\n    pass\n\n\n"
    "class ASR(sb.Brain):\n    pass\n",
    "more than an import and a plain list of bases": SCRIPT.replace("(sb.Brain)", "((sb.Brain))"),
}
REFUSED_YAMLS = {
    "has no key 'encoder' at its top; did you mean 'encoder2'?": YAML.replace(
        "encoder: !new", "encoder2: !new"
    ),
    "has no key 'encoder' at its top; what it builds: w2v": "w2v: !new:torch.nn.Identity\n",
    "'encoder' is another name of 'seed'; use --target seed": "seed: 1\nencoder: !ref <seed>\n",
    "'encoder' is !name:torch.nn.Identity": "encoder: !name:torch.nn.Identity\n",
    "'encoder' is !PLACEHOLDER": "encoder: !PLACEHOLDER\n",
    "'encoder' is !copy": "a: 1\nencoder: !copy <a>\n",
    "'encoder' is !ref": "encoder: !ref <a[b]>\n",
    "'encoder' is !include:other.yaml": "encoder: !include:other.yaml\n",
    "'encoder' is '3'": "encoder: 3\n",
    "'encoder' is a list": "encoder: [1]\n",
    "'encoder' stands twice": "encoder: 1\nencoder: 2\n",
    "the key 'mam' is there already": YAML + "mam: null\n",
    "the key 'mam_optimizer' is there already": YAML + "mam_optimizer: null\n",
    "each key on a line of its own": "{encoder: !new:torch.nn.Identity }\n",
    "expected keys and values": "- 1\n",
    "line 2: no YAML": "a: [1\nb: 2\n",
    "includes 'base.yaml' as a whole": "!include:base.yaml\nencoder: 1\n",
}
ALREADY = ("no Python", "no YAML", "is there already", "stands twice")


@pytest.mark.parametrize(
    ("message", "script", "yaml"),
    [
        *((message, script, YAML) for message, script in REFUSED_SCRIPTS.items()),
        *((message, SCRIPT, yaml) for message, yaml in REFUSED_YAMLS.items()),
        ("is not UTF-8", b"# \xe4\nimport os\n", YAML),
        ("'train.py': no such file", None, YAML),
    ],
)
def test_what_is_not_understood_is_refused_with_the_lines(add, message, script, yaml):
    code, out, err = add("--in-place", script=script, yaml=yaml)
    assert code == 2 and message in err and err.count("\n") == 1
    by_hand = not any(word in message for word in (*ALREADY, "UTF-8", "no such file"))
    assert ("class ASR(MAMBrain, sb.Brain):" in out and "donor: my/bert" in out) == by_hand
    former = {"train.py": script, "train.yaml": yaml}
    assert files() == {
        name: content.encode() if isinstance(content, str) else content
        for name, content in former.items()
        if content is not None
    }


def test_a_donor_s_name_is_quoted_where_yaml_needs_it(add):
    assert add("--in-place", "--donor", "my bert: 'small' # 1")[0] == 0
    from speechbrain_mam.recipe_edits.hyperparams import read_hyperparams

    _, node = read_hyperparams(Path("train.yaml")).keys["mam"]
    assert [value.value for _, value in node.value] == ["<encoder>", "my bert: 'small' # 1"]
    assert "is no name of a model" in add("--diff", "--donor", "a\nb")[2]


@pytest.mark.parametrize(
    ("said", "script", "yaml"),
    [
        ("freeze: 'encoder' is frozen", SCRIPT, YAML),
        ("", SCRIPT, YAML.replace("freeze: True", "freeze: False")),
        (
            "adapters: 'adapted' puts adapters into 'encoder'",
            SCRIPT,
            YAML + "adapted: !new:speechbrain.nnet.adapters.AdaptedModel\n"
            "  model_to_adapt: !ref <encoder>\n",
        ),
        ("modules: 'encoder' is not in", SCRIPT, YAML.replace("{encoder: !ref <encoder>}", "{}")),
        (
            "checkpoints: the script saves at TEST",
            brain_with(
                "def on_stage_end(self, stage, loss, epoch):\n"
                "        if stage == sb.Stage.TEST:\n"
                "            self.checkpointer.save_and_keep_only()"
            ),
            YAML,
        ),
        (
            "'on_fit_batch_start' does not call super()",
            brain_with("def on_fit_batch_start(self, batch, step):\n        pass"),
            YAML,
        ),
        ("own fit_batch", brain_with("def fit_batch(self, batch):\n        pass"), YAML),
    ],
)
def test_what_a_recipe_needs_besides(add, said, script, yaml):
    code, _, told = add("--diff", script=script, yaml=yaml)
    assert code == 0 and said in told and "bias: where only one" in told
    if not said:
        assert "freeze:" not in told and "adapters:" not in told and "TEST" not in told


def test_the_methods_that_are_named_are_mambrain_s():
    assert set(WRAPPED) == set(WRAPPERS)
    own = {name for one in MAMBrain.__mro__[:2] for name in vars(one)} & set(dir(MAMBrain))
    public = {name for name in own if not name.startswith("_")} | {"__init__"}
    ours = {"write_plan", "evaluate_untouched", "history", "mam"}
    assert {n for n in public if callable(getattr(MAMBrain, n))} - ours == (
        set(WRAPPED) | set(NEEDS_SUPER) | set(LOST)
    )
