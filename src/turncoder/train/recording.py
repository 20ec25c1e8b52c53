"""What a run writes while it trains: metrics, lines to read, and checkpoints that are complete or do not exist."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from turncoder import pausing
from turncoder.disk import write_atomically
from turncoder.train.running import MARKER, Run, complete_checkpoints

__all__ = ["AnisotropyLog", "RunCallback", "StopAfter", "StopEarly", "take_scores"]

logger = logging.getLogger("turncoder")


class RunCallback(TrainerCallback):
    """Writes metrics, shows progress, and makes checkpoints complete.

    Parameters
    ----------
    run
        The opened run.
    samples_per_epoch, samples_per_step
        For the epoch that is logged: batches are drawn from one unrolled sequence of epochs.
    save_total_limit
        How many complete checkpoints to keep; None keeps all.
    """

    def __init__(self, run: Run, samples_per_epoch: int, samples_per_step: int, save_total_limit: int | None) -> None:
        self.run = run
        self.epochs_per_step = samples_per_step / samples_per_epoch
        self.save_total_limit = save_total_limit
        self._tokens = torch.zeros((), dtype=torch.long)
        self.started = self.logged_at = time.perf_counter()
        self.earlier_tokens = self.logged_tokens = 0
        self.earlier_seconds = 0.0
        self.first_step = 0
        self.pauses = False

    def count_tokens(self, mask_BL: torch.Tensor) -> None:
        """Count the tokens of a batch that is trained on."""
        self._tokens = self._tokens.to(mask_BL.device) + mask_BL.sum()

    def tokens_seen(self) -> int:
        """Give the tokens trained on since this process started, over all processes; all of them have to ask."""
        return int(reduce(self._tokens.to(PartialState().device), "sum"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clocks; on resuming, forget what was logged after the checkpoint, and its cadence."""
        state.compute_steps(args, state.max_steps)  # those of a checkpoint are what was asked for then
        best = self.run.checkpoints / f"checkpoint-{state.best_global_step}"
        if (best / MARKER).exists():  # a checkpoint has its whole path, and the run may have been moved
            state.best_model_checkpoint = str(best)
        self.started = self.logged_at = time.perf_counter()
        self.run.settle()
        self.run.rewind(state.global_step)
        self.first_step = state.global_step
        spent = self._read_spent(state.global_step) if state.global_step else {}
        self.earlier_tokens, self.earlier_seconds = int(spent.get("tokens", 0)), float(spent.get("wall_time_s", 0))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one row, with the speed since the row before it."""
        row = {key: value for key, value in (logs or {}).items() if is_metric(key)}
        if not row:
            return
        row = {"step": state.global_step, **row, "epoch": round(state.global_step * self.epochs_per_step, 4)}
        now, tokens = time.perf_counter(), self.tokens_seen()
        if "loss" in row and tokens > self.logged_tokens:
            row["tokens_per_second"] = round((tokens - self.logged_tokens) / (now - self.logged_at), 1)
        self.logged_at, self.logged_tokens = now, tokens
        self.run.log(row)
        if args.disable_tqdm:  # no terminal: plain lines instead of the Trainer's progress bar
            left = max(state.max_steps - state.global_step, 0) * (now - self.started)
            left /= max(state.global_step - self.first_step, 1)
            told = "  ".join(
                f"{key} {_tell(value)}" for key, value in row.items() if key != "step" and _is_number(value)
            )
            if state.max_steps:
                logger.info("step %d/%d  %s  (%s left)", state.global_step, state.max_steps, told, _clock(left))
            else:
                logger.info("step 0  %s", told)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the last step, however few there are; save, where a pause is asked for: processes agree on the step."""
        if control.should_training_stop and args.logging_strategy != "no":
            control.should_log = True
        pauses = pausing.is_asked()
        if pausing.FILE in os.environ:  # the signal does not reach all of them between the same two steps
            pauses = bool(reduce(torch.tensor(int(pauses), device=PartialState().device), "sum"))
        if pauses:
            self.pauses = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint just written as complete, then remove the ones that are no longer needed."""
        accelerator_state = PartialState()
        accelerator_state.wait_for_everyone()
        tokens = self.tokens_seen()
        if accelerator_state.is_main_process:
            checkpoint = self.run.checkpoints / f"checkpoint-{state.global_step}"
            for file in checkpoint.rglob("*"):
                if file.is_file():
                    descriptor = os.open(file, os.O_RDONLY)
                    os.fsync(descriptor)
                    os.close(descriptor)
            write_atomically(checkpoint / MARKER, json.dumps(self._spend(tokens)) + "\n")
            self.run.update(**self._spend(tokens))
            self._remove_old(args, state)
        accelerator_state.wait_for_everyone()
        if self.pauses:
            logger.info("%s: paused after step %s", self.run.folder, f"{state.global_step:,}")
            raise KeyboardInterrupt

    def count(self) -> None:
        """Put tokens and seconds so far into the record; to be called in every process."""
        self.run.update(**self._spend(self.tokens_seen()))

    def _spend(self, tokens: int) -> dict[str, Any]:
        seconds = self.earlier_seconds + time.perf_counter() - self.started
        return {"tokens": self.earlier_tokens + tokens, "wall_time_s": round(seconds, 2)}

    def _read_spent(self, step: int) -> dict[str, Any]:
        """Read what a checkpoint had taken: the record may be of before it, or of after it."""
        spent = json.loads((self.run.checkpoints / f"checkpoint-{step}" / MARKER).read_text(encoding="utf8"))
        return spent if isinstance(spent, dict) else self.run.record  # of older versions, which wrote the step

    def _remove_old(self, args: TrainingArguments, state: TrainerState) -> None:
        if not self.save_total_limit:
            return
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        for folder in complete_checkpoints(self.run.checkpoints)[: -self.save_total_limit]:
            if folder != best:
                (folder / MARKER).unlink()  # first: a folder half removed must not look complete
                shutil.rmtree(folder)


class StopAfter(TrainerCallback):
    """Stop at a step while the schedule is laid out for more: LLM2Vec's way."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for the stop, and for the checkpoint that goes with it."""
        if state.global_step >= self.steps:
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"


