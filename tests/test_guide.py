"""What the documents say of the code: the rooms' picture, the words, where each feature is."""

import importlib
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from conftest import REPO

from tools.draw_rooms import layout, svg, width
from tools.rooms import floors, module_graph, reduced, room_graph

DESIGN = (REPO / "docs" / "design.md").read_text(encoding="utf-8")
ROOMS = room_graph(module_graph())


def table(title, text=DESIGN):
    """The rows under a heading, without the table's head, as lists of cells."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)[1]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_picture_of_the_rooms_is_the_scripts():
    script = [sys.executable, str(REPO / "tools" / "rooms.py"), "--mermaid"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^```mermaid\n(.*?)^```$", DESIGN, flags=re.M | re.S) == [printed]


def test_an_arrow_is_left_out_only_where_others_lead_the_same_way():
    direct = reduced(ROOMS)

    def below(room):
        return direct[room] | {other for one in direct[room] for other in below(one)}

    assert all(ROOMS[room] <= below(room) for room in ROOMS)
    for room, others in direct.items():
        assert not any(o in below(one) for o in others for one in others - {o}), room


def test_the_drawing_has_every_room_and_arrow_and_none_overlaps():
    """What Sphinx shows in the block's place."""
    root = ElementTree.fromstring(svg(ROOMS))
    space = "{http://www.w3.org/2000/svg}"
    assert {text.text for text in root.iter(f"{space}text")} == set(ROOMS)
    arrows = [path for path in root.iter(f"{space}path") if "marker-end" in path.attrib]
    assert len(arrows) == sum(map(len, reduced(ROOMS).values()))
    at = layout(reduced(ROOMS), floors(ROOMS))
    for one, (x, y) in at.items():
        for other, (x2, y2) in at.items():
            apart = abs(x - x2) >= (width(one) + width(other)) / 2
            assert one == other or y != y2 or apart, (one, other)


def test_the_built_page_has_the_drawing():
    conf = SimpleNamespace(**runpy.run_path(str(REPO / "docs" / "conf.py")))
    page = conf.fill_in(DESIGN)
    assert "```mermaid" not in page and svg(ROOMS) in page


def test_every_room_is_told_of():
    named = [room for row in table("Rooms") for room in code(row[0])]
    assert sorted(named) == sorted(ROOMS)


def test_the_words():
    """One line each, none twice."""
    words = [row[0] for row in table("Words")]
    needed = {"target", "donor", "λ, `lam`", "projection", "layer map", "plan", "control", "probe"}
    assert needed | {"fold", "sweep", "verdict"} <= set(words)
    assert len(set(words)) == len(words)


def test_the_picture_of_mam_is_the_scripts(tmp_path):
    """Matplotlib notes each text beside its glyphs, whose outlines its versions may change."""
    again, shown = tmp_path / "mam.svg", REPO / "docs" / "mam.svg"
    script = [sys.executable, str(REPO / "tools" / "draw_mam.py"), str(again)]
    subprocess.run(script, check=True, capture_output=True)

    def texts(file):
        return re.findall(r"<!-- (.*?) -->", file.read_text(encoding="utf-8"))

    assert texts(again) == texts(shown)
    assert {"λ = 0.95", "Q′", "donor"} <= set(texts(shown))
    assert shown.stat().st_size < 100_000
    assert (
        "](docs/mam.svg)" in (REPO / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    )
    assert "](mam.svg)" in (REPO / "docs" / "index.md").read_text(encoding="utf-8")


WHERE = table("Where is what")


def test_enough_features_are_found():
    assert len({row[0] for row in WHERE}) == len(WHERE) >= 30
    rooms = {code(row[1])[0].partition(".")[0] for row in WHERE}
    assert rooms >= set(ROOMS) - {
        "version",
        "corpus",
        "recipe",
        "precision",
        "seeds",
    }


@pytest.mark.parametrize("row", WHERE, ids=lambda row: row[0])
def test_where_is_what(row):
    (module,), names = code(row[1]), code(row[2])
    found = importlib.import_module(f"speechbrain_mam.{module}")
    assert names
    for name in names:
        value = getattr(found, name)
        assert getattr(value, "__module__", found.__name__) == found.__name__, value
