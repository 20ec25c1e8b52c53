"""What the command line says on stderr besides results: the library's notices, and the limits of the machine."""

import errno
import logging
import os
import warnings

from rich.console import Console

__all__ = ["listen", "say_limit"]

OUT_OF_MEMORY = (
    "out of memory: lower per_device_train_batch_size (and raise gradient_accumulation_steps), max_seq_length or "
    "vocabulary_budget_mb, or set gradient_checkpointing = true"
)


def say_limit(error: Exception) -> str | None:
    """Say what the machine ran out of or forbids, or None for a defect of ours."""
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "not enough memory" in text
    ):
        return OUT_OF_MEMORY
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in text:
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}: free some space, or point --output elsewhere; the same command again resumes"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"{error.filename} may not be read or written: {error.strerror}; choose another path"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:40]}... is too long for a path; give a file, a folder or a hub id"
    return None


class Notices(logging.Handler):
    """Log records as plain lines on stderr; a note that was given already, by another stage say, is not repeated."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.noted: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text, is_note = record.getMessage(), record.levelno >= logging.WARNING
        if is_note and text in self.noted:
            return
        if is_note:
            self.noted.add(text)
        self.console.print(f"{'note: ' if is_note else ''}{text}", highlight=False, markup=False)


def listen(console: Console) -> None:
    """Show what the library reports, once, and keep the libraries below quiet and at home."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)  # for the authors of libraries, not for users
    for name in ("sentence_transformers", "huggingface_hub.hf_api"):
        logging.getLogger(name).setLevel(logging.ERROR)
    log = logging.getLogger("turncoder")
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, Notices)] + [Notices(console)]
    log.setLevel(logging.INFO)
    log.propagate = False
