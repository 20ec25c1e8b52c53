"""Words with labels: sentences of a file or a data set, written to disk once and mapped into memory from there."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, islice
from operator import ne
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from turncoder.data.labels import Scheme, TagSight, to_iob2
from turncoder.data.packing import default_cache
from turncoder.data.records import read_records
from turncoder.data.saved import is_saved, open_dataset
from turncoder.data.store import fill_folder
from turncoder.data.wordformats import MIXED, Sentence, find_layout, name_columns, read_sentences
from turncoder.data.wordrecords import find_class_names, iterate_rows, open_word_records
from turncoder.errors import UserError

__all__ = ["WordSet", "find_column", "open_words"]

logger = logging.getLogger("turncoder")

FORMAT = 2
BATCH_SENTENCES = 1000
FACTS = "facts.json"
DATA = "words.arrow"
RECORD_ENDINGS = (".jsonl", ".json", ".parquet")
MENDED = "tags I- that begin a span, read as B-"
OTHER_TEXT = "sentences whose text is not made of their words, which are joined instead"
EMPTY = "words without a character"
TOLD = (MIXED, MENDED, OTHER_TEXT, EMPTY)
FEATURE = "feats:"
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
        Gives the names of the columns of labels, whether they are more than numbers, and what reads the sentences and
        counts what it skips.
    """

    name: str
    where: str
    digest: str
    begin: Callable[[], tuple[tuple[str, ...], bool, Callable[[Counter[str]], Iterator[Sentence]]]]


def open_words(
    *,
    file: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
    key: str = "train_file",
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
        What ``file`` is called in messages.

    Raises
    ------
    UserError
        Nothing was named, or both; missing, empty or broken files.
    """
    if (file is None) == (dataset_name is None):
        raise UserError(f"name one of {key} (a file of words) and dataset_name (a hub id)")
    path = Path(str(file)).expanduser()
    if file is None or is_saved(path):
        name = dataset_name or str(file)
        asked = "dataset_name" if file is None else key
        data = open_dataset(name, config=dataset_config_name, split=split, cache_dir=cache_dir, key=asked)
        source = _from_dataset(name, split, data)
    else:
        source = _from_file(path, key)
    fingerprint = hashlib.sha256(f"{FORMAT} {source.digest}".encode()).hexdigest()
    home = default_cache() / "words" / fingerprint[:32]
    if not (home / FACTS).exists():
        _write(home, source)
    facts = json.loads((home / FACTS).read_text())
    schemes: dict[str, Scheme | None] = facts["schemes"]
    stored = Dataset.from_file(str(home / DATA))
    words = WordSet(source.name, source.where, stored, tuple(schemes), schemes, facts["counts"], fingerprint)
    _report(words)
    return words


def _from_file(path: Path, key: str) -> Source:
    if not path.is_file():
        raise UserError(f"{key}: {path}: {'a folder, but no saved data set' if path.exists() else 'no such file'}")

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
    logger.info(
        "%s: %s sentences, %s words, labels: %s",
        words.name,
        f"{len(words):,}",
        f"{words.num_words:,}",
        ", ".join(words.columns),
    )
    for what in TOLD:
        if words.counts.get(what):
            logger.warning("%s: %s: %s", words.where, what, f"{words.counts[what]:,}")


def _write(home: Path, source: Source) -> None:
    """Read twice: for the columns and their schemes, and for the sentences."""
    names, named, read = source.begin()
    sights = [TagSight() for _ in names]
    features: set[str] = set()
    for sentence in read(Counter()):
        for name, sight, tags in zip(names, sights, sentence.labels, strict=True):
            sight.see(tags)
            if name == "feats":
                features.update(tags)
    if not any(sight.labelled for sight in sights):
        raise UserError(f"{source.where}: no words with labels in it")
    names = names if named else name_columns(sights, names)
    feature_names = sorted({name for feats in features for name in _parse_feats(feats)})
    schemes = {
        name: sight.scheme
        for name, sight in zip(names, sights, strict=True)
        if sight.labelled and (name != "feats" or feature_names)
    }
    counts: Counter[str] = Counter()
    with fill_folder(home, FACTS) as folder:
        columns = [*schemes, *(FEATURE + name for name in feature_names)]
        strings = dict.fromkeys([*columns, "words"], List(Value("string")))
        spans = dict.fromkeys(["starts", "ends"], List(Value("int32")))
        writer = ArrowWriter(features=Features({"text": Value("string"), **spans, **strings}), path=str(folder / DATA))
        try:
            sentences = read(counts)
            while batch := list(islice(sentences, BATCH_SENTENCES)):
                writer.write_table(_tabulate(batch, names, schemes, feature_names, counts))
            writer.finalize()
        finally:
            writer.close()
        facts = {"schemes": dict.fromkeys(columns) | schemes, "counts": +counts}
        (folder / FACTS).write_text(json.dumps(facts))


def _tabulate(
    batch: list[Sentence],
    names: tuple[str, ...],
    schemes: dict[str, Scheme | None],
    features: list[str],
    counts: Counter[str],
) -> pa.Table:
    """Put sentences into a table whose columns are those of a :class:`WordSet`; count them."""
    texts, starts, ends, own = zip(*(sentence.place() for sentence in batch), strict=True)
    lengths = [len(sentence.words) for sentence in batch]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())

    def nest(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
        flat = values if isinstance(values, pa.Array) else pa.array(chain.from_iterable(values), kind)
        return pa.ListArray.from_arrays(offsets, flat)

    columns = {
        "text": pa.array(texts, pa.string()),
        "starts": nest(starts, pa.int32()),
        "ends": nest(ends, pa.int32()),
    }
    for place, name in enumerate(names):
        if name not in schemes:
            continue
        tags = [sentence.labels[place] for sentence in batch]
        normal = [to_iob2(one, schemes[name]) for one in tags]
        if schemes[name] == "iob2":
            counts[MENDED] += sum(map(ne, chain.from_iterable(tags), chain.from_iterable(normal)))
        columns[name] = nest(normal, pa.string())
        if name == "feats":
            found = pa.array(chain.from_iterable(tags), pa.string()).dictionary_encode()
            values = [_parse_feats(feats) for feats in found.dictionary.to_pylist()]
            for feature in features:
                each = pa.array([value.get(feature, "") for value in values], pa.string())
                columns[FEATURE + feature] = nest(each.take(found.indices), pa.string())
    columns["words"] = nest((sentence.words for sentence in batch), pa.string())
    counts["sentences"] += len(batch)
    counts["words"] += sum(lengths)
    counts[OTHER_TEXT] += own.count(False)
    counts[EMPTY] += sum(sentence.words.count("") for sentence in batch)
    return pa.table(columns)


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
    if len(words.columns) == 1:
        logger.warning("%s = %r: %r, the only column of labels of %s, is taken", key, task, *words.columns, words.name)
        return words.columns[0]
    raise UserError(f"{key} = {task!r}: no such column of labels in {words.where}; it has {', '.join(words.columns)}")


@cache
def _parse_feats(feats: str) -> dict[str, str]:
    """Take the features of a CoNLL-U field apart."""
    pairs = (one.partition("=") for one in feats.split("|") if "=" in one)
    return {name: value for name, _, value in pairs}
