"""What a run that is there allows: to be gone on with as it is, with more steps, or with its rows divided otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turncoder.config.stages import MAY_CHANGE, differences
from turncoder.errors import UserError

__all__ = ["check_rows", "check_same", "failed_early", "wants_more"]

STEP_KEYS = frozenset({"max_steps", "num_train_epochs", "stop_after_n_steps"})
SPLIT_KEYS = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps"})
SUMS = frozenset({"mntp", "pretrain"})
"""Stages whose loss is a sum over the rows of a step, however those are divided."""
OPEN_ENDED_SCHEDULES = frozenset({"constant", "constant_with_warmup"})


def check_same(old: dict[str, Any], new: dict[str, Any], stage: str, folder: Path, own: frozenset[str]) -> None:
    """Refuse to go on with another stage, or another configuration.

    Parameters
    ----------
    old, new
        Records of the run that is there, and of the one that was asked for.
    stage
        The command.
    folder
        Of the run.
    own
        Keys that may change in this stage alone.

    Raises
    ------
    UserError
        What differs, and what can be done.
    """
    if old.get("stage") != stage:
        raise UserError(f"--output {folder} holds a run of '{old.get('stage')}', not of '{stage}': name another folder")
    open_ended = old["config"].get("lr_scheduler_type") in OPEN_ENDED_SCHEDULES
    before, after = old["config"], new["config"]
    divided = stage in SUMS and _count_rows(old, new["processes"]) == _count_rows(new)
    may = MAY_CHANGE | own | (STEP_KEYS if open_ended else frozenset()) | (SPLIT_KEYS if divided else frozenset())
    changed = differences(before, after, may)
    if changed:
        only_steps = not differences(before, after, MAY_CHANGE | STEP_KEYS)
        why = " (the learning rate's schedule ends with the steps; only a constant one grows)" if only_steps else ""
        raise UserError(
            f"--output {folder} holds a run with another configuration ({'; '.join(changed)}){why}: "
            "use the old values to resume, --overwrite to start anew, or another folder"
        )


def check_rows(old: dict[str, Any], new: dict[str, Any], stage: str, folder: Path) -> None:
    """Refuse to resume with other rows in a step, as another number of processes has."""
    before, now = _count_rows(old, new["processes"]), _count_rows(new)
    if before != now:
        other = "per_device_train_batch_size x gradient_accumulation_steps x processes"
        raise UserError(
            f"--output {folder} was trained by {old['processes']} processes, {before[0]} rows a step; by "
            f"{new['processes']} a step has {now[0]}: start {old['processes']}"
            + (f", or let {other} be {before[0]} again" if stage in SUMS and before[0] != now[0] else " to resume")
        )


def _count_rows(record: dict[str, Any], processes: int = 1) -> tuple[int, int]:
    """Count the rows of a step over all processes, and those among them that share a pool of negatives.

    ``processes`` is for records that do not say how many there were.
    """
    config = record["config"]
    passed = config.get("per_device_train_batch_size", 1)
    own = passed * config.get("gradient_accumulation_steps", 1)
    rows = own * record.get("processes", processes)
    contrasts = config.get("objective", "cross_entropy") != "cross_entropy"
    return rows, {"micro": passed, "window": own}.get(config.get("negatives"), rows) if contrasts else rows


def failed_early(old: dict[str, Any], new: dict[str, Any], stage: str) -> bool:
    """Tell a run that only failed, so that a changed config (the remedy of what it failed of) loses nothing."""
    same = differences(old["config"], new["config"], MAY_CHANGE) == []
    return old.get("stage") == stage and old.get("status") == "failed" and not same


def wants_more(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Say whether another number of steps is asked for than before, given the two configurations."""
    return any(old.get(key) != new.get(key) for key in STEP_KEYS)
