"""What the record of a run begins with: the command, its configuration, versions, machine and revision."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from turncoder.config.keys import FitKeys
from turncoder.config.stages import to_dict
from turncoder.info import describe_machine, find_versions

__all__ = ["new_record", "tell_config", "tell_defaults"]

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


def tell_config(config: FitKeys) -> dict[str, Any]:
    """Give a configuration as a record holds it."""
    return json.loads(json.dumps(to_dict(config), default=str))


def new_record(config: FitKeys, stage: str) -> dict[str, Any]:
    """Give the record of a run that begins now."""
    return {
        "stage": stage,
        "status": "running",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "cwd": str(Path.cwd()),
        "config": tell_config(config),
        "seed": config.seed,
        "processes": PartialState().num_processes,
        "versions": {"python": platform.python_version(), **find_versions(PACKAGES)},
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


def tell_defaults(config: FitKeys) -> dict[str, Any]:
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
