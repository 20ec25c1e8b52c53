"""One pass from text to tokens on disk: streamed, resumable, and kept under a fingerprint so that it is done once.

The tokens of a corpus are appended, a shard of text at a time, to flat files in ``FOLDER/FINGERPRINT.partial``; after
each shard a journal says how much of them counts. A killed run is taken up at the journal, with identical bytes in the
end. When all is done the folder loses its ``.partial``, in one rename. How tokens are cut into rows is decided when
they are read (:mod:`turncoder.data.blocks`), so another ``block_size`` costs nothing.
"""

import hashlib
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turncoder.data.blocks import Blocks, Layout, TokenFile
from turncoder.data.corpus import Corpus
from turncoder.data.encoding import Encoded, Encoder, start_workers
from turncoder.data.tokenizer import digest_tokenizer
from turncoder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Blocks", "default_cache", "prepare_blocks"]

logger = logging.getLogger("turncoder")

FORMAT = 1
SHARD_CHARACTERS = 1 << 19
SHARD_TEXTS = 1 << 15
NOTICE_SECONDS = 30.0


def default_cache() -> Path:
    """Say where prepared tokens are kept: ``TURNCODER_CACHE``, else ``turncoder`` in the user's cache folder."""
    named = os.environ.get("TURNCODER_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turncoder"


def prepare_blocks(
    *,
    corpus: Corpus,
    validation: Corpus | None = None,
    tokenizer: "PreTrainedTokenizerBase",
    block_size: int,
    folder: Path | None = None,
    validation_percentage: float = 5,
    line_by_line: bool = False,
    workers: int | None = None,
    as_llm2vec: bool = False,
) -> tuple[Blocks, Blocks | None]:
    """Turn a corpus into rows of tokens on disk, or find those that an earlier call made.

    Parameters
    ----------
    corpus, validation
        From :func:`turncoder.data.corpus.open_corpora`.
    tokenizer
        Its own special tokens are put around each document.
    block_size
        Largest number of tokens in a row.
    folder
        Under which the tokens are kept, in a folder named by their fingerprint; None means :func:`default_cache`.
    validation_percentage
        Without a validation corpus: the share of documents, by a hash of their text, that becomes one. 0 means none.
    line_by_line
        One document per row instead of packed blocks; longer ones become several rows.
    workers
        Processes that tokenise; None means this one, with the tokenizer's own threads.
    as_llm2vec
        As LLM2Vec does it: the first documents validate, empty ones are kept (packed), what is left over of each
        thousand documents is dropped, and with ``line_by_line`` what is too long is cut off.

    Returns
    -------
    tuple of Blocks
        Training and validation rows; the second is None when there is no validation corpus and the percentage is 0.

    Raises
    ------
    UserError
        No text at all, none for training or none for validation, token ids outside of the vocabulary, or whatever is
        wrong with the files.
    OSError
        Such as a full disk; finished shards stay and are taken up again.
    """
    if block_size < 2:
        raise UserError(f"max_seq_length {block_size} is too short; a row needs at least 2 tokens")
    if validation is None and not 0 <= validation_percentage < 100:
        raise UserError(f"validation_split_percentage {validation_percentage} is not in [0, 100)")
    options = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "validation": None if validation is None else validation.fingerprint,
        "validation_percentage": None if validation is not None else float(validation_percentage),
        "tokenizer": digest_tokenizer(tokenizer),
        "tokenizers": _version("tokenizers"),
        "keep_empty": as_llm2vec and not line_by_line,
        "first_validate": as_llm2vec and validation is None,
    }
    fingerprint = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    root = default_cache() / "tokens" if folder is None else Path(folder)
    home = root / fingerprint[:20]
    if not (home / "manifest.json").exists():
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{fingerprint[:20]}.lock"):
            if not (home / "manifest.json").exists():
                _Pass(corpus, validation, tokenizer, options, home).run(workers)
    manifest = json.loads((home / "manifest.json").read_text())
    layout: Layout = "packed"
    if corpus.tokenised or (line_by_line and not as_llm2vec):
        layout = "pieces"
    elif as_llm2vec:
        layout = "truncated" if line_by_line else "llm2vec"
    train, held_out = (
        Blocks(TokenFile(home, name, manifest["dtype"], tokens, documents, fingerprint), block_size, layout)
        for name, (tokens, documents) in manifest["splits"].items()
    )
    _report(manifest, train, held_out)
    return train, None if validation is None and validation_percentage == 0 else held_out


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _lock(path: Path) -> Any:
    from filelock import FileLock

    return FileLock(path)


