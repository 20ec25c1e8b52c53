"""Any command as a SLURM job: read and checked at once, then printed as a script, submitted, or run on this machine.

submitit writes the script, speaks to sbatch, and puts jobs back into the queue. The script is whole: it names the
command that `turncoder.cluster.job` runs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from turncoder.cluster.submission import Submission, read_submission
from turncoder.config.cluster import SlurmConfig, SubmitConfig, load_slurm, split_words
from turncoder.config.values import coerce
from turncoder.data.files import refuse_file
from turncoder.errors import UserError

if TYPE_CHECKING:
    from submitit import SlurmExecutor

__all__ = ["submit"]

logger = logging.getLogger("turncoder")

SCRIPTS = ".submission_file_*.sh"
"""What submitit calls a script before it has a number."""
WITHOUT_LIMIT = 366 * 24 * 60
"""Minutes that a job on this machine may take where nobody says."""


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
    checked = {name: coerce(value, hints.get(name, str), f"--{name}") for name, value in given.items()}
    config = SubmitConfig(**checked, slurm=load_slurm(Path(cluster) if cluster else None, slurm))
    submission = read_submission(rest, config.slurm)
    if submission.cells == []:
        logger.warning("all runs of the grid are done; turncoder %s makes the table", shlex.join(submission.words))
        return 0
    folder = Path(config.jobs, submission.name).absolute()
    refuse_file(Path(config.jobs), "--jobs")
    with _said_missing():
        if config.local:
            _run_here(submission, config.slurm, folder, console)
        elif config.print:
            _print_script(submission, config.slurm, folder, console)
        else:
            _submit_script(submission, config.slurm, folder, console)
    return 0


@contextlib.contextmanager
def _said_missing() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "submitit":
            raise
        raise UserError("submit needs submitit: pip install 'turncoder[slurm]'") from error


def _write_command(submission: Submission, slurm: SlurmConfig, folder: Path, minutes: int) -> str:
    """Write the line of shell that a task of the job runs."""
    flags = {
        "folder": folder,
        "minutes": minutes,
        "max_num_timeout": slurm.max_num_timeout,
        "grace": max(1, slurm.signal_delay_s // 2),
        "nproc_per_node": submission.processes,
        "overwrites": submission.overwrites,
    }
    told = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    python = slurm.python or shlex.quote(sys.executable)
    return f"{python} -u -m turncoder.cluster.job {shlex.join(told)} -- {shlex.join(submission.words)}"


def _open_slurm(submission: Submission, slurm: SlurmConfig, folder: Path) -> tuple[SlurmExecutor, str]:
    """Give submitit's executor with all that the script says, and the command in it."""
    from submitit import SlurmExecutor

    class Slurm(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # a script is shown where there is no SLURM, too

    executor, command = Slurm(folder), _write_command(submission, slurm, folder, slurm.minutes)
    others = {"requeue": True, **{name: value for name, value in slurm.others.items() if value is not False}}
    if submission.cells is not None:
        command += ' --cell "$SLURM_ARRAY_TASK_ID"'
        others["array"] = f"{_shorten(submission.cells)}%{slurm.array_parallelism}"
    same = ("partition", "cpus_per_task", "mem", "account", "qos", "constraint", "signal_delay_s")
    executor.update_parameters(
        **{name: getattr(slurm, name) for name in same},
        job_name=submission.name,
        time=slurm.minutes,
        nodes=submission.nodes,
        ntasks_per_node=1,
        gpus_per_node=slurm.share_gpus(submission.nodes),
        setup=list(slurm.setup) or None,
        # From SLURM 22.05 on, srun does not take the cores of a task from sbatch
        srun_args=[f"--cpus-per-task={slurm.cpus_per_task}"] if slurm.cpus_per_task else None,
        stderr_to_stdout=True,
        wckey=None,  # else submitit's, which sites that account by such keys refuse
        additional_parameters=others,
    )
    if submission.cells is not None:
        executor.parameters["map_count"] = len(submission.cells)  # names the logs of an array
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


def _print_script(submission: Submission, slurm: SlurmConfig, folder: Path, console: Console) -> None:
    executor, command = _open_slurm(submission, slurm, folder)
    console.print(executor._make_submission_file_text(command, ""), highlight=False, markup=False, end="")
    logger.info("nothing is submitted; to do it by hand: mkdir -p %s, then sbatch this script", _quote(folder))


def _submit_script(submission: Submission, slurm: SlurmConfig, folder: Path, console: Console) -> None:
    executor, command = _open_slurm(submission, slurm, folder)
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "sbatch is not on this machine: submit on a node of the cluster where SLURM is; --print shows the script, "
            "--local runs the job here"
        )
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    made = [place for place in (folder, folder.parent) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob(SCRIPTS))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # else what sbatch says is printed by submitit as well
            job = executor._submit_command(command)
    except (FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip() or f"exit code {getattr(error.__cause__, 'returncode', 'unknown')}"
        raise UserError(f"sbatch does not take the job: {said}") from None
    finally:
        for file in set(folder.glob(SCRIPTS)) - before:  # sbatch has read it
            file.unlink()
        for place in made:
            if not any(place.iterdir()):
                place.rmdir()
    number, log = job.job_id, job.paths.stdout
    if submission.cells is None:
        console.print(f"{submission.name}: job {number}", highlight=False)
    else:
        log = folder / f"{number}_*_0_log.out"
        at_once = min(len(submission.cells), slurm.array_parallelism)
        console.print(
            f"{submission.name}: job {number}, {len(submission.cells)} tasks, {at_once} at once", highlight=False
        )
    _tell(console, log, f"squeue --job {number}", f"scancel {number}")


def _run_here(submission: Submission, slurm: SlurmConfig, folder: Path, console: Console) -> None:
    from submitit import LocalExecutor

    minutes = slurm.minutes if slurm.time else WITHOUT_LIMIT
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")  # the executor hides GPUs that it was not asked for
    lines = [
        "unset CUDA_VISIBLE_DEVICES" if shown is None else f"export CUDA_VISIBLE_DEVICES={shlex.quote(shown)}",
        *slurm.setup,
        f"exec {_write_command(submission, slurm, folder, minutes)}",
    ]
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=minutes, signal_delay_s=slurm.signal_delay_s, stderr_to_stdout=True)
    with _detached():
        job: Any = executor._submit_command(shlex.join(["bash", "-c", "\n".join(lines)]))
    console.print(f"{submission.name}: job {job.job_id} on this machine", highlight=False)
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


def _quote(path: Path) -> str:
    """Quote a path for a shell, but for the ``*`` in the name of the logs of an array."""
    return "*".join(map(shlex.quote, str(path).split("*")))


def _tell(console: Console, log: Path, watch: str, cancel: str) -> None:
    shown = log.relative_to(Path.cwd()) if log.is_relative_to(Path.cwd()) else log
    follow = f"{watch}; tail -F {_quote(shown)}"
    for what, line in (("log", shown), ("follow", follow), ("cancel", cancel)):
        console.print(f"{what}: {line}", highlight=False, markup=False)
