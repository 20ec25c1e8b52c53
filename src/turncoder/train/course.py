"""The course of a training: how many steps it has, and what goes along with them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from turncoder.config.keys import FitKeys
from turncoder.train.recording import RunCallback, StopAfter, StopEarly
from turncoder.train.running import Run

__all__ = ["Course", "count_steps", "lay_course", "tell_limit"]

logger = logging.getLogger("turncoder")


@dataclass(frozen=True)
class Course:
    """The course of a training.

    Attributes
    ----------
    steps, scheduled
        From `count_steps`.
    per_step
        Rows of a step, over all processes.
    per_epoch
        Steps of an epoch.
    record
        Writes what happens.
    callbacks
        The trainer's, ``record`` among them.
    """

    steps: int
    scheduled: int
    per_step: int
    per_epoch: int
    record: RunCallback
    callbacks: list[TrainerCallback]


def lay_course(config: FitKeys, run: Run, rows: int) -> Course:
    """Lay out the course of a training over so many rows, over all processes."""
    processes = PartialState().num_processes
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    steps, scheduled = count_steps(config, rows, processes)
    if limit := tell_limit(config, rows, processes):
        logger.warning("%s", limit)
    record = RunCallback(
        run, samples_per_epoch=rows, samples_per_step=per_step, save_total_limit=config.save_total_limit
    )
    # the record comes after what may end the training, whose last step it logs
    callbacks: list[TrainerCallback] = [*([StopAfter(steps)] if scheduled > steps else []), record]
    if config.early_stopping_patience is not None:
        callbacks.append(StopEarly(config.early_stopping_patience))
    return Course(steps, scheduled, per_step, math.ceil(rows / per_step), record, callbacks)


def count_steps(config: Any, rows: int | None, processes: int = 1, per_step: int | None = None) -> tuple[int, int]:
    """Count the optimizer steps that are run, and those that the learning-rate schedule is laid out for.

    Parameters
    ----------
    config
        The resolved configuration of any stage.
    rows
        Training rows of an epoch; None where they are not known (``max_steps`` or ``stop_after_n_steps`` decides).
    processes
        Devices that share a batch.
    per_step
        Rows of a step; None means those that the configuration's batches have over all processes.

    Returns
    -------
    tuple of int
        ``(steps, scheduled)``: equal, unless ``as_llm2vec`` keeps LLM2Vec's schedule. 0 when nothing is known.
    """
    planned = _plan_steps(config, rows, processes, per_step)
    steps = min(planned, config.stop_after_n_steps or planned)
    return steps, planned if config.as_llm2vec else steps


def tell_limit(config: Any, rows: int | None, processes: int = 1) -> str | None:
    """Say that a run ends before its steps or epochs, by a limit that nobody has set: LLM2Vec's default."""
    planned, limit = _plan_steps(config, rows, processes), config.stop_after_n_steps
    if limit is None or limit != type(config).stop_after_n_steps or planned <= limit:
        return None
    return (
        f"stop_after_n_steps = {limit:,}, its default, ends the run before the {planned:,} steps that are asked for; "
        "--stop_after_n_steps none sets no limit"
    )


def _plan_steps(config: Any, rows: int | None, processes: int, per_step: int | None = None) -> int:
    """Count the steps that ``max_steps`` or the epochs ask for; the limit where neither is known."""
    per_step = per_step or config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    if config.max_steps > 0:
        return int(config.max_steps)
    if rows is not None:
        return math.ceil(rows * config.num_train_epochs / per_step)
    return config.stop_after_n_steps or 0
