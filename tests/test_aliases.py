"""A YAML of aliases of aliases is refused wherever one is read, before anything walks it."""

import itertools
import time
from pathlib import Path

import pytest

from speechbrain_mam import MAMError, options
from speechbrain_mam.export.card import _of_card
from speechbrain_mam.export.data_only import data_only
from speechbrain_mam.export.run import _read_hparams
from speechbrain_mam.recipe_edits.hyperparams import read_hyperparams
from speechbrain_mam.runs.yaml_files import load_yaml
from speechbrain_mam.text_files import MOST_VALUES, check_aliases, read_yaml

NAMES = "abcdefghij"
BOMB = "[&a [x,x,x,x,x,x,x,x]" + "".join(
    f", &{b} [{','.join([f'*{a}'] * 8)}]" for a, b in itertools.pairwise(NAMES)
)
BOMB += "]"
"""8^10 values; nothing can walk through them in the time that a test has."""


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def base_of_another(folder: Path) -> object:
    written(folder, "base.yaml", f"lr: {BOMB}\n")
    return load_yaml(written(folder, "a.yaml", "!include:base.yaml\nlr: 1\n"))


READERS = {
    "a recipe's YAML": lambda f: load_yaml(written(f, "a.yaml", f"lr: {BOMB}\n")),
    "with a byte order mark": lambda f: load_yaml(written(f, "a.yaml", f"\ufefflr: {BOMB}\n")),
    "a YAML that is included": base_of_another,
    "the command line": lambda f: load_yaml(written(f, "a.yaml", "lr: 1\n"), f"lr: {BOMB}"),
    "a run's hyperparams.yaml": lambda f: _read_hparams(
        written(f, "hyperparams.yaml", f"lr: {BOMB}\n").parent
    ),
    "a YAML to add to": lambda f: read_hyperparams(written(f, "a.yaml", f"lr: {BOMB}\n")),
    "a checkpoint's λ": lambda f: read_yaml(written(f, "mam.ckpt", f"lambdas: {BOMB}\n")),
    "layers": lambda f: options.in_brackets("layers", BOMB),
    "lam": lambda f: options.in_brackets("lam", f"{{query: {BOMB}}}"),
}


@pytest.mark.parametrize("reader", READERS)
def test_it_is_refused_at_once(reader, tmp_path):
    start = time.process_time()
    with pytest.raises(MAMError, match="aliases stand for a thousand million or more values"):
        READERS[reader](tmp_path)
    assert time.process_time() - start < 5


def test_what_recipes_write_is_not_refused(tmp_path):
    text = "a: &a [1, 2]\n" + "".join(f"b{i}: *a\n" for i in range(2000))
    check_aliases(text, "a.yaml")
    assert len(load_yaml(written(tmp_path, "a.yaml", text))[0]) == 2001


@pytest.mark.parametrize("text", ["a: [*a" * 20, "*" * 30, "&a [" + "*a," * 20 + "]"])
def test_what_is_no_tree_is_left_to_its_reader(text, tmp_path):
    check_aliases(text, "a.yaml")
    for reader in (load_yaml, read_hyperparams, lambda file: data_only(file.read_text(), file)):
        with pytest.raises(MAMError, match=r"a\.yaml"):
            reader(written(tmp_path, "a.yaml", text))


def test_the_limit_is_of_values():
    many = f"a: &a [{'1, ' * 1000}]\nb: [{'*a, ' * (MOST_VALUES // 1001 - 2)}]"
    check_aliases(many, "a.yaml")
    with pytest.raises(MAMError, match=f"a.yaml: .* expected at most {MOST_VALUES}$"):
        check_aliases(many.replace("b: [", "b: [*a, *a, "), "a.yaml")


@pytest.mark.parametrize("licence", [BOMB, "[" * 5000, "2001-99-99", "*nothing"])
def test_a_card_that_cannot_be_read_names_no_licence(licence, tmp_path):
    """Of a parent model, which may be anybody's: it is quoted in the card of what was merged."""
    start = time.process_time()
    assert _of_card(written(tmp_path, "README.md", f"---\nlicense: {licence}\n---\n")) == ""
    assert time.process_time() - start < 5
    assert _of_card(written(tmp_path, "README.md", "---\nlicense: mit\n---\n")) == "mit"


@pytest.mark.parametrize("value", ["[" * 5000, "[2001-99-99]", "[*nothing]", "{a"])
def test_an_option_that_cannot_be_read_names_its_key(value):
    with pytest.raises(MAMError, match="key 'layers': cannot read"):
        options.in_brackets("layers", value)
