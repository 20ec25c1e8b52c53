"""Boards of runs on tasks: labels of words, GLUE, lm-eval, MTEB; a task that differs between runs is not one task."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from turncoder.report.boards import Board, Named, Value
from turncoder.report.runrows import HEADINGS, RunFiles
from turncoder.report.seeds import join_seeds
from turncoder.report.taskrows import BASELINES, GLUE_SCORES, WORD_SCORES

__all__ = ["build_tasks", "build_words"]

TITLES = {
    "glue": "GLUE: mean ± standard deviation over seeds, in percent",
    "language": "LM Evaluation Harness: score ± standard error",
    "sentences": "Tasks on sentences (MTEB): the main score",
}
SEPARATE = "the scores stand apart and are neither averaged nor ranked together"


def build_words(runs: Sequence[Named]) -> tuple[list[Board], list[str]]:
    """Build a board for each task and test file of runs on words.

    Returns
    -------
    tuple of list and list of str
        The boards; and warnings, where one task was scored on different words.
    """
    boards: dict[tuple[str, str], Board] = {}
    names: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        results = run.files.results
        for task, told in results.get("tasks", {}).items():
            key = str(results.get("fingerprint") or results.get("test_file")) + str(results.get("test_is_validation"))
            names.setdefault(task, {}).setdefault(key, []).append(run.name)
            title = f"{task}: {told.get('words_scored', 0):,} words of {Path(str(results.get('test_file'))).name}"
            if results.get("test_is_validation"):
                title += " (which were chosen on: flattering)"
            board = boards.setdefault((task, key), Board(title, task=task))
            seeds = len(told["seeds"])
            for metric in WORD_SCORES:
                if (mean := told["mean"].get(metric)) is not None:
                    spread = told["std"].get(metric)
                    board.values[run.title, metric] = Value(mean, spread, seeds if spread is not None else 1)
                    board.headings[metric] = HEADINGS.get(metric, f"{metric.replace('_', ' ').replace('f1', 'F1')} %")
    return list(boards.values()), _warn(names, "words")


def build_tasks(stage: str, runs: Sequence[Named]) -> tuple[Board, list[str]]:
    """Build the board of runs on tasks, which are its rows; and warn where one task differs between runs."""
    board = Board(TITLES[stage], turned=True)
    names: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for task, metric, key, value, form in TAKE[stage](run.files):
            told = json.dumps(key, sort_keys=True, default=str)
            kinds = names.setdefault(task, {})
            if run.name not in kinds.setdefault(told, []):
                kinds[told].append(run.name)
            number = list(kinds).index(told)
            measure = json.dumps([task, metric, told])
            board.values[run.title, measure] = value
            other = f", other data ({number + 1})" if number else ""
            board.headings[measure] = f"{task} ({metric}{other})"
            board.forms[measure] = form
            for name, score in _list_baselines(run, task, stage, len(runs)).items():
                board.values[name, measure] = Value(score)
    joined = join_seeds(board, runs) if stage != "glue" else {}  # whose runs have seeds of their own
    if joined:
        board.title += ", mean ± standard deviation over runs that differ in their seeds alone"
    board.runs = list(dict.fromkeys(joined.get(run.title, run.title) for run in runs))
    order = {name: place for place, name in enumerate(board.runs)}
    board.values = dict(sorted(board.values.items(), key=lambda one: order.get(one[0][0], len(order))))
    warnings = _warn(names, "data or settings")
    if stage == "sentences" and len(board.headings) > 1 and not warnings:
        _average(board)
    return board, warnings


def _list_baselines(run: Named, task: str, stage: str, count: int) -> dict[str, float]:
    """List what stands beside a score: word counts are the same for every run, input embeddings are the model's own."""
    if stage != "sentences":
        return {}
    found = run.files.results["tasks"][task].get("baselines") or {}
    names = {
        name: told if name != "static" or count == 1 else f"{run.title}: {told}" for name, told in BASELINES.items()
    }
    return {names[name]: float(found[name]) for name in names if found.get(name) is not None}


def _average(board: Board) -> None:
    """Add the mean over tasks of those that have all of them."""
    tasks = list(board.headings)
    for model in board.models:
        values = [board.values[model, task].mean for task in tasks if (model, task) in board.values]
        if len(values) == len(tasks):
            board.values[model, "mean"] = Value(statistics.fmean(values))
            board.headings["mean"] = f"mean of {len(tasks)} tasks"
    board.forms["mean"] = "other"


Taken = Iterator[tuple[str, str, Any, Value, str]]


def _take_glue(files: RunFiles) -> Taken:
    for task, told in files.results.get("tasks", {}).items():
        place = Path(str(files.record.get("cwd", "."))) / str(told.get("test_file"))
        key = [str(place.resolve()) if place.exists() else told.get("test_file"), told.get("rows")]
        for metric in told["metrics"]:
            spread = told["std"].get(metric)
            value = Value(told["mean"][metric], spread, len(told["seeds"]) if spread is not None else 1)
            yield task, metric, key, value, GLUE_SCORES[metric]


def _take_language(files: RunFiles) -> Taken:
    for task, whole in files.results.get("tasks", {}).items():
        for name, told in ({task: whole} if whole["metrics"] else whole["parts"]).items():
            key = [whole.get("fingerprint"), *(told.get(one) for one in ("version", "num_fewshot", "texts"))]
            for metric, value in told["metrics"].items():
                known = metric in ("acc", "acc_norm", "bits_per_byte") or metric.endswith("perplexity")
                yield name, metric, key, Value(value, told["stderr"].get(metric)), metric if known else "other"


def _take_sentences(files: RunFiles) -> Taken:
    for task, told in files.results.get("tasks", {}).items():
        data = told.get("fingerprint") or told.get("data") or told.get("texts")
        value = Value(math.nan if told["main_score"] is None else float(told["main_score"]))
        yield task, str(told["main_metric"]), [data, told.get("mteb", files.results.get("mteb"))], value, "main_score"


TAKE = {"glue": _take_glue, "language": _take_language, "sentences": _take_sentences}


def _warn(names: dict[str, dict[str, list[str]]], what: str) -> list[str]:
    """Warn of tasks that were not measured on the same data in all runs."""
    told = {task: " and ".join(", ".join(one) for one in groups.values()) for task, groups in names.items()}
    several = [task for task, groups in names.items() if len(groups) > 1]
    return [f"{task}: {told[task]} were measured on different {what}: {SEPARATE}." for task in several]
