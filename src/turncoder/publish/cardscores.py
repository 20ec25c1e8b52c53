"""What a card says of scores: tables of runs that evaluated a model, and the same for its header."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from turncoder.errors import UserError
from turncoder.hub import locate_parent
from turncoder.model.source import read_json
from turncoder.publish.bundle import Bundle
from turncoder.publish.fingerprints import check_scores
from turncoder.report.runrows import SCORES
from turncoder.report.summary import read_run, table
from turncoder.report.taskrows import TAKES

__all__ = ["find_scores"]

TASKS = {
    "words": "token-classification",
    "glue": "text-classification",
    "language": "text-generation",
    "": "sentence-similarity",
}
"""The hub's names for what a stage scores; the last is that of all others."""
MEASURES = {
    "words": ("labels of words", "", "words_scored"),
    "glue": ("labels and ratings of texts, by a head that was trained for them", "", "rows"),
    "language": ("tasks of lm-eval", "lm_eval", "texts"),
    "sentences": ("tasks of mteb", "mteb", "texts"),
}
"""What a stage scores, whose version says more, and what a row counts."""
Scores = tuple[tuple[tuple[str, str], ...], tuple[EvalResult, ...]]


def find_scores(bundle: Bundle, results: tuple[str, ...], repository: str) -> Scores:
    """Find the scores of a model: those of its own run, and of runs that evaluated it.

    Parameters
    ----------
    bundle
        What is published.
    results
        Run folders.
    repository
        Where it goes to: a run may have scored it there.

    Returns
    -------
    tuple
        Titles and tables in Markdown, and the entries of a ``model-index``.

    Raises
    ------
    UserError
        A folder that is no run of `evaluate` or `words`, or one that scored another model, other weights, or with other
        settings; two runs that scored the same.
    """
    folders = [Path(name) for name in results]
    check_scores([(folder, _find_scored(bundle, folder, repository)) for folder in folders])
    if bundle.home and bundle.run.get("stage") in TAKES and bundle.home not in folders:
        folders.insert(0, bundle.home)
    runs = [read_run(folder) for folder in folders]
    tables = [(_name_table(folder, run), _write(run)) for folder, run in zip(folders, runs, strict=True)]
    if bundle.home and (turn := _find_turn(bundle.home)):
        tables.insert(0, ("What each step of the turn gave", f"{_write(read_run(turn))}{_explain(turn)}"))
    found = [(folder, entry) for folder, run in zip(folders, runs, strict=True) for entry in _index(run)]
    _refuse_twice(found)
    return tuple(tables), tuple(entry for _, entry in found)


def _find_turn(home: Path) -> Path | None:
    """Find the turn that a run is a stage of."""
    path = home.parent / "run.json"
    return home.parent if path.exists() and read_json(path).get("stage") == "turn" else None


def _explain(turn: Path) -> str:
    """Say what the columns of a turn's table are, and on how many documents."""
    told = read_json(turn / "results.json") if (turn / "results.json").exists() else {}
    return "".join(f"\n\n{line}" for line in (told.get("title", ""), *told.get("lines", ())) if line)


def _find_scored(bundle: Bundle, folder: Path, repository: str) -> Path:
    """Find the model that a run scored; raises UserError where it has another name than what is published."""
    if not (folder / "run.json").exists():
        raise UserError(f"results: {folder} is no run folder (run.json); name what evaluate or words wrote")
    record = read_json(folder / "run.json")
    if record.get("stage") not in TAKES:
        raise UserError(f"results: {folder} is a run of {record.get('stage')}; name what evaluate or words wrote")
    scored = record.get("config", {}).get("model_name_or_path")
    if scored is None:
        raise UserError(f"results: {folder} does not say which model it scored")
    place = Path(locate_parent(scored, record)).resolve()
    own = {bundle.folder.resolve()} | (
        {bundle.home.resolve(), bundle.home.resolve() / "model"} if bundle.home else set()
    )
    if bundle.home:
        own.add(bundle.home.resolve().parent)  # of a turn, which stands for its last stage
    if scored != repository and place not in own:
        raise UserError(f"results: {folder} scored {scored}, not {bundle.home or bundle.folder}; leave it out")
    if record.get("status") != "done":
        said = f" ({record['error']})" if record.get("error") else "; the same command as before finishes it"
        raise UserError(f"results: {folder} is {record.get('status')}{said}")
    return place if place in own else bundle.folder


