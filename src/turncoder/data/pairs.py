"""Rows for contrastive training: single texts (SimCSE), or an anchor, its positive and any number of negatives.

Rows are checked and written to disk in one pass, and mapped into memory from there. Each set of a folder keeps to
itself.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from turncoder.data.batching import permute
from turncoder.data.columns import Shape, find_shape
from turncoder.data.corpus import Corpus
from turncoder.data.records import list_records, name_set, read_records
from turncoder.data.saved import is_saved, iterate_rows, open_dataset
from turncoder.data.sentences import clean, split_sentences
from turncoder.data.store import Begin, Reader, hash_text, store_rows
from turncoder.disk import default_cache
from turncoder.errors import UserError

__all__ = ["Rows", "hash_rows", "open_pairs", "open_texts"]

logger = logging.getLogger("turncoder")

FORMAT = 4
FEWEST = 2
WITHOUT = "without a negative"
HASHED_ROWS = 4096


@dataclass(frozen=True)
class Rows:
    """Rows of one set.

    Attributes
    ----------
    name
        Of the set.
    data
        Columns of strings.
    prompts
        What stands before the texts of a column; a column that is not in it has none.
    counts
        What was kept and what was left out.
    fingerprint
        Of the rows.
    """

    name: str
    data: Dataset
    prompts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.data)

    def select(self, count: int | None, seed: int | None) -> "Rows":
        """Draw ``count`` rows by ``seed``, or take the first (None); all where there are no more."""
        if count is None or count >= len(self):
            return self
        rows = np.arange(count) if seed is None else np.sort(permute(np.arange(count), len(self), seed, 0))
        return self.take(rows)

    def take(self, numbers: Iterable[int]) -> "Rows":
        """Give the rows of these numbers."""
        data = self.data.select(numbers)
        return replace(self, data=data, counts={**self.counts, "rows": len(data)})


def open_texts(corpus: Corpus, *, split: bool = False, distinct: bool = True, share: float = 0.0) -> tuple[Rows, Rows]:
    """Read texts for SimCSE: a row each, or a row for each of their sentences.

    Parameters
    ----------
    corpus
        Texts.
    split
        Cut them into sentences.
    distinct
        Keep the first of equal ones.
    share
        Percentage of documents held out, by a hash of the whole text: those that MNTP holds out.

    Returns
    -------
    tuple of Rows
        Rows to train on, and held-out ones; with the column ``text``.

    Raises
    ------
    UserError
        Token ids instead of texts, or fewer than two texts.
    """
    if corpus.tokenised:
        raise UserError(f"{corpus.name} holds token ids; contrastive training needs the texts themselves")

    def read(counts: Counter[str]) -> Iterator[tuple[str, dict[str, str]]]:
        seen: set[int] = set()
        for whole in corpus:
            for text in map(str.strip, split_sentences(whole) if split else [whole]):
                if not text:
                    counts["empty"] += 1
                    continue
                number = hash_text(text)
                if distinct and number in seen:
                    counts["repeated"] += 1
                    continue
                seen.add(number)
                yield whole, {"text": text}

    options = {"corpus": corpus.fingerprint, "split": split, "distinct": distinct, "share": share}
    train, held_out = _store("texts", lambda: (("text",), read), options)
    _check_size(train, corpus.name)
    return train, held_out


def open_pairs(
    *,
    file: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    cache_dir: str | None = None,
    columns: tuple[str, ...] = (),
    share: float = 0.0,
    key: str | None = None,
) -> list[tuple[Rows, Rows]]:
    """Read pairs, one set a file.

    Parameters
    ----------
    file
        JSONL, JSON, CSV, TSV or Parquet, or a folder of those, such as the E5 sets, each file a set by its name; or a
        folder that ``datasets`` saved.
    dataset_name, dataset_config_name, cache_dir
        Of a hub data set instead; its split ``train`` is read.
    columns
        Those of anchor, positive and negatives; else they are found by their names.
    share
        Percentage held out, by a hash of the anchor.
    key
        What the user gave the pairs as, for messages; None: ``train_file`` or ``dataset_name``.

    Returns
    -------
    list of tuple
        Rows to train on and held-out ones of each set; with the columns ``anchor``, ``positive``, ``negative_1``, ...

    Raises
    ------
    UserError
        Whatever is wrong with the files: no pairs in them, columns that are not known, rows of different shape.
    """
    path = Path(file).expanduser() if file is not None else None
    if path is not None and not is_saved(path):
        sources = [
            (name_set(path), str(path), _digest(path), partial(read_records, path))
            for path in list_records(path, key or "train_file")
        ]
    else:
        name = str(path or dataset_name)
        where: dict[str, Any] = {"config": dataset_config_name, "cache_dir": cache_dir}
        data = open_dataset(name, **where, key=key or "dataset_name")
        sources = [(Path(name).name, name, data._fingerprint, partial(iterate_rows, name, data))]
    return [_open_set(*source, columns, share) for source in sources]


def hash_rows(rows: Rows) -> np.ndarray:
    """Hash every text of every row, uint64 [N, C]: equal texts have equal numbers."""
    names = rows.data.column_names
    hash_NC = np.empty((len(rows), len(names)), dtype=np.uint64)
    done = 0
    for batch in rows.data.iter(HASHED_ROWS):
        count = len(batch[names[0]])
        for column, name in enumerate(names):
            hash_NC[done : done + count, column] = [hash_text(text) for text in batch[name]]
        done += count
    return hash_NC


def _open_set(
    name: str,
    where: str,
    digest: str,
    records: Callable[[], Iterable[tuple[str, dict[str, Any]]]],
    columns: tuple[str, ...],
    share: float,
) -> tuple[Rows, Rows]:
    def begin() -> tuple[tuple[str, ...], Reader]:
        shape = find_shape(where, records(), columns)
        if shape.fewest < shape.most:
            logger.warning(
                "%s: rows have %d to %d negatives; %d of each count", where, shape.fewest, shape.most, shape.fewest
            )
        if shape.without:
            logger.warning(
                "%s: %s rows have no negative and are left out; %s", where, f"{shape.without:,}", shape.remedy
            )
        return shape.names, partial(read, shape)

    def read(shape: Shape, counts: Counter[str]) -> Iterator[tuple[str, dict[str, str]]]:
        for place, record in records():
            texts = [clean(text).strip() for text in shape.take(record, place)]
            if all(texts[:2]) and not any(texts[2:]) and shape.without:
                counts[WITHOUT] += 1
            elif not all(texts):
                _leave_out(counts, "with an empty side", f"{place}: a row without anchor, positive or negative")
            elif not set(texts[:2]).isdisjoint(texts[2:]):
                _leave_out(counts, "with a false negative", f"{place}: a row whose negative is its anchor or positive")
            else:
                yield texts[0], dict(zip(shape.names, texts, strict=True))

    train, held_out = _store(name, begin, {"file": digest, "columns": list(columns), "share": share})
    _check_size(train, where)
    return train, held_out


def _leave_out(counts: Counter[str], kind: str, what: str) -> None:
    counts[kind] += 1
    if counts[kind] == 1:
        logger.warning("%s is left out (and others like it, without a further word)", what)


def _store(name: str, begin: Begin, options: dict[str, Any]) -> tuple[Rows, Rows]:
    """Keep rows in the cache, and tell what was left out."""
    whole = json.dumps({"format": FORMAT, "name": name, **options}, sort_keys=True)
    fingerprint = hashlib.sha256(whole.encode()).hexdigest()
    train, held_out, left_out = store_rows(default_cache() / "pairs" / fingerprint[:32], begin, options["share"])
    told = "".join(f", {count:,} {what} left out" for what, count in left_out.items() if count)
    logger.info("%s: %s rows, %s held out%s", name, f"{len(train):,}", f"{len(held_out):,}", told)
    counts = [{"rows": len(data), **left_out} for data in (train, held_out)]
    return Rows(name, train, {}, counts[0], fingerprint), Rows(name, held_out, {}, counts[1], fingerprint)


def _check_size(rows: Rows, where: str) -> None:
    if len(rows) < FEWEST:
        left_out = ", ".join(f"{count} {what}" for what, count in rows.counts.items() if what != "rows" and count)
        raise UserError(
            f"{where}: {len(rows)} rows to train on{f' ({left_out} left out)' if left_out else ''}; at least two are "
            "needed to tell one from another"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
