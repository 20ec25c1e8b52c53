"""Any command as a SLURM job: read and checked at once, then printed as a script, submitted, or run on this machine.

submitit writes the script, speaks to sbatch, and puts jobs back into the queue. The script is whole: it names the
command that `turncoder.job` runs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from turncoder import settings
from turncoder.clusterconfig import SlurmConfig, SubmitConfig, load_slurm, split_words
from turncoder.config import TurnConfig
from turncoder.errors import UserError
from turncoder.keys import FitKeys
from turncoder.wordconfig import WordsConfig

if TYPE_CHECKING:
    from submitit import SlurmExecutor

__all__ = ["Task", "read_task", "submit"]

logger = logging.getLogger("turncoder")

WITHOUT_LIMIT = 366 * 24 * 60
"""Minutes that a job on this machine may take where nobody says."""


@dataclass(frozen=True)
class Task:
    """A command that is to be a job.

    Attributes
    ----------
    name
        Of the job, and of the folder of its logs.
    words
        The command, without ``turncoder``.
    nodes, processes
        Machines, and processes on each.
    overwrites
        What ``--overwrite`` is to replace, or None.
    cells
        Of a grid: the numbers of the runs that are not done; else None.
    """

    name: str
    words: list[str]
    nodes: int
    processes: int
    overwrites: Path | None = None
    cells: list[int] | None = None


def submit(words: list[str], console: Console) -> int:
    """Hand a command to SLURM, or show or run what would be handed over.

    Parameters
    ----------
    words
        What stands after ``turncoder submit``.
    console
        Where the script, or the job's number, is shown.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    UserError
        The command is wrong as it would be without ``submit``; a value of SLURM's is wrong; sbatch refuses the job.
    """
    given, rest = split_words(words)
    slurm, cluster = given.pop("slurm"), given.get("cluster")
    hints = {"print": bool, "local": bool}
    checked = {name: settings.coerce(value, hints.get(name, str), f"--{name}") for name, value in given.items()}
    config = SubmitConfig(**checked, slurm=load_slurm(Path(cluster) if cluster else None, slurm))
    task = read_task(rest, config.slurm)
    if task.cells == []:
        logger.warning("all runs of the grid are done; turncoder %s makes the table", shlex.join(task.words))
        return 0
    folder = Path(config.jobs, task.name).absolute()
    with _said_missing():
        if config.local:
            _run_here(task, config.slurm, folder, console)
        elif config.print:
            _print_script(task, config.slurm, folder, console)
        else:
            _submit_script(task, config.slurm, folder, console)
    return 0


@contextlib.contextmanager
def _said_missing() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "submitit":
            raise
        raise UserError("submit needs submitit: pip install 'turncoder[slurm]'") from error


def read_task(words: list[str], slurm: SlurmConfig) -> Task:
    """Read the command that is to be a job, with all checks that it makes before it opens anything.

    Parameters
    ----------
    words
        The command, without ``turncoder``.
    slurm
        What is asked of SLURM.

    Raises
    ------
    UserError
        The command, its configuration, or one of the runs of its grid is wrong.
    """
    if not words or words[0] == "submit":
        raise UserError("submit needs a command: turncoder submit mntp CONFIG --output RUN --slurm.partition NAME")
    nodes = _count_nodes(words, slurm)
    gpus = slurm.share_gpus(nodes)
    processes = slurm.nproc_per_node or int((gpus or "1").rpartition(":")[2])
    name, config = _read(words, nodes * processes)
    scores = isinstance(config, WordsConfig) and (config.evaluate or config.export_machamp)
    if scores or not isinstance(config, FitKeys | TurnConfig):
        if nodes > 1 or (slurm.nproc_per_node or 1) > 1:
            raise UserError(
                f"{name} is started once, on one node: drop slurm.nproc_per_node, and slurm.nodes above 1"
                + (", and keep slurm.gpus: it uses all of them by itself" if name == "encode" else "")
            )
        processes = 1
    output, cells = getattr(config, "output_dir", None), None
    if isinstance(config, WordsConfig) and config.grid:
        from turncoder.grid import list_missing

        output, missing = list_missing(config)
        cells = missing if config.cell is None else None
    elif output is None and hasattr(config, "output_dir") and name != "prepare" and not scores:
        raise UserError("--output is missing: what the job writes to, and goes on with when it is started again")
    short = re.sub(r"[^\w.+=-]", "-", f"{name} {Path(output).absolute().name}" if output else name)
    overwrites = Path(output).absolute() if output and getattr(config, "overwrite", False) else None
    return Task(slurm.job_name or short, words, nodes, processes, overwrites, cells)


def _count_nodes(words: list[str], slurm: SlurmConfig) -> int:
    """Count the nodes, which headless-lm's own flag names as well."""
    told = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("--num_nodes", "--num-nodes"):
            told["num_nodes"] = settings.coerce(value if equals else after, int, flag)
    nodes = slurm.nodes or told.get("num_nodes") or 1
    if told.get("num_nodes", nodes) != nodes:
        raise UserError(f"--num_nodes {told['num_nodes']} and --slurm.nodes {nodes} are not the same; drop one")
    return nodes


def _read(words: list[str], processes: int) -> tuple[str, Any]:
    """Read the command as one of so many processes will."""
    from turncoder.cli import read_command

    before = os.environ.get("WORLD_SIZE")
    if processes > 1:
        os.environ["WORLD_SIZE"] = str(processes)
    try:
        name, config, _ = read_command(words)
    except UserError as error:
        known = (key for key in SlurmConfig.__dataclass_fields__ if str(error).startswith(f"--{key} is not a known"))
        if (key := next(known, None)) is None:
            raise
        raise UserError(f"--{key} is no flag of {words[0]}; what SLURM is asked for is --slurm.{key}") from None
    finally:
        os.environ.pop("WORLD_SIZE", None)
        if before is not None:
            os.environ["WORLD_SIZE"] = before
    return name, config


