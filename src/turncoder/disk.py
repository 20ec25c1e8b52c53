"""Where things are kept on disk, and how they get there: under their name when they are whole, and not before."""

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turncoder.errors import UserError

__all__ = ["default_cache", "lock_output", "replace_file", "replace_folder", "write_atomically"]

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
def lock_output(out: Path, wait_s: float = 0) -> Iterator[None]:
    """Keep a second job out of a folder; what is killed leaves no lock behind.

    The lock is a file beside the folder, so that this may be renamed or not be there yet.

    Parameters
    ----------
    out
        The folder.
    wait_s
        Seconds that another job has to end.

    Raises
    ------
    UserError
        Another job is writing there.
    """
    from filelock import FileLock, Timeout

    path = out.with_name(f".{out.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if wait_s:
                logger.warning("%s: another job is writing there; waiting up to %g s", out, wait_s)
            lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise UserError(f"--output {out}: another job is writing there; wait, or choose another place") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever has opened it tries again with a new one
        lock.release()
