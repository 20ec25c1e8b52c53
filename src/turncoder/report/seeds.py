"""Runs that are the same but for their seeds, which become one row with a mean and a deviation."""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turncoder.hub import find_run, locate_parent
from turncoder.report.boards import Board, Named, Value
from turncoder.report.taskrows import BASELINES

__all__ = ["gather_seeds", "join_seeds"]

HOUSEKEEPING = {
    "output_dir", "seed", "seeds", "cache_dir", "logging_steps", "save_steps", "save_strategy", "save_total_limit",
    "report_to", "dataloader_num_workers", "save_merged", "tasks", "task_file",
}  # fmt: skip
"""Keys in which two runs may differ and still be the same but for their seeds; tasks are compared one by one."""


def gather_seeds(runs: Sequence[Named]) -> dict[str, list[Named]]:
    """Put runs together that are the same but for their seeds, or those of the runs that made their models.

    Parameters
    ----------
    runs
        Of one stage, measured on the same data.

    Returns
    -------
    dict
        The runs, by a name of all of them; a run that is not done stands alone.
    """
    found: dict[str, list[tuple[Named, tuple[Any, ...]]]] = {}
    for run in runs:
        recipe, seeds = _tell_recipe(run.files.record)
        alone = run.name if run.files.status != "done" else ""
        key = json.dumps([recipe, alone], sort_keys=True, default=str)
        found.setdefault(key, []).append((run, seeds))
    named: dict[str, list[Named]] = {}
    for same in found.values():
        gathered = [run for run, _ in same]
        distinct = len({seeds for _, seeds in same}) == len(same)
        for part in [gathered] if distinct else [[run] for run in gathered]:
            others = f" and {len(part) - 1} other seed{'s' if len(part) > 2 else ''}" if len(part) > 1 else ""
            title = part[0].title + others
            named[title] = part
    return named


def join_seeds(board: Board, runs: Sequence[Named]) -> dict[str, str]:
    """Make one model of runs that differ in their seeds alone and have the same measures, in place.

    Returns
    -------
    dict
        The name that each of these runs has on the board now.
    """
    names: dict[str, str] = {}
    for title, same in gather_seeds(runs).items():
        measures = [{measure for model, measure in board.values if model == run.title} for run in same]
        if len(same) == 1 or any(one != measures[0] for one in measures):
            continue
        for measure, kind in itertools.product(measures[0], ("", f": {BASELINES['static']}")):
            keys = [(run.title + kind, measure) for run in same]
            if all(key in board.values for key in keys):
                values = [board.values.pop(key).mean for key in keys]
                joined = Value(statistics.fmean(values), statistics.stdev(values), len(values))
                board.values[title + kind, measure] = joined
        names |= {run.title: title for run in same}
    return names


def _tell_recipe(record: Mapping[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """Tell how a run came about, from it back to the model that no run made: without seeds, and the seeds apart."""
    config = record.get("config") or {}
    name, adapters = config.get("model_name_or_path"), config.get("adapters")
    keys = {key: value for key, value in config.items() if key not in HOUSEKEEPING | {"model_name_or_path"}}
    recipe, seeds = [record.get("stage"), keys], (config.get("seed"),)
    place = None if name is None or adapters else find_run(locate_parent(str(name), dict(record)))
    before = None if place == Path() else _read_record(place)  # a hub id is in no run, though the report be made in one
    if before is None:
        return [*recipe, name], seeds
    more, others = _tell_recipe(before)
    return [*recipe, *more], (*seeds, *others)


def _read_record(place: Path | None) -> dict[str, Any] | None:
    """Read the record of a parent; None where it is not there any more, or no run's."""
    try:
        record = json.loads((place / "run.json").read_text(encoding="utf8")) if place is not None else None
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
