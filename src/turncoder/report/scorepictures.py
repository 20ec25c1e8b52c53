"""Pictures of boards: a score of several models, and the scores of all tasks."""

import json
import math
from collections.abc import Sequence

from turncoder.report.boards import LOWER, Board
from turncoder.report.curves import LINES, Line, draw_dots, draw_scores
from turncoder.report.page import Part, Picture
from turncoder.report.runrows import OVER_SEEDS

__all__ = ["draw_board", "draw_tasks"]

DRAWN = ("loss", "accuracy", "mrr@10", "sts_spearman", "triplet_accuracy", "pairs_mrr@10")
DRAWN_WORDS = ("token_accuracy", "macro_f1", "span_f1")


def draw_board(board: Board, name: str) -> list[Part]:
    """Draw the scores of which several models have one."""
    drawn: list[Part] = []
    labels = [one for one in board.headings if one.startswith("words/") and not one.endswith(" F1")]
    chosen = [one for one in board.headings if one in DRAWN + DRAWN_WORDS or one in labels]
    for number, measure in enumerate(chosen):
        found = {model: board.values.get((model, measure)) for model in board.models}
        percent = board.forms.get(measure, measure) in (*DRAWN_WORDS, "accuracy")
        scale = 100 if percent else 1
        rows = [
            (model, scale * value.mean, None if value.spread is None else scale * value.spread)
            for model, value in found.items()
            if value is not None and math.isfinite(value.mean)
        ]
        if len(rows) < 2 or len(rows) > 24:
            continue
        heading = board.headings[measure].removesuffix(" %") + (" (%)" if percent else "")
        bars = {value.count > 1 for value in found.values() if value is not None and value.spread is not None}
        said = {True: "bars: standard deviation over seeds", False: "bars: standard error"}
        caption = (
            f"{heading}; {'; '.join(said[one] for one in sorted(bars))}"
            if bars
            else f"{heading}; one run, no error known"
        )
        alt = f"{heading}: " + ", ".join(f"{model} {score:.3g}" for model, score, _ in rows)
        drawn.append(Picture(draw_scores(f"{name}-{number}", rows, heading), alt, caption))
    return drawn


def draw_tasks(board: Board, stage: str) -> list[Part]:
    """Draw the scores of all tasks in one picture, and measures of another size in their own."""
    groups: dict[str, list[str]] = {"score": []}
    names = {measure: json.loads(measure)[:2] if measure != "mean" else ["mean", "mean"] for measure in board.headings}
    for measure, (_, metric) in names.items():
        sizes = [abs(value.mean) for (_, name), value in board.values.items() if name == measure]
        apart = board.forms[measure] in LOWER or any(size > 1 for size in sizes)
        groups.setdefault(metric if apart else "score", []).append(measure)
    drawn: list[Part] = []
    for number, (told, measures) in enumerate(groups.items()):
        percent = all(board.forms[measure] in OVER_SEEDS for measure in measures)
        lines = [line for model in board.models if (line := _line_up(board, model, measures, percent)).x]
        shown, left = lines[:LINES], [line.name for line in lines[LINES:]]
        if sum(len(line.x) for line in shown) < 2:
            continue
        heading = told + (" (%)" if percent else "")
        hollow = sum(line.name not in board.runs for line in shown)
        notes = [f"{heading} by task"] + ["hollow: baselines"] * (hollow > 0)
        if any(line.error for line in shown):
            single = stage == "language" and all(value.count == 1 for value in board.values.values())
            notes.append(f"bars: standard {'error' if single else 'deviation over seeds'}")
        notes += [f"left out: {', '.join(left)}"] * (left != [])
        ranges = ", ".join(f"{one.name} {min(one.x):.3g} to {max(one.x):.3g}" for one in shown)
        tasks = [names[measure][0] for measure in measures]
        rows = tasks if len({*tasks}) == len(tasks) else [board.headings[measure] for measure in measures]
        svg = draw_dots(f"{stage}-{number}", rows, shown, heading, hollow)
        drawn.append(Picture(svg, f"{heading} by task: {ranges}", "; ".join(notes)))
    return drawn


def _line_up(board: Board, model: str, measures: Sequence[str], percent: bool) -> Line:
    """Give what a model has of some measures, and their places among them."""
    scale = 100 if percent else 1
    values = [(row, board.values.get((model, measure))) for row, measure in enumerate(measures)]
    found = [(row, one) for row, one in values if one is not None and math.isfinite(one.mean)]
    errors = [scale * (one.spread or 0) for _, one in found]
    scores = [scale * one.mean for _, one in found]
    return Line(model, scores, [row for row, _ in found], errors if any(errors) else None)
