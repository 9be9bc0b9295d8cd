"""Layers, projections, layer maps and λ as a user writes them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_mam import MAMError
from speechbrain_mam.choices import map_layers, parse_lam, parse_layers, parse_projections


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
        ("5-3", "no layer"),
        (None, "expected all"),
    ],
)
def test_bad_layers(layers, message):
    with pytest.raises(MAMError, match=rf"key 'layers'.*{message}"):
        parse_layers(layers, 6)


def test_bad_layer_maps():
    with pytest.raises(MAMError, match=r"key 'layer_map'.*needs a donor of at least 6 layers"):
        map_layers("first", 6, 4)
    with pytest.raises(MAMError, match="expected 2 donor layers, each 0 to 3"):
        map_layers([0, 4], 2, 4)
    with pytest.raises(MAMError, match="'middle' is not one of uniform, first, last"):
        map_layers("middle", 6, 4)


def test_projections():
    assert parse_projections("kq") == ("query", "key")
    assert parse_projections(["value", "output"]) == ("value", "output")
    assert parse_projections("query") == ("query",)
    for bad in ("qx", "", ["queries"]):
        with pytest.raises(MAMError, match="key 'projections'"):
            parse_projections(bad)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), "0.5", True])
def test_lam_outside_the_unit_interval(bad):
    with pytest.raises(MAMError, match="key 'lam'"):
        parse_lam([bad, 0.5], [0, 1], ["query"])


def test_lam_per_layer_and_projection():
    lam = parse_lam({"query": [0.1, 0.2], "key": 0.5}, [3, 4], ["query", "key"])
    assert lam == {(3, "query"): 0.1, (4, "query"): 0.2, (3, "key"): 0.5, (4, "key"): 0.5}
    with pytest.raises(MAMError, match="has 3 values for 2 chosen layers"):
        parse_lam([1, 1, 1], [0, 1], ["query"])
    with pytest.raises(MAMError, match="expected one λ for each of"):
        parse_lam({"query": 1.0}, [0], ["query", "key"])
