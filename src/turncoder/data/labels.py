"""Labels of words: the scheme in which they mark spans, and the set that a training file has."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from turncoder.errors import UserError

if TYPE_CHECKING:
    from turncoder.data.words import WordSet

__all__ = ["IGNORED", "UNSEEN", "LabelSet", "Scheme", "TagSight", "to_iob2"]

Scheme = Literal["iob1", "iob2", "bioes"]

UNSEEN = -1
IGNORED = -100

# BILOU and BMES are BIOES under other letters
SPAN_TAG = re.compile(r"[BIESLUM](?:-.+)?", re.DOTALL)
BEGINNING = frozenset("BSU")
ENDING = frozenset("ESLU")
IOB = frozenset("BI")
SHOWN = 3


@dataclass
class TagSight:
    """What is known of a column after some of its sentences.

    Attributes
    ----------
    labelled
        A word has a label.
    shaped
        All labels so far could mark spans.
    types
        What the spans are.
    strays
        Spans that an I begins, which IOB2 forbids.
    openings
        Spans that a B begins although nothing stands before it that it would have to be told from: IOB1 forbids them.
    """

    labelled: bool = False
    shaped: bool = True
    prefixes: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    strays: int = 0
    openings: int = 0

    def see(self, tags: Sequence[str]) -> None:
        """Look at the labels of one more sentence; "" is a word that has none."""
        if not self.shaped:
            return
        before = None
        for tag in tags:
            if tag in ("O", ""):
                self.labelled |= tag == "O"
                before = None
                continue
            self.labelled = True
            if not SPAN_TAG.fullmatch(tag):
                self.shaped = False
                return
            prefix, type_ = tag[0], tag[2:]
            self.prefixes.add(prefix)
            self.types.add(type_)
            self.strays += prefix == "I" and before != type_
            self.openings += prefix == "B" and before != type_
            before = type_

    @property
    def marks_spans(self) -> bool:
        """The labels mark spans, or all words stand outside; letters alone do only if they are B and I."""
        return self.labelled and self.shaped and (self.types != {""} or self.prefixes <= IOB)

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that fits: None where labels mark no spans, or there are none to tell by.

        "iob1": B only where a span follows another of its type; "iob2": every span begins with B; "bioes": the last
        word of a span has E and a single one S (or L and U). Labels that keep to neither of the first two have the one
        that they break less often.
        """
        if not self.marks_spans or not self.prefixes:
            return None
        if not self.prefixes <= IOB:
            return "bioes"
        return "iob1" if self.strays > self.openings else "iob2"


def to_iob2(tags: Sequence[str], scheme: Scheme | None) -> list[str]:
    """Write labels in IOB2: the same spans, as conlleval finds them, each begun by a B.

    Parameters
    ----------
    tags
        Labels of one sentence.
    scheme
        That of the file; None leaves the labels as they are.
    """
    if scheme is None:
        return list(tags)
    normal, before = [], None
    for tag in tags:
        if tag in ("O", ""):
            normal.append(tag)
            before = None
            continue
        begins = tag[0] in BEGINNING or before != tag[1:]
        normal.append(("B" if begins else "I") + tag[1:])
        before = None if tag[0] in ENDING else tag[1:]
    return normal


@dataclass(frozen=True)
class LabelSet:
    """The labels that a model can predict.

    Attributes
    ----------
    names
        Sorted, O first where there is one.
    scheme
        In which the file marked spans; None: labels that mark none.
    """

    names: tuple[str, ...]
    scheme: str | None = None

    @classmethod
    def collect(cls, words: "WordSet", column: str) -> "LabelSet":
        """Collect the labels of a column."""
        names = {tag for tags in words.labels(column) for tag in tags} - {""}
        return cls(tuple(sorted(names, key=lambda name: (name != "O", name))), words.schemes[column])

    def __len__(self) -> int:
        """Count the labels."""
        return len(self.names)

    def number(self, tags: Sequence[str]) -> np.ndarray:
        """Give labels their numbers, int64 [len(tags)]: UNSEEN what is not in the set, IGNORED a word without one."""
        numbers = self._numbers
        return np.array([numbers.get(tag, UNSEEN) for tag in tags], dtype=np.int64)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)} | {"": IGNORED}

    def unseen(self, words: "WordSet", column: str) -> Counter[str]:
        """Count the labels of a column that are not in the set.

        Raises
        ------
        UserError
            None of its labels is: it holds something else.
        """
        counts = Counter(tag for tags in words.labels(column) for tag in tags if tag)
        unseen = Counter({tag: count for tag, count in counts.items() if tag not in self._numbers})
        if unseen and len(unseen) == len(counts):
            raise UserError(
                f"{words.where}: no label of its column {column} ({_tell_some(list(unseen))}) was trained on; those "
                f"are {_tell_some(self.names)}: give a file that has them, in a column of the same name"
            )
        return unseen


def _tell_some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
