"""What a SLURM job asks for, and how a command is handed to the queue.

Importing this module imports neither torch, transformers nor submitit.
"""

import logging
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from turncoder.config import settings
from turncoder.config.files import read_file
from turncoder.config.keys import check_ranges
from turncoder.config.values import coerce
from turncoder.errors import UserError

__all__ = ["SlurmConfig", "SubmitConfig", "load_slurm", "read_minutes", "split_words"]

logger = logging.getLogger("turncoder")

DEFAULT_TIME = "24:00:00"
TAKEN = {
    "output": "logs lie in the folder that --jobs names",
    "error": "logs lie in the folder that --jobs names",
    "array": "the tasks are the runs of words --grid; slurm.array_parallelism says how many run at once",
    "signal": "slurm.signal_delay_s says how long before the limit the job goes back into the queue",
    "ntasks": "a task on each node starts the processes; slurm.nproc_per_node says how many",
    "ntasks_per_node": "a task on each node starts the processes; slurm.nproc_per_node says how many",
    "gpus_per_node": "slurm.gpus counts those of all nodes",
    "chdir": "paths of the command start where it is submitted; submit it from there",
    "requeue": "a job goes on after its limit; slurm.max_num_timeout = 0 ends it there",
    "no_requeue": "a job goes on after its limit; slurm.max_num_timeout = 0 ends it there",
    "wrap": "the command stands after submit",
    "parsable": "the number of the job is read from what sbatch says",
    "wait": "submit comes back at once",
}
"""Options of sbatch that are decided here, and why."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What a job asks SLURM for. Any other option of sbatch: --slurm.NAME VALUE, such as --slurm.mail_type END."""

    partition: str | None = None
    """Partition (queue) of the cluster."""
    time: str | None = None
    """Limit: minutes, HH:MM:SS or D-HH:MM:SS; at the limit the job goes back into the queue and then goes on; default:
    24:00:00, none with --local."""
    gpus: str | None = None
    """GPUs of the job over all nodes, as 4 or a100:4; trainings start a process for each."""
    nodes: int | None = None
    """Number of nodes; default: 1, or headless-lm's --num_nodes."""
    nproc_per_node: int | None = None
    """Processes that train on each node; default: one for each of its GPUs, or one."""
    cpus_per_task: int | None = None
    """Cores on each node."""
    mem: str | None = None
    """Memory on each node, as 64G."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    array_parallelism: int = 256
    """With words --grid: how many runs execute at once, at most."""
    signal_delay_s: int = 120
    """Seconds before the limit at which a training is told to save a checkpoint and go back into the queue."""
    max_num_timeout: int = 10
    """Times that a job goes back into the queue at its limit; preemptions do not count."""
    job_name: str | None = None
    """Default: the command and the name of the run."""
    python: str | None = None
    """Command that starts Python in the job; default: this Python."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the command: "module load cuda" "source venv/bin/activate"."""
    others: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch."""

    def __post_init__(self) -> None:
        """Check what can be checked without SLURM.

        Raises
        ------
        UserError
            One line that names the key, the value and the remedy.
        """
        check_ranges(self, "nodes", "nproc_per_node", "cpus_per_task", "array_parallelism", "signal_delay_s", least=1)
        check_ranges(self, "max_num_timeout", least=0)
        if self.time is not None and 60 * read_minutes(self.time) <= self.signal_delay_s:
            raise UserError(
                f"slurm.time = {self.time!r} is no longer than slurm.signal_delay_s = {self.signal_delay_s}: the job "
                "would go back into the queue at once; give more time"
            )
        if self.gpus is not None and not re.fullmatch(r"([A-Za-z][\w.-]*:)?[1-9]\d*", self.gpus):
            raise UserError(f"slurm.gpus = {self.gpus!r} is no number of GPUs; give 4, or with their kind a100:4")
        if self.mem is not None and not re.fullmatch(r"\d+([KMGT]B?)?", self.mem, re.IGNORECASE):
            raise UserError(f"slurm.mem = {self.mem!r} is no amount of memory; give 64G, or megabytes")
        if self.job_name is not None and not re.fullmatch(r"[\w.+=-]+", self.job_name):
            raise UserError(f"slurm.job_name = {self.job_name!r} also names a folder: use letters, digits and -")
        for name in self.others:
            if name in TAKEN:
                raise UserError(f"slurm.{name} = {self.others[name]!r} cannot be set: {TAKEN[name]}")
            if name in ("gres", "gpus_per_task") and self.gpus is None and self.nproc_per_node is None:
                raise UserError(
                    f"slurm.{name} = {self.others[name]!r} does not say how many processes train: give "
                    "slurm.nproc_per_node too, or slurm.gpus instead"
                )

    @property
    def minutes(self) -> int:
        """The limit in whole minutes."""
        return read_minutes(self.time or DEFAULT_TIME)

    def share_gpus(self, nodes: int) -> str | None:
        """Give the GPUs of each of so many nodes, as sbatch reads them; raises UserError for a remainder."""
        if self.gpus is None:
            return None
        kind, colon, count = self.gpus.rpartition(":")
        if int(count) % nodes:
            raise UserError(f"slurm.gpus = {self.gpus!r} cannot be shared by slurm.nodes = {nodes}; give a multiple")
        return f"{kind}{colon}{int(count) // nodes}"


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Any command as a SLURM job: turncoder submit mntp CONFIG --output RUN --slurm.partition gpu --slurm.gpus 1.

    The flags below may stand anywhere; all others are the command's. A job that is preempted or reaches its limit goes
    back into the queue and goes on where it stopped. words --grid becomes an array, a task for each run.
    """

    print: bool = False
    """Show the script for sbatch and submit nothing."""
    local: bool = False
    """Run the job on this machine, without SLURM, in the background."""
    cluster: str | None = None
    """TOML file of keys that every job of a site needs; flags win over it."""
    jobs: str = "jobs"
    """Folder for scripts and logs: JOBS/NAME/NUMBER_0_log.out."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """What is asked of SLURM."""

    def __post_init__(self) -> None:
        """Check values; raises UserError."""
        if self.print and self.local:
            raise UserError("--print and --local are both set; keep one")
        if self.local and (self.slurm.nodes or 1) > 1:
            raise UserError(f"slurm.nodes = {self.slurm.nodes} with --local: this machine is one node")


def read_minutes(time: str) -> int:
    """Read a time limit as sbatch does, and give it in whole minutes.

    Raises
    ------
    UserError
        It is none of minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise UserError(f"slurm.time = {time!r} is no time: give minutes, HH:MM:SS or D-HH:MM:SS")
    days, *parts = (None if part is None else int(part) for part in found.groups())
    first, second, third = (part or 0 for part in parts)
    if days is not None or parts[2] is not None:
        seconds = 86400 * (days or 0) + 3600 * first + 60 * second + third
    else:
        seconds = 60 * first + second
    if seconds == 0:
        raise UserError(f"slurm.time = {time!r} leaves the job no time: give minutes, HH:MM:SS or D-HH:MM:SS")
    return math.ceil(seconds / 60)


def split_words(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split words into the flags of submit, and the command with all that is its own.

    A flag of submit takes one word, ``--print`` and ``--local`` none, and ``--slurm.setup`` all up to the next flag.

    Raises
    ------
    UserError
        A flag without its value.
    """
    given: dict[str, Any] = {}
    slurm: dict[str, Any] = {}
    command: list[str] = []
    queue = list(words)
    known = {one.name for one in fields(SlurmConfig)}
    while queue:
        word = queue.pop(0)
        flag, equals, value = word.partition("=")
        table, _, key = flag.removeprefix("--").replace("-", "_").partition(".")
        is_slurm = flag.startswith("--slurm.")
        if not is_slurm and flag not in ("--print", "--local", "--cluster", "--jobs"):
            command.append(word)
        elif flag in ("--print", "--local"):
            given[table] = not equals or value
        elif equals:
            (slurm if is_slurm else given)[key or table] = value
        elif key == "setup":
            slurm[key] = []
            while queue and not queue[0].startswith("--"):
                slurm[key].append(queue.pop(0))
        elif queue and not queue[0].startswith("--"):
            (slurm if is_slurm else given)[key or table] = queue.pop(0)
        elif key and key not in known:  # --slurm.exclusive
            slurm[key] = True
        else:
            raise UserError(f"{flag} needs a value")
    return {**given, "slurm": slurm}, command[command[:1] == ["--"] :]


def load_slurm(path: Path | None, flags: dict[str, Any]) -> SlurmConfig:
    """Build what a job asks for from a site's file and the flags ``--slurm.NAME``, which win.

    Raises
    ------
    UserError
        The file cannot be read, or a value is wrong; the message names the key.
    """
    hints = get_type_hints(SlurmConfig)
    known = {one.name for one in fields(SlurmConfig)} - {"others"}
    values: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for table, said in ((read_file(path) if path else {}, f"{path}: "), (flags, "--slurm.")):
        for key, value in table.items():
            name = key.replace("-", "_")
            if isinstance(value, dict):
                raise UserError(f"{said}{key} is a table; the keys of a site stand by themselves: partition = 'gpu'")
            if name not in known:
                if near := settings.nearest(name, sorted(known)):
                    logger.warning("%s%s goes to sbatch as it is%s", said, key, near)
                others[name] = ",".join(map(str, value)) if isinstance(value, list) else value
                continue
            plain = value if isinstance(value, bool | list | str) or hints[name] != str | None else str(value)
            values[name] = coerce(plain, hints[name], f"{said}{key}")
    return SlurmConfig(**values, others=others)
