"""A run that scores a model on named tasks: what its folder has already, one task after another, and what failed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from turncoder.disk import write_atomically
from turncoder.errors import UnfinishedError, UserError, first_line
from turncoder.model.source import read_json
from turncoder.train.running import Run
from turncoder.train.stage import tell_parents

__all__ = ["NO_NETWORK", "hushed", "keep_files", "list_names", "open_scores", "read_done", "score_tasks", "tell_remedy"]

logger = logging.getLogger("turncoder")

LISTED = 12  # names in a message
NO_NETWORK = "there is no network"
"""Why a task could not be scored."""


def read_done(folder: Path) -> dict[str, Any]:
    """Read what has been scored; empty where nothing has."""
    path = folder / "results.json"
    return read_json(path)["tasks"] if path.exists() else {}


def open_scores(folder: Path | None, name: str, *, fingerprint: str, parameters: int, library: str) -> dict[str, Any]:
    """Give the results of a folder, to be added to; raises UserError where they are those of another model.

    Parameters
    ----------
    folder
        A run folder; None for one that is to be.
    name, fingerprint, parameters
        Of the model.
    library
        What scores; its version stands in each task, as it was when that was scored.
    """
    path = folder / "results.json" if folder else None
    old: dict[str, Any] = read_json(path) if path and path.exists() else {}
    if old and old["model"]["fingerprint"] != fingerprint:
        raise UserError(
            f"--output {folder} holds scores of another {name}: its weights have changed; use --overwrite to "
            "start anew, or another folder"
        )
    version = {library: old[library]} if library in old else {}  # of older results, which had one for all tasks
    told = {"name": name, "fingerprint": fingerprint, "parameters": parameters}
    return {"model": told, "tasks": {task: version | scores for task, scores in old.get("tasks", {}).items()}}


def keep_files(specs: Iterable[str], done: Mapping[str, dict[str, Any]], asked: Container[str]) -> list[str]:
    """Give those ``KIND=FILE``, or ``FILE``, that have scores which what is asked for now does not replace."""
    scored = [(name, Path(told["file"])) for name, told in done.items() if told.get("file") and name not in asked]
    kept = []
    for spec in specs:
        kind, equals, place = spec.partition("=")
        start, path = (f"{kind}_", Path(place)) if equals else ("", Path(spec))
        if any(name.startswith(start) and file == path.expanduser() for name, file in scored):
            kept.append(spec)
    return kept


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
        At the end, if none could be scored.
    UnfinishedError
        At the end, if others failed.
    """
    run.update(parents=tell_parents(results["model"]["name"]))
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
        kind = UnfinishedError if set(waiting) - set(wrong) else UserError
        raise kind(f"tasks: {list_names(list(wrong))} could not be scored (see above); {tell_remedy(wrong)}")


def tell_remedy(failed: Mapping[str, str]) -> str:
    """Say what can be done about tasks that failed, given why, where others have been scored."""
    where = " where there is a network" if set(failed.values()) == {NO_NETWORK} else ""
    return (
        f"the others are scored: leave {list_names(list(failed))} out of --tasks or --task_file to finish without, or "
        f"give the same command again{where}"
    )


def list_names(names: list[str]) -> str:
    """List names, the first twelve of many."""
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep mteb, lm-eval and `datasets` quiet, which log, warn and draw bars; lm-eval bootstraps in this process."""
    import datasets

    shown, level = datasets.are_progress_bars_disabled(), logging.getLogger("mteb").level
    before = os.environ.get("DISABLE_MULTIPROC")
    datasets.disable_progress_bars()
    logging.getLogger("mteb").setLevel(logging.CRITICAL)
    os.environ["DISABLE_MULTIPROC"] = "1"
    with (
        warnings.catch_warnings(),
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.getLogger("mteb").setLevel(level)
            if not shown:
                datasets.enable_progress_bars()
            os.environ.pop("DISABLE_MULTIPROC")
            if before is not None:
                os.environ["DISABLE_MULTIPROC"] = before
