"""Rows of strings on disk: written once, in one pass, and mapped into memory from there."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter

from turncoder.data.corpus import is_held_out

__all__ = ["Begin", "Reader", "fill_folder", "hash_text", "store_rows"]

SPLITS = ("train", "validation")

Reader = Callable[[Counter[str]], Iterator[tuple[str, dict[str, str]]]]
Begin = Callable[[], tuple[tuple[str, ...], Reader]]


def hash_text(text: str) -> int:
    """Hash a text to 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@contextmanager
def fill_folder(home: Path, mark: str) -> Iterator[Path]:
    """Give a folder to write to, beside ``home``, and put it in its place when it is whole.

    Parameters
    ----------
    home
        It is there in full or not at all, whoever is killed and however many write it at once.
    mark
        A file that is in it: where another process was faster, what that one wrote stays.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{home.name}.", dir=home.parent, ignore_cleanup_errors=True) as folder:
        partial_home = Path(folder) / "whole"
        partial_home.mkdir()
        yield partial_home
        try:
            partial_home.replace(home)
        except OSError:
            if not (home / mark).exists():
                raise


def store_rows(home: Path, begin: Begin, share: float) -> tuple[Dataset, Dataset, dict[str, int]]:
    """Open the rows that lie in a folder; write them first, unless they are there.

    Parameters
    ----------
    home
        The folder.
    begin
        Gives the columns, and what yields rows and counts those that it leaves out, each with the text whose hash says
        whether it is held out; called only to write.
    share
        Percentage held out.

    Returns
    -------
    tuple of Dataset, Dataset and dict
        Rows to train on, held-out ones, and what was left out.
    """
    if not (home / "counts.json").exists():
        _write(home, *begin(), share)
    train, held_out = (Dataset.from_file(str(home / f"{split}.arrow")) for split in SPLITS)
    return train, held_out, json.loads((home / "counts.json").read_text())


def _write(home: Path, columns: tuple[str, ...], read: Reader, share: float) -> None:
    features = Features(dict.fromkeys(columns, Value("string")))
    counts: Counter[str] = Counter()
    with fill_folder(home, "counts.json") as folder:
        writers = {split: ArrowWriter(features=features, path=str(folder / f"{split}.arrow")) for split in SPLITS}
        try:
            for text, row in read(counts):
                writers[SPLITS[is_held_out(text, share)]].write(row)
            for writer in writers.values():
                writer.finalize()
        finally:
            for writer in writers.values():
                writer.close()
        (folder / "counts.json").write_text(json.dumps(counts))
