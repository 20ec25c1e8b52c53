"""What all stages share: the run folder and its record, resuming, checkpoints that are complete or do not exist.

A run is its record (``run.json``). The same command again resumes from the newest complete checkpoint; a changed
configuration is refused with the difference. A checkpoint is complete when its marker exists: the marker is written
last, and older checkpoints are removed only afterwards, so a kill at any moment loses at most the steps since.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from turncoder.config.keys import HUB_KEYS, FitKeys
from turncoder.config.stages import to_dict, to_toml
from turncoder.data.files import refuse_file
from turncoder.errors import UserError, first_line
from turncoder.info import describe_machine
from turncoder.train.resuming import check_rows, check_same, failed_early, wants_more

__all__ = [
    "MARKER",
    "Run",
    "checkpoint_step",
    "complete_checkpoints",
    "open_run",
    "read_earlier",
    "training_arguments",
    "write_atomically",
]

logger = logging.getLogger("turncoder")

MARKER = "complete"
PACKAGES = (
    "turncoder",
    "torch",
    "transformers",
    "sentence-transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "lm_eval",
    "mteb",
)
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name beside ``path``, flush it to disk, and rename it."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@dataclasses.dataclass
class Run:
    """A run folder that has been opened.

    Attributes
    ----------
    folder
        The run folder; see INTERFACE.md for what it holds.
    record
        What ``run.json`` says.
    resume_from
        The newest complete checkpoint, or None for a run from the start.
    finished
        Whether the record says that all steps were done before.
    earlier
        ``run.json`` and ``config.toml`` of a run that is added to, as they were.
    """

    folder: Path
    record: dict[str, Any]
    resume_from: Path | None = None
    finished: bool = False
    earlier: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file of logged steps, one JSON object a line."""
        return self.folder / "metrics.jsonl"

    def update(self, **values: Any) -> None:
        """Put ``values`` into the record and write ``run.json`` (main process only)."""
        self.record.update(values)
        if PartialState().is_main_process:
            write_atomically(self.folder / "run.json", json.dumps(self.record, indent=1, default=str) + "\n")

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to ``metrics.jsonl`` (main process only)."""
        if PartialState().is_main_process:
            with self.metrics.open("a", encoding="utf8") as file:
                file.write(json.dumps(row) + "\n")

    def logged(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl``; a line cut off by a kill is dropped."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """Drop the rows logged after ``step``: the resumed run logs them again."""
        if PartialState().is_main_process and self.metrics.exists():
            kept = [row for row in self.logged() if row["step"] <= step]
            write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    @property
    def replaced(self) -> Path:
        """Where ``--overwrite`` keeps the run that was here until the new one has begun to train."""
        return self.folder.with_name(f".{self.folder.name}.replaced")

    def settle(self) -> None:
        """Delete the run that this one replaces: its input was right, its training begins."""
        if PartialState().is_main_process:
            shutil.rmtree(self.replaced, ignore_errors=True)

    def discard(self) -> None:
        """Undo the opening if no step was trained: wrong input leaves nothing half-written and nothing lost."""
        if not PartialState().is_main_process or any(row["step"] for row in self.logged()):
            return
        if complete_checkpoints(self.checkpoints):
            return
        if self.earlier and json.loads(self.earlier["run.json"]).get("wall_time_s") == self.record.get("wall_time_s"):
            for name, text in self.earlier.items():  # nothing was added
                write_atomically(self.folder / name, text)
            return
        own = ("metrics.jsonl", "config.toml", "run.json", "checkpoints")
        if any(path.name not in own for path in self.folder.iterdir()):  # runs within this one
            return
        for name in ("metrics.jsonl", "config.toml", "run.json"):
            (self.folder / name).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.folder):
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        if self.replaced.exists() and not self.folder.exists():
            self.replaced.rename(self.folder)


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints, the oldest first."""
    complete = (folder for folder in checkpoints.glob("checkpoint-*") if (folder / MARKER).exists())
    return sorted(complete, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def open_run(config: FitKeys, stage: str) -> Run:
    """Create the run folder, or open it again to resume.

    Parameters
    ----------
    config
        The resolved configuration; ``output_dir`` names the folder.
    stage
        The command, such as ``mntp``.

    Returns
    -------
    Run
        With ``resume_from`` set when a complete checkpoint exists.

    Raises
    ------
    UserError
        No folder named, a folder that is not a run, a run of another stage, or a configuration that changed.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())  # without this, torchrun on CPUs is not seen
    old = read_earlier(config, stage)
    state.wait_for_everyone()  # everyone has seen the folder as it was
    run = Run(Path(str(config.output_dir)), _new_record(config, stage))
    if config.overwrite and state.is_main_process:
        _set_aside(run)
    own: frozenset[str] = getattr(config, "MAY_CHANGE", frozenset())
    if old is not None:
        run.resume_from = next(reversed(complete_checkpoints(run.checkpoints)), None)
        is_done = old.get("status") == "done" and not wants_more(old["config"], run.record["config"])
        run.finished = is_done and not own  # a stage with keys of its own sees itself what is missing
        if run.resume_from and not is_done:
            check_rows(old, run.record, stage, run.folder)
        if own:
            _note_addition(run, old)
        run.record = {**old, **{key: run.record[key] for key in ("config", "versions", "processes")}}
    state.wait_for_everyone()
    if run.finished:
        return run
    if state.is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        if old is None:
            run.metrics.unlink(missing_ok=True)
        write_atomically(run.folder / "config.toml", to_toml(config))
        for partial in run.checkpoints.glob("checkpoint-*"):
            if not (partial / MARKER).exists():
                shutil.rmtree(partial)  # cut off by a kill: it never was a checkpoint
    run.update(status="running")
    state.wait_for_everyone()
    return run


def read_earlier(config: Any, stage: str) -> dict[str, Any] | None:
    """Read the record of the run that a configuration would go on with, None where it starts one; writes nothing.

    Raises
    ------
    UserError
        What `open_run` refuses of a folder.
    """
    if not config.output_dir:
        raise UserError("--output is missing: name the folder that the run should be written to")
    folder = Path(config.output_dir)
    refuse_file(folder)
    if not (folder / "run.json").exists():
        if folder.exists() and any(folder.iterdir()):
            if config.overwrite:
                raise UserError(
                    f"--overwrite: {folder} is not a run folder and will not be deleted; remove it yourself"
                )
            raise UserError(f"--output {folder} exists and is not a run folder: name another, or empty it")
        return None
    if config.overwrite:
        return None
    old = _read_record(folder)
    old["config"] = {**_defaults(config), **old["config"]}  # keys that came after it was written
    own: frozenset[str] = getattr(config, "MAY_CHANGE", frozenset())
    new = {"config": _tell_config(config), "processes": PartialState().num_processes}
    if not own and not complete_checkpoints(folder / "checkpoints") and failed_early(old, new, stage):
        logger.warning("%s: the run before failed with nothing to resume; it starts anew", folder)
        return None
    check_same(old, new, stage, folder, own)
    return old


def _note_addition(run: Run, old: dict[str, Any]) -> None:
    """Keep what a run that is added to was before, and put the command into its record, unless it has it already."""
    names = [name for name in ("run.json", "config.toml") if (run.folder / name).exists()]
    run.earlier = {name: (run.folder / name).read_text(encoding="utf8") for name in names}
    given = {key: run.record[key] for key in ("command", "cwd")}
    added = old.setdefault("added", [])
    if given not in [{key: one.get(key) for key in given} for one in (old, *added)]:
        added.append(given)


def _set_aside(run: Run) -> None:
    if not run.folder.exists() or not any(run.folder.iterdir()):
        return
    if run.replaced.exists():  # a replacement that was killed before it trained: what it replaced is still there
        shutil.rmtree(run.folder)
    else:
        run.folder.rename(run.replaced)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"--output {folder}: run.json cannot be read ({error}); use --overwrite to start anew"
        ) from None


def _defaults(config: FitKeys) -> dict[str, Any]:
    """Give the defaults of a configuration as a record holds them."""
    known = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            known[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            known[field.name] = field.default_factory()
    return {
        name: value for name, value in json.loads(json.dumps(known, default=str)).items() if name in to_dict(config)
    }


def _tell_config(config: FitKeys) -> dict[str, Any]:
    """Give a configuration as a record holds it."""
    return json.loads(json.dumps(to_dict(config), default=str))


def _new_record(config: FitKeys, stage: str) -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "stage": stage,
        "status": "running",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "cwd": str(Path.cwd()),
        "config": _tell_config(config),
        "seed": config.seed,
        "processes": PartialState().num_processes,
        "versions": {"python": platform.python_version(), **versions},
        "hardware": describe_machine(),
        "git": _git_revision(),
        "wall_time_s": 0.0,
        "tokens": 0,
    }


def _git_revision() -> str | None:
    """Return the revision of the user's working directory, where there is one."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def training_arguments(
    config: FitKeys,
    run: Run,
    *,
    steps: int,
    steps_per_epoch: int,
    kind: type[Arguments] = TrainingArguments,  # type: ignore[assignment]
    **others: Any,
) -> Arguments:
    """Turn a configuration into the Trainer's arguments.

    Parameters
    ----------
    config
        The resolved configuration; its ``training`` holds any further field.
    run
        Checkpoints go into its folder.
    steps
        Optimizer steps that the learning-rate schedule is laid out for.
    steps_per_epoch
        What the strategy ``epoch`` means in steps: batches come from one unrolled sequence of epochs.
    kind
        The trainer's class of arguments.
    **others
        Further fields that the stage sets; the configuration's ``training`` wins over them.

    Raises
    ------
    UserError
        A field that TrainingArguments refuses.
    """
    every_epoch = {name: steps_per_epoch for name in ("eval", "save") if getattr(config, f"{name}_strategy") == "epoch"}
    early = config.early_stopping_patience is not None
    if config.fp16 and not torch.accelerator.is_available():
        logger.warning("fp16: float16 is for GPUs, and there is none here: float32 is computed")
    values: dict[str, Any] = {
        "output_dir": str(run.checkpoints),
        "max_steps": steps,
        "eval_strategy": "steps" if "eval" in every_epoch else config.eval_strategy,
        "eval_steps": every_epoch.get("eval", config.eval_steps),
        "save_strategy": "steps" if "save" in every_epoch else config.save_strategy,
        "save_steps": every_epoch.get("save", config.save_steps),
        "load_best_model_at_end": early,
        "metric_for_best_model": "eval_loss" if early or config.save_strategy == "best" else None,
        "greater_is_better": False if early or config.save_strategy == "best" else None,
        "bf16": config.bf16 or (config.dtype == "bfloat16" and not config.fp16),
        "remove_unused_columns": False,
        "use_cpu": not torch.accelerator.is_available(),  # else the Trainer refuses bf16 without a GPU
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_nan_inf_filter": False,
        "report_to": config.report_to.split(","),
        "log_level": "error",
        "log_level_replica": "error",  # else what transformers reports comes from every process but the first
    }
    if early and (config.eval_strategy == "steps" or config.save_strategy != "best"):
        values |= {"save_strategy": "steps", "save_steps": values["eval_steps"] or config.logging_steps}
    same = (
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps learning_rate "
        "lr_scheduler_type warmup_steps weight_decay max_grad_norm fp16 seed dataloader_num_workers logging_steps"
    )
    values |= {name: getattr(config, name) for name in same.split()}
    given = {name: value for name, value in config.training.items() if name not in HUB_KEYS}
    try:
        arguments = kind(**{**values, **others, **given})
    except (TypeError, ValueError) as error:
        said = first_line(error)
        named = [
            key for key, value in {**values, **config.training}.items() if isinstance(value, str) and value in said
        ]
        raise UserError(f"{named[-1] if named else 'training'}: {said}") from error
    there = get_available_reporting_integrations()
    for name in arguments.report_to or ():
        if name not in there:
            raise UserError(f"report_to: {name} is not installed, or no tracker; give {', '.join([*there, 'none'])}")
    return arguments
