"""A cluster of one machine: programs that stand for SLURM's, and what SLURM does with a script that it has taken."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SBATCH = """#!{python}
import os, shutil, sys
number = 1000 + len([name for name in os.listdir("{home}") if name.endswith(".sh")])
shutil.copyfile(sys.argv[1], f"{home}/{{number}}.sh")
print(f"Submitted batch job {{number}}")
"""
REFUSES = """#!/bin/sh
echo "sbatch: error: invalid partition specified: nowhere" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""
SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    flag = words.pop(0)
    if flag == "--output":
        output = words.pop(0)
env = os.environ
for mark, name in (("%j", "JOB_ID"), ("%A", "ARRAY_JOB_ID"), ("%a", "ARRAY_TASK_ID")):
    output = output.replace(mark, env.get(f"SLURM_{{name}}", mark))
tasks = []
for task in range(int(env["SLURM_JOB_NUM_NODES"])):
    told = {{"SLURM_PROCID": str(task), "SLURM_NODEID": str(task), "SLURM_LOCALID": "0"}}
    with open(output.replace("%t", str(task)), "a") as log:
        tasks.append(subprocess.Popen(words, env={{**env, **told}}, stdout=log, stderr=log))
with open("{home}/tasks", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() & 255 for task in tasks))
"""
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && echo "$2" >> "{home}/requeued"
"""


class Slurm:
    """SLURM as far as a job sees it.

    Attributes
    ----------
    home
        Where scripts that were submitted are kept, and what jobs asked for.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "bin").mkdir(parents=True)
        for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        """Write one of the programs."""
        path = self.home / "bin" / name
        path.write_text(text.format(python=sys.executable, home=self.home))
        path.chmod(0o755)

    def scripts(self) -> dict[str, str]:
        """Give the scripts that were submitted, by their number."""
        return {path.stem: path.read_text() for path in sorted(self.home.glob("*.sh"))}

    def start(self, number: str, cell: int | None = None, nodes: int = 1) -> subprocess.Popen:
        """Start a job, or one task of an array."""
        told = {"SLURM_JOB_ID": number, "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NTASKS": str(nodes)}
        told["SLURM_JOB_NODELIST"] = "localhost"
        if cell is not None:
            told |= {"SLURM_JOB_ID": f"{int(number) + cell + 1}", "SLURM_ARRAY_JOB_ID": number}
            told["SLURM_ARRAY_TASK_ID"] = str(cell)
        return subprocess.Popen(["bash", self.home / f"{number}.sh"], env={**os.environ, **told})

    def requeued(self) -> list[str]:
        """Give the numbers of the jobs that were put back into the queue."""
        path = self.home / "requeued"
        return path.read_text().split() if path.exists() else []

    def signal(self, number: int = signal.SIGUSR2) -> None:
        """Send the tasks of the job that was started last a signal, as before its end."""
        for task in (self.home / "tasks").read_text().split():
            os.kill(int(task), number)


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
