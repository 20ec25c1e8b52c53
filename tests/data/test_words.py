"""Words: every sentence and word of real files, each where it stands in the text; what is wrong with a file named."""

import re
from pathlib import Path

import pytest

from turncoder.data.words import open_words

REAL = {
    "ud_english_ewt/en_ewt-ud-train.conllu": (12544, 204577),
    "ud_english_ewt/en_ewt-ud-dev.conllu": (2001, 25147),
    "ud_english_ewt/en_ewt-ud-test.conllu": (2077, 25094),
    "uner_english_ewt/en_ewt-ud-train.prerelease.iob2": (12543, 204579),
    "uner_english_ewt/en_ewt-ud-dev.iob2": (2001, 25149),
    "uner_english_ewt/en_ewt-ud-test.iob2": (2077, 25097),
    "masc_tagged/masc.tsv": (34530, 592469),
}


@pytest.mark.parametrize("file", REAL)
def test_real_files_are_read_whole(file: str, shared: Path):
    """Sentences and words as their sources count them; words and labels as the lines have them; spans hold words."""
    path = shared / "data" / file
    words = open_words(file=str(path))
    assert (len(words), words.num_words) == REAL[file]
    rows = [
        line.split("\t") for line in path.read_text(encoding="utf8").split("\n") if "\t" in line and line[:2] != "# "
    ]
    if words.columns != ("tags",):
        rows = [row[1:] for row in rows if row[0].isdecimal()]
    column, place = {"upos": ("xpos", 3), "ner": ("ner", 1), "tags": ("tags", 1)}[words.columns[0]]
    assert [label for labels in words.labels(column) for label in labels] == [
        "" if row[place] == "_" else row[place] for row in rows
    ]
    assert [word for row in words.data["words"] for word in row] == [row[0] for row in rows]
    texts = re.findall(r"^# text = (.*)$", path.read_text(encoding="utf8"), re.MULTILINE)
    data = words.data
    assert data["text"][:] == texts or not texts
    assert not any(
        [text[start:end] for start, end in zip(*spans, strict=True)] != row
        for text, row, *spans in zip(data["text"], data["words"], data["starts"], data["ends"], strict=True)
    )
