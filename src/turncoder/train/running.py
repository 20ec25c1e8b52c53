"""What all stages share: the run folder and its record, resuming, checkpoints that are complete or do not exist.

A run is its record (``run.json``). The same command again resumes from the newest complete checkpoint; a changed
configuration is refused with the difference. A checkpoint is complete when its marker exists: the marker is written
last, and older checkpoints are removed only afterwards, so a kill at any moment loses at most the steps since.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from turncoder.config.keys import FitKeys
from turncoder.config.stages import to_toml
from turncoder.data.files import refuse_file
from turncoder.disk import write_atomically
from turncoder.errors import UserError
from turncoder.train.record import new_record, tell_config, tell_defaults
from turncoder.train.resuming import check_rows, check_same, failed_early, wants_more

__all__ = [
    "MARKER",
    "Run",
    "checkpoint_step",
    "complete_checkpoints",
    "open_run",
    "read_earlier",
]

logger = logging.getLogger("turncoder")

MARKER = "complete"


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
    state = PartialState()
    old = read_earlier(config, stage)
    state.wait_for_everyone()  # everyone has seen the folder as it was
    run = Run(Path(str(config.output_dir)), new_record(config, stage))
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
    old["config"] = {**tell_defaults(config), **old["config"]}  # keys that came after it was written
    own: frozenset[str] = getattr(config, "MAY_CHANGE", frozenset())
    new = {"config": tell_config(config), "processes": PartialState().num_processes}
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
