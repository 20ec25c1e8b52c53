"""The table of words on disk: sentences, where their words stand, and labels in IOB2."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from operator import ne
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from datasets.arrow_writer import ArrowWriter

from turncoder.data.labels import Scheme, TagSight, to_iob2
from turncoder.data.store import fill_folder
from turncoder.data.wordformats import MIXED, Sentence, name_columns
from turncoder.errors import UserError

__all__ = ["BATCH_SENTENCES", "DATA", "FACTS", "FEATURE", "TOLD", "Begin", "write_words"]

BATCH_SENTENCES = 1000
FACTS = "facts.json"
DATA = "words.arrow"
MENDED = "tags I- that begin a span, read as B-"
OTHER_TEXT = "sentences whose text is not made of their words, which are joined instead"
EMPTY = "words without a character"
WITHHELD = "sentences whose words are all '_', as in treebanks that are to be merged with their texts first"
TOLD = (MIXED, MENDED, OTHER_TEXT, EMPTY, WITHHELD)
FEATURE = "feats:"

Begin = Callable[[], tuple[tuple[str, ...], bool, Callable[[Counter[str]], Iterator[Sentence]]]]


def write_words(home: Path, begin: Begin, where: str) -> None:
    """Read twice, for the columns and their schemes and for the sentences, and write these to a folder.

    Parameters
    ----------
    home
        The folder: ``DATA``, with the columns of a :class:`turncoder.data.words.WordSet`, and ``FACTS``: the scheme of
        each column of labels, and what was counted.
    begin
        Gives the names of the columns of labels, whether they are more than numbers, and what reads the sentences and
        counts what it skips.
    where
        The words, for messages.

    Raises
    ------
    UserError
        No word has a label; whatever is wrong with a file.
    """
    names, named, read = begin()
    sights = [TagSight() for _ in names]
    features: set[str] = set()
    for sentence in read(Counter()):
        for name, sight, tags in zip(names, sights, sentence.labels, strict=True):
            sight.see(tags)
            if name == "feats":
                features.update(tags)
    if not any(sight.labelled for sight in sights):
        raise UserError(f"{where}: no words with labels in it")
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
    """Put sentences into a table whose columns are those of a :class:`turncoder.data.words.WordSet`; count them."""
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
    counts[WITHHELD] += sum(set(sentence.words) == {"_"} for sentence in batch)
    return pa.table(columns)


@cache
def _parse_feats(feats: str) -> dict[str, str]:
    """Take the features of a CoNLL-U field apart."""
    pairs = (one.partition("=") for one in feats.split("|") if "=" in one)
    return {name: value for name, _, value in pairs}
