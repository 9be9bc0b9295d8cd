"""YAMLs that include another one as a whole: what they replace, and what is said of mistakes."""

import re
from io import StringIO

import pytest
from conftest import REPO
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML

from speechbrain_mam import MAMError
from speechbrain_mam.runs.recipe import load_recipe
from speechbrain_mam.runs.seeds import label_of
from speechbrain_mam.runs.yaml_files import base_and_overrides, content_sha256, files_of

LARGE = sorted((REPO / "hparams" / "large").glob("*.yaml"))
FRESH = {"mam_learnable": {"fresh", "fresh_seed"}, "mam_init": set()}
OF_THE_METHOD = {
    *("method", "output_folder", "results_folder", "save_folder", "train_log"),
    *("fresh", "test_untouched", "brain", "modules"),
}
SMALL = (
    "method: mine\nname: !ref <folder>/run\nfolder: here\nlr: 0.1\nnested:\n    a: 1\n    b: 2\n"
)


def keys_of(file):
    with file.open(encoding="utf-8") as stream:
        return YAML().load(stream)


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "small.yaml").write_text(SMALL)
    large = tmp_path / "deep" / "large.yaml"
    large.write_text("# large\n!include:../small.yaml\n\nlr: 0.01\nfolder: !PLACEHOLDER\n")
    return tmp_path / "small.yaml", large


@pytest.mark.parametrize("large", LARGE, ids=lambda file: file.stem)
def test_a_large_yaml_holds_what_differs_from_its_small_one_and_nothing_else(large):
    assert files_of(large) == [large, REPO / "hparams" / large.name]
    small, replaced = keys_of(REPO / "hparams" / large.name), keys_of(large)
    for key, value in replaced.items():
        assert key in small, f"'{key}' replaces nothing"
        assert not isinstance(value, dict), f"'{key}': keys inside of it are not checked here"
        assert repr(value) != repr(small[key]), f"'{key}' is the same in both"
    assert "large" in str(replaced.get("output_folder", replaced.get("results_folder")).value)


def test_there_is_a_large_yaml_for_each_small_one():
    small = {file.name for file in (REPO / "hparams").glob("*.yaml")}
    assert {file.name for file in LARGE} == small and len(small) == 8


def test_the_command_line_goes_before_the_file_and_the_file_before_its_base(pair):
    small, large = pair
    base, overrides = base_and_overrides(large, "folder: there\nnested: {b: 3}")
    assert base == small
    with base.open() as stream:
        content = load_hyperpyyaml(stream, overrides)
    nested = {"a": 1, "b": 3}
    expected = {"method": "mine", "folder": "there", "lr": 0.01, "nested": nested}
    assert content == expected | {"name": "there/run"}


def test_a_whole_yaml_is_loaded_as_it_is(pair):
    assert base_and_overrides(pair[0], "lr: 3") == (pair[0], "lr: 3")


