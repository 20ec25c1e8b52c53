"""Sentences from the records of a file or a data set: a list of words, and lists of labels as long as it."""

import ast
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turncoder.data.sentences import clean
from turncoder.data.wordformats import OURS, Sentence
from turncoder.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["WordRecords", "find_class_names", "open_word_records"]

logger = logging.getLogger("turncoder")

WORDS = ("tokens", "words", "forms", "form")
TEXTS = ("text", "sentence")
NO_LABELS = ("head", "deps", "misc")  # of Universal Dependencies
NOTHING = (None, "", "_", "None")

Records = Callable[[], Iterable[tuple[str, Mapping[str, Any]]]]


@dataclass(frozen=True)
class WordRecords:
    """Records that hold sentences.

    Attributes
    ----------
    records
        Starts a pass over them, each with its place.
    words, text
        Where the words are, and the text if there is one.
    names
        Columns of labels.
    classes
        Names of the labels of a column that holds numbers.
    """

    records: Records
    words: str
    text: str | None
    names: tuple[str, ...]
    classes: Mapping[str, list[str]]

    def read(self, counts: Counter[str]) -> Iterator[Sentence]:
        """Yield the sentences; count what is skipped.

        Raises
        ------
        UserError
            A record whose words or labels are no lists of strings, or lists of different length.
        """
        for place, record in self.records():
            words = _take_strings(place, record, self.words, None)
            labels = [_take_strings(place, record, name, self.classes.get(name)) for name in self.names]
            for name, column in zip(self.names, labels, strict=True):
                if len(column) != len(words):
                    raise UserError(
                        f"{place}: {len(words)} words in {self.words!r} and {len(column)} labels in {name!r}; each "
                        "word has one (null where it has none)"
                    )
            if "feats" in self.names:
                feats = self.names.index("feats")
                labels[feats] = [_write_feats(one) for one in labels[feats]]
            if "upos" in self.names and isinstance(heads := record.get("head"), list) and len(heads) == len(words):
                # The script that the hub had gave a multiword token a row of its own, before those of its words
                tags = labels[self.names.index("upos")]
                own = [tag != "" or head not in NOTHING for tag, head in zip(tags, heads, strict=True)]
                counts["ranges"] += own.count(False)
                words = [word for word, keep in zip(words, own, strict=True) if keep]
                labels = [[label for label, keep in zip(column, own, strict=True) if keep] for column in labels]
            if not words:
                counts["empty sentences"] += 1
                continue
            text = record.get(self.text) if self.text else None
            yield Sentence(words, labels, clean(text) if isinstance(text, str) else None)


def open_word_records(records: Records, where: str, classes: Mapping[str, list[str]]) -> WordRecords:
    """Find out by the first record that has words where they and their labels are.

    Parameters
    ----------
    records
        Starts a pass over them, each with its place.
    where
        File or data set, for messages.
    classes
        Names of the labels of columns that hold numbers.

    Raises
    ------
    UserError
        There are no words, or nothing beside them.
    """
    for place, record in records():
        words = next((name for name in WORDS if isinstance(record.get(name), list)), None)
        if words is None:
            raise UserError(f"{place}: no list of words; {', '.join(WORDS)} are looked for, and it has {_list(record)}")
        if not record[words]:
            continue
        others = [name for name in record if name not in (words, *OURS, *NO_LABELS)]
        names = tuple(name for name in others if _is_column(record, name, words))
        if not names:
            raise UserError(f"{place}: no list of labels as long as {words!r}; it has {_list(record)}")
        for name in names:
            if name not in classes and any(isinstance(label, int) for label in record[name]):
                logger.warning("%s: the labels %r are numbers without names, and mark no spans", where, name)
        text = next((name for name in TEXTS if isinstance(record.get(name), str)), None)
        return WordRecords(records, words, text, names, classes)
    raise UserError(f"{where}: no words in it")


def find_class_names(data: "Dataset") -> dict[str, list[str]]:
    """Give the names of the labels of each column of lists of classes."""
    from datasets import ClassLabel

    inner = {name: getattr(feature, "feature", None) for name, feature in data.features.items()}
    return {name: list(feature.names) for name, feature in inner.items() if isinstance(feature, ClassLabel)}


def _is_column(record: Mapping[str, Any], name: str, words: str) -> bool:
    values = record[name]
    return (
        isinstance(values, list)
        and len(values) == len(record[words])
        and all(value is None or isinstance(value, str | int) for value in values)
    )


def _list(record: Mapping[str, Any]) -> str:
    return ", ".join(record) or "nothing"


def _take_strings(place: str, record: Mapping[str, Any], name: str, classes: list[str] | None) -> list[str]:
    """Take the strings of a list; a label that is nothing, or below 0 as those not to be scored, is empty."""
    values = record.get(name)
    if not isinstance(values, list):
        raise UserError(f"{place}: no list {name!r}; it has {_list(record)}")
    strings = []
    for value in values:
        if isinstance(value, int):
            if classes is not None and value >= len(classes):
                raise UserError(f"{place}: label {value} in {name!r}, which has {len(classes)} classes")
            value = "" if value < 0 else str(value) if classes is None else classes[value]
        if value is not None and not isinstance(value, str):
            raise UserError(f"{place}: {json.dumps(value, default=str)[:40]} in {name!r} is no string")
        strings.append("" if value is None or (value == "_" and name in ("upos", "xpos")) else clean(value))
    return strings


def _write_feats(feats: str) -> str:
    """Write features as CoNLL-U does; the script that the hub had wrote a dict."""
    if feats in NOTHING:
        return "_"
    if not feats.startswith("{"):
        return feats
    return "|".join(f"{name}={value}" for name, value in ast.literal_eval(feats).items())
