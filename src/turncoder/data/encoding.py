"""A shard of texts becomes token ids: by the tokenizer's own threads in this process, or in several processes."""

import logging
import multiprocessing
import os
import re
import zlib
from array import array
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from turncoder.data.corpus import check_ids, find_limit
from turncoder.data.tokenizer import take_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder", "start_workers"]

logger = logging.getLogger("turncoder")

LONGEST = 1 << 20  # characters that are tokenised in one go; memory for a longer text grows without bound
BATCH_TEXTS = 2048  # what the tokenizer returns is some 20 times the size of the ids; smaller batches idle its threads
PROBE = ("The quick brown fox, 1984.", "  two  spaces\tand a tab", "Füße, 눈, снег, 雪 😀", "snake_case <s> </s>", "")


class Encoded(NamedTuple):
    """The tokens of a shard by split, each with the length of each document; the empty documents; the bytes read.

    ``text`` is the bytes of UTF-8 of the documents of either split, in their order; 0 where they came as tokens.
    """

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    empty: int
    size: int
    text: tuple[int, int]


class Encoder:
    """Tokenises lists of texts; travels to other processes.

    Parameters
    ----------
    tokenizer
        Taken as it is: no truncation, no padding, with its special tokens.
    keep_empty
        Empty texts are documents too.
    name
        Of the corpus, for messages.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", keep_empty: bool, name: str) -> None:
        self.keep_empty = keep_empty
        self.name = name
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.dtype = np.dtype("<u2" if self.vocab_size < 2**16 else "<u4")
        self.backend = _fast_path(tokenizer)
        self.tokenizer = tokenizer if self.backend is None else None
        self.prefix, self.suffix = self._find_specials()

    def encode(self, rows: Sequence[Any], share: float, held_out: int) -> Encoded:
        """Tokenise a shard.

        Parameters
        ----------
        rows
            Texts, or integer arrays that are tokens already.
        share
            Percentage of documents, by a hash of their content, that go to validation.
        held_out
            The first so many go to validation whatever their hash.
        """
        kept = [bool(len(row)) and not (isinstance(row, str) and row.isspace()) for row in rows]
        empty = kept.count(False)
        contents = [_content(row) for row in rows]
        bytes_N = np.fromiter(map(len, contents), dtype=np.int64, count=len(rows))
        size = int(bytes_N.sum()) + len(contents)  # and the newlines
        validates = np.fromiter(map(zlib.crc32, contents), dtype=np.uint64, count=len(rows)) < find_limit(share)
        validates[:held_out] = True
        if not self.keep_empty and empty:
            rows = [row for row, keep in zip(rows, kept, strict=True) if keep]
            validates, bytes_N = validates[kept], bytes_N[kept]
        pieces = self._tokenise(rows)
        lengths = np.fromiter(map(len, pieces), dtype=np.uint32, count=len(pieces))
        if pieces and isinstance(pieces[0], np.ndarray):
            tokens = np.concatenate(pieces)
            check_ids(tokens, self.vocab_size, self.name)
            tokens = tokens.astype(self.dtype)
            bytes_N[:] = 0
        else:
            joined = array("I")  # four times as fast as numpy at taking lists of integers
            for piece in pieces:
                joined.fromlist(piece)
            tokens = np.frombuffer(joined, dtype=np.uint32).astype(self.dtype)
        text = int(bytes_N[~validates].sum()), int(bytes_N[validates].sum())
        if not validates.any():
            return Encoded((tokens, lengths), (tokens[:0], lengths[:0]), empty, size, text)
        goes = np.repeat(validates, lengths)
        return Encoded((tokens[~goes], lengths[~validates]), (tokens[goes], lengths[validates]), empty, size, text)

    def _tokenise(self, rows: Sequence[Any]) -> Sequence[Any]:
        if not rows or isinstance(rows[0], np.ndarray):
            return rows
        if max(map(len, rows)) <= LONGEST:
            return self._call(rows)
        pieces: list[Any] = []
        for row in rows:
            pieces.append(self._call([row])[0] if len(row) <= LONGEST else self._tokenise_long(row))
        return pieces

    def _call(self, texts: Sequence[str], specials: bool = True) -> Sequence[list[int]]:
        if self.backend is not None:
            encode = self.backend.encode_batch_fast
            batches = (texts[start : start + BATCH_TEXTS] for start in range(0, len(texts), BATCH_TEXTS))
            return [encoding.ids for batch in batches for encoding in encode(batch, add_special_tokens=specials)]
        return self.tokenizer(list(texts), add_special_tokens=specials, verbose=False)["input_ids"]  # type: ignore[misc]

    def _tokenise_long(self, text: str) -> list[int]:
        """Tokenise a text in pieces that end before white space, so that memory stays bounded."""
        logger.warning(
            "%s: a text of %d characters is tokenised in pieces of at most %d", self.name, len(text), LONGEST
        )
        tokens = list(self.prefix)
        start = 0
        while start < len(text):
            stop = start + LONGEST
            if stop < len(text):
                blanks = [match.start() for match in re.finditer(r"(?<=\S)\s", text[stop - 4096 : stop])]
                stop = stop - 4096 + blanks[-1] if blanks else stop
            tokens += self._call([text[start:stop]], specials=False)[0]
            start = stop
        return tokens + self.suffix

    def _find_specials(self) -> tuple[list[int], list[int]]:
        whole, bare = self._call(["a"])[0], self._call(["a"], specials=False)[0]
        for place in range(len(whole) - len(bare) + 1):
            if whole[place : place + len(bare)] == bare:
                return list(whole[:place]), list(whole[place + len(bare) :])
        return [], []


def _content(row: Any) -> bytes:
    """Give the bytes whose hash says where a document goes: the same in every process and version."""
    return row.encode("utf-8", "surrogatepass") if isinstance(row, str) else row.tobytes()


def _fast_path(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Take the Rust tokenizer, when it alone gives what calling the tokenizer gives; else None, with a notice."""
    expected = [tokenizer(text, verbose=False)["input_ids"] for text in PROBE]
    backend = take_backend(tokenizer)
    if backend is not None and [encoding.ids for encoding in backend.encode_batch_fast(PROBE)] == expected:
        return _bound_cache(backend)
    logger.warning("%s has no fast path; texts are tokenised by calling it, which is slower", type(tokenizer).__name__)
    return None


