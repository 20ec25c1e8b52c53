"""What runs scored, as sections of a page: boards, pictures of them, and how sure differences are."""

import json
from collections.abc import Iterable, Sequence

from turncoder.report.boards import Board, Named, build_models, group_runs
from turncoder.report.comparison import Difference, compare_rungs, compare_runs
from turncoder.report.page import Code, Fold, Lines, Part, Section, Table
from turncoder.report.scorepictures import draw_board, draw_tasks
from turncoder.report.seeds import gather_seeds
from turncoder.report.taskboards import SEPARATE, build_tasks, build_words

__all__ = ["build_scores", "find_differing"]

MOST = 10
"""Runs that are compared with the first, and with the best."""
TITLES = {
    "turn": "From decoder to encoder",
    "mntp": "Masked next token prediction",
    "simcse": "SimCSE",
    "supervised": "Contrastive training on pairs",
    "pretrain": "Pretraining",
    "words": "Labels of words",
    "glue": "GLUE",
    "language": "Language model",
    "sentences": "Sentences",
}
SCORED = ("glue", "language", "sentences")
"""Stages whose tasks are the rows of one board."""
MARKED = (
    "The best value of a column is bold and underlined, but only where it is ahead of every other by more than the "
    "error of the difference: Welch's t-test over seeds (p < 0.05), a paired bootstrap where the same items were "
    "scored, two standard errors elsewhere. No correction is made for the number of comparisons; a value without an "
    "error is never marked."
)


def build_scores(runs: Sequence[Named]) -> list[Section]:
    """Build a section for each stage.

    Parameters
    ----------
    runs
        Of any stages.
    """
    sections = []
    for stage, own in _group_stages(runs).items():
        if stage in SCORED:
            parts = _show_tasks(stage, own)
        else:
            parts = _show_words(own) if stage == "words" else _show_models(stage, own)
        sections.append(Section(TITLES.get(stage, stage or "Run"), parts))
    return sections


def find_differing(runs: Sequence[Named]) -> list[str]:
    """Say which runs were not measured on the same data, a warning for each stage or task of which that is so."""
    warnings = []
    for stage, own in _group_stages(runs).items():
        if stage in SCORED:
            warnings += build_tasks(stage, own)[1]
        elif stage == "words":
            warnings += build_words(own)[1]
        elif len(groups := group_runs(own)) > 1:
            told = "; ".join(", ".join(run.name for run in group) for group in groups)
            warnings.append(f"{TITLES.get(stage, stage)}: not measured on the same data ({told}): {SEPARATE}.")
    return warnings


def _group_stages(runs: Iterable[Named]) -> dict[str, list[Named]]:
    stages: dict[str, list[Named]] = {}
    for run in runs:
        stages.setdefault(run.files.stage, []).append(run)
    return stages


def _show_models(stage: str, runs: Sequence[Named]) -> list[Part]:
    groups = group_runs(runs)
    parts: list[Part] = []
    for number, group in enumerate(groups):
        title = "held-out scores" if len(groups) == 1 else f"held-out scores on data {number + 1}: {_list(group)}"
        named = gather_seeds(group)
        if any(len(same) > 1 for same in named.values()):
            title += " (mean ± standard deviation over runs that differ in their seed alone)"
        board = build_models(title, named, stage)
        differences: list[Difference] = []
        if stage == "turn":
            differences = _judge_rungs(board, group) if len(named) == 1 else _compare(group)
        parts.append(board.lay_out())
        parts += _tell_marks(board, parts) + draw_board(board, f"{stage}-{number}")
        for run in group if stage == "turn" else ():
            parts += _explain_turn(run, alone=len(runs) == 1)
        parts += _tabulate(differences)
    return parts


def _show_words(runs: Sequence[Named]) -> list[Part]:
    boards, _ = build_words(runs)
    parts = _tell_missing(runs)
    for number, board in enumerate(boards):
        own = [run for run in runs if run.title in board.models]
        found = _compare(own, task=board.task)
        if found:
            found += _compare(own, _find_highest(board, found[0].metric), board.task)
        for one in found:
            board.judge(one.metric, one)
        parts.append(board.lay_out())
        parts += _tell_marks(board, parts)
        parts += draw_board(board, f"words-{number}") if len(board.models) > 1 else []
        parts += _tabulate(_distinct(found))
    return parts


def _show_tasks(stage: str, runs: Sequence[Named]) -> list[Part]:
    board, _ = build_tasks(stage, runs)
    parts = _tell_missing(runs)
    if not board.values:
        return parts
    found: list[Difference] = []
    for measure in [one for one in board.headings if one != "mean"]:
        task, best = json.loads(measure)[0], _find_highest(board, measure)
        own = [run for run in runs if (run.title, measure) in board.values]
        compared = _compare(own, task=task) + (_compare(own, best, task) if best in [run.title for run in own] else [])
        for one in compared:
            board.judge(measure, one)
        found += compared
    parts += [board.lay_out(), *[Lines([MARKED.replace("column", "row")])] * board.marks]
    parts += [*draw_tasks(board, stage), *_tabulate(_distinct(found))]
    examples = [
        (f"{run.name}, {task}" + ("" if side == "text" else f", {side}"), str(text))
        for run in runs[:MOST]
        for task, told in run.files.results.get("tasks", {}).items()
        if isinstance(told, dict) and told.get("example")
        for side, text in (told["example"] if isinstance(told["example"], dict) else {"text": told["example"]}).items()
    ]
    if examples:
        inner: list[Part] = [part for told, text in examples for part in (Lines([told]), Code(text))]
        parts.append(Fold("One text of each task, as the model reads it", inner))
    return parts


