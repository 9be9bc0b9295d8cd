"""Layers, projections, layer maps and λ as a user writes them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_mam import MAMError
from speechbrain_mam.options import map_layers, parse_lam, parse_layers, parse_projections
from speechbrain_mam.search.grid import parse_controls, parse_donors, parse_grid, parse_subsets


@given(st.integers(1, 48), st.data())
def test_a_written_list_of_layers_is_read_back(num_layers, data):
    chosen = data.draw(st.sets(st.integers(0, num_layers - 1), min_size=1))
    assert parse_layers(",".join(map(str, chosen)), num_layers) == tuple(sorted(chosen))
    assert parse_layers(list(chosen), num_layers) == tuple(sorted(chosen))


@given(st.integers(2, 48), st.integers(1, 48))
def test_the_uniform_map_is_monotone_and_reaches_both_ends(targets, donors):
    mapped = map_layers("uniform", targets, donors)
    assert len(mapped) == targets
    assert (mapped[0], mapped[-1]) == (0, donors - 1)
    steps = [b - a for a, b in itertools.pairwise(mapped)]
    assert min(steps) >= 0 and max(steps) - min(steps) <= 1


def test_first_last_and_equal_depth():
    assert map_layers("first", 3, 6) == (0, 1, 2)
    assert map_layers("last", 3, 6) == (3, 4, 5)
    assert map_layers("last", 6, 6) == map_layers("uniform", 6, 6) == tuple(range(6))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("first:9", "the target has 6 layers"),
        ("0-9", "layer 6"),
        ("upper", "cannot read 'upper'"),
        ([], "no layer"),
        ([-1], "layer -1"),
        ("5-3", "no layer; write '3-5'"),
        ("1,5-3", "'5-3' in '1,5-3' names no layer"),
        ("0-99999999", "layer 6"),
        ("0-99999999999999999999", "cannot read"),
        ([0.5], "0.5 is not a whole number"),
        (["1"], "'1' is not a whole number"),
        ([True], "True is not a whole number"),
        ([2.0], "2.0 is not a whole number"),
        ("[0.5]", "0.5 is not a whole number"),
        ("[1", "cannot read"),
        (0.5, "expected all"),
        (True, "expected all"),
        ({0: 1}, "expected all"),
        ("{0: 1}", "expected all"),
        (None, "expected all"),
    ],
)
def test_bad_layers(layers, message):
    with pytest.raises(MAMError, match=rf"key 'layers'.*{message}"):
        parse_layers(layers, 6)


@pytest.mark.parametrize(
    ("layer_map", "targets", "message"),
    [
        ("first", 6, "needs a donor of at least 6 layers"),
        ([0, 4], 2, "expected 2 donor layers, each 0 to 3"),
        ("0,4", 2, "expected 2 donor layers, each 0 to 3"),
        ("middle", 6, "'middle' is not one of uniform, first, last"),
        ("0,", 2, "expected 2 donor layers"),
        ([0, 1, 2.9], 3, "2.9 is not a whole number"),
        ("[0, 1, 2.9]", 3, "2.9 is not a whole number"),
        ("0,1,2.9", 3, "'0,1,2.9' is not one of"),
        ([True, False], 2, "True is not a whole number"),
        (["0", "1"], 2, "'0' is not a whole number"),
        (1.0, 1, "expected uniform, first, last or a list"),
        (None, 1, "expected uniform, first, last or a list"),
        ([0, -1], 2, "each 0 to 3"),
    ],
)
def test_bad_layer_maps(layer_map, targets, message):
    with pytest.raises(MAMError, match=rf"key 'layer_map': .*{message}"):
        map_layers(layer_map, targets, 4)


WRITTEN = [
    (lambda v: parse_layers(v, 6), [[0, 2], (0, 2), "0,2", "[0, 2]", " 0, 2", {2, 0}]),
    (lambda v: parse_layers(v, 6), [3, "3", [3], "[3]", "3-3", [np.int64(3)]]),
    (lambda v: parse_layers(v, 6), ["0-2", range(3), "first:3", "first: 3", "0,1,2"]),
    (lambda v: map_layers(v, 3, 5), [[2, 0, 4], "2,0,4", "[2, 0, 4]", "2, 0, 4"]),
    (lambda v: map_layers(v, 1, 5), [4, "4", [4], "[4]"]),
    (parse_projections, ["qv", "vq", "query,value", "q,v", ["q", "v"], "[query, value]"]),
    (lambda v: parse_lam(v, [0, 1], ["query"]), [0.5, "0.5", [0.5, 0.5], "0.5,0.5", "[0.5, 0.5]"]),
    (lambda v: parse_lam(v, [0, 1], ["query"]), [1, "1", 1.0, "1,1", np.float32(1)]),
    (
        lambda v: parse_lam(v, [0, 1], ["query", "key"]),
        [
            {"query": 0.9, "key": [0.8, 1]},
            "{query: 0.9, key: [0.8, 1]}",
            {"query": "0.9", "key": "0.8,1"},
            "{query: 0.9, key: '0.8,1'}",
        ],
    ),
    (parse_grid, [[0.8, 0.9], "0.8,0.9", "0.9,0.8,0.9,1", "[0.9, 0.8]", (0.8, 0.9)]),
    (parse_grid, [0.9, [0.9], "0.9", "[0.9]"]),
    (lambda v: parse_subsets(v, 3), ["all", ["all"], "[all]"]),
    (lambda v: list(parse_subsets(v, 3).values()), ["0,2", ["0,2"], [[0, 2]], "[[0, 2]]"]),
    (parse_controls, ["random,no_donor", ["random", "no_donor", "random"], "[random, no_donor]"]),
    (parse_controls, ["none", [], None, ["none"], "[]"]),
    (parse_donors, ["bert", ["bert"], "[bert]", [Path("bert")]]),
]


@pytest.mark.parametrize(("read", "forms"), WRITTEN)
def test_every_form_of_a_choice_says_the_same(read, forms):
    for form in forms:
        assert read(form) == read(forms[0]), form


def test_projections():
    assert parse_projections("kq") == ("query", "key")
    assert parse_projections(["value", "output"]) == ("value", "output")
    assert parse_projections("query") == ("query",)
    for bad in ("qx", "", ["queries"], [], None, 5, True, {"query": 1}, "query,kay", "[q", [1]):
        with pytest.raises(MAMError, match="key 'projections'"):
            parse_projections(bad)


@pytest.mark.parametrize(
    "bad", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True, None, [0.5], {"a": 1}, 1j]
)
def test_lam_outside_the_unit_interval(bad):
    with pytest.raises(MAMError, match="key 'lam'"):
        parse_lam([bad, 0.5], [0, 1], ["query"])
    with pytest.raises(MAMError, match="key 'lam_grid'"):
        parse_grid([0.9, bad])


@pytest.mark.parametrize("bad", ["", "high", "0.9,", "1.5", "-0.1,1", "nan", "[0.9", "{query: 2}"])
def test_a_text_that_is_no_lam(bad):
    with pytest.raises(MAMError, match="key 'lam'"):
        parse_lam(bad, [0, 1], ["query"])


def test_lam_per_layer_and_projection():
    lam = parse_lam({"query": [0.1, 0.2], "key": 0.5}, [3, 4], ["query", "key"])
    assert lam == {(3, "query"): 0.1, (4, "query"): 0.2, (3, "key"): 0.5, (4, "key"): 0.5}
    with pytest.raises(MAMError, match="has 3 values for 2 chosen layers"):
        parse_lam([1, 1, 1], [0, 1], ["query"])
    with pytest.raises(MAMError, match="expected one λ for each of"):
        parse_lam({"query": 1.0}, [0], ["query", "key"])