def _report(manifest: dict[str, Any], train: Blocks, held_out: Blocks) -> None:
    counts = train.counts
    left = f"the last one has {counts['remainder']} tokens" if counts["remainder"] else "none is short"
    if counts["dropped"]:
        left = f"{counts['dropped']:,} tokens left out, as LLM2Vec does"
    logger.info(
        "%s: %s documents (%s empty), %s tokens, %s rows of up to %s for training (%s), %s for validation; in %s",
        manifest["name"],
        f"{sum(documents for _, documents in manifest['splits'].values()):,}",
        f"{manifest['empty']:,}",
        f"{sum(tokens for tokens, _ in manifest['splits'].values()):,}",
        f"{len(train):,}",
        train.block_size,
        left,
        f"{len(held_out):,}",
        train.file.folder,
    )


@dataclass
class _Journal:
    """What of the partial files counts, and how far the corpora have been read."""

    read: dict[str, int]
    splits: dict[str, list[int]]  # name: [tokens, documents]
    empty: int = 0


class _Pass:
    """The pass itself: reads shards of text, has them tokenised, appends, and keeps the journal."""

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
        pool: Executor = (
            ThreadPoolExecutor(2) if workers is None or workers <= 1 else start_workers(self.encoder, workers)
        )
        try:
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
        state = _Journal(dict.fromkeys(self.corpora, 0), {"train": [0, 0], "validation": [0, 0]})
        if path.exists():
            state = _Journal(**json.loads(path.read_text()))
            logger.info("%s: taken up after %s documents", self.home, f"{sum(state.read.values()):,}")
        self._truncate(state)
        return state

    def _truncate(self, state: _Journal) -> None:
        for name, (tokens, documents) in state.splits.items():
            for ending, size in (("tokens", tokens * self.encoder.dtype.itemsize), ("ends", documents * 8)):
                with (self.partial / f"{name}.{ending}").open("ab") as stream:
                    stream.truncate(size)

    def _read(self, name: str, corpus: Corpus, state: _Journal, pool: Executor, width: int) -> None:
        boundary = 0
        if self.options["first_validate"]:
            boundary = round(self.percentage * sum(1 for _ in corpus) / 100)
        share = 0.0 if self.options["first_validate"] else self.percentage
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
        for name, (token_ids, lengths) in (("train", shard.train), ("validation", shard.validation)):
            tokens, documents = splits[name]
            if not len(lengths):
                continue
            ends = np.cumsum(lengths, dtype=np.uint64) + np.uint64(tokens)
            for ending, values in (("tokens", token_ids), ("ends", ends)):
                with (self.partial / f"{name}.{ending}").open("ab") as stream:
                    stream.write(values.tobytes())
            splits[name] = [tokens + len(token_ids), documents + len(lengths)]
        after = _Journal({**state.read, corpus: position}, splits, state.empty + shard.empty)
        _write_json(self.partial / "journal.json", after.__dict__)
        state.__dict__.update(after.__dict__)
        self._notice(state)

    def _notice(self, state: _Journal) -> None:
        now = time.monotonic()
        if now - self.noticed > NOTICE_SECONDS:
            self.noticed = now
            tokens = sum(count for count, _ in state.splits.values())
            logger.info("tokenised %s documents, %s tokens", f"{sum(state.read.values()):,}", f"{tokens:,}")

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
            "versions": {name: _version(name) for name in ("turncoder", "transformers", "tokenizers", "numpy")},
        }
        for name in state.splits:
            for ending in ("tokens", "ends"):
                with (self.partial / f"{name}.{ending}").open("rb") as stream:
                    os.fsync(stream.fileno())
        _write_json(self.partial / "manifest.json", manifest)
        (self.partial / "journal.json").unlink(missing_ok=True)
        self.partial.rename(self.home)

    def _check(self, state: _Journal) -> None:
        """Refuse a result that nothing can be trained on, and leave nothing of it."""
        corpus = self.corpora["train"].name
        documents = {name: count for name, (_, count) in state.splits.items()}
        message = None
        if not sum(documents.values()):
            message = f"{corpus}: no text at all, {state.empty} empty documents; look at the file and at text_column"
        elif not documents["validation"] and "validation" in self.corpora:
            message = f"{self.corpora['validation'].name}: no text at all in the validation data (validation_file)"
        elif not documents["validation"] and self.percentage:
            message = (
                f"{corpus}: validation_split_percentage {self.percentage:g} of {documents['train']} documents leaves "
                "none for validation; raise it, give a validation_file, or set it to 0 with do_eval false"
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
    """Yield lists of rows of about half a million characters, from row ``skip`` on."""
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".new")
    try:
        partial.write_text(json.dumps(value, indent=1) + "\n")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
