"""Run folders to one table: what each rung of a run scored, and how two runs differ."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from turncoder.config import differences
from turncoder.errors import UserError
from turncoder.taskrows import GLUE_SCORES, TAKES, WORD_SCORES

__all__ = ["read_baseline", "read_run", "read_runs", "show", "table"]

SCORES = {
    "loss": "loss",
    "perplexity": "ppl",
    "accuracy": "top-1",
    "top5_accuracy": "top-5",
    "alignment": "align",
    "uniformity": "unif",
    "mrr@10": "MRR@10",
    "recall@1": "R@1",
    "triplet_accuracy": "triplets",
    "sts_spearman": "STS",
    "token_accuracy": "token acc. %",
    "macro_f1": "macro F1 %",
    "span_f1": "span F1 %",
    "class_accuracy": "acc. %",
    "f1": "F1 %",
    "matthews": "Matthews %",
    "spearman": "Spearman %",
    "pearson": "Pearson %",
    "average": "average %",
    "acc": "acc",
    "acc_norm": "acc norm",
    "word_perplexity": "word ppl",
    "byte_perplexity": "byte ppl",
    "bits_per_byte": "bits/byte",
    "main_score": "score",
    "bm25": "BM25",
    "tfidf": "TF-IDF",
    "static": "static",
}
"""The scores of all stages, with headings that leave room; a table shows those that some row has."""
HEADINGS = {"model": "run", "step": "step", "seeds": "seeds", **SCORES, "tokens": "tokens", "seconds": "time"}
PERCENT = ("accuracy", "top5_accuracy")
OVER_SEEDS = (*WORD_SCORES, *GLUE_SCORES.values(), "average")
FOLDED = 16  # letters of a run's name, before it takes another line
STAGES = {"mntp": "+MNTP", "simcse": "+SimCSE", "supervised": "+pairs"}


def read_runs(paths: list[Path]) -> list[dict[str, Any]]:
    """Read run folders; see `read_run`."""
    return [read_run(path) for path in paths]


def read_run(folder: Path) -> dict[str, Any]:
    """Read one run folder.

    Returns
    -------
    dict
        ``name``, ``stage``, ``status``, ``config``, and ``rows``: one for each model that was scored (causal,
        bidirectional untrained, trained; every rung of a turn), with ``model``, ``step``, ``tokens``, ``seconds`` and
        the stage's scores: ``loss``, ``accuracy`` (aligned, in [0, 1]), ``sts_spearman`` and so on. A run on words, or
        on GLUE, has a row for each task: the means over its ``seeds``, and their standard deviations in ``std``; an
        evaluation of a language model too: lm-eval's metrics, and their standard errors in ``std``; one of sentence
        vectors has ``main_score`` and those of the baselines.

    Raises
    ------
    UserError
        The folder is no run, or its record is broken.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; report takes run folders")
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        config = dict(record["config"])
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no run.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'run.json'} is broken ({type(error).__name__}: {error}); run it again") from None
    logged = _read_metrics(folder / "metrics.jsonl")
    stage = str(record.get("stage", ""))
    untrained = "untrained" if stage in STAGES else stage
    rows = [
        _score(row, str(row.get("model", untrained)))
        for row in logged
        if row.get("step") == 0 and any(name.startswith("eval_") for name in row)
    ]
    if stage == "turn":
        rungs = (record.get("results") or {}).get("rows", [])
        rows = [
            _score({**rung, "sts_spearman": rung.get("sts"), "triplet_accuracy": rung.get("triplets")}, rung["name"])
            for rung in rungs
        ]
    if stage in TAKES:
        rows = _read_tasks(folder / "results.json", record, TAKES[stage])
    trained = _find_trained(record, logged) if stage not in ("turn", *TAKES) else None
    if trained is not None:
        rows.append({**trained, "tokens": record.get("tokens"), "seconds": record.get("wall_time_s")})
    return {
        "name": str(folder),
        "stage": record.get("stage"),
        "status": record.get("status", "unknown"),
        "config": config,
        "rows": rows,
    }


def read_baseline(folder: Path) -> dict[str, Any]:
    """Read the scores of MaChAmp as those of a run; see `turncoder.machamp.read_machamp`."""
    from turncoder.machamp import read_machamp

    return {"name": str(folder), "stage": "machamp", "status": "done", "config": {}, "rows": read_machamp(folder)}