def _bound_cache(backend: Any) -> Any:
    """Give a tokenizer whose memory does not grow with the text.

    It remembers the tokens of words. Without a pre-tokenizer (as in Llama 2 and Mistral) a whole line is a word: then
    what it remembers comes to 100 MB and is hardly ever asked for again.
    """
    if backend.pre_tokenizer is not None or not hasattr(backend.model, "_resize_cache"):
        return backend
    backend = type(backend).from_str(backend.to_str())  # a copy, for the original is its owner's
    backend.model._resize_cache(0)
    return backend


_worker: Encoder | None = None


def _adopt(encoder: Encoder, threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if encoder.backend is not None:
        encoder.backend = _bound_cache(encoder.backend)  # what travels is the tokenizer without its settings of memory
    global _worker
    _worker = encoder


def _encode(rows: Sequence[Any], share: float, held_out: int) -> Encoded:
    assert _worker is not None
    return _worker.encode(rows, share, held_out)


class _Processes(ProcessPoolExecutor):
    """Processes that hold the encoder, so that only texts travel to them and only tokens back."""

    def submit(self, _method: Any, /, *arguments: Any, **named: Any) -> "Future[Any]":
        return super().submit(_encode, *arguments, **named)


def start_workers(encoder: Encoder, workers: int) -> Executor:
    """Start processes that share the processor's threads among them."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    return _Processes(workers, mp_context=context, initializer=_adopt, initargs=(encoder, threads))
