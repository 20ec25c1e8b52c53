"""Labels: spans written in any scheme are the same spans in IOB2; what a training file does not have is told."""

import tracemalloc
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from turncoder.data.labels import IGNORED, UNSEEN, LabelSet, TagSight, to_iob2
from turncoder.data.words import WordSet
from turncoder.errors import UserError
from turncoder.evaluate.words import find_spans

# A sentence is a list of spans and gaps: (type or None, words)
PIECES = st.lists(st.tuples(st.sampled_from([None, "PER", "LOC", "MISC-of-a-kind"]), st.integers(1, 4)), max_size=6)


def write(pieces: list[tuple[str | None, int]], scheme: str) -> list[str]:
    """Write spans in a scheme, after its definition."""
    tags: list[str] = []
    for number, (kind, length) in enumerate(pieces):
        if kind is None:
            tags += ["O"] * length
            continue
        if scheme == "iob1":
            follows = number > 0 and pieces[number - 1][0] == kind
            tags += ["B-" + kind if follows else "I-" + kind] + ["I-" + kind] * (length - 1)
        elif scheme == "iob2":
            tags += ["B-" + kind] + ["I-" + kind] * (length - 1)
        else:
            begin, inside, end, single = scheme
            middle = [f"{inside}-{kind}"] * (length - 2)
            tags += [f"{single}-{kind}"] if length == 1 else [f"{begin}-{kind}", *middle, f"{end}-{kind}"]
    return tags


def find_scheme(sentences: list[list[str]]) -> str | None:
    sight = TagSight()
    for tags in sentences:
        sight.see(tags)
    return sight.scheme


@pytest.mark.parametrize(
    ("written", "scheme"),
    [("iob1", "iob1"), ("iob2", "iob2"), ("BIES", "bioes"), ("BILU", "bioes"), ("BMES", "bioes")],
)
@given(sentences=st.lists(PIECES, min_size=1, max_size=5))
def test_spans_are_the_same_in_iob2(sentences: list[list[tuple[str | None, int]]], written: str, scheme: str):
    tags = [write(pieces, written) for pieces in sentences]
    found = find_scheme(tags)
    assert found == (scheme if any(kind for pieces in sentences for kind, _ in pieces) else None)
    for pieces, sentence in zip(sentences, tags, strict=True):
        normal = to_iob2(sentence, found)
        assert normal == write(pieces, "iob2")
        assert [(kind, start, end + 1) for kind, start, end in get_entities(normal)] == [
            (kind, start, end) for start, end, kind in find_spans(normal)
        ]


@given(
    tags=st.lists(st.sampled_from(["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"]), max_size=12),
)
def test_broken_tags_keep_the_spans_that_conlleval_finds(tags: list[str]):
    """However a file breaks its scheme, what is read holds its spans, and is IOB2."""
    found = find_scheme([tags])
    assume(found is not None)
    normal = to_iob2(tags, found)
    assert find_spans(normal) == find_spans(tags)
    assert find_scheme([normal]) == "iob2"
    assert to_iob2(normal, "iob2") == normal


@pytest.mark.parametrize(
    "tags",
    [
        ["NOUN", "VERB"],
        ["O", "O"],
        ["", ""],
        ["S", "B", "E"],  # of an Italian tag set
        ["B-NP", "I-NP", "PUNCT"],
        ["O", "B-", "I"],
        ["O", "BPER"],
    ],
)
def test_other_labels_mark_no_spans(tags: list[str]):
    assert find_scheme([tags]) is None
    assert to_iob2(tags, None) == tags


def test_spans_without_types_and_words_without_labels():
    assert find_scheme([["B", "I", "O"]]) == "iob2"
    assert to_iob2(["I", "I", "O", "I"], "iob1") == ["B", "I", "O", "B"]
    assert to_iob2(["I-A", "", "I-A"], "iob1") == ["B-A", "", "B-A"]


def test_the_scheme_that_is_broken_less():
    good = ["B-A", "I-A", "O", "B-A"]
    assert find_scheme([good, good, ["O", "I-A"]]) == "iob2"
    assert find_scheme([["I-A", "O", "I-A"], ["I-A", "B-A"], ["O", "B-A"]]) == "iob1"


class Labelled:
    """Words of which only the labels matter."""

    where = "a file"

    def __init__(self, *sentences: list[str]) -> None:
        self.schemes = {"ner": "iob2"}
        self.sentences = sentences

    def labels(self, column: str) -> Iterator[list[str]]:
        assert column == "ner"
        yield from self.sentences


def test_labels_have_numbers():
    train = Labelled(["O", "B-PER", "", "I-PER"], ["B-LOC"], ["O"])
    labels = LabelSet.collect(train, "ner")
    assert labels.names == ("O", "B-LOC", "B-PER", "I-PER")
    assert (labels.scheme, len(labels)) == ("iob2", 4)
    numbers = labels.number(["I-PER", "B-MISC", "", "O"])
    assert numbers.dtype == np.int64 and numbers.tolist() == [3, UNSEEN, IGNORED, 0]
    assert labels.unseen(Labelled(["B-MISC", "", "O"], ["B-MISC", "I-MISC"]), "ner") == Counter(
        {"B-MISC": 2, "I-MISC": 1}
    )
    assert not labels.unseen(Labelled(["", ""]), "ner")
    told = r"a file: no label of its column ner \(NN, VB\) was .*; those are O, B-LOC, B-PER, \.\.\.: give"
    with pytest.raises(UserError, match=told):
        labels.unseen(Labelled(["NN", "", "VB"]), "ner")


def test_memory_does_not_grow_with_the_sentences_that_labels_are_collected_from():
    data = Dataset.from_dict({"tags": [["B-PER", "O"] * 10] * 20_000})
    words = WordSet("words", "words", data, ("tags",), {"tags": None})
    tracemalloc.start()
    names = LabelSet.collect(words, "tags").names
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert names == ("O", "B-PER") and peak < 4 << 20
