import re
import xml.etree.ElementTree as ElementTree

import pytest

from turncoder.report.curves import LINES, POINTS, Line, draw_lines, draw_map, draw_scores

NAMES = ["<script>", 'a "quoted" name', "$x$ & y", "#010203 url(#a)"]
LINE = [Line(name, [1, 2, 3], [3.0, 2.0, 1.5], [0.1, 0.1, 0.2]) for name in NAMES]
DRAWN = {
    "lines": lambda: draw_lines("one", LINE, "step", "loss"),
    "scores": lambda: draw_scores("two", [(name, 0.5 + place, 0.1) for place, name in enumerate(NAMES)], "MRR@10"),
    "map": lambda: draw_map(
        "three", {name: [[place, 1.0], [2.0, place]] for place, name in enumerate(NAMES)}, [0.5, 0.2]
    ),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_drawing_is_whole_and_its_texts_are_texts(kind):
    svg = DRAWN[kind]()
    root = ElementTree.fromstring(svg)
    texts = [one.text for one in root.iter("text")]
    assert {*NAMES} <= {*texts}
    assert root.get("aria-hidden") == "true" and "width" not in root.attrib
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(ids) == len({*ids})
    tags = "".join(re.findall(r"<[^<>]*>", svg))
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', tags)
    assert used and {one or other for one, other in used} <= {*ids}


@pytest.mark.parametrize("kind", DRAWN)
def test_colours_are_those_of_the_page_alone(kind):
    tags = "".join(re.findall(r"<[^<>]*>", DRAWN[kind]()))
    found = {colour.strip() for colour in re.findall(r"(?:fill|stroke|color): ?([^;\"]*)", tags)}
    assert found <= {"none", "currentColor", "var(--line)", *(f"var(--c{place})" for place in range(6))}
    assert {"currentColor", "var(--c0)", "var(--line)"} <= found
    assert "font-family" not in tags and "http" not in tags


def test_a_drawing_is_the_same_again_and_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert DRAWN["lines"]() == DRAWN["lines"]()
    assert dict(matplotlib.rcParams) == before


def test_long_and_many_lines_stay_small():
    steps = list(range(100_000))
    lines = [Line(str(name), steps, [float(step % 97) for step in steps]) for name in range(40)]
    svg = draw_lines("x", lines, "step", "loss")
    assert len(svg) < 12_000 * LINES
    assert max(path.count("L") for path in re.findall(r' d="([^"]*)"', svg)) <= POINTS
    assert len(re.findall("<text[^>]*>(?:1?[0-9])</text>", svg)) >= LINES
