"""Sentence vectors on tasks of mteb, and on files as such tasks."""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from turncoder.config.sentences import SentencesConfig
from turncoder.disk import write_atomically
from turncoder.errors import UserError, first_line
from turncoder.evaluate.mtebplan import Work, describe_data, estimate, prepare
from turncoder.evaluate.taskruns import hushed, score_tasks
from turncoder.model.source import read_json
from turncoder.progress import open_bar
from turncoder.report.taskrows import BASELINES
from turncoder.train.running import Run
from turncoder.train.stage import perform

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from turncoder.evaluate.mtebmodel import EncoderModel

__all__ = ["evaluate_sentences", "show"]

logger = logging.getLogger("turncoder")


def evaluate_sentences(config: SentencesConfig) -> Path:
    """Score an encoder; what the folder has already is not scored again.

    Parameters
    ----------
    config
        See `turncoder.config.sentences.SentencesConfig`.

    Returns
    -------
    Path
        The run folder: ``results.json`` with every metric of every task, its baselines, prompts and an example;
        ``items/TASK.json``, the scores of single queries, pairs and texts; and ``mteb/``, a cache of mteb's, which
        ``mteb.ResultCache`` reads.

    Raises
    ------
    UserError
        No such task, file or model; other settings than those of the scores that the folder holds; or, after the other
        tasks have been scored, tasks whose data could not be had.
    """
    if PartialState().num_processes > 1:
        raise UserError("evaluate sentences runs in one process; start it without torchrun or accelerate launch")
    work = prepare(config)
    return perform(work.config, "sentences", lambda config, run: _evaluate(config, run, work))


def _evaluate(config: SentencesConfig, run: Run, work: Work) -> None:
    started = time.perf_counter()
    asked, model, results, missing = work.asked, work.model, work.results, work.missing
    if not missing:
        logger.warning("%s has all these scores already; --overwrite starts anew", run.folder)
        return
    estimate(model, [(asked.tasks[name], asked.files.get(name)) for name in missing])

    def score(name: str) -> dict[str, Any]:
        task, file = asked.tasks[name], asked.files.get(name)
        _load(task)
        try:
            told = _score(config, run.folder, model, task)
        finally:
            task.dataset, task.data_loaded = None, False  # which may be large
        return told if file is None else told | {"file": file.place, "fingerprint": file.fingerprint}

    try:
        score_tasks(
            run, results, missing, score, summarise=itemgetter("main_score"), failed=work.absent, started=started
        )
    finally:
        _say_cut([told for name, told in results["tasks"].items() if name in missing])


def _say_cut(tasks: list[dict[str, Any]]) -> None:
    cut, texts = (sum(told[name] for told in tasks) for name in ("truncated", "texts"))
    if cut:
        limit = f"max_seq_length = {tasks[0]['max_seq_length']}"
        logger.warning(f"{cut:,} of {texts:,} texts were longer than the limit and cut off ({limit})")


def _load(task: AbsTask) -> None:
    """Load the data of a task; raises UserError."""
    try:
        with hushed():
            task.load_data()
    except Exception as error:  # whatever the code of many authors, and the hub, may raise
        raise UserError(_say_why(error, task)) from error


def _say_why(error: Exception, task: AbsTask) -> str:
    """Say why data could not be loaded, and what helps where that is known."""
    said, path = first_line(error), task.metadata.dataset["path"]
    if "gated" in said.lower() or type(error).__name__ == "GatedRepoError":
        return f"{path} is gated: ask for access at https://huggingface.co/datasets/{path}, then `hf auth login`"
    if "doesn't exist" in said or type(error).__name__ in ("RepositoryNotFoundError", "DatasetNotFoundError"):
        return f"there is no data set {path} on the hub, or it is private: `hf auth login`"
    return said


def _score(config: SentencesConfig, folder: Path, model: EncoderModel, task: AbsTask) -> dict[str, Any]:
    """Score a loaded task, and its baselines."""
    import mteb

    from turncoder.evaluate.baselines import score_baselines, score_task
    from turncoder.evaluate.items import place_items, read_items

    name = task.metadata.name
    begin = time.perf_counter()
    model.begin(task)
    bar = open_bar()
    bar.console.file = sys.stderr  # as it is now, and not hushed
    with tempfile.TemporaryDirectory() as kept, bar:
        shown = bar.add_task(name, total=None, speed="")
        model.advance = lambda rows: bar.update(shown, advance=rows, speed=f"{bar.tasks[shown].completed:,.0f} texts")
        with hushed():
            cache = mteb.ResultCache(folder / "mteb")
            result = score_task(model, task, cache=cache, prediction_folder=Path(kept))
        seconds = time.perf_counter() - begin
        items = read_items(task, Path(kept))
        with hushed():
            baselines = score_baselines(task, model) if config.baselines else {}
    place = None
    if items is not None:
        place = place_items(name)
        (folder / "items").mkdir(exist_ok=True)
        write_atomically(folder / place, json.dumps({"task": name, **items}) + "\n")
    return {
        "type": task.metadata.type,
        "data": describe_data(task),
        "mteb": mteb.__version__,
        "main_metric": task.metadata.main_score,
        **_take(result),
        "baselines": baselines,
        "texts": len(model.texts),
        "max_seq_length": model.model.max_seq_length,
        "truncated": len(model.cut),
        "seconds": round(seconds, 3),
        "example": model.examples,
        "prompts": model.used,
        "items": place,
    }


def _take(result: Any) -> dict[str, Any]:
    """Take the metrics out of mteb's result: the mean over splits and subsets, and the main score of each of them."""
    rows = [(f"{split}/{row['hf_subset']}", row) for split, rows in result.scores.items() for row in rows]
    names = [name for name, value in rows[0][1].items() if isinstance(value, int | float) and name != "main_score"]
    metrics = {name: _mean([row.get(name) for _, row in rows]) for name in names}
    told = {"main_score": _mean([row["main_score"] for _, row in rows]), "metrics": metrics}
    return told if len(rows) == 1 else {**told, "parts": {name: _mean([row["main_score"]]) for name, row in rows}}


def _mean(values: list[Any]) -> float | None:
    """Give the mean; None where one of them is no number, such as a correlation with what is always the same."""
    if any(value is None or math.isnan(value) for value in values):
        return None
    return float(sum(values) / len(values))


def show(folder: Path, console: Console) -> None:
    """Print the main scores of a run folder beside those of the baselines."""
    table = Table(pad_edge=False, collapse_padding=True)
    results = read_json(folder / "results.json")["tasks"]
    columns = [name for name in BASELINES if any(name in told["baselines"] for told in results.values())]
    for title in ("task", "score", *columns, "texts"):
        named = title == "task"
        table.add_column(title, justify="left" if named else "right", overflow="fold", no_wrap=not named)
    for task, told in results.items():
        scores = [told["main_score"], *(told["baselines"].get(name) for name in columns)]
        cells = ["" if score is None else f"{score:.4f}" for score in scores]
        table.add_row(f"{task} ({told['main_metric']})", *cells, f"{told['texts']:,}")
    console.print(table)
