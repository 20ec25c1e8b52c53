import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from turncoder.report import curves
from turncoder.report.curves import LINES, POINTS, Line, draw_dots, draw_lines, draw_map, draw_scores

NAMES = ["<script>", 'a "quoted" name', "$x$ & y", "#010203 url(#a)", "_old"]
LINE = [Line(name, [1, 2, 3], [3.0, 2.0, 1.5], [0.1, 0.1, 0.2]) for name in NAMES]
DRAWN = {
    "lines": lambda: draw_lines("one", LINE, "step", "loss"),
    "scores": lambda: draw_scores("two", [(name, 0.5 + place, 0.1) for place, name in enumerate(NAMES)], "MRR@10"),
    "dots": lambda: draw_dots("four", NAMES, [Line(name, [0.1, 0.4], [0, 2]) for name in NAMES], "score", 2),
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


def test_many_tasks_of_many_runs_stay_apart_and_where_they_belong(monkeypatch):
    figures = []
    write = curves._write
    monkeypatch.setattr(curves, "_write", lambda figure, name: figures.append(figure) or write(figure, name))
    tasks = [f"{place} AmazonCounterfactualClassification" for place in range(67)]
    rng = np.random.default_rng(0)
    places = [rng.permutation(67)[:60] for _ in range(LINES)]
    lines = [
        Line(f"a-rather-long-name-of-a-run-{at}", rng.random(60), own, rng.random(60) if at % 2 else None)
        for at, own in enumerate(places)
    ]
    assert len(draw_dots("x", tasks, lines, "score", 3)) < 300_000
    (axes,) = figures[0].axes
    figures[0].draw_without_rendering()
    for container, line in zip(axes.containers, lines, strict=True):
        x_N, y_N = container.lines[0].get_xdata(), container.lines[0].get_ydata()
        assert list(x_N) == list(line.x) and [round(float(y)) for y in y_N] == list(line.y)
        assert container.has_xerr == (line.error is not None)
    hollow = [container.lines[0].get_markerfacecolor() == "none" for container in axes.containers]
    assert hollow == [False] * (LINES - 3) + [True] * 3
    looks = {(one.lines[0].get_color(), one.lines[0].get_marker()) for one in axes.containers}
    assert len(looks) == LINES
    names = [label for label in axes.get_yticklabels() if label.get_text()]
    boxes = [one.get_window_extent() for one in names]
    assert len(names) == 67 and not any(one.overlaps(other) for one, other in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0 and axes.bbox.width > 0.4 * figures[0].bbox.width
    assert not figures[0].legends[0].get_window_extent().overlaps(axes.get_tightbbox())