def test_one_that_includes_another_may_be_included(pair, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("!include:deep/large.yaml\nfolder: mine\n")
    assert files_of(mine) == [mine, pair[1], pair[0]]
    base, overrides = base_and_overrides(mine)
    with base.open() as stream:
        content = load_hyperpyyaml(stream, overrides)
    assert (content["lr"], content["name"]) == (0.01, "mine/run")


def test_hyperpyyaml_alone_reads_it_as_overrides(pair):
    """What the module's docstring promises to a script without this package."""
    small, large = pair
    overrides = {**keys_of(large), "folder": "there"}
    with small.open() as stream:
        assert load_hyperpyyaml(stream, overrides)["name"] == "there/run"


@pytest.mark.parametrize("large", LARGE, ids=lambda file: file.stem)
def test_hyperpyyaml_refuses_it_as_a_whole_yaml(large):
    with pytest.raises(ValueError, match=r"reference|PLACEHOLDER"), large.open() as stream:
        load_hyperpyyaml(stream)


def test_a_seeds_run_knows_the_method_and_what_is_included(pair):
    small, large = pair
    assert label_of(large, []) == "mine"
    before = content_sha256(large)
    small.write_text(f"{SMALL}c: 4\n")
    assert content_sha256(large) != before


def test_what_the_run_folder_keeps_is_whole(pair):
    """As SpeechBrain's ``create_experiment_directory`` writes it, with what load_recipe returns."""
    base, overrides = base_and_overrides(pair[1], "folder: there")
    with base.open() as stream:
        kept = resolve_references(stream, overrides).getvalue()
    assert "include" not in kept
    assert load_hyperpyyaml(kept) == load_hyperpyyaml(kept, "lr: 0.01\nname: there/run")


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("lrr: 1", [], "large.yaml': '{small}' has no key 'lrr' to replace; did you mean 'lr'?"),
        ("lr: 1\nlr: 2", [], "large.yaml', line 4: found duplicate key"),
        ("lr: [1", [], "large.yaml', line 4: expected ',' or ']'"),
        ("- lr", [], "large.yaml': expected keys and values"),
        ("folder: !PLACEHOLDER", [], "' over '{small}': 'folder' has no value yet; use --folder"),
        ("folder: !ref <foldr>", [], "' over '{small}': The reference \"foldr\" is not valid"),
        ("lr: 1", ["--lrr=2"], "--lrr: '{large}' over '{small}' has no such key; did you mean"),
        ("lr: {a: 1}", [], "an override cannot give 'lr' keys of its own"),
        ("lr: 1", ["--lr={a: 1}"], "the command line: Expected to update a mapping"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(text, given, message, pair):
    small, large = pair
    large.write_text(f"# large\n!include:../small.yaml\n{text}\n")
    message = message.format(small=small, large=large)
    with pytest.raises(MAMError, match=re.escape(message)):
        load_recipe([str(large), *given])


def test_a_mistake_in_the_file_that_is_included_names_that_file(pair):
    small, large = pair
    small.write_text(f"{SMALL}lr: 2\n")
    with pytest.raises(MAMError, match=re.escape(f"'{small}', line 8: found duplicate key")):
        load_recipe([str(large), "--folder=here"])


def test_files_that_are_not_there_or_include_one_another(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("!include:two.yaml\nlr: 1\n")
    with pytest.raises(MAMError, match=r"one\.yaml' includes '.*two\.yaml': no such file"):
        files_of(one)
    two.write_text("!include:one.yaml\nlr: 1\n")
    with pytest.raises(MAMError, match="they include one another"):
        files_of(one)
    with pytest.raises(MAMError, match=r"none\.yaml': no such file"):
        load_recipe([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("name", ["", "esc50_"])
def test_what_is_compared_has_every_key_of_its_baseline(name):
    """A key that one of them lacks is a difference that nobody sees: a budget, a margin."""
    baseline = set(keys_of(REPO / "hparams" / f"{name}finetune.yaml"))
    for kind in ("mam_learnable", "mam_init"):
        assert not baseline - set(keys_of(REPO / "hparams" / f"{name}{kind}.yaml")) - FRESH[kind]
    for file in (REPO / "hparams").glob("*.yaml"):
        assert keys_of(file)["equivalence_margin"] == 1.0


@pytest.mark.parametrize("name", ["", "esc50_"])
def test_what_is_compared_is_trained_alike(name):
    """The same budget, rate, batches and decoding, key by key."""
    baseline = keys_of(REPO / "hparams" / f"{name}finetune.yaml")
    for kind in ("mam_learnable", "mam_init"):
        keys = keys_of(REPO / "hparams" / f"{name}{kind}.yaml")
        differ = {k for k in set(keys) & set(baseline) if shown(keys[k]) != shown(baseline[k])}
        assert differ <= OF_THE_METHOD, differ - OF_THE_METHOD


def shown(value):
    """A value with its tag; without comments, and without what draws it anew."""
    stream = StringIO()
    YAML().dump({"value": value}, stream)
    return re.sub(r"\s*#.*|^\s*fresh.*|\s*$", "", stream.getvalue(), flags=re.M).strip()