def _read_tasks(
    path: Path, record: dict[str, Any], take: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Read what a run scored on tasks; nothing of one that is not done."""
    if not path.exists():
        return []
    try:
        rows = take(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); run it again") from None
    seconds = record.get("wall_time_s") or None  # of all tasks together
    return [{**row, "seconds": None if number else seconds} for number, row in enumerate(rows)]


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows; the last may be cut off by a kill, any other broken one is an error."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is not a JSON object; repair or remove the line") from None
        rows.append(row)
    return rows


def _score(row: dict[str, Any], model: str) -> dict[str, Any]:
    scores: dict[str, Any] = {name: row.get(f"eval_{name}", row.get(name)) for name in SCORES}
    if scores["perplexity"] is None and scores["accuracy"] is not None:
        scores["perplexity"] = math.exp(min(scores["loss"], 700))
    return {"model": model, "step": row.get("step"), **scores}


def _find_trained(record: dict[str, Any], logged: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Take the final results, or the last evaluation of a run that is not done."""
    config = record["config"]
    stage = str(record.get("stage", ""))
    name = STAGES.get(stage, f"+{stage}") if config.get("bidirectional") is not False else "+causal training"
    evaluated = [row for row in logged if any(key.startswith("eval_") for key in row) and "model" not in row]
    steps = [row["step"] for row in logged if "step" in row]
    results = record.get("results")
    if results:
        return _score({"step": max(steps, default=None), **results}, name)
    if evaluated:
        return _score(evaluated[-1], f"{name} ({record.get('status', 'unknown')})")
    return None


def table(runs: list[dict[str, Any]]) -> Table:
    """Put the rows of runs into one table, under the name of each run; names are folded where it is narrow."""
    grid = Table(show_edge=False, pad_edge=False, collapse_padding=True)
    filled = {name for run in runs for row in run["rows"] for name, value in row.items() if value is not None}
    columns = [name for name in HEADINGS if name == "model" or name in filled]
    rows = [row for run in runs if run["stage"] == "language" for row in run["rows"]]
    columns += dict.fromkeys(name for row in rows for name in row["std"] if name not in HEADINGS)  # lm-eval has many
    for name in columns:
        if name == "model":
            grid.add_column(HEADINGS[name], overflow="fold")
        else:
            grid.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True)
    for run in runs:
        grid.add_row(run["name"], style="bold")
        rows = run["rows"] or [{"model": f"no evaluation yet ({run['status']})"}]
        for number, row in enumerate(rows, 1):
            cells = [_tell(name, row.get(name), row.get("std", {}).get(name)) for name in columns]
            grid.add_row(*cells, end_section=number == len(rows))
    return grid


def _tell(name: str, value: Any, deviation: float | None = None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name in OVER_SEEDS:
        return f"{100 * value:.2f}" + ("" if deviation is None else f" ±{100 * deviation:.2f}")
    if name in PERCENT:
        return f"{100 * value:.1f} %"
    if name == "tokens" and value >= 10**6:
        return f"{value / 10**6:,.1f} M"
    if name in ("tokens", "step", "seeds"):
        return f"{value:,}"
    if name == "seconds":
        return f"{value / 60:,.1f} min" if value >= 100 else f"{value:.1f} s"
    form = ",.4g" if name.endswith("perplexity") else ".3f"
    return f"{value:{form}}" + ("" if deviation is None else f" ±{deviation:{form}}")


def show(runs: list[dict[str, Any]], console: Console, *, as_json: bool = False) -> None:
    """Print the table; of two runs, also the keys in which their configs differ, and how sure differing labels are.

    Where the console is too narrow for one table, runs on words have their own, and then each run.
    """
    if as_json:
        console.print_json(data=runs)
        return
    labelled = [run for run in runs if any("task" in row for row in run["rows"])]
    others = [run for run in runs if run not in labelled]
    for group in [runs] if _fits(runs, console) else [group for group in (others, labelled) if group]:
        for part in [group] if _fits(group, console) else [[run] for run in group]:
            console.print(table(part))
    if len(runs) == 2 and all(run["config"] for run in runs):
        lines = differences(runs[0]["config"], runs[1]["config"], ignore=frozenset({"output_dir"}))
        console.print("configs: " + ("the same" if not lines else ""), highlight=False)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False)
        compared = list(_compare_tasks(*runs))
        if compared:
            console.print("second minus first, best seed of each, paired bootstrap over sentences:", highlight=False)
        for line in compared:
            console.print(f"  {line}", highlight=False, markup=False)


def _fits(runs: list[dict[str, Any]], console: Console) -> bool:
    endless = console.options.update(max_width=sys.maxsize)
    folded = [{**run, "name": run["name"][:FOLDED]} for run in runs]
    return console.measure(table(folded), options=endless).maximum <= console.width


def _compare_tasks(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """Say for each task of two runs on words how sure the difference is, where both labelled the same sentences."""
    from turncoder.evaluate.significance import Metric, bootstrap
    from turncoder.evaluate.wordfiles import read_predictions

    for row, other_row in product(first["rows"], second["rows"]):
        paths = _find_predictions(first, row), _find_predictions(second, other_row)
        if paths[0] is None or paths[1] is None or row["task"] != other_row["task"]:
            continue
        (*file, one), (*other_file, other) = read_predictions(paths[0]), read_predictions(paths[1])
        if file != other_file:
            yield f"{row['task']}: not compared, the words or gold labels of the test files differ"
            continue
        metric: Metric = "token_accuracy" if row["span_f1"] is None else "span_f1"
        found = bootstrap(file[1], one, other, metric=metric)
        difference, low, high = (f"{100 * found[name]:+.2f}" for name in ("difference", "low", "high"))
        yield f"{row['task']}, {SCORES[metric]}: {difference} (95 %: {low} to {high}), p = {found['p']:.3f}"


def _find_predictions(run: dict[str, Any], row: dict[str, Any]) -> Path | None:
    if "task" not in row:
        return None
    folder = Path(run["name"])
    path = (folder if len(run["rows"]) == 1 else folder / row["task"].replace("/", "_")) / "predictions.tsv"
    return path if path.exists() else None