def _write_command(task: Task, slurm: SlurmConfig, folder: Path, minutes: int) -> str:
    """Write the line of shell that a task of the job runs."""
    flags = {
        "folder": folder,
        "minutes": minutes,
        "max_num_timeout": slurm.max_num_timeout,
        "grace": max(1, slurm.signal_delay_s // 2),
        "nproc_per_node": task.processes,
        "overwrites": task.overwrites,
    }
    told = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    python = slurm.python or shlex.quote(sys.executable)
    return f"{python} -u -m turncoder.job {shlex.join(told)} -- {shlex.join(task.words)}"


def _open_slurm(task: Task, slurm: SlurmConfig, folder: Path) -> tuple[SlurmExecutor, str]:
    """Give submitit's executor with all that the script says, and the command in it."""
    from submitit import SlurmExecutor

    class Slurm(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # a script is shown where there is no SLURM, too

    executor, command = Slurm(folder), _write_command(task, slurm, folder, slurm.minutes)
    others = {"requeue": True, **{name: value for name, value in slurm.others.items() if value is not False}}
    if task.cells is not None:
        command += ' --cell "$SLURM_ARRAY_TASK_ID"'
        others["array"] = f"{_shorten(task.cells)}%{slurm.array_parallelism}"
    same = ("partition", "cpus_per_task", "mem", "account", "qos", "constraint", "signal_delay_s")
    executor.update_parameters(
        **{name: getattr(slurm, name) for name in same},
        job_name=task.name,
        time=slurm.minutes,
        nodes=task.nodes,
        ntasks_per_node=1,
        gpus_per_node=slurm.share_gpus(task.nodes),
        setup=list(slurm.setup) or None,
        # From SLURM 22.05 on, srun does not take the cores of a task from sbatch
        srun_args=[f"--cpus-per-task={slurm.cpus_per_task}"] if slurm.cpus_per_task else None,
        stderr_to_stdout=True,
        wckey=None,  # else submitit's, which sites that account by such keys refuse
        additional_parameters=others,
    )
    if task.cells is not None:
        executor.parameters["map_count"] = len(task.cells)  # names the logs of an array
    return executor, command


def _shorten(numbers: list[int]) -> str:
    """Write ascending numbers as sbatch reads them: 0-3,7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ",".join("-".join(map(str, span)) for span in spans)


def _print_script(task: Task, slurm: SlurmConfig, folder: Path, console: Console) -> None:
    executor, command = _open_slurm(task, slurm, folder)
    console.print(executor._make_submission_file_text(command, ""), highlight=False, markup=False, end="")
    logger.info("nothing is submitted; to do it by hand: mkdir -p %s, then sbatch this script", folder)


def _submit_script(task: Task, slurm: SlurmConfig, folder: Path, console: Console) -> None:
    executor, command = _open_slurm(task, slurm, folder)
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "sbatch is not on this machine: submit on a node of the cluster where SLURM is; --print shows the script, "
            "--local runs the job here"
        )
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # else what sbatch says is printed by submitit as well
            job = executor._submit_command(command)
    except (FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip() or f"exit code {getattr(error.__cause__, 'returncode', 'unknown')}"
        raise UserError(f"sbatch does not take the job: {said}") from None
    finally:
        for file in folder.glob(".submission_file_*.sh"):  # sbatch has read it
            file.unlink()
        for empty in (folder, folder.parent):
            if not any(empty.iterdir()):
                empty.rmdir()
    number, log = job.job_id, job.paths.stdout
    if task.cells is None:
        console.print(f"{task.name}: job {number}", highlight=False)
    else:
        log = folder / f"{number}_*_0_log.out"
        at_once = min(len(task.cells), slurm.array_parallelism)
        console.print(f"{task.name}: job {number}, {len(task.cells)} tasks, {at_once} at once", highlight=False)
    _tell(console, log, f"squeue --job {number}", f"scancel {number}")


def _run_here(task: Task, slurm: SlurmConfig, folder: Path, console: Console) -> None:
    from submitit import LocalExecutor

    minutes = slurm.minutes if slurm.time else WITHOUT_LIMIT
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")  # the executor hides GPUs that it was not asked for
    lines = [
        "unset CUDA_VISIBLE_DEVICES" if shown is None else f"export CUDA_VISIBLE_DEVICES={shlex.quote(shown)}",
        *slurm.setup,
        f"exec {_write_command(task, slurm, folder, minutes)}",
    ]
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=minutes, signal_delay_s=slurm.signal_delay_s, stderr_to_stdout=True)
    with _detached():
        job: Any = executor._submit_command(shlex.join(["bash", "-c", "\n".join(lines)]))
    console.print(f"{task.name}: job {job.job_id} on this machine", highlight=False)
    _tell(console, job.paths.stdout, f"ps {job.job_id}", f"kill -INT {job.job_id}")


@contextlib.contextmanager
def _detached() -> Iterator[None]:
    """Let a process that is started here outlive whoever reads what we print."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for number in range(3):
            os.dup2(nothing, number)
        yield
    finally:
        for number, own in enumerate(kept):
            os.dup2(own, number)
            os.close(own)
        os.close(nothing)


def _tell(console: Console, log: Path, watch: str, cancel: str) -> None:
    shown = log.relative_to(Path.cwd()) if log.is_relative_to(Path.cwd()) else log
    for what, line in (("log", shown), ("follow", f"{watch}; tail -F {shown}"), ("cancel", cancel)):
        console.print(f"{what}: {line}", highlight=False, markup=False)
