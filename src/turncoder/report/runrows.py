"""What run folders hold: their record, what they logged and scored, and rows of scores for a table."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turncoder.errors import UserError
from turncoder.report.taskrows import BASELINES, GLUE_SCORES, TAKES, WORD_SCORES

__all__ = [
    "HEADINGS",
    "INNER",
    "OVER_SEEDS",
    "PERCENT",
    "PROGRAMS",
    "SCORES",
    "STAGES",
    "RunFiles",
    "is_finite",
    "list_rows",
    "open_files",
    "read_baseline",
]
__all__ += ["read_run", "read_runs", "tell_score"]

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
    **BASELINES,
}
"""The scores of all stages, with headings that leave room; a table shows those that some row has."""
HEADINGS = {"model": "run", "step": "step", "seeds": "seeds", **SCORES, "tokens": "tokens", "seconds": "time"}
"""All columns, in their order."""
PERCENT = ("accuracy", "top5_accuracy")
OVER_SEEDS = (*WORD_SCORES, *GLUE_SCORES.values(), "average")
STAGES = {"mntp": "+MNTP", "simcse": "+SimCSE", "supervised": "+pairs"}
PROGRAMS = ("turncoder", "cli.py")
"""What the command of a record begins with; anything else is a script that called `turncoder.train`."""


INNER = ("control", "mntp", "simcse", "supervised")
"""Folders of a turn that are runs themselves."""
TYPES: dict[str, type | tuple[type, ...]] = {
    "config": dict, "command": list, "data": dict, "parents": list, "versions": dict, "hardware": dict,
    "parameters": dict, "trained": dict, "memory": dict, "anisotropy": list, "wall_time_s": (int, float),
    "tokens": int, "processes": int,
}  # fmt: skip
"""What the parts of a record are, where they are there."""


@dataclass(frozen=True)
class RunFiles:
    """A run folder that has been read.

    Attributes
    ----------
    folder
        As it was named.
    record
        ``run.json``.
    logged
        The rows of ``metrics.jsonl``.
    results
        ``results.json``; empty where there is none.
    inner
        The runs that a turn consists of, by their folders (``mntp``, ``words/mntp``).
    """

    folder: Path
    record: dict[str, Any]
    logged: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    inner: dict[str, "RunFiles"] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """The command."""
        return str(self.record.get("stage", ""))

    @property
    def status(self) -> str:
        """``done``, ``running``, ``interrupted`` or ``failed``."""
        return str(self.record.get("status", "unknown"))

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self.record["config"]


def open_files(folder: Path) -> RunFiles:
    """Read the files of a run folder; raises UserError where it is no run, or its record is broken."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; report takes run folders")
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        _check_types(record)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no run.json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'run.json'} is broken ({type(error).__name__}: {error}); run it again") from None
    logged = _read_metrics(folder / "metrics.jsonl")
    inner = [*INNER, *sorted(f"words/{one.parent.name}" for one in folder.glob("words/*/run.json"))]
    own = [name for name in inner if record.get("stage") == "turn" and (folder / name / "run.json").exists()]
    return RunFiles(folder, record, logged, _read_results(folder), {name: open_files(folder / name) for name in own})


def _check_types(record: Any) -> None:
    """Raise TypeError where a part of a record is not what it is elsewhere."""
    dict(record["config"])
    for name, kind in TYPES.items():
        if record.get(name) is not None and not isinstance(record[name], kind):
            raise TypeError(f"{name} is {type(record[name]).__name__}")


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
        the stage's scores: ``loss``, ``accuracy`` (aligned, in [0, 1]), ``sts_spearman`` and so on. A run on words,
        on GLUE, or on tasks of MTEB, has a row for each task: the means over its ``seeds``, and their standard
        deviations in ``std``; an evaluation of a language model too: lm-eval's metrics, and their standard errors in
        ``std``.

    Raises
    ------
    UserError
        The folder is no run, or its record is broken.
    """
    files = open_files(folder)
    return {
        "name": str(folder),
        "stage": files.record.get("stage"),
        "status": files.status,
        "config": files.config,
        "rows": list_rows(files),
    }


def list_rows(files: RunFiles) -> list[dict[str, Any]]:
    """List the scores of a run, a row for each model; see `read_run`. Raises UserError where they are broken."""
    path = files.folder / ("results.json" if files.stage in TAKES else "run.json")
    try:
        return _take_rows(files, TAKES[files.stage]) if files.stage in TAKES else _list_models(files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); run it again") from None


def _list_models(files: RunFiles) -> list[dict[str, Any]]:
    record, stage = files.record, files.stage
    if stage == "turn":
        rungs = (record.get("results") or {}).get("rows", [])
        return [
            _score({**rung, "sts_spearman": rung.get("sts"), "triplet_accuracy": rung.get("triplets")}, rung["name"])
            for rung in rungs
        ]
    untrained = "untrained" if stage in STAGES else stage
    rows = [
        _score(row, str(row.get("model", untrained)))
        for row in files.logged
        if row.get("step") == 0 and any(name.startswith("eval_") for name in row)
    ]
    trained = _find_trained(record, files.logged)
    if trained is not None:
        rows.append({**trained, "tokens": record.get("tokens"), "seconds": record.get("wall_time_s")})
    return rows


def read_baseline(folder: Path) -> dict[str, Any]:
    """Read the scores of MaChAmp as those of a run; see `turncoder.machamp.read_machamp`."""
    from turncoder.machamp import read_machamp

    return {"name": str(folder), "stage": "machamp", "status": "done", "config": {}, "rows": read_machamp(folder)}


def _read_results(folder: Path) -> dict[str, Any]:
    """Read ``results.json``; nothing where there is none."""
    path = folder / "results.json"
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(results.get("tasks", {}), dict) or not isinstance(results.get("rows", []), list):
            raise TypeError("tasks or rows are none")
        if any("name" not in dict(row) for row in results.get("rows", [])):
            raise KeyError("name")
        if not {"tasks", "rows"} & results.keys():
            raise KeyError("tasks")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}); run it again") from None
    return results


def _take_rows(files: RunFiles, take: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Take what a run scored on tasks; nothing of one that is not done."""
    rows = take(files.results) if files.results else []
    seconds = files.record.get("wall_time_s") or None  # of all tasks together
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


def tell_score(name: str, value: Any, deviation: float | None = None) -> str:
    """Write a score as a table has it, with its deviation."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name in OVER_SEEDS:
        return f"{100 * value:.2f}" + ("" if deviation is None else f" ±{100 * deviation:.2f}")
    if name in PERCENT:
        return f"{100 * value:.1f}" + (" %" if deviation is None else f" ±{100 * deviation:.1f} %")
    if name == "tokens" and value >= 10**6:
        return f"{value / 10**6:,.1f} M"
    if name in ("tokens", "step", "seeds"):
        return f"{value:,}"
    if name == "seconds":
        return f"{value / 60:,.1f} min" if value >= 100 else f"{value:.1f} s"
    form = ",.4g" if name.endswith("perplexity") else ".3f"
    return f"{value:{form}}" + ("" if deviation is None else f" ±{deviation:{form}}")


def is_finite(value: Any) -> bool:
    """Tell a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
