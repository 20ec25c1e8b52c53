"""Drawings for a page: SVG whose text is text, whose colours are the page's own, light or dark.

What matplotlib draws in stand-in colours gets those of the style sheet; its settings hold for one drawing.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from turncoder.report.plots import MARKERS, list_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LINES", "Line", "draw_dots", "draw_lines", "draw_map", "draw_scores", "name_one"]

LINES = 12
"""Lines that are told apart in one drawing."""
POINTS = 250
"""Points of a line; of more every so manyth is drawn."""
INK, FAINT = "#010203", "#010204"
COLOURS = tuple(f"#0102{place:02x}" for place in range(16, 22))
PAGE = {INK: "currentColor", FAINT: "var(--line)", **{one: f"var(--c{place})" for place, one in enumerate(COLOURS)}}
"""Stand-ins, which nothing else has, and what the style sheet calls them."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "turncoder",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
WIDTH = 4.7  # inches: small letters are still letters on a telephone
LONGEST = 28
SCREEN = 20  # rows: of more the axis is above as well
SPREAD = 0.5  # of a row
Place = Literal["outside lower center", "outside upper center"]


@dataclass(frozen=True)
class Line:
    """A line of a drawing: where, how much, and, where it is known, the error."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None


def draw_lines(name: str, lines: Sequence[Line], across: str, up: str) -> str:
    """Draw lines, each with its own colour and marker.

    Parameters
    ----------
    name
        What the parts of the SVG are named after, on a page of several.
    lines
        At most `LINES` are drawn.
    across, up
        What the axes show.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    from matplotlib.ticker import MaxNLocator

    with _settle() as figure:
        axes = figure.add_subplot()
        for number, line in enumerate(lines[:LINES]):
            step = -(-len(line.x) // POINTS)
            look = _look(number, len(line.x) <= 40)
            error = None if line.error is None else line.error[::step]
            axes.errorbar(line.x[::step], line.y[::step], yerr=error, label=_shorten(line.name), **look)
        if all(float(x).is_integer() for line in lines for x in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _explain(figure, axes)
        return _write(figure, name)


def draw_scores(name: str, rows: Sequence[tuple[str, float, float | None]], across: str) -> str:
    """Draw a score of each model as a point with its error, the first at the top; see `draw_lines`.

    Parameters
    ----------
    name
        As for `draw_lines`.
    rows
        Model, score and error, or None.
    across
        What is drawn.
    """
    errors = [error or 0 for _, _, error in rows]
    line = Line("", [score for _, score, _ in rows], range(len(rows)), errors if any(errors) else None)
    return draw_dots(name, [model for model, _, _ in rows], [line], across)


def draw_dots(name: str, rows: Sequence[str], lines: Sequence[Line], across: str, baselines: int = 0) -> str:
    """Draw points in rows, the first at the top, each line in its own colour and marker; see `draw_lines`.

    Parameters
    ----------
    name
        As for `draw_lines`.
    rows
        What they are.
    lines
        Scores, and the numbers of their rows.
    across
        What is drawn.
    baselines
        The last so many lines are hollow.
    """
    from matplotlib.ticker import MaxNLocator

    long = len(rows) > SCREEN
    with _settle(0.75 + 0.24 * len(rows) + 0.1 * len(lines)) as figure:
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            look = {**_look(number, True), "linestyle": "none"}
            if number >= len(lines) - baselines:
                look["markerfacecolor"] = "none"
            shift = SPREAD * ((number + 0.5) / len(lines) - 0.5)  # or equal scores would hide each other
            axes.errorbar(line.x, [row + shift for row in line.y], xerr=line.error, label=_shorten(line.name), **look)
        axes.set_yticks(range(len(rows)), [_shorten(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", top=long, labeltop=long)
        axes.set_xlabel(across)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _explain(figure, axes, "outside upper center")
        return _write(figure, name)


def draw_map(name: str, groups: Mapping[str, Sequence[Sequence[float]]], shares: Sequence[float]) -> str:
    """Draw points in two dimensions, a colour and a marker for each group; see `draw_lines`.

    Parameters
    ----------
    name
        As for `draw_lines`.
    groups
        Points [x, y] by name.
    shares
        Of the variance, that the two axes hold.
    """
    with _settle(WIDTH * 0.85) as figure:
        axes = figure.add_subplot()
        for number, (told, points) in enumerate(groups.items()):
            look = {**_look(number, True), "linestyle": "none", "markersize": 3, "alpha": 0.7}
            del look["capsize"]
            axes.plot([one[0] for one in points], [one[1] for one in points], label=_shorten(told), **look)
        for axis, number, share in ((axes.xaxis, 1, shares[0]), (axes.yaxis, 2, shares[1])):
            axis.set_label_text(f"component {number} ({100 * share:.0f} % of the variance)")
        _explain(figure, axes)
        return _write(figure, name)


@contextmanager
def _settle(height: float = 3.0) -> "Iterator[Figure]":
    """Open a drawing in the stand-in colours."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def _look(number: int, marked: bool) -> dict[str, Any]:
    """Give the colour, marker and dashes of a line; a long line goes without markers."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)] if marked else "",
        "linestyle": "-" if number < len(COLOURS) else "--",
        "markersize": 4,
        "capsize": 2,
        "linewidth": 1.4,
    }


def _explain(figure: "Figure", axes: "Axes", place: Place = "outside lower center") -> None:
    """Put a legend below or above, where there is something to tell apart."""
    handles, names = list_named(axes)
    if len(names) > 1:
        columns = 3 if max(map(len, names)) < 14 else 2
        figure.legend(handles, names, loc=place, ncols=min(len(names), columns))


def name_one(lines: Sequence[Line]) -> str:
    """Name a single line, which has no legend."""
    return f" ({lines[0].name})" if len(lines) == 1 else ""


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _write(figure: "Figure", name: str) -> str:
    """Write the SVG: without what only a file needs, in the page's colours, its parts named after ``name``."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^<>]*>", lambda tag: _adapt(tag.group(), name), svg)  # tags alone: a text is left as it is
    return re.sub(r">\s+<", ">\n<", svg)


def _adapt(tag: str, name: str) -> str:
    """Adapt a tag of an SVG to the page that it stands in."""
    if tag.startswith("<svg"):
        box = re.search(r'viewBox="[^"]*"', tag)
        assert box is not None
        return f'<svg aria-hidden="true" {box.group()}>'
    if tag.startswith("<!"):
        return ""
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)
    tag = re.sub(r' id="', f' id="{name}-', tag).replace("xlink:href", "href")
    tag = re.sub(r'(href="|url\()#', rf"\1#{name}-", tag)
    tag = re.sub(r" font-family: [^;\"]*;|font: [\d.]+px [^;\"]*;", _drop_family, tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    for stand_in, colour in PAGE.items():
        tag = tag.replace(stand_in, colour)
    return re.sub(r"\s+", " ", re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", tag))


def _drop_family(style: re.Match[str]) -> str:
    """Leave the size of a font, and its family to the page."""
    size = re.match(r"font: ([\d.]+px)", style.group())
    return f"font-size: {size.group(1)};" if size else ""
