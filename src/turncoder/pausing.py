"""A pause that a training is asked for: it saves a checkpoint after its next step and ends as if interrupted."""

import threading

__all__ = ["asked"]

asked = threading.Event()
"""Set by the handler of a signal, looked at by the training."""
