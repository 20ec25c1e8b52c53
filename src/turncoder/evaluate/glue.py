"""A model on GLUE and its like: trained on each task, by every seed, and scored: mean and standard deviation.

What flows: rows -> encoder, its pooling and a head, trained together -> predictions -> ``results.json``. Each task and
seed is a run of its own within the run folder, so that what is done stays done.
"""

from __future__ import annotations

import logging
import shutil
import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from turncoder.config.glue import GlueConfig, settle
from turncoder.evaluate.gluedata import find_jobs, open_splits
from turncoder.evaluate.gluetraining import refuse_early, train_one
from turncoder.evaluate.results import read_results, show_score, write_results
from turncoder.evaluate.words import summarise
from turncoder.model.source import read_json
from turncoder.train.running import Run
from turncoder.train.stage import perform, tell_parents

__all__ = ["evaluate", "show"]

logger = logging.getLogger("turncoder")

CHECKED_ROWS = 64  # of each task, that a prompt is tried on
METRICS = {
    "accuracy": "accuracy", "f1": "F1", "matthews": "Matthews", "spearman": "Spearman", "pearson": "Pearson",
}  # fmt: skip
"""With the headings of their columns."""


def evaluate(config: GlueConfig) -> Path:
    """Fine-tune a model on tasks and score it; the same call again resumes.

    Parameters
    ----------
    config
        See `turncoder.config.glue.GlueConfig`.

    Returns
    -------
    Path
        The run folder: ``results.json``, and ``TASK/seed-N/`` with ``results.json`` and ``predictions.tsv`` of each.

    Raises
    ------
    UserError
        The input is wrong; the message names the key, the value and the remedy.
    """
    if idle := config.list_idle():
        logger.warning("%s: of no use in evaluate glue", ", ".join(idle))
    return perform(config, config.STAGE, _evaluate)


def _evaluate(config: GlueConfig, run: Run) -> None:
    """Look at all tasks, then train what is not yet done."""
    jobs = find_jobs(config)
    rows: dict[str, int] = {}
    first: list[tuple[str, ...]] = []
    with PartialState().main_process_first():
        for job in jobs:
            texts = open_splits(config, job).train.texts
            rows[job.name] = len(texts)
            first += texts[:CHECKED_ROWS]
    refuse_early(settle(config, jobs[0].task, rows[jobs[0].name]), run, first)
    run.update(parents=tell_parents(str(config.model_name_or_path)))
    found: list[dict[str, Any]] = []
    spent = {"tokens": 0, "wall_time_s": 0.0}
    for job in jobs:
        for seed in config.seeds:
            folder = run.folder / job.name / f"seed-{seed}"
            one = replace(
                settle(config, job.task, rows[job.name]),
                tasks=(job.task,),
                languages=tuple(part.name for part in job.scored if part.is_language),
                seed=seed,
                seeds=(seed,),
                translate_train=config.translate_train and job.name != job.task,
                output_dir=str(folder),
                overwrite=False,
            )
            logger.info("%s, seed %d: %s rows to train on", job.name, seed, f"{rows[job.name]:,}")
            perform(one, config.STAGE, partial(train_one, job=job))
            PartialState().wait_for_everyone()
            found.append(read_results(folder))
            spent = {name: total + read_json(folder / "run.json")[name] for name, total in spent.items()}
            if PartialState().is_main_process:
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the scores are there
    if PartialState().is_main_process:
        write_results(run, _put_together(config, found))
        run.update(**spent)
    PartialState().wait_for_everyone()


def _put_together(config: GlueConfig, found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Put what the seeds of each task found together."""
    tasks: dict[str, dict[str, Any]] = {}
    for results in found:
        for name, told in results["tasks"].items():
            seeds = tasks[name]["seeds"] if name in tasks else {}
            tasks[name] = {**told, "seeds": {**seeds, **told["seeds"]}}
    for told in tasks.values():
        told |= summarise([{name: scores[name] for name in told["metrics"]} for scores in told["seeds"].values()])
    average = summarise([{"average": _average(tasks.values(), str(seed))} for seed in config.seeds])
    return {
        "tasks": tasks,
        "average": {name: value["average"] for name, value in average.items()},
        "recipe": config.recipe,
        "train_mode": config.train_mode,
    }


def _average(parts: Iterable[dict[str, Any]], seed: str) -> float:
    """Average the scores of a seed as GLUE does: over the metrics of a part, the parts of a task, and the tasks."""
    scores: dict[str, list[float]] = {}
    for part in parts:
        values = [part["seeds"][seed][name] for name in part["metrics"]]
        scores.setdefault(part["task"], []).append(statistics.fmean(values))
    return statistics.fmean(map(statistics.fmean, scores.values()))


def show(results: dict[str, Any], console: Console) -> None:
    """Print the scores of each task in a row: mean and standard deviation over seeds."""
    parts = results["tasks"]
    seeds = len(next(iter(parts.values()))["seeds"])
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    table = Table(title=f"recipe {results['recipe']}, {results['train_mode']}: {spread}, in percent")
    table.add_column("")
    metrics = [name for name in METRICS if any(name in part["metrics"] for part in parts.values())]
    for name in metrics:
        table.add_column(METRICS[name], justify="right")
    table.add_column("rows scored", justify="right")
    for task, told in parts.items():
        cells = [
            show_score(told["mean"][name], told["std"][name]) if name in told["metrics"] else "" for name in metrics
        ]
        table.add_row(task, *cells, f"{told['rows']:,}")
    console.print(table)
    if len(parts) > 1:
        average = results["average"]
        console.print(f"average of the tasks: {show_score(average['mean'], average['std'])}", highlight=False)
