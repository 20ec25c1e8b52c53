"""Rows for contrastive training: single texts (SimCSE), or an anchor, its positive and any number of negatives.

Rows are checked and written to disk in one pass, and mapped into memory from there. Each set of a folder keeps to
itself.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter

from turncoder.data.batching import permute
from turncoder.data.corpus import Corpus
from turncoder.data.packing import default_cache
from turncoder.data.records import RECORD_ENDINGS, read_records
from turncoder.data.sentences import split_sentences
from turncoder.errors import UserError

__all__ = ["Rows", "hash_rows", "open_pairs", "open_texts"]

logger = logging.getLogger("turncoder")

FORMAT = 1
ANCHORS = ("anchor", "query")
DOCUMENTS = ("positive", "negative", "negatives")
FEWEST = 2


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
        return replace(self, data=self.data.select(rows))


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
        Percentage held out, by a hash of the text.

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

    def read(counts: Counter[str]) -> Iterator[dict[str, str]]:
        seen: set[int] = set()
        for whole in corpus:
            for text in split_sentences(whole) if split else [whole]:
                if not text.strip():
                    counts["empty"] += 1
                    continue
                number = _hash(text)
                if distinct and number in seen:
                    counts["repeated"] += 1
                    continue
                seen.add(number)
                yield {"text": text.strip()}

    options = {"corpus": corpus.fingerprint, "split": split, "distinct": distinct, "share": share}
    train, held_out = _store("texts", ("text",), read, options, share)
    _check_size(train, corpus.name)
    return train, held_out


def open_pairs(
    *,
    file: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    cache_dir: str | None = None,
    split: str = "train",
    columns: tuple[str, ...] = (),
    share: float = 0.0,
) -> list[tuple[Rows, Rows]]:
    """Read pairs, one set a file.

    Parameters
    ----------
    file
        JSONL, JSON, CSV, TSV or Parquet, or a folder of those, such as the E5 sets, each file a set by its name.
    dataset_name, dataset_config_name, cache_dir, split
        Of a hub data set instead.
    columns
        Those of anchor, positive and negatives; else they are found by their names.
    share
        Percentage held out, by a hash of the anchor.

    Returns
    -------
    list of tuple
        Rows to train on and held-out ones of each set; with the columns ``anchor``, ``positive``, ``negative_1``, ...

    Raises
    ------
    UserError
        Whatever is wrong with the files: no pairs in them, columns that are not known, rows of different shape.
    """
    if file is not None:
        paths = _list_files(Path(file).expanduser())
        sources = [
            (path.name.partition(".")[0], str(path), _digest(path), partial(read_records, path)) for path in paths
        ]
    else:
        data = _load(str(dataset_name), dataset_config_name, split, cache_dir)
        name = str(dataset_name)
        sources = [(Path(name).name, name, data._fingerprint, partial(_number, name, data))]
    return [_open_set(*source, columns, share) for source in sources]


def _number(name: str, data: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(data, 1):
        yield f"{name}, row {number}", row


def hash_rows(rows: Rows) -> np.ndarray:
    """Hash every text of every row, uint64 [N, C]: equal texts have equal numbers."""
    columns = [[_hash(text) for text in rows.data[name][:]] for name in rows.data.column_names]
    return np.array(columns, dtype=np.uint64).T.reshape(len(rows), len(columns))


def _open_set(
    name: str,
    where: str,
    digest: str,
    records: Callable[[], Iterable[tuple[str, dict[str, Any]]]],
    columns: tuple[str, ...],
    share: float,
) -> tuple[Rows, Rows]:
    shape = _Shape.find(where, records(), columns)

    def read(counts: Counter[str]) -> Iterator[dict[str, str]]:
        for place, record in records():
            texts = shape.take(record, place)
            if any(not text.strip() for text in texts):
                counts["with an empty side"] += 1
                _note_first(counts, f"{place}: a row without anchor, positive or negative is left out")
            elif texts[0].strip() in (text.strip() for text in texts[2:]):
                counts["with the anchor as negative"] += 1
                _note_first(counts, f"{place}: a row whose negative is its anchor is left out")
            else:
                yield dict(zip(shape.names, texts, strict=True))

    options = {"file": digest, "columns": list(columns), "names": list(shape.names), "share": share}
    train, held_out = _store(name, shape.names, read, options, share)
    _check_size(train, where)
    return train, held_out


def _note_first(counts: Counter[str], message: str) -> None:
    if sum(counts.values()) == 1:
        logger.warning("%s (and others like it, without a further word)", message)


@dataclass(frozen=True)
class _Shape:
    """Where the texts of a row are."""

    keys: tuple[str, ...]
    negatives: int

    @property
    def names(self) -> tuple[str, ...]:
        return ("anchor", "positive", *(f"negative_{number + 1}" for number in range(self.negatives)))

    @classmethod
    def find(cls, where: str, records: Iterable[tuple[str, dict[str, Any]]], columns: tuple[str, ...]) -> "_Shape":
        """Find out what the columns are, and how many negatives every row has."""
        fewest: int | None = None
        keys: tuple[str, ...] = ()
        for place, record in records:
            if not keys:
                keys = columns or _name_columns(list(record), place)
            if absent := [key for key in keys[:2] if key not in record]:
                raise UserError(f"{place}: no column {absent[0]!r}; it has {', '.join(record)} (--columns names them)")
            count = sum(_count(record.get(key)) for key in keys[2:])
            fewest = count if fewest is None else min(fewest, count)
        if fewest is None:
            raise UserError(f"{where}: no rows at all")
        return cls(keys, fewest)

    def take(self, record: dict[str, Any], place: str) -> list[str]:
        """Give anchor, positive and negatives; what is missing is empty."""
        values: list[Any] = [record[key] for key in self.keys[:2]]
        for key in self.keys[2:]:
            value = record.get(key)
            values += value if isinstance(value, list) else [] if value is None else [value]
        texts = ["" if value is None else value for value in values[: 2 + self.negatives]]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"{place}: {json.dumps(wrong[0], default=str)[:40]} is no text; a side is a string")
        return texts


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value is not None)


def _name_columns(names: list[str], place: str) -> tuple[str, ...]:
    """Find anchor, positive and negatives among the columns by their names; refuse what is none of those."""
    anchor = next((name for name in ANCHORS if name in names), None)
    negatives = [name for name in names if name.partition("_")[0] in ("negative", "negatives")]
    unknown = [name for name in names if name not in (anchor, "positive", *negatives)]
    remedy = "name those that count, in their order: --columns ANCHOR POSITIVE [NEGATIVE ...]"
    if len(names) < FEWEST:
        raise UserError(f"{place}: one column, {names[0]!r}; a pair has an anchor and a positive (for texts: simcse)")
    if anchor is None or "positive" not in names:
        raise UserError(f"{place}: no {'anchor' if anchor is None else 'positive'} among {', '.join(names)}; {remedy}")
    if unknown:
        raise UserError(f"{place}: column {unknown[0]!r} is neither anchor, positive nor negative; {remedy}")
    return (anchor, "positive", *negatives)


def _list_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError(f"train_file: {path}: no such file or folder")
    endings = (*RECORD_ENDINGS, *(f"{ending}.gz" for ending in RECORD_ENDINGS))
    files = sorted(file for file in path.iterdir() if file.name.lower().endswith(endings))
    if not files:
        raise UserError(f"train_file: {path}: no pairs in this folder; looked for {', '.join(RECORD_ENDINGS)}")
    return files


def _load(name: str, config: str | None, split: str, cache_dir: str | None) -> Dataset:
    import datasets

    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(name)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(name, config, split=split, cache_dir=cache_dir)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"dataset_name: {name!r} ({config or 'default configuration'}, split {split!r}) cannot be loaded: {reason}"
            "; check the name and the network, or give a local file as train_file"
        ) from error


def _store(
    name: str,
    columns: tuple[str, ...],
    read: Callable[[Counter[str]], Iterator[dict[str, str]]],
    options: dict[str, Any],
    share: float,
) -> tuple[Rows, Rows]:
    """Write rows to the cache, training ones and held-out ones apart, unless they are there."""
    whole = json.dumps({"format": FORMAT, "name": name, **options}, sort_keys=True)
    fingerprint = hashlib.sha256(whole.encode()).hexdigest()
    home = default_cache() / "pairs" / fingerprint[:32]
    if not (home / "counts.json").exists():
        _write(home, columns, read, share)
    left_out = json.loads((home / "counts.json").read_text())
    sets = [Dataset.from_file(str(home / f"{split}.arrow")) for split in ("train", "validation")]
    told = "".join(f", {count:,} {what} left out" for what, count in left_out.items() if count)
    logger.info("%s: %s rows, %s held out%s", name, *(f"{len(rows):,}" for rows in sets), told)
    kept = [{"rows": len(rows), **left_out} for rows in sets]
    return tuple(Rows(name, rows, {}, count, fingerprint) for rows, count in zip(sets, kept, strict=True))  # type: ignore[return-value]


def _write(
    home: Path, columns: tuple[str, ...], read: Callable[[Counter[str]], Iterator[dict[str, str]]], share: float
) -> None:
    folder = home.with_name(f"{home.name}.{os.getpid()}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    writers = {
        split: ArrowWriter(
            features=Features(dict.fromkeys(columns, Value("string"))), path=str(folder / f"{split}.arrow")
        )
        for split in ("train", "validation")
    }
    try:
        for row in read(counts):
            held = zlib.crc32(row[columns[0]].encode("utf-8", "surrogatepass")) < share / 100 * 2**32
            writers["validation" if held else "train"].write(row)
        for writer in writers.values():
            writer.finalize()
        (folder / "counts.json").write_text(json.dumps(counts))
        if not (home / "counts.json").exists():  # another process may have been faster
            folder.replace(home)
    finally:
        for writer in writers.values():
            writer.close()
        shutil.rmtree(folder, ignore_errors=True)


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


def _hash(text: str) -> int:
    data = text.strip().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
