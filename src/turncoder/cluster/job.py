"""What a job runs: one command, again after each preemption or time limit, in as many processes as were asked for.

A signal before the end (SIGUSR2) lets a training save a checkpoint; then the job goes back into the queue, and the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncoder import pausing

if TYPE_CHECKING:
    from submitit import JobEnvironment
    from submitit.helpers import DelayedSubmission

__all__ = ["Job", "main"]

PORTS = range(20_000, 32_000)
"""Where the nodes of a job meet: below the ports that systems give out by themselves."""
PAUSED = 130
"""Exit code of a command that was interrupted, or paused."""


@dataclass(frozen=True)
class Job:
    """A command of turncoder as submitit starts it, and starts it again.

    Attributes
    ----------
    words
        The command, without ``turncoder``.
    nproc_per_node
        Processes on each node.
    grace
        Seconds that a training has to save a checkpoint after the signal.
    overwrites
        What ``--overwrite`` is to replace, or None.
    began
        A file that was made when the job started for the first time.
    """

    words: tuple[str, ...]
    nproc_per_node: int
    grace: int
    overwrites: Path | None
    began: Path

    def __call__(self) -> None:
        """Run the command; a failure ends the process with the command's exit code."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        words = [*self.words, *(["--no-overwrite"] if self.has_overwritten() else [])]
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        if cores and cores.isdigit():
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(cores) // self.nproc_per_node)))
        if code := self._run(words, environment):
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """Give what is started again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def has_overwritten(self) -> bool:
        """Say whether what stands where ``--overwrite`` points was written by this job, before it was started again."""
        place = self.overwrites
        return place is not None and place.exists() and place.stat().st_mtime > self.began.stat().st_mtime

    def _run(self, words: list[str], environment: JobEnvironment) -> int:
        """Run the command; the signal waits for a checkpoint, but not for long."""
        number = environment._usr_sig()
        requeue: Any = signal.getsignal(number)
        file = None
        if environment.num_nodes * self.nproc_per_node > 1:
            file = Path(tempfile.gettempdir(), f"turncoder-{environment.job_id}-{environment.global_rank}.pause")
            file.unlink(missing_ok=True)
            os.environ[pausing.FILE] = str(file)

        def ask(*_: object) -> None:
            pausing.asked.set()
            if file is not None:
                file.touch()
            signal.signal(signal.SIGALRM, requeue)
            signal.alarm(self.grace)

        signal.signal(number, ask)
        try:
            code = run_here(words) if file is None else launch(words, environment, self.nproc_per_node)
        finally:
            signal.alarm(0)
            if file is not None:
                file.unlink(missing_ok=True)
        if pausing.asked.is_set() and code == PAUSED:
            requeue(number, None)
        return code


def run_here(words: list[str]) -> int:
    """Run a command in this process and give its exit code."""
    from turncoder.cli import main

    sys.argv = ["turncoder", *words]  # what the record of a run shows
    return main(words)


def launch(words: list[str], environment: JobEnvironment, nproc_per_node: int) -> int:
    """Start a command by torchrun, on each node by a task of its own, and give the exit code of what failed first."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    nodes = environment.num_nodes
    flags = [f"--nnodes={nodes}", f"--nproc-per-node={nproc_per_node}"]
    if nodes == 1:
        flags.append("--standalone")
    else:
        port = PORTS[int(environment.raw_job_id) % len(PORTS)]
        flags += ["--rdzv-backend=c10d", f"--rdzv-endpoint={environment.hostnames[0]}:{port}"]
        flags.append(f"--rdzv-id={environment.raw_job_id}")
    parser = run.get_args_parser()
    if "--signals-to-handle" in parser._option_string_actions:
        flags.append("--signals-to-handle=SIGINT")  # SIGTERM announces a preemption, and work goes on until it comes
    try:
        run.run(parser.parse_args([*flags, "-m", "turncoder.cli", *words]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 1
    return 0


def main(argv: list[str] | None = None) -> None:
    """Run the command that stands after ``--``, as a task of a SLURM job or of submitit's local executor."""
    from submitit import JobEnvironment
    from submitit.core.submission import process_job
    from submitit.core.utils import JobPaths, temporary_save_path
    from submitit.helpers import DelayedSubmission

    parser = argparse.ArgumentParser(prog="turncoder.cluster.job", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("minutes", "max_num_timeout", "grace", "nproc_per_node"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--overwrites", type=Path)
    parser.add_argument("words", nargs="+")
    given = parser.parse_args(argv)
    environment = JobEnvironment()
    paths = JobPaths(given.folder, environment.job_id, environment.global_rank)
    if environment.global_rank == 0 and not paths.submitted_pickle.exists():  # else it was started before
        began = paths.folder / f"{environment.job_id}_began"
        began.touch()
        delayed = DelayedSubmission(Job(tuple(given.words), given.nproc_per_node, given.grace, given.overwrites, began))
        delayed.set_timeout(given.minutes, given.max_num_timeout)
        with temporary_save_path(paths.submitted_pickle) as partial:
            delayed.dump(partial)
    process_job(given.folder)


if __name__ == "__main__":
    from turncoder.cluster import job  # what is pickled is found again under this name, not under __main__

    job.main()
