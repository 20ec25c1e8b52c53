"""Every combination of models, tasks and regimes: a run each, one table, one plot.

A grid is a TOML file: keys at its top are those of every run; each table ``[models.NAME]``, ``[tasks.NAME]`` and
``[regimes.NAME]`` holds the keys of one row, one panel, one colour. Runs lie in OUTPUT/TASK/REGIME/MODEL; what is done
is not done again.
"""

import contextlib
import json
import logging
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from turncoder.config import settings
from turncoder.config.files import read_file
from turncoder.config.words import WordsConfig
from turncoder.disk import write_atomically
from turncoder.errors import UserError

__all__ = ["Cell", "list_missing", "open_grid", "run_grid"]

logger = logging.getLogger("turncoder")

AXES = ("tasks", "regimes", "models")
FILES = ("train_file", "validation_file", "test_file")


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its names on the axes, and its configuration."""

    task: str
    regime: str
    model: str
    config: WordsConfig


def open_grid(path: Path, output: str | None) -> tuple[Path, list[Cell]]:
    """Read a grid, and check the configuration of every run of it.

    Parameters
    ----------
    path
        The TOML file; files that it names are looked for beside it too.
    output
        The folder; None is what the file says.

    Returns
    -------
    tuple
        The folder, and the runs: task by task, regime by regime.

    Raises
    ------
    UserError
        Something is wrong with the file, or with the keys of a run, which the message names.
    """
    table = read_file(path)
    axes = {name: table.pop(name, {}) for name in AXES}
    for name, rows in axes.items():
        if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
            raise UserError(f"{path}: a grid has tables [{name}.NAME] with the keys of each; give at least one")
        for member in rows:
            if not member or set(member) & set("/\\") or member.startswith("."):
                raise UserError(f"{path}: [{name}.{member}]: the name becomes a folder; use letters, digits and -")
    home = output or table.pop("output_dir", None)
    table.pop("output_dir", None)
    if not home:
        raise UserError("--output is missing: the folder that the grid's runs are written to")
    folder = Path(str(home))
    cells = []
    for task, regime, model in product(*(axes[name] for name in AXES)):
        keys = {**table, **axes["tasks"][task], **axes["regimes"][regime], **axes["models"][model]}
        keys["output_dir"] = str(folder / task / regime / model)
        for name in FILES:
            beside = path.parent / str(keys.get(name))
            if name in keys and not Path(str(keys[name])).exists() and beside.exists():
                keys[name] = str(beside)
        try:
            cells.append(Cell(task, regime, model, settings.load(WordsConfig, None, keys)))
        except UserError as error:
            raise UserError(f"{path}: {task}, {regime}, {model}: {error}") from error
    return folder, cells


def run_grid(config: WordsConfig) -> Path:
    """Run what is not done of a grid, and put everything into one table.

    Parameters
    ----------
    config
        ``grid`` names the file, ``output_dir`` the folder; with ``dry_run`` the runs are only listed, with ``cell`` one
        is run alone.

    Returns
    -------
    Path
        The folder: ``grid.json``, ``grid.md`` and ``grid.png`` beside the runs.

    Raises
    ------
    UserError
        Something is wrong with the file; or with a run, after the others are done.
    """
    folder, cells = _open(config)
    if config.cell is not None and config.cell >= len(cells):
        raise UserError(f"cell = {config.cell}: {config.grid} has {len(cells)} runs, which are counted from 0")
    chosen = cells if config.cell is None else [cells[config.cell]]
    if config.dry_run:
        for cell in chosen:
            said = " (done)" if _is_done(cell) else ""
            logger.info("%s, %s, %s%s: %s", cell.task, cell.regime, cell.model, said, cell.config.model_name_or_path)
        return folder
    from turncoder.train.words import train

    done: list[Cell] = []
    failed: dict[str, str] = {}
    for number, cell in enumerate(cells, 1):
        if cell not in chosen:
            continue
        try:
            if not _is_finished(cell):
                logger.info("run %d of %d: %s, %s, %s", number, len(cells), cell.task, cell.regime, cell.model)
                train(cell.config)
            done.append(cell)
        except UserError as error:
            failed[f"{cell.task}, {cell.regime}, {cell.model}"] = str(error)
            logger.warning("%s", error)
        if config.cell is None:
            _write_tables(folder, done)
        else:
            _write_tables_of_all(folder, cells)
    if failed:
        name, why = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(chosen)} runs failed, the others are in {folder}/grid.md: {name}: {why}"
        )
    return folder


def list_missing(config: WordsConfig) -> tuple[Path, list[int]]:
    """Read a grid, with the checks of `run_grid`; give its folder and the numbers of the runs that are not done."""
    folder, cells = _open(config)
    return folder, [number for number, cell in enumerate(cells) if not _is_done(cell)]


def _open(config: WordsConfig) -> tuple[Path, list[Cell]]:
    plain = WordsConfig(grid=config.grid, output_dir=config.output_dir, dry_run=config.dry_run, cell=config.cell)
    if other := [field.name for field in fields(config) if getattr(config, field.name) != getattr(plain, field.name)]:
        raise UserError(f"grid = {config.grid!r} and {other[0]} are both set; keys of runs go into the grid's file")
    return open_grid(Path(str(config.grid)), config.output_dir)


def _is_finished(cell: Cell) -> bool:
    """Say whether a run is done, and is one of this grid; raises UserError for one that is done under other keys."""
    from turncoder.train.record import tell_config
    from turncoder.train.resuming import wants_more
    from turncoder.train.running import read_earlier

    old = read_earlier(cell.config, cell.config.STAGE) if _is_done(cell) else None
    return old is not None and not wants_more(old["config"], tell_config(cell.config))


def _write_tables_of_all(folder: Path, cells: list[Cell]) -> None:
    """Write table and plot of all runs that are done, whichever process did them; one process writes at a time."""
    from accelerate import PartialState
    from filelock import FileLock

    if not PartialState().is_main_process:
        return
    done = []
    with FileLock(folder / ".grid.lock"):
        for cell in cells:
            with contextlib.suppress(UserError):  # whoever runs that one is told
                if _is_finished(cell):
                    done.append(cell)
        _write_tables(folder, done)


def _is_done(cell: Cell) -> bool:
    folder = Path(str(cell.config.output_dir))
    record = folder / "run.json"
    return (folder / "results.json").exists() and json.loads(record.read_text())["status"] == "done"


def _write_tables(folder: Path, cells: list[Cell]) -> None:
    """Write table and plot of the runs that are done."""
    from turncoder.evaluate.results import read_results
    from turncoder.report.plots import draw_grid

    rows: list[dict[str, Any]] = []
    for cell in cells:
        results = read_results(Path(str(cell.config.output_dir)))
        for column, told in results["tasks"].items():
            metric = told["metric"]
            rows.append(
                {
                    "task": cell.task if len(results["tasks"]) == 1 else f"{cell.task} {column}",
                    "mode": cell.regime,
                    "model": cell.model,
                    "score": metric.replace("_", " ").replace("f1", "F1"),
                    "mean": told["mean"][metric],
                    "std": told["std"][metric],
                    "dev": told["dev"]["mean"][metric],
                    "seeds": len(told["seeds"]),
                    "words_scored": told["words_scored"],
                    **{key: told["chosen"].get(key) for key in ("alignment", "layer", "learning_rate")},
                }
            )
    if not rows:
        return
    write_atomically(folder / "grid.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(folder / "grid.md", _lay_out(rows))
    draw_grid(rows, folder / "grid.png")


def _lay_out(rows: list[dict[str, Any]]) -> str:
    """Lay out the rows as Markdown: a line for each model, a column for each task and regime."""
    from turncoder.evaluate.results import show_score

    columns = {(row["task"], row["mode"]): row["score"] for row in rows}
    lines = [
        "Mean ± standard deviation over seeds on the test words, in percent; everything was chosen on the validation "
        "words.",
        "",
        "| | " + " | ".join(f"{task}, {mode}: {score}" for (task, mode), score in columns.items()) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    cells = {(row["model"], row["task"], row["mode"]): row for row in rows}
    for model in dict.fromkeys(row["model"] for row in rows):
        found = [cells.get((model, task, mode), {}) for task, mode in columns]
        shown = [show_score(row.get("mean"), row.get("std")) for row in found]
        lines.append(f"| {model} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
