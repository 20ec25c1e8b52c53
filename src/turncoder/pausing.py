"""A pause that a training is asked for: it saves a checkpoint after its next step and ends as if interrupted."""

import os
import threading
from pathlib import Path

__all__ = ["FILE", "asked", "is_asked"]

asked = threading.Event()
"""Set by the handler of a signal in the process that trains."""
FILE = "TURNCODER_PAUSE_FILE"
"""Variable of the environment: a file that the launcher of several processes makes on each node instead."""


def is_asked() -> bool:
    """Say whether this process, or those of its node, are asked to pause."""
    return asked.is_set() or (FILE in os.environ and Path(os.environ[FILE]).exists())