def _name_table(folder: Path, run: dict[str, Any]) -> str:
    """Name what was measured, and the precision where it is not that of the examples."""
    what, library, _ = MEASURES[run["stage"]]
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    told = [results.get(library), *(task.get(library) for task in (results.get("tasks") or {}).values())]
    version = " ".join(["", *sorted({str(one) for one in told if one})])
    dtype = run["config"].get("dtype")
    return f"`{folder.resolve().name}`: {what}{version}" + (f", in {dtype}" if dtype not in (None, "float32") else "")


def _refuse_twice(found: list[tuple[Path, EvalResult]]) -> None:
    """Refuse two values for one score, which nobody could tell apart in the header."""
    before: dict[tuple[Any, ...], Path] = {}
    for folder, one in found:
        told = (one.task_name, one.dataset_name, one.dataset_split, one.dataset_revision, one.metric_type)
        if (first := before.setdefault(told, folder)) != folder:
            raise UserError(
                f"results: {first} and {folder} both have {one.metric_name} of {one.task_name} on {one.dataset_name}; "
                "leave one of them away"
            )


def _write(run: dict[str, Any]) -> str:
    """Write the table of a run in Markdown."""
    grid = table([run])
    columns = [[str(cell) for cell in column.cells][1:] for column in grid.columns]  # below the name of the run
    heads = ["" if number == 0 else str(column.header) for number, column in enumerate(grid.columns)]
    if run["rows"] and run["stage"] in MEASURES:
        counted = MEASURES[run["stage"]][2]
        heads.append(counted.partition("_")[0])
        columns.append([f"{row[counted]:,}" if row.get(counted) else "" for row in run["rows"]])
    lines = [heads, ["---" if number == 0 else "---:" for number in range(len(heads))], *zip(*columns, strict=True)]
    if run["rows"] and run["stage"] == "sentences":
        told = ["prompts", "---", *map(_tell_prompts, run["rows"])]
        lines = [[*line, cell] for line, cell in zip(lines, told, strict=True)]
    lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tell_prompts(row: dict[str, Any]) -> str:
    """Say what stood before the texts of each side of a task."""
    given = {side: prompt for side, prompt in (row.get("prompts") or {}).items() if prompt}
    return "; ".join(f"{side}: `{json.dumps(prompt, ensure_ascii=False)}`" for side, prompt in given.items()) or "none"


def _index(run: dict[str, Any]) -> list[EvalResult]:
    """Put the scores of a run on tasks into entries of a ``model-index``."""
    return [
        EvalResult(
            task_type=kind,
            task_name=task,
            dataset_type=data if row.get("scored") else data.rpartition(".")[0] or data,  # a task, or a file
            dataset_name=data,
            dataset_config=None if row.get("scored") else task,  # or tasks on one file would become the first of them
            dataset_split=", ".join(row.get("scored", {}).get("splits", ())) or None,
            dataset_revision=row.get("scored", {}).get("revision"),
            metric_type=metric.replace(" ", "_").replace(",", "_"),
            metric_name=metric,
            metric_value=round(float(value), 6),
        )
        for row in run["rows"]
        for kind, task, data, metric, value in _list_scores(run, row)
        if isinstance(value, int | float)
    ]


def _list_scores(run: dict[str, Any], row: dict[str, Any]) -> Iterator[tuple[str, str, str, str, Any]]:
    """List the model's own scores in a row: type and name of the task, data, metric and value."""
    if scored := row.get("scored"):  # on sentences: the row has the scores of the baselines, too
        yield scored["type"] or TASKS[""], scored["task"], scored["task"], scored["metric"], row["main_score"]
        return
    given = [row.get("test_file"), *(run["config"].get(key) for key in ("dataset_name", "test_file"))]
    data = Path(str(next((one for one in given if one), row["model"]))).name
    kind, task = TASKS.get(run["stage"], TASKS[""]), str(row["model"])
    for metric in sorted({*SCORES, *row.get("std", {})} - {"loss"}):
        yield kind, task, data, metric, row.get(metric)
