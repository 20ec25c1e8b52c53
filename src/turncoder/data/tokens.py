"""The pass over a corpus that writes its tokens to disk, a shard of text at a time, and that survives being killed.

Tokens are appended to flat files in ``NAME.partial``; after each shard a journal says how much of them counts. A killed
pass is taken up at the journal, with identical bytes in the end; then the folder loses its ``.partial``, in one rename.
"""

import itertools
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turncoder.data.corpus import Corpus
from turncoder.data.encoding import Encoded, Encoder, start_workers
from turncoder.disk import write_atomically
from turncoder.errors import UserError
from turncoder.progress import NOTICE_SECONDS, open_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenPass"]

logger = logging.getLogger("turncoder")

SHARD_CHARACTERS = 1 << 20
SHARD_TEXTS = 1 << 15


@dataclass
class _Journal:
    """What of the partial files counts, and how far the corpora have been read."""

    read: dict[str, int]
    splits: dict[str, list[int]]  # name: [tokens, documents, bytes of text]
    empty: int = 0


class TokenPass:
    """Reads shards of text, has them tokenised, appends, and keeps the journal.

    Parameters
    ----------
    corpus, validation
        What is read; the second may be None.
    tokenizer
        As loaded.
    options
        What the result depends on: ``keep_empty``, ``validation_percentage``, ``first_validate``; all goes into the
        manifest.
    home
        The folder that holds the result in the end.
    """

    def __init__(
        self,
        corpus: Corpus,
        validation: Corpus | None,
        tokenizer: "PreTrainedTokenizerBase",
        options: dict[str, Any],
        home: Path,
    ) -> None:
        self.corpora = {"train": corpus} if validation is None else {"train": corpus, "validation": validation}
        self.encoder = Encoder(tokenizer, options["keep_empty"], corpus.name)
        self.options = options
        self.home = home
        self.partial = home.with_name(home.name + ".partial")
        self.percentage = options["validation_percentage"] or 0.0

    def run(self, workers: int | None) -> None:
        """Go through what the journal says is not done yet, then name the result."""
        self.partial.mkdir(exist_ok=True)
        state = self._recover()
        self.started = self.noticed = time.monotonic()
        self.written = 0
        pool: Executor = (
            ThreadPoolExecutor(2) if workers is None or workers <= 1 else start_workers(self.encoder, workers)
        )
        try:
            with open_bar() as self.bar:
                for name, corpus in self.corpora.items():
                    self._read(name, corpus, state, pool, 2 if workers is None else workers)
        except BaseException:
            with suppress(OSError):
                self._truncate(state)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self._finish(state)

    def _recover(self) -> _Journal:
        path = self.partial / "journal.json"
        fresh = _Journal(dict.fromkeys(self.corpora, 0), {"train": [0, 0, 0], "validation": [0, 0, 0]})
        state = fresh
        if path.exists():
            with suppress(ValueError):  # a power cut leaves names without content
                state = _Journal(**json.loads(path.read_text()))
        cut = [
            file.name
            for file, size in self._sizes(state).items()
            if size > (file.stat().st_size if file.exists() else 0)
        ]
        if cut:  # nothing is synced: after a power cut the journal may know more than the disk has
            logger.info("%s: %s is shorter than its journal says; it begins anew", self.home, cut[0])
            state = fresh
        elif path.exists():
            logger.info("%s: taken up after %s documents", self.home, f"{sum(state.read.values()):,}")
        self._truncate(state)
        return state

    def _sizes(self, state: _Journal) -> dict[Path, int]:
        """Give the files, with the bytes of each that count."""
        return {
            self.partial / f"{name}.{ending}": size
            for name, (tokens, documents, _) in state.splits.items()
            for ending, size in (("tokens", tokens * self.encoder.dtype.itemsize), ("ends", documents * 8))
        }

    def _truncate(self, state: _Journal) -> None:
        for path, size in self._sizes(state).items():
            with path.open("ab") as stream:
                stream.truncate(size)

    def _read(self, name: str, corpus: Corpus, state: _Journal, pool: Executor, width: int) -> None:
        boundary = 0
        if self.options["first_validate"]:
            boundary = round(self.percentage * sum(1 for _ in corpus) / 100)
        share = 0.0 if self.options["first_validate"] else self.percentage
        self.task = self.bar.add_task(f"tokens of {Path(corpus.name).name}", total=corpus.rows or corpus.size, speed="")
        self.by_rows = corpus.rows is not None
        pending: deque[tuple[int, Future[Encoded]]] = deque()
        position = state.read[name]
        for rows in _shards(corpus, position):
            held_out = len(rows) if name == "validation" else max(0, min(len(rows), boundary - position))
            position += len(rows)
            pending.append((position, pool.submit(self.encoder.encode, rows, share, held_out)))
            if len(pending) > width:
                self._append(name, *pending.popleft(), state)
        while pending:
            self._append(name, *pending.popleft(), state)

    def _append(self, corpus: str, position: int, future: "Future[Encoded]", state: _Journal) -> None:
        """Append one shard to the files, then to the journal: what the journal does not know does not count."""
        shard = future.result()
        splits = dict(state.splits)
        for (name, (token_ids, lengths)), size in zip(
            (("train", shard.train), ("validation", shard.validation)), shard.text, strict=True
        ):
            tokens, documents, read = splits[name]
            if not len(lengths):
                continue
            ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(tokens)
            for ending, values in (("tokens", token_ids), ("ends", ends)):
                with (self.partial / f"{name}.{ending}").open("ab") as stream:
                    stream.write(values.tobytes())
            splits[name] = [tokens + len(token_ids), documents + len(lengths), read + size]
        before = state.read[corpus]
        after = _Journal({**state.read, corpus: position}, splits, state.empty + shard.empty)
        text = json.dumps(after.__dict__, indent=1) + "\n"
        write_atomically(self.partial / "journal.json", text, sync=False)  # or it knows more than the files hold
        state.__dict__.update(after.__dict__)
        self.written += len(shard.train[0]) + len(shard.validation[0])
        self._notice(state, (position - before) if self.by_rows else shard.size)

    def _notice(self, state: _Journal, advance: int) -> None:
        """Move the bar on a terminal; write a line now and then elsewhere."""
        now = time.monotonic()
        speed = f"{self.written / max(now - self.started, 1e-9) / 1e6:.2f} million tokens/s"
        self.bar.update(self.task, advance=advance, speed=speed)
        if self.bar.disable and now - self.noticed > NOTICE_SECONDS:
            self.noticed = now
            tokens = sum(count for count, *_ in state.splits.values())
            logger.info("tokenised %s documents, %s tokens, %s", f"{sum(state.read.values()):,}", f"{tokens:,}", speed)

    def _finish(self, state: _Journal) -> None:
        self._check(state)
        corpus = self.corpora["train"]
        manifest = {
            **self.options,
            "name": corpus.name,
            "dtype": self.encoder.dtype.name,
            "splits": state.splits,
            "empty": state.empty,
            "seconds": round(time.monotonic() - self.started, 3),
            "versions": {name: version(name) for name in ("turncoder", "transformers", "tokenizers", "numpy")},
        }
        for name in state.splits:
            for ending in ("tokens", "ends"):
                with (self.partial / f"{name}.{ending}").open("rb") as stream:
                    os.fsync(stream.fileno())
        write_atomically(self.partial / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        (self.partial / "journal.json").unlink(missing_ok=True)
        self.partial.rename(self.home)

    def _check(self, state: _Journal) -> None:
        """Refuse a result that nothing can be trained on, and leave nothing of it."""
        corpus = self.corpora["train"].name
        documents = {name: count for name, (_, count, _) in state.splits.items()}
        message = None
        if not sum(documents.values()):
            message = f"{corpus}: no text at all, {state.empty} empty documents; look at the file and at text_column"
        elif not documents["validation"] and "validation" in self.corpora:
            message = f"{self.corpora['validation'].name}: no text at all in the validation data (validation_file)"
        elif not documents["validation"] and self.percentage:
            message = (
                f"{corpus}: validation_split_percentage {self.percentage:g} of {documents['train']} documents leaves "
                "none for validation; raise it, or give a validation_file"
            )
        elif not documents["train"]:
            message = (
                f"{corpus}: validation_split_percentage {self.percentage:g} leaves none of {documents['validation']} "
                "documents for training; lower it or bring more text"
            )
        if message:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise UserError(message)


def _shards(corpus: Corpus, skip: int) -> Iterator[list[Any]]:
    """Yield lists of rows of about a million characters, from row ``skip`` on."""
    rows: list[Any] = []
    size = 0
    for row in itertools.islice(corpus, skip, None):
        rows.append(row)
        size += len(row)
        if size >= SHARD_CHARACTERS or len(rows) >= SHARD_TEXTS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows
