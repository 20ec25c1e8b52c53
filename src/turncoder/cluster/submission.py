"""The command that is to be a job: read at once, with every check that it makes before it opens anything."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from turncoder.config.cluster import SlurmConfig
from turncoder.config.keys import FitKeys
from turncoder.config.stages import TurnConfig
from turncoder.config.values import coerce
from turncoder.config.words import WordsConfig
from turncoder.data.files import names_file, split_places
from turncoder.errors import UserError

__all__ = ["Submission", "read_submission"]

logger = logging.getLogger("turncoder")

TEXTS = ("text", "validation_text", "pairs", "sts", "words")  # of a turn: files, or ids of the hub


@dataclass(frozen=True)
class Submission:
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


def read_submission(words: list[str], slurm: SlurmConfig) -> Submission:
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
    elif output is None and hasattr(config, "STAGE") and not scores:  # a run, whose folder the others need not have
        raise UserError("--output is missing: what the job writes to, and goes on with when it is started again")
    short = re.sub(r"[^\w.+=-]", "-", f"{name} {Path(output).absolute().name}" if output else name)
    _tell_missing(config)
    overwrites = Path(output).absolute() if output and getattr(config, "overwrite", False) else None
    return Submission(slurm.job_name or short, words, nodes, processes, overwrites, cells)


def _tell_missing(config: Any) -> None:
    """Name the files that are not there now: an earlier job may be about to write them."""
    keys = [f.name for f in fields(config) if f.name.endswith("_file") or f.name in TEXTS]
    for key in keys:
        value = getattr(config, key)
        for name in [value] if isinstance(value, str) else value if isinstance(value, tuple) else ():  # or a switch
            for path in (
                split_places(name.partition("=")[2] or name) if key == "task_file" else [Path(name).expanduser()]
            ):
                if names_file(str(path)) and not path.exists():
                    logger.warning("%s: %s is not there now; the job needs it when it starts", key, path)


def _count_nodes(words: list[str], slurm: SlurmConfig) -> int:
    """Count the nodes, which headless-lm's own flag names as well."""
    told = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("--num_nodes", "--num-nodes"):
            told["num_nodes"] = coerce(value if equals else after, int, flag)
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
