"""What is inside of models, as sections of a page: scores by layer, anisotropy, confusions, maps of vectors."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from turncoder.errors import UserError
from turncoder.report.boards import Named
from turncoder.report.comparison import find_predictions
from turncoder.report.curves import Line, draw_lines, draw_map, name_one
from turncoder.report.page import Cell, Lines, Part, Picture, Section, Table
from turncoder.report.runrows import SCORES, is_finite

__all__ = ["build_inside"]

LABELS = 10
"""Labels of a confusion matrix."""
MATRICES = 8
TURNS = 3
"""Turns whose sentences are drawn."""


def build_inside(runs: Sequence[Named]) -> list[Section]:
    """Build the sections on layers, confusions and vectors."""
    layers = [*_draw_layers(runs), *_draw_anisotropy(runs)]
    return [
        Section("By layer", layers),
        Section("Confusions", _show_confusions(runs)),
        Section("Map of sentence vectors", _draw_maps(runs)),
    ]


def _draw_layers(runs: Sequence[Named]) -> list[Part]:
    """Draw the scores of words by layer: a picture for each task and test file."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for run in runs:
        results = run.files.results
        for task, told in results.get("tasks", {}).items() if run.files.stage == "words" else ():
            layers = told.get("layers") or {}
            last = len(layers) - 1
            rows = sorted(
                (last if layer == "last" else int(layer), at["mean"][told["metric"]], at["std"][told["metric"]])
                for layer, at in layers.items()
            )
            if rows:
                error = None if rows[0][2] is None else [100 * one[2] for one in rows]
                line = Line(run.title, [one[0] for one in rows], [100 * one[1] for one in rows], error)
                found.setdefault((task, told["metric"], str(results.get("fingerprint"))), []).append(line)
    drawn: list[Part] = []
    for number, ((task, metric, _), lines) in enumerate(found.items()):
        label = f"{task}: {SCORES[metric]}"
        alt = f"{label} by layer: " + "; ".join(
            f"{line.name} best {max(line.y):.1f} at layer {line.x[line.y.index(max(line.y))]}" for line in lines
        )
        bars = "; bars: standard deviation over seeds" if any(line.error for line in lines) else ""
        svg = draw_lines(f"layers-{number}", lines, "layer", label)
        drawn.append(Picture(svg, alt, f"{label} by layer, 0 the embeddings{name_one(lines)}{bars}"))
    return drawn


def _draw_anisotropy(runs: Sequence[Named]) -> list[Part]:
    """Draw the anisotropy of models by layer: of all that were trained from nothing, and of each turn's rungs."""
    found: list[tuple[str, list[Line]]] = [("", _list_cosines((run.title, run.files.record) for run in runs))]
    for run in runs:
        rungs = _list_cosines((str(row.get("name")), row) for row in run.files.results.get("rows", []))
        if rungs and len(found) <= TURNS:
            found.append(("" if len(runs) == 1 else f"{run.name}: ", rungs))
    drawn: list[Part] = []
    for number, (whose, lines) in enumerate(found):
        if lines:
            svg = draw_lines(f"anisotropy-{number}", lines, "layer", "mean cosine")
            alt = "mean cosine by layer: " + "; ".join(f"{one.name} {one.y[0]:.2f} to {one.y[-1]:.2f}" for one in lines)
            caption = f"{whose}anisotropy: mean cosine between tokens of held-out text at every layer, 0 the embeddings"
            drawn.append(Picture(svg, alt, caption + name_one(lines)))
    return drawn


def _list_cosines(told: Iterable[tuple[str, dict[str, Any]]]) -> list[Line]:
    measured = ((name, one.get("anisotropy")) for name, one in told)
    return [Line(name, list(range(len(y))), y) for name, y in measured if y and all(map(is_finite, y))]


def _show_confusions(runs: Sequence[Named]) -> list[Part]:
    """Show for each run on words how its labels are taken for each other."""
    words = [run for run in runs if run.files.stage == "words"]
    for run in runs:
        probes = [
            Named(f"{run.name}/{name}", one) for name, one in run.files.inner.items() if name.startswith("words/")
        ]
        words += [max(probes, key=lambda one: str(one.files.record.get("started")))] if probes else []
    tables: list[Part] = []
    for run in words:
        for task in run.files.results.get("tasks", {}):
            place = find_predictions(run.files, task)
            path = place.with_name("confusion.csv") if place is not None else None
            if path is not None and path.exists() and len(tables) < MATRICES:
                tables.append(_tabulate_confusion(f"{run.title}: {task}", path))
    return tables


def _tabulate_confusion(title: str, path: Path) -> Table:
    try:
        with path.open(encoding="utf8", newline="") as file:
            head, *body = csv.reader(file)
        names, counts = head[1:], [[int(cell) for cell in row[1:]] for row in body]
        picked = range(min(LABELS, len(names)))
        rows: list[list[Cell | str]] = []
        for row in picked:
            whole = sum(counts[row]) or 1
            cells = [Cell(f"{counts[row][column]:,}", share=counts[row][column] / whole) for column in picked]
            rest = whole - sum(counts[row][column] for column in picked) if sum(counts[row]) else 0
            rows.append([names[row], *cells, *([Cell(f"{rest:,}", share=rest / whole)] if len(names) > LABELS else [])])
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); run it again") from None
    more = ["others"] if len(names) > LABELS else []
    shown = f"the {LABELS} most frequent of {len(names)} labels; " if more else ""
    told = f"{title}: {shown}gold in rows, predicted in columns, words; coloured by the share of the row"
    return Table(told, ["gold", *names[:LABELS], *more], rows)


def _draw_maps(runs: Sequence[Named]) -> list[Part]:
    """Draw the sentences of turns in two dimensions: of the first model, and of the last."""
    drawn: list[Part] = []
    turned = [run for run in runs if any("map" in row for row in run.files.results.get("rows", []))]
    for run in turned[:TURNS]:
        rows = [row for row in run.files.results["rows"] if "map" in row]
        for row in [rows[0], rows[-1]] if len(rows) > 1 else rows:
            told, found = (row["name"] if len(runs) == 1 else f"{run.name}: {row['name']}"), row["map"]
            groups = {"first sentence": found["queries"], "rest of its document": found["documents"]}
            share = 100 * sum(found["shares"])
            alt = f"{told}: {len(found['queries'])} first sentences and the rests of their documents; {share:.0f} % of "
            alt += "the variance"
            svg = draw_map(f"map-{len(drawn)}", groups, found["shares"])
            drawn.append(Picture(svg, alt, f"{told}: {share:.0f} % of the variance is in this plane"))
    if drawn:
        about = (
            "Held-out documents: unit vectors of first sentences and of what follows them, each model in the plane of "
            "its own two largest principal components. Axes of two pictures have nothing to do with each other, and "
            "what lies apart in the dimensions that are not drawn can look near."
        )
        drawn.insert(0, Lines([about]))
    return drawn
