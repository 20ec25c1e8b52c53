"""A run that scores a model on named tasks: what its folder has already, one task after another, and what failed."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from turncoder.errors import UserError, first_line
from turncoder.model.source import read_json
from turncoder.train.running import Run, write_atomically
from turncoder.train.stage import tell_parents

__all__ = ["list_names", "open_scores", "read_done", "score_tasks"]

logger = logging.getLogger("turncoder")

LISTED = 12  # names in a message


def read_done(folder: Path) -> dict[str, Any]:
    """Read what has been scored; empty where nothing has."""
    path = folder / "results.json"
    return read_json(path)["tasks"] if path.exists() else {}


def open_scores(run: Run, name: str, *, fingerprint: str, parameters: int, library: str) -> dict[str, Any]:
    """Give the results of a folder, to be added to; raises UserError where they are those of another model."""
    path = run.folder / "results.json"
    if path.exists() and read_json(path)["model"]["fingerprint"] != fingerprint:
        raise UserError(
            f"--output {run.folder} holds scores of another {name}: its weights have changed; use --overwrite to "
            "start anew, or another folder"
        )
    run.update(parents=tell_parents(name))
    told = {"name": name, "fingerprint": fingerprint, "parameters": parameters}
    return {"model": told, library: importlib.metadata.version(library), "tasks": read_done(run.folder)}


def score_tasks(
    run: Run,
    results: dict[str, Any],
    names: Iterable[str],
    score: Callable[[str], dict[str, Any]],
    *,
    summarise: Callable[[dict[str, Any]], Any],
    failed: Mapping[str, str],
    started: float,
) -> None:
    """Score tasks one after another, each of which is written as soon as it is done; one that fails stops no other.

    Parameters
    ----------
    run, results
        From `open_scores`.
    names
        Of the tasks.
    score
        Loads and scores one; what it raises is noted.
    summarise
        What the record says of a task.
    failed
        Tasks that cannot be scored already, and why.
    started
        When the work began, by `time.perf_counter`.

    Raises
    ------
    UserError
        At the end, if a task failed.
    """
    before, done, wrong, waiting = run.record["wall_time_s"], results["tasks"], dict(failed), list(names)
    for number, name in enumerate(waiting, 1):
        logger.info("[%d/%d] %s", number, len(waiting), name)
        try:
            done[name] = score(name)
        except Exception as error:  # of the code of many authors
            wrong[name] = first_line(error)
            logger.warning("%s could not be scored: %s", name, wrong[name], exc_info=not isinstance(error, UserError))
            continue
        write_atomically(run.folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        run.update(
            results={task: summarise(told) for task, told in done.items()},
            wall_time_s=before + time.perf_counter() - started,
        )
    if wrong and not done:
        raise UserError(
            f"tasks: none of them can be scored: {'; '.join(f'{one} ({why})' for one, why in wrong.items())}"
        )
    if wrong:
        raise UserError(
            f"tasks: {list_names(list(wrong))} could not be scored (see above); the others are, and the same command "
            "tries these again"
        )


def list_names(names: list[str]) -> str:
    """List names, the first twelve of many."""
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
