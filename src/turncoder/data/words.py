"""Words with labels: sentences of a file or a data set, written to disk once and mapped into memory from there."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets import Dataset

from turncoder.data.labels import Scheme
from turncoder.data.records import read_records
from turncoder.data.saved import is_saved, iterate_rows, open_dataset
from turncoder.data.wordformats import Sentence, find_layout, read_sentences
from turncoder.data.wordrecords import find_class_names, open_word_records
from turncoder.data.wordtable import BATCH_SENTENCES, DATA, FACTS, FEATURE, TOLD, Begin, write_words
from turncoder.disk import default_cache
from turncoder.errors import UserError

__all__ = ["WordSet", "find_column", "open_words"]

logger = logging.getLogger("turncoder")

FORMAT = 2
RECORD_ENDINGS = (".jsonl", ".json", ".parquet")
SAME = ({"ner", "ner_tags"}, {"pos", "pos_tags"}, {"chunk", "chunk_tags"}, {"upos", "upos_tags"}, {"xpos", "xpos_tags"})


@dataclass(frozen=True)
class WordSet:
    """Sentences whose words have labels.

    Attributes
    ----------
    name, where
        File or data set; the whole path, or the data set with its split.
    data
        The columns ``text``; ``starts`` and ``ends``, the character spans of the words in it (code points); a list of
        strings for each of ``columns``; and ``words``, the forms, which are what the spans hold except in a multiword
        token that is not written as its words are.
    columns
        Those of the labels.
    schemes
        How each column marked spans in the file. What ``data`` holds is IOB2; None: it marks none.
    counts
        Sentences, words, and what was skipped or mended.
    fingerprint
        Of the content.
    """

    name: str
    where: str
    data: Dataset
    columns: tuple[str, ...]
    schemes: dict[str, Scheme | None]
    counts: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""

    def __len__(self) -> int:
        """Count the sentences."""
        return len(self.data)

    @property
    def num_words(self) -> int:
        """Count the words."""
        return self.counts["words"]

    def labels(self, column: str) -> Iterator[list[str]]:
        """Yield the labels of each sentence; "" is a word without one, which is not scored."""
        assert column in self.columns, column
        yield from self._column(column)

    def forms(self) -> Iterator[list[str]]:
        """Yield the words of each sentence."""
        yield from self._column("words")

    def _column(self, name: str) -> Iterator[list[str]]:
        for batch in self.data.select_columns([name]).with_format("arrow").iter(BATCH_SENTENCES):
            yield from batch.column(0).to_pylist()

    def words(self, row: int) -> list[str]:
        """Give the words of a sentence."""
        return self.data[row]["words"]


@dataclass(frozen=True)
class Source:
    """Where sentences come from.

    Attributes
    ----------
    name, where
        As in a :class:`WordSet`.
    digest
        Of the content, and of how it is read.
    begin
        Starts reading it; see :func:`turncoder.data.wordtable.write_words`.
    """

    name: str
    where: str
    digest: str
    begin: Begin


def open_words(
    *,
    file: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
    key: str | None = None,
) -> WordSet:
    """Read words with their labels; the second time they come from the cache.

    Parameters
    ----------
    file
        CoNLL-U; IOB2 with numbered words and comments, as UniversalNER has it; columns, as CoNLL-2003 has them, with
        ``# global.columns = FORM ...`` as their names if they have some; or JSONL, JSON or Parquet with a list
        ``tokens`` and lists of labels: each also gzipped. Or a folder that ``datasets`` saved.
    dataset_name, dataset_config_name, split, cache_dir
        Of a hub data set instead.
    key
        What ``file``, or the data set, is called in messages; None: ``train_file`` or ``dataset_name``.

    Raises
    ------
    UserError
        Nothing was named, or both; missing, empty or broken files.
    """
    if (file is None) == (dataset_name is None):
        raise UserError(f"name one of {key or 'train_file'} (a file of words) and dataset_name (a hub id)")
    key = key or ("dataset_name" if file is None else "train_file")
    path = Path(str(file)).expanduser()
    if file is None or is_saved(path):
        name = dataset_name or str(file)
        data = open_dataset(name, config=dataset_config_name, split=split, cache_dir=cache_dir, key=key)
        source = _from_dataset(name, split, data)
    else:
        source = _from_file(path, key)
    fingerprint = hashlib.sha256(f"{FORMAT} {source.digest}".encode()).hexdigest()
    home = default_cache() / "words" / fingerprint[:32]
    if not (home / FACTS).exists():
        try:
            write_words(home, source.begin, source.where)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    facts = json.loads((home / FACTS).read_text())
    schemes: dict[str, Scheme | None] = facts["schemes"]
    stored = Dataset.from_file(str(home / DATA))
    words = WordSet(source.name, source.where, stored, tuple(schemes), schemes, facts["counts"], fingerprint)
    _report(words)
    return words


def _from_file(path: Path, key: str) -> Source:
    if not path.is_file():
        why = "a folder, but no saved data set; name a file in it" if path.exists() else "no such file"
        raise UserError(f"{key}: {path}: {why}")

    def begin() -> tuple[tuple[str, ...], bool, Callable[[Counter[str]], Iterator[Sentence]]]:
        if ending in RECORD_ENDINGS:
            records = open_word_records(partial(read_records, path), str(path), {})
            return records.names, True, records.read
        layout = find_layout(path)
        return layout.names, layout.named, partial(read_sentences, path, layout)

    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Source(path.name, str(path), f"{ending} {digest}", begin)


def _from_dataset(name: str, split: str, data: Dataset) -> Source:
    where = f"{name}, split {split}"

    def begin() -> tuple[tuple[str, ...], bool, Callable[[Counter[str]], Iterator[Sentence]]]:
        records = open_word_records(partial(iterate_rows, where, data), where, find_class_names(data))
        return records.names, True, records.read

    return Source(name, where, data._fingerprint, begin)


def _report(words: WordSet) -> None:
    """Tell what was read, and what was not as it should be."""
    columns = [column for column in words.columns if not column.startswith(FEATURE)]
    features = len(words.columns) - len(columns)
    logger.info(
        "%s: %s sentences, %s words, labels: %s",
        words.name,
        f"{len(words):,}",
        f"{words.num_words:,}",
        ", ".join([*columns, *([f"{features} features by name"] if features else [])]),
    )
    for what in TOLD:
        if words.counts.get(what):
            logger.warning("%s: %s: %s", words.where, what, f"{words.counts[what]:,}")


def find_column(words: WordSet, task: str, key: str = "task") -> str:
    """Find the column of labels that a task is about.

    Parameters
    ----------
    words
        What has the columns.
    task
        A column; or another name of it: ``ner_tags``, ``pos_tags``, ``chunk_tags``, a feature without ``feats:``.
        ``pos_tags`` of CoNLL-U are XPOS, as LLM2Vec's fork for words takes them. Of a single column the name does not
        matter.
    key
        What ``task`` is called in messages.

    Raises
    ------
    UserError
        There is none; the message names those that there are.
    """
    names = next((names for names in SAME if task in names), {task}) | {FEATURE + task}
    if found := [task] * (task in words.columns) or [column for column in words.columns if column in names]:
        return found[0]
    if task in ("pos", "pos_tags") and "xpos" in words.columns:
        logger.warning("%s = %r: %s has UPOS and XPOS; XPOS is taken (upos names the other)", key, task, words.name)
        return "xpos"
    if "," in task:
        each = task.replace(",", " ").split()
        raise UserError(f"{key} = {task!r} is taken for one name; give several apart: --{key} {' '.join(each)}")
    if len(words.columns) == 1:
        logger.warning("%s = %r: %r, the only column of labels of %s, is taken", key, task, *words.columns, words.name)
        return words.columns[0]
    raise UserError(f"{key} = {task!r}: no such column of labels in {words.where}; it has {', '.join(words.columns)}")
