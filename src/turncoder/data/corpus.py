"""A corpus: texts (or rows of token ids) from a file, a folder, a saved dataset or the hub, read as often as needed."""

import hashlib
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turncoder.data.blocks import FORMAT, TokenFile
from turncoder.data.files import ENDINGS, Row, choose_column, find_ending, read_arrow, read_file
from turncoder.data.saved import has_split, is_saved, open_dataset
from turncoder.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from turncoder.config.keys import CorpusKeys
    from turncoder.config.stages import SimcseConfig

__all__ = ["Corpus", "check_column", "find_limit", "is_held_out", "open_corpora", "open_corpus"]

logger = logging.getLogger("turncoder")

ARROW_ROWS = 256
HELD_OUT = re.compile(r"(?<![a-z])(test|valid|validation|dev|eval)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Corpus:
    """Texts, or rows of token ids, that can be read again and again in the same order.

    Attributes
    ----------
    name
        What the user calls it: a path or a hub id.
    read
        Starts a fresh pass over the rows.
    digest
        Computes the fingerprint.
    tokenised
        The rows are token ids and not texts.
    size, rows
        Bytes on disk or number of rows, where one is known beforehand: how long a pass will take.
    prepared
        The folder of tokens that :func:`turncoder.data.packing.prepare_blocks` made, if this is one.
    """

    name: str
    read: Callable[[], Iterator[Row]]
    digest: Callable[[], str]
    tokenised: bool = False
    size: int | None = None
    rows: int | None = None
    prepared: Path | None = None

    def __iter__(self) -> Iterator[Any]:
        """Begin a fresh pass over the rows: strings, or integer arrays when :attr:`tokenised`."""
        return self.read()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the content, not of names or dates: the same texts give the same one, changed texts another."""
        return self.digest()


def open_corpus(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    file: str | Path | None = None,
    text_column: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
    numbers: bool = False,
    key: str | None = None,
) -> Corpus:
    """Open a corpus of any of the shapes that people bring.

    Parameters
    ----------
    dataset_name, dataset_config_name
        A hub id (or the path of a local dataset) and its configuration.
    file
        A ``.txt``, ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file (each also ``.gz``), a folder of those, or a
        ``datasets.save_to_disk`` folder, raw or tokenised (``input_ids`` or ``packed``), or one that ``turncoder
        prepare`` made.
    text_column
        Where the text is; None means ``text``, else the first column.
    split
        The split of a dataset that has several.
    cache_dir
        Where ``datasets`` keeps what it downloads.
    numbers
        Numbers in the column are taken for their digits.
    key
        What the user gave the corpus as, for messages; None: ``train_file`` or ``dataset_name``.

    Raises
    ------
    UserError
        Nothing was named, or both; missing, empty or unreadable data; no such column or split.
    """
    if (file is None) == (dataset_name is None):
        raise UserError("name one of train_file (a file or folder) and dataset_name (a hub id)")
    path = Path(file if file is not None else str(dataset_name)).expanduser()
    if file is not None and not path.exists():
        raise UserError(f"{key or 'train_file'}: {file}: no such file or folder")
    if is_saved(path):
        corpus = _from_dataset(str(path), open_dataset(str(path), split=split), text_column, numbers)
    elif path.is_dir() and (home := _find_prepared(path)):
        corpus = _from_prepared(home)
    elif path.is_dir() and file is not None:
        corpus = _from_files(path, _text_files(path), text_column, numbers)
    elif path.is_file():
        corpus = _from_files(path, [path], text_column, numbers)
    else:
        name = str(dataset_name)
        where: dict[str, Any] = {"config": dataset_config_name, "split": split, "cache_dir": cache_dir}
        dataset = open_dataset(name, **where, key=key or "dataset_name")
        corpus = _from_dataset(name, dataset, text_column, numbers)
    return corpus


def open_corpora(config: "CorpusKeys | SimcseConfig") -> tuple[Corpus, Corpus | None]:
    """Open the training corpus that a config names and, where there is one, its validation corpus.

    The validation corpus is ``validation_file``, else the dataset's own ``validation`` split, else None: then packing
    splits the training corpus.

    Raises
    ------
    UserError
        As :func:`open_corpus`.
    """
    name, file, column = config.dataset_name, config.train_file, config.text_column
    source: dict[str, Any] = {
        "dataset_name": name,
        "dataset_config_name": config.dataset_config_name,
        "file": file,
        "text_column": column,
        "cache_dir": config.cache_dir,
    }
    check_column(column, file or name, config.validation_file)
    train = open_corpus(**source)
    if config.validation_file is not None:
        return train, open_corpus(
            file=config.validation_file, split="validation", text_column=column, key="validation_file"
        )
    if _has_validation(name, config.dataset_config_name, file, config.cache_dir):
        return train, open_corpus(**source, split="validation")
    return train, None


def check_column(text_column: str | None, *sources: str | Path | None) -> None:
    """Refuse a column where every source is a file of lines; raises UserError."""
    named = [source for source in sources if source is not None]
    if text_column and all(find_ending(Path(source)) == ".txt" for source in named):
        raise UserError(f"text_column = {text_column!r}: {named[0]} has lines and no columns; leave the flag out")


def find_limit(share: float) -> float:
    """Give what the CRC-32 of a document's bytes is below when it is among the ``share`` percent held out."""
    return share / 100 * 2**32


def is_held_out(text: str, share: float) -> bool:
    """Say whether a document is among the ``share`` percent held out: the same ones in every stage."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) < find_limit(share)


def check_ids(token_ids: np.ndarray, vocab_size: int, name: str) -> None:
    """Refuse token ids outside of a vocabulary.

    Raises
    ------
    UserError
        An id is negative or not below ``vocab_size``.
    """
    if token_ids.size and (int(token_ids.min()) < 0 or int(token_ids.max()) >= vocab_size):
        worst = int(token_ids.min()) if int(token_ids.min()) < 0 else int(token_ids.max())
        raise UserError(
            f"{name}: token id {worst} is outside of the tokenizer's {vocab_size} tokens; "
            "the corpus was tokenised with another tokenizer: give that one (tokenizer_name), or the raw text"
        )


def _text_files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and find_ending(path) and path.stat().st_size)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _from_files(path: Path, files: list[Path], text_column: str | None, numbers: bool) -> Corpus:
    if not files:
        raise UserError(f"{path}: no text in this folder; looked for {', '.join(ENDINGS)}, each also with .gz")
    apart = [file.name for file in files if len(files) > 1 and HELD_OUT.search(file.name)]
    if apart:
        logger.warning(
            "%s: all %d files are one corpus, %s too; to keep it apart, name files", path, len(files), apart[0]
        )

    def read() -> Iterator[Row]:
        for file in files:
            yield from read_file(file, text_column, numbers=numbers)

    def digest() -> str:
        return _hash_files(files, text_column)

    # What is wrong with the file is said now and not hours later
    first = next(read_file(files[0], text_column, numbers=numbers), "")
    plain = all(find_ending(file) != ".parquet" and not file.name.lower().endswith(".gz") for file in files)
    size = sum(file.stat().st_size for file in files) if plain else None
    return Corpus(str(path), read, digest, isinstance(first, np.ndarray), size)


def _hash_files(files: list[Path], text_column: str | None) -> str:
    whole = hashlib.sha256(repr(text_column).encode())
    for file in files:
        with file.open("rb") as stream:
            whole.update(str(find_ending(file)).encode() + hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _find_prepared(folder: Path) -> Path | None:
    """Find the prepared tokens in ``folder``: it holds them itself, or one folder in it does."""
    homes = [path.parent for pattern in ("train.tokens", "*/train.tokens") for path in folder.glob(pattern)]
    homes = [home for home in homes if (home / "manifest.json").exists()]
    if len(homes) > 1:
        raise UserError(f"{folder}: {len(homes)} prepared corpora; name one: {', '.join(home.name for home in homes)}")
    return homes[0] if homes else None


def _from_prepared(home: Path) -> Corpus:
    manifest = json.loads((home / "manifest.json").read_text())
    if manifest["format"] != FORMAT:
        raise UserError(f"train_file: {home} was prepared by another version of turncoder; prepare the text again")
    tokens, documents, size = manifest["splits"]["train"]
    file = TokenFile(home, "train", manifest["dtype"], tokens, documents, size, manifest["fingerprint"])

    def read() -> Iterator[Row]:
        start = 0
        for end in file.ends:
            yield file.tokens[start : int(end)].astype(np.int64)
            start = int(end)

    return Corpus(str(home), read, lambda: str(manifest["fingerprint"]), True, rows=documents, prepared=home)


def _has_validation(name: str | None, config: str | None, file: str | Path | None, cache_dir: str | None) -> bool:
    path = Path(file if file is not None else str(name)).expanduser()
    is_text = file is not None or path.is_file() or (path.is_dir() and _find_prepared(path) is not None)
    if is_text and not is_saved(path):
        return False
    return has_split(str(file if file is not None else name), "validation", config=config, cache_dir=cache_dir)


def _from_dataset(name: str, dataset: "Dataset", text_column: str | None, numbers: bool) -> Corpus:
    if len(dataset) == 0:
        raise UserError(f"{name}: the dataset has no rows")
    column = choose_column(dataset.column_names, text_column, name)
    table = dataset.select_columns([column]).with_format("arrow")

    def read() -> Iterator[Row]:
        for batch in table.iter(batch_size=ARROW_ROWS):
            yield from read_arrow(batch.column(0), column, name, numbers=numbers)

    def digest() -> str:
        files = [Path(entry["filename"]) for entry in dataset.cache_files]
        if not files:
            return hashlib.sha256(f"{dataset._fingerprint} {column}".encode()).hexdigest()
        return _hash_files(files, column)

    first = next(read(), "")
    return Corpus(name, read, digest, isinstance(first, np.ndarray), rows=len(dataset))