class StopEarly(EarlyStoppingCallback):
    """transformers' own, which goes on counting where a run is resumed; its patience is the one asked for now."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the count of the checkpoint."""
        super().on_train_begin(args, state, control, **kwargs)
        callbacks: Any = state.stateful_callbacks
        kept = callbacks.setdefault(type(self).__name__, self.state())  # saving wants it, also where there was none
        self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]


class AnisotropyLog(TrainerCallback):
    """After each evaluation, write how much the states of tokens point one way, layer by layer.

    Parameters
    ----------
    run
        The opened run.
    measure
        Gives a number for each layer, the embeddings first; None where there are too few tokens.
    """

    def __init__(self, run: Run, measure: Callable[[], list[float] | None]) -> None:
        self.run = run
        self.measure = measure

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row beside that of the scores."""
        if (found := self.measure()) is not None:
            self.run.log({"step": state.global_step, "anisotropy": found})


def take_scores(scores: dict[str, float]) -> dict[str, float]:
    """Take the metrics of an evaluation, without the ``eval_`` before their names."""
    taken = {name.removeprefix("eval_"): value for name, value in scores.items() if name.startswith("eval_")}
    return {name: value for name, value in taken.items() if is_metric(name)}


def is_metric(key: str) -> bool:
    """Tell metrics from the Trainer's own timings and totals."""
    timing = ("runtime", "samples_per_second", "steps_per_second", "preparation_time", "total_flos")
    return not key.startswith("train_") and not key.endswith(timing) and key != "epoch"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tell(value: float) -> str:
    """Write a number with four digits, or with all before the point."""
    return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e12 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
