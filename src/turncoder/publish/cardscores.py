"""What a card says of scores: tables of runs that evaluated a model, and the same for its header."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from turncoder.errors import UserError
from turncoder.hub import locate_parent
from turncoder.model.source import read_json
from turncoder.publish.bundle import Bundle
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
        A folder that is no run, or one that scored another model.
    """
    folders = [Path(name) for name in results]
    for folder in folders:
        _check_scored(bundle, folder, repository)
    if bundle.home and bundle.run.get("stage") in TAKES and bundle.home not in folders:
        folders.insert(0, bundle.home)
    runs = [read_run(folder) for folder in folders]
    tables = [(f"`{folder.resolve().name}`", _write(run)) for folder, run in zip(folders, runs, strict=True)]
    if bundle.home and (turn := _find_turn(bundle.home)):
        tables.insert(0, ("What each step of the turn gave", _write(read_run(turn))))
    return tuple(tables), tuple(entry for run in runs for entry in _index(run))


def _find_turn(home: Path) -> Path | None:
    """Find the turn that a run is a stage of."""
    path = home.parent / "run.json"
    return home.parent if path.exists() and read_json(path).get("stage") == "turn" else None


def _check_scored(bundle: Bundle, folder: Path, repository: str) -> None:
    if not (folder / "run.json").exists():
        raise UserError(f"results: {folder} is no run folder (run.json); name what evaluate or words wrote")
    record = read_json(folder / "run.json")
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
        raise UserError(f"results: {folder} scored {scored}, not {bundle.home or bundle.folder}; leave it away")
    if record.get("status") != "done":
        said = f" ({record['error']})" if record.get("error") else "; the same command as before finishes it"
        raise UserError(f"results: {folder} is {record.get('status')}{said}")


def _write(run: dict[str, Any]) -> str:
    """Write the table of a run in Markdown."""
    grid = table([run])
    columns = [[str(cell) for cell in column.cells][1:] for column in grid.columns]  # below the name of the run
    heads = ["" if number == 0 else str(column.header) for number, column in enumerate(grid.columns)]
    lines = [heads, ["---" if number == 0 else "---:" for number in range(len(heads))], *zip(*columns, strict=True)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _index(run: dict[str, Any]) -> list[EvalResult]:
    """Put the scores of a run on tasks into entries of a ``model-index``."""
    return [
        EvalResult(
            task_type=kind,
            task_name=task,
            dataset_type=data if row.get("scored") else data.rpartition(".")[0] or data,  # a task, or a file
            dataset_name=data,
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
    kind, task = TASKS.get(run["stage"], TASKS[""]), str(row.get("task") or row["model"])
    for metric in sorted({*SCORES, *row.get("std", {})} - {"loss"}):
        yield kind, task, data, metric, row.get(metric)
