"""Texts to encode, with their ids: read once to find what is wrong and how many there are, then a shard at a time."""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from turncoder.data.corpus import Corpus, check_column, open_corpus
from turncoder.data.files import names_file
from turncoder.data.store import hash_text
from turncoder.errors import UserError

__all__ = ["Rows", "scan_rows"]

SAMPLE = 64


@dataclass(frozen=True)
class Rows:
    """The texts, and their ids where there are any.

    Attributes
    ----------
    texts, ids
        To be read again.
    count
        How many there are.
    fingerprint
        Of all texts in their order.
    sample
        The first that say something.
    """

    texts: Corpus
    ids: Corpus | None
    count: int
    fingerprint: str
    sample: tuple[str, ...]

    def shards(self, size: int) -> Iterator[tuple[list[str], list[str] | None]]:
        """Yield ``size`` texts and ids at a time."""
        texts = iter(self.texts)
        ids = iter(self.ids) if self.ids is not None else None
        while shard := list(islice(texts, size)):
            yield shard, None if ids is None else list(islice(ids, size))


def scan_rows(
    source: str,
    *,
    text_column: str | None = None,
    id_column: str | None = None,
    dataset_config_name: str | None = None,
    split: str | None = None,
    cache_dir: str | None = None,
    key: str = "INPUT",
) -> Rows:
    """Read everything once: what is wrong is said before a model is loaded, and the time left is known.

    Parameters
    ----------
    source
        A file or a folder of texts, a saved dataset, or a hub id.
    text_column, id_column
        Where the texts are (None: ``text``, else the first column), and their ids, if they have any.
    dataset_config_name, split
        Of a data set on the hub, the split (None: ``train``) of a saved one too.
    cache_dir
        Where ``datasets`` keeps what it downloads.
    key
        What the user gave ``source`` as, for messages.

    Raises
    ------
    UserError
        Whatever is wrong with the texts; ids that occur twice.
    """
    shape: dict[str, Any] = {"cache_dir": cache_dir, "split": split or "train", "key": key}
    path = Path(source).expanduser()
    if path.exists():
        shape["file"] = source
        if dataset_config_name:
            raise UserError(f"dataset_config_name = {dataset_config_name!r}: {source} is no hub id; leave the flag out")
        if split and not (path / "dataset_dict.json").exists():
            raise UserError(f"split = {split!r}: {source} has no splits; leave the flag out")
    elif names_file(source):
        raise UserError(
            f"{key}: {source}: no such file or folder; give a file of texts, a folder of those, or a hub id"
        )
    else:
        shape |= {"dataset_name": source, "dataset_config_name": dataset_config_name}
    check_column(text_column, source)
    texts = open_corpus(**shape, text_column=text_column)
    if texts.tokenised:
        raise UserError(f"{source} holds token ids; encode needs the texts (--text_column names their column)")
    ids = open_corpus(**shape, text_column=id_column, numbers=True) if id_column else None
    whole, rows = hashlib.sha256(), 0
    sample: list[str] = []
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
        rows += 1
        if len(sample) < SAMPLE and text.strip():
            sample.append(text)
    if not rows:
        raise UserError(f"{source}: no text at all")
    if ids is not None and id_column is not None:
        _check_ids(ids, source, id_column)
    return Rows(texts, ids, rows, whole.hexdigest(), tuple(sample))


def _check_ids(ids: Corpus, source: str, column: str) -> None:
    """Refuse ids that occur twice, holding eight bytes for each."""
    hashes = array("Q", (hash_text(one) for one in ids))
    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if twice:
        seen: dict[str, int] = {}
        for row, one in enumerate(ids, 1):
            if hash_text(one) in twice:
                if one in seen:
                    raise UserError(
                        f"{source}: the id {one!r} of column {column!r} stands in rows {seen[one]} and {row}; "
                        "make ids unique, or leave --id_column away"
                    )
                seen[one] = row
