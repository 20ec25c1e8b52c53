"""Rows of tokens, read from memory-mapped files: packed blocks, lines or documents, as views of the same tokens.

On disk a split is two flat files: ``NAME.tokens`` (uint16 or uint32), all documents one after the other, and
``NAME.ends`` (uint64), where each document ends. How they are cut into rows is decided when they are read.

Shape legend: L tokens of a row, N rows.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from turncoder.data.batching import permute
from turncoder.disk import replace_file

__all__ = ["FORMAT", "Blocks", "Layout", "TokenFile"]

FORMAT = 2
"""Of these files and of the manifest beside them."""

Layout = Literal["packed", "pieces", "truncated", "llm2vec"]
ROW = np.dtype([("start", "<u8"), ("length", "<u4")])
DOCUMENTS_AT_ONCE = 1 << 18
GROUP = 1000  # documents that LLM2Vec's group_texts sees at a time


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one split on disk; opened when first read, so it travels cheaply to other processes.

    Attributes
    ----------
    folder, name
        Where the files are, and what they are called.
    dtype
        ``"uint16"`` or ``"uint32"``.
    num_tokens, num_documents
        How many there are.
    num_bytes
        Of the documents' text, in UTF-8; 0 where they came as tokens.
    fingerprint
        Of the corpus, the tokenizer and the options.
    """

    folder: Path
    name: str
    dtype: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    fingerprint: str

    @cached_property
    def tokens(self) -> np.ndarray:
        """All tokens, memory-mapped."""
        return _map(self.folder / f"{self.name}.tokens", np.dtype(self.dtype), self.num_tokens)

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each document ends, memory-mapped."""
        return _map(self.folder / f"{self.name}.ends", np.dtype("<u8"), self.num_documents)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("tokens", "ends")}


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    if count == 0:
        return np.empty(0, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))


class Blocks:
    """Rows of tokens with the document that each token belongs to.

    Parameters
    ----------
    file
        The tokens.
    block_size
        Largest number of tokens in a row.
    layout
        ``"packed"``: documents one after the other, cut every ``block_size`` tokens, the last row shorter;
        ``"pieces"``: one document per row, longer ones in several rows; ``"truncated"``: one document per row, cut off;
        ``"llm2vec"``: packed within each 1000 documents, the remainder dropped, as ``group_texts`` does.
    rows
        Which rows of the layout these are, in order; None means all.
    """

    def __init__(
        self, file: TokenFile, block_size: int, layout: Layout = "packed", rows: np.ndarray | None = None
    ) -> None:
        self.file = file
        self.block_size = block_size
        self.layout: Layout = layout
        self.rows = rows

    @property
    def is_packed(self) -> bool:
        """Every row but perhaps the last has ``block_size`` tokens."""
        return self.layout in ("packed", "llm2vec")

    @cached_property
    def _table(self) -> np.ndarray | None:
        """Start and length of each row, memory-mapped; None where arithmetic gives them."""
        if self.layout == "packed":
            return None
        path = self.file.folder / f"{self.file.name}.{self.layout}-{self.block_size}.rows"
        if not path.exists():
            _write_rows(path, self.file.ends, self.block_size, self.layout)
        return _map(path, ROW, path.stat().st_size // ROW.itemsize)

    @cached_property
    def _size(self) -> int:
        return -(-self.file.num_tokens // self.block_size) if self._table is None else len(self._table)

    def __len__(self) -> int:
        """Count the rows, N."""
        return self._size if self.rows is None else len(self.rows)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Give ``token_ids`` and ``document_ids`` of a row, int64 [L]; documents count 0, 1, 2 within the row."""
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        start, stop = self._span(row % len(self))
        token_ids_L = self.file.tokens[start:stop].astype(np.int64)
        document_ids_L = np.zeros(stop - start, dtype=np.int64)
        if self.is_packed:
            first, last = np.searchsorted(self.file.ends, np.array([start, stop], dtype=np.uint64), side="right")
            ends = self.file.ends[first:last].astype(np.int64) - start
            ends = np.unique(ends[ends < stop - start])
            document_ids_L[ends] = 1
            document_ids_L = document_ids_L.cumsum()
        return token_ids_L, document_ids_L

    def _span(self, row: int) -> tuple[int, int]:
        if self.rows is not None:
            row = int(self.rows[row])
        if self._table is None:
            start = row * self.block_size
            return start, min(start + self.block_size, self.file.num_tokens)
        start = int(self._table["start"][row])
        return start, start + int(self._table["length"][row])

    def lengths(self) -> np.ndarray:
        """Tokens of each row [N]."""
        if self._table is None:
            lengths = np.full(self._size, self.block_size, dtype=np.uint32)
            if self._size:
                lengths[-1] = self.file.num_tokens - (self._size - 1) * self.block_size
        else:
            lengths = self._table["length"]
        return lengths if self.rows is None else lengths[self.rows]

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows."""
        if self.layout in ("packed", "pieces") and self.rows is None:
            return self.file.num_tokens
        return int(self.lengths().sum(dtype=np.int64))

    @property
    def counts(self) -> dict[str, int]:
        """How many rows, tokens and documents there are, and tokens that are left out or stand in a last short row."""
        short = int(self.lengths()[-1]) % self.block_size if len(self) and self.is_packed else 0
        dropped = self.file.num_tokens - self.num_tokens if self.rows is None else 0
        return {
            "blocks": len(self),
            "tokens": self.num_tokens,
            "documents": self.file.num_documents,
            "remainder": short,
            "dropped": dropped,
        }

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens and of how they are cut and selected."""
        whole = hashlib.sha256(f"{self.file.fingerprint} {self.file.name} {self.layout} {self.block_size}".encode())
        if self.rows is not None:
            whole.update(np.ascontiguousarray(self.rows, dtype=np.int64).tobytes())
        return whole.hexdigest()

    def by_document(self, max_length: int | None = None) -> "Blocks":
        """Give the same tokens with one document per row, those over ``max_length`` tokens in several rows."""
        return Blocks(self.file, max_length or self.block_size, "pieces")

    def without_remainder(self) -> "Blocks":
        """Give the rows that have ``block_size`` tokens: floor(tokens / block_size) of packed ones."""
        if self.rows is not None:
            rows = self.rows[self.lengths() == self.block_size]
        elif self.layout == "packed":
            rows = np.arange(self.file.num_tokens // self.block_size)
        else:
            rows = np.flatnonzero(self.lengths() == self.block_size)
        return Blocks(self.file, self.block_size, self.layout, rows)

    def select(self, count: int, seed: int | None = None) -> "Blocks":
        """Give the first ``count`` rows, or with a seed that many drawn without replacement (in their order)."""
        count = min(count, len(self))
        places = np.arange(count) if seed is None else np.sort(permute(np.arange(count), len(self), seed, 0))
        return Blocks(self.file, self.block_size, self.layout, places if self.rows is None else self.rows[places])


def _write_rows(path: Path, ends: np.ndarray, block_size: int, layout: Layout) -> None:
    """Write start and length of each row, a slice of the documents at a time, atomically."""
    step = DOCUMENTS_AT_ONCE // GROUP * GROUP
    with replace_file(path) as partial, partial.open("wb") as stream:
        begin = 0
        for place in range(0, len(ends), step):
            stops = ends[place : place + step].astype(np.int64)
            starts = np.concatenate([[begin], stops[:-1]])
            begin = int(stops[-1])
            if layout == "llm2vec":
                starts, stops = (
                    starts[::GROUP],
                    np.append(stops[GROUP - 1 :: GROUP], stops[-1:])[: len(starts[::GROUP])],
                )
            stream.write(_cut(starts, stops, block_size, layout).tobytes())


def _cut(starts: np.ndarray, stops: np.ndarray, block_size: int, layout: Layout) -> np.ndarray:
    """Cut spans of tokens into rows."""
    lengths = stops - starts
    if layout == "truncated":
        counts = np.minimum(lengths, 1)
    elif layout == "llm2vec":
        counts = lengths // block_size
    else:
        counts = -(-lengths // block_size)
    span = np.repeat(np.arange(len(lengths)), counts)
    within = np.arange(len(span)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.empty(len(span), dtype=ROW)
    rows["start"] = starts[span] + within * block_size
    rows["length"] = np.minimum(block_size, lengths[span] - within * block_size)
    return rows
