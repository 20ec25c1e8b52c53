"""Where things are kept on disk, and how they get there: under their name when they are whole, and not before."""

import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turncoder.errors import UserError

__all__ = ["default_cache", "hold_folder", "replace_file", "replace_folder", "write_atomically"]

logger = logging.getLogger("turncoder")


def default_cache() -> Path:
    """Say where what was prepared is kept: ``TURNCODER_CACHE``, else ``turncoder`` in the user's cache folder."""
    named = os.environ.get("TURNCODER_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turncoder"


@contextmanager
def replace_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a name to write to, beside ``path``: renamed at the end, flushed to disk before, gone after an error."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if sync:
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str, *, sync: bool = True) -> None:
    """Write ``text`` under a temporary name beside ``path``, flush it to disk, and rename it."""
    with replace_file(path, sync=sync) as partial:
        partial.write_text(text, encoding="utf8")


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, beside ``folder``: renamed to it at the end, gone after an error.

    What is replaced is moved aside first, so that at every moment one of the two is there as a whole. A link stays, and
    what it leads to is replaced. Files are readable as the umask says: safetensors writes for the owner alone.
    """
    folder = folder.resolve()
    partial, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    partial.mkdir(parents=True)
    try:
        yield partial
        mode = partial.stat().st_mode & 0o666  # a new folder's, which the umask decides
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(mode)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def hold_folder(folder: Path, wait_s: float = 0) -> Iterator[None]:
    """Keep other processes out of a folder; a process that dies lets go of it.

    The folder itself is locked, not a file in it: nothing is left behind, and it may be renamed meanwhile. Without
    effect on Windows, and on file systems without locks.

    Raises
    ------
    UserError
        Another process holds it, and goes on to for ``wait_s`` seconds.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        began, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= began + wait_s:
                    remedy = "wait for its end, or name another folder"
                    raise UserError(f"--output {folder}: another process is writing this run; {remedy}") from None
                if not told:
                    logger.warning("%s: another process is writing this run; waiting up to %g s", folder, wait_s)
                told = True
                time.sleep(0.2)
            except OSError:  # no locks there
                break
        yield
    finally:
        os.close(handle)