def _tell_marks(board: Board, before: Sequence[Part]) -> list[Part]:
    """Say what a mark means, where the first one is."""
    told = Lines([MARKED])
    return [told] if board.marks and told not in before else []


def _tell_missing(runs: Iterable[Named]) -> list[Part]:
    missing = [run for run in runs if not run.files.results.get("tasks")]
    return [Lines([f"No scores yet: {_list(missing)}."])] if missing else []


def _find_highest(board: Board, measure: str) -> str | None:
    found = {model: value.mean for (model, name), value in board.values.items() if name == measure}
    return max(found, key=lambda model: found[model]) if found else None


def _compare(runs: Sequence[Named], base: str | None = None, task: str | None = None) -> list[Difference]:
    """Compare runs with one of them, or the first, by the items that both scored."""
    if len(runs) < 2:
        return []
    first = next(run for run in runs if base in (None, run.title))
    found: list[Difference] = []
    for second in [run for run in runs if run is not first][:MOST]:
        found += compare_runs(first.files, second.files, (first.title, second.title), task)
    return found


def _judge_rungs(board: Board, runs: Sequence[Named]) -> list[Difference]:
    """Compare each rung of a turn, of one or more seeds, with the decoder as it was, and the best with all."""
    run, turns = runs[0], [one.files for one in runs]
    rungs = [row["name"] for row in run.files.results.get("rows", []) if "model" in row]
    found = [compare_rungs(turns, rungs[0], rung) for rung in rungs[1:]]
    best = _find_highest(board, "mrr@10")
    for other in board.models if best is not None else ():
        one = compare_rungs(turns, other, str(best)) if other != best else None
        if one is not None:
            board.judge("mrr@10", one)
    places = {
        name.removeprefix("words/"): inner
        for name, inner in (run.files.inner.items() if len(runs) == 1 else ())
        if name.startswith("words/")
    }
    for place, inner in places.items():
        if place != "causal" and "causal" in places:
            found += compare_runs(places["causal"], inner, (rungs[0] if rungs else "causal", f"probe of {place}"))
    return [one for one in found if one is not None]


def _tabulate(differences: Iterable[Difference]) -> list[Part]:
    """Lay differences out as a table."""
    found = list(differences)
    if not found:
        return []
    rows = []
    for one in found:
        told = f"{one.task}: {one.told}" if one.task else one.told
        if one.found is None:
            rows.append([f"{one.second} minus {one.first}", told, f"not compared, {one.why}", "", ""])
            continue
        interval = f"{one.write('low')} to {one.write('high')}"
        rows.append(
            [f"{one.second} minus {one.first}", told, one.write("difference"), interval, f"{one.found['p']:.3f}"]
        )
    over = "; labels of words: best seed of each, over sentences" if any(one.scale == 100 for one in found) else ""
    most = f"; {MOST} runs at most against the first, and against the best" if len(found) >= MOST else ""
    title = f"how sure differences are: paired bootstrap over the items that both scored{over}{most}"
    return [Table(title, ["difference", "score", "value", "95 % interval", "p"], rows)]


def _explain_turn(run: Named, *, alone: bool) -> list[Part]:
    """Say what the columns of a turn are, and show texts as its last model reads them, and neighbours."""
    results = run.files.results
    parts: list[Part] = [Lines([str(line) for line in results.get("lines", [])], "list")] if alone else []
    rows = [row for row in results.get("rows", []) if "neighbours" in row]
    rendered = rows[-1].get("rendered", {}) if rows else {}
    if rendered:
        inner: list[Part] = [part for task, text in rendered.items() for part in (Lines([str(task)]), Code(str(text)))]
        title = "One text of each task, as the last model reads it (what is pooled in brackets)"
        parts.append(Fold(title if alone else f"{run.name}: {title}", inner))
    sentences = results.get("sentences", [])
    if rows and sentences:
        cells = [
            [str(sentence), *(f"{row['neighbours'][place][0]} ({row['neighbours'][place][1]:.2f})" for row in rows)]
            for place, sentence in enumerate(sentences)
        ]
        columns = ["sentence", *(str(row["name"]) for row in rows)]
        title = "Nearest neighbours among the first sentences, with their cosines"
        table = Table(title, columns, cells, numbers=False)
        parts.append(Fold(title if alone else f"{run.name}: {title}", [table]))
    return parts


def _list(runs: Iterable[Named]) -> str:
    return ", ".join(run.title for run in runs)


def _distinct(found: Iterable[Difference]) -> list[Difference]:
    """Leave out what is there already, be it the other way round."""
    return list({(one.task, *sorted((one.first, one.second))): one for one in reversed(list(found))}.values())[::-1]
