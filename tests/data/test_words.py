"""Words: every sentence and word of real files, each where it stands in the text; what is wrong with a file named."""

import gzip
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import datasets
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turncoder.data import saved, words
from turncoder.data.words import WordSet, find_column, open_words
from turncoder.errors import UserError

REAL = {
    "ud_english_ewt/en_ewt-ud-train.conllu": (12544, 204577),
    "ud_english_ewt/en_ewt-ud-dev.conllu": (2001, 25147),
    "ud_english_ewt/en_ewt-ud-test.conllu": (2077, 25094),
    "uner_english_ewt/en_ewt-ud-train.prerelease.iob2": (12543, 204579),
    "uner_english_ewt/en_ewt-ud-dev.iob2": (2001, 25149),
    "uner_english_ewt/en_ewt-ud-test.iob2": (2077, 25097),
    "masc_tagged/masc.tsv": (34530, 592469),
}
CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O
. . O O

# # B-NP O
Peter NNP I-NP B-PER
Blackburn NNP I-NP I-PER
"""
ROWS = [
    (
        ["EU", "rejects", "German", "call", "."],
        ["NNP", "VBZ", "JJ", "NN", "."],
        ["B-NP", "B-VP", "B-NP", "I-NP", "O"],
        ["B-ORG", "O", "B-MISC", "O", "O"],
    ),
    (["#", "Peter", "Blackburn"], ["#", "NNP", "NNP"], ["B-NP", "I-NP", "I-NP"], ["O", "B-PER", "I-PER"]),
]
CONLLU = """# text = Vámonos al mar, ¿no?
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\tV\tMood=Imp|Number=Plur\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\tCase=Acc|Number=Plur\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tP\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tD\tDefinite=Def\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\tN\tNumber=Sing\t1\tobl\t_\tCorrectSpaceAfter=Yes|SpaceAfter=No
6\t,\t,\tPUNCT\tF\t_\t7\tpunct\t_\tCorrectSpaceAfter=No
6.1\tsí\tsí\tADV\tR\t_\t_\t_\t_\t_
7\t¿\t¿\tPUNCT\tF\t_\t1\tpunct\t_\tSpaceAfter=No
8-9\tno?\t_\t_\t_\t_\t_\t_\t_\t_
8\tno\tno\tADV\tR\t_\t1\tadvmod\t_\t_
9\t?\t?\tPUNCT\tF\t_\t1\tpunct\t_\t_

"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    logging.getLogger("turncoder").propagate = True
    return tmp_path / "cache" / "words"


def write(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def take_spans(read: WordSet) -> list[list[str]]:
    """What stands at the spans."""
    return [
        [row["text"][start:end] for start, end in zip(row["starts"], row["ends"], strict=True)] for row in read.data
    ]


@pytest.mark.parametrize("file", REAL)
def test_real_files_are_read_whole(file: str, shared: Path):
    """Sentences and words as their sources count them; words and labels as the lines have them; spans hold words."""
    path = shared / "data" / file
    read = open_words(file=str(path))
    assert (len(read), read.num_words) == REAL[file]
    lines = path.read_text(encoding="utf8").split("\n")
    rows = [line.split("\t") for line in lines if "\t" in line and line[:2] != "# "]
    if read.columns != ("tags",):
        rows = [row[1:] for row in rows if row[0].isdecimal()]
    column, place = {"upos": ("xpos", 3), "ner": ("ner", 1), "tags": ("tags", 1)}[read.columns[0]]
    labels = ["" if row[place] == "_" else row[place] for row in rows]
    assert [label for labels in read.labels(column) for label in labels] == labels
    assert [word for row in read.data["words"] for word in row] == [row[0] for row in rows]
    texts = [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]
    assert read.data["text"][:] == texts or not texts
    assert take_spans(read) == read.data["words"][:]


def test_features_of_a_treebank_are_columns(shared: Path):
    path = shared / "data" / "ud_english_ewt" / "en_ewt-ud-dev.conllu"
    read = open_words(file=str(path))
    feats = re.findall(r"^\d+\t(?:[^\t]*\t){4}([^\t]*)", path.read_text(encoding="utf8"), re.MULTILINE)
    for name in ("Number", "Tense", "VerbForm", "PronType"):
        values = [dict(pair.split("=") for pair in one.split("|") if one != "_").get(name, "") for one in feats]
        assert [label for labels in read.labels(f"feats:{name}") for label in labels] == values
        assert find_column(read, name) == f"feats:{name}"
    assert [label for labels in read.labels("feats") for label in labels] == feats


@pytest.mark.parametrize("name", ["eng.testa", "eng.testa.gz", "eng.txt"])
@pytest.mark.parametrize("separator", [" ", "\t", "   "])
def test_columns_of_conll_2003(name: str, separator: str, tmp_path: Path):
    read = open_words(file=write(tmp_path / name, CONLL.replace(" ", separator)))
    assert read.columns == ("pos", "chunk", "ner")
    assert list(zip(read.data["words"], *map(read.labels, read.columns), strict=True)) == ROWS
    assert read.data["text"][:] == [" ".join(row[0]) for row in ROWS]
    assert read.words(1) == ROWS[1][0]
    assert read.counts == {"documents": 1, "sentences": 2, "words": 8}
    assert read.schemes == {"pos": None, "chunk": "iob2", "ner": "iob2"}


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ((0, 1, 2), ("pos", "chunk")),
        ((0, 1, 3), ("pos", "ner")),
        ((0, 3), ("ner",)),
        ((0, 2), ("chunk",)),
        ((0, 1), ("tags",)),
        ((0, 2, 3), ("chunk", "ner")),
        ((0, 0, 1, 2, 3), ("lemma", "pos", "chunk", "ner")),
        ((0, 1, 1), ("column_2", "column_3")),
        ((0, 1, 0, 1, 3), ("column_2", "lemma", "pos", "ner")),
    ],
)
def test_columns_are_named_by_what_is_in_them(columns: tuple[int, ...], names: tuple[str, ...], tmp_path: Path):
    lines = [line.split() for line in CONLL.split("\n")[2:]]
    content = "\n".join("\t".join(line[place] for place in columns) if line else "" for line in lines)
    read = open_words(file=write(tmp_path / "a.conll", content))
    assert read.columns == names
    assert list(read.data["words"]) == [row[0] for row in ROWS]


def test_columns_may_have_names(tmp_path: Path):
    content = "# global.columns = ID FORM CASE Punct\n# text = Hi, you\n1\thi\tTitle\t,\n2\tyou\tlower\t_\n"
    read = open_words(file=write(tmp_path / "a.tsv", content))
    assert read.columns == ("case", "punct")
    assert list(read.labels("case")) == [["Title", "lower"]]
    for names in ("FORM TEXT", "FORM A A"):
        with pytest.raises(UserError, match=rf"global.columns: {names[5:9].split()[0]} is taken; give each column"):
            open_words(file=write(tmp_path / "b.tsv", f"# global.columns = {names}\nhi\t1\t2\n"))
    with pytest.raises(UserError, match=r"global.columns = ID CASE does not fit; it names the 2 columns of the first"):
        open_words(file=write(tmp_path / "b.tsv", "# global.columns = ID CASE\n1\thi\n"))


@pytest.mark.parametrize("text", [True, False])
def test_multiword_tokens_and_space_after(text: bool, tmp_path: Path):
    """With the text, and without it from SpaceAfter alone, also that of a token of several words."""
    content = CONLLU if text else CONLLU.partition("\n")[2]
    read = open_words(file=write(tmp_path / "a.conllu", content))
    assert read.data["text"][0] == "Vámonos al mar, ¿no?"
    assert read.words(0) == ["Vamos", "nos", "a", "el", "mar", ",", "¿", "no", "?"]
    assert take_spans(read) == [["Vámonos", "Vámonos", "al", "al", "mar", ",", "¿", "no", "?"]]
    assert list(read.labels("xpos")) == [["V", "", "P", "D", "N", "F", "F", "R", "F"]]
    assert read.counts == {"sentences": 1, "words": 9, "ranges": 3, "empty nodes": 1}


def test_space_after_a_multiword_token(tmp_path: Path):
    row = "\t_\t_\t_\t_\t_\t_\t_\t"
    content = f"1-2\tdel{row}SpaceAfter=No\n1\tde\t_\tADP{row[4:]}_\n2\tel\t_\tDET{row[4:]}_\n3\tsol\t_\tN{row[4:]}_\n"
    read = open_words(file=write(tmp_path / "a.conllu", content))
    assert (read.data["text"][0], take_spans(read)[0]) == ("delsol", ["del", "del", "sol"])
    assert read.columns == ("upos",)


def test_a_text_that_is_not_made_of_its_words(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    content = "# text = do  mar\n1\tde\tO\n2\to\tO\n3\tmar\tB-LOC\n\n# text =  a \u00a0 b \n1\ta\tO\n2\tb\tB-LOC\n"
    read = open_words(file=write(tmp_path / "a.iob2", content))
    assert read.data["text"][:] == ["de o mar", " a \u00a0 b "]
    assert take_spans(read) == read.data["words"][:] == [["de", "o", "mar"], ["a", "b"]]
    assert "sentences whose text is not made of their words, which are joined instead: 1" in caplog.text


WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r "), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sentences=st.lists(st.lists(st.tuples(WORD, st.sampled_from(["", " ", "  ", "\u00a0"])), min_size=1), min_size=1)
)
def test_words_are_found_in_any_text(sentences: list[list[tuple[str, str]]], tmp_path: Path):
    """Control characters, lone combining marks, emoji, right-to-left: each word is at its span, in the file's text."""
    content = ""
    for sentence in sentences:
        content += "# text = " + "".join(map("".join, sentence)) + "\n"
        content += "".join(f"{number}\t{word}\tX\n" for number, (word, _) in enumerate(sentence, 1)) + "\n"
    read = open_words(file=write(tmp_path / "a.iob2", content))
    assert take_spans(read) == read.data["words"][:] == [[word for word, _ in sentence] for sentence in sentences]


@pytest.mark.parametrize(
    "word", ["\x07", "\x1c", "\u0301", "👩‍👩‍👧", "שלום", "\u200b", "\u00a0", "\u2028", "1 000", "#", ""]
)
@pytest.mark.parametrize("name", ["a.tsv", "a.iob2"])
def test_strange_words_are_words(word: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [("first", "O"), (word, "B-X"), (word, "I-X")]
    lines = ["\t".join([str(number)] * (name == "a.iob2") + list(row)) for number, row in enumerate(rows, 1)]
    read = open_words(file=write(tmp_path / name, "\n".join(lines)))
    assert read.words(0) == take_spans(read)[0] == ["first", word, word]
    assert list(read.labels("ner")) == [["O", "B-X", "I-X"]]
    assert ("words without a character: 2" in caplog.text) == (word == "")


@pytest.mark.parametrize("change", ["crlf", "bom", "no end", "blank lines", "comment"])
@pytest.mark.parametrize("content", [CONLL, CONLLU], ids=["columns", "conllu"])
def test_other_ways_to_write_a_file(change: str, content: str, tmp_path: Path):
    plain = open_words(file=write(tmp_path / "plain.conll", content))
    changed = {
        "crlf": content.replace("\n", "\r\n"),
        "bom": "\ufeff" + content,
        "no end": content.rstrip("\n"),
        "blank lines": "\n \n\t\n" + content.replace("\n\n", "\n\n\n") + "\n",
        "comment": "# newdoc id = a\n# about = us\n\n" + content,
    }[change]
    read = open_words(file=write(tmp_path / "changed.conll", changed))
    assert read.data[:] == plain.data[:]
    assert {**read.counts, "empty sentences": 0} == {**plain.counts, "empty sentences": 0}


def test_a_sentence_of_5000_words(tmp_path: Path):
    read = open_words(file=write(tmp_path / "a.conll", "".join(f"word{n} N{n % 7}\n" for n in range(5000))))
    assert (len(read), read.num_words) == (1, 5000)
    assert take_spans(read)[0] == read.words(0) == [f"word{n}" for n in range(5000)]


@pytest.mark.parametrize("content", ["a\tX\nb Y\n", "a X\nb\tY\n", "1\ta\tX\n2 b\tY\n"])
def test_tabs_and_spaces_mixed_are_told(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    read = open_words(file=write(tmp_path / "a.conll", content))
    assert (read.words(0), list(read.labels("tags"))) == (["a", "b"], [["X", "Y"]])
    assert "lines with tabs and spaces mixed: 1" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "a X\nb\n", r"a.conll, line 2: expected 2 fields separated by spaces, found 1 \('b'\)"),
        ("a.conll", "a X\n\nb X Y\n", "a.conll, line 3: expected 2 fields separated by spaces, found 3"),
        ("a.tsv", "a\tX\nb\tX\tY\n", "a.tsv, line 2: expected 2 fields separated by tabs, found 3"),
        ("a.tsv", "a X\tY\nb\tc\td\n", "a.tsv, line 2: expected 2 fields separated by tabs, found 3"),
        ("a.iob2", "1\ta\tX\n2\tb\n", "a.iob2, line 2: expected at least 3 fields separated by tabs, found 2"),
        ("a.iob2", "1\ta\tX\n\n2\tb\tY\n", "a.iob2, line 3: '2' stands where word 1 is due; words are numbered from 1"),
        ("a.conllu", "1\ta\tX\n", "a.conllu, line 1: expected 10 fields separated by tabs, found 3"),
        ("a.conllu", CONLLU.replace("\n3\t", "\n4\t"), "a.conllu, line 6: '4' stands where word 3 is due"),
        ("a.conllu", CONLLU.replace("\n3-4\t", "\n4-5\t"), "a.conllu, line 5: '4-5' stands where word 3 is due"),
        ("a.conllu", CONLLU.replace("\n9\t", "\n#"), "a.conllu, line 1: a multiword token here ends at word 9 of 8"),
        ("a.txt", "Only a text.\nNo labels.\n", "a.txt, line 2: expected 3 fields separated by spaces, found 2"),
        ("a.txt", "words\nalone\n", "a.txt: 'words' is all that stands in a line; it needs a word and its labels"),
        ("a.conll", "a\t\nb\t\n", "a.conll: no words with labels in it"),
        ("a.conll", "", "a.conll: no words in it"),
        ("a.conllu", "\n\n# only = comments\n\n", "a.conllu: no words in it"),
        ("a.conll", b"a X\nb Y\n\xe9t\xe9 Z\n", r"a.conll, line 3 \(byte 8\): not UTF-8; convert the file"),
        ("a.conll.gz", gzip.compress(b"a X\n" * 999, mtime=0)[:-9], "a.conll.gz: not a whole gzip file"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["X"]}\n{"tokens"', "a.jsonl, line 2: broken JSON"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["X"]}\n{"tokens": ["a", "b"], "tags": ["X"]}', "line 2: 2 words in 't"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["X"]}\n{"tokens": ["a"]}', "line 2: no list 'tags'; it has tokens"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["X"]}\n{"tokens": [{}], "tags": ["X"]}', "line 2: {} in 'tokens' is"),
        ("a.jsonl", '{"text": "a"}', "a.jsonl, line 1: no list of words; tokens, words, forms, form are looked for"),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": "X"}',
            "line 1: no list of labels as long as 'tokens'; it has tokens, t",
        ),
        ("a.jsonl", '{"tokens": [], "tags": []}', "a.jsonl: no words in it"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', "a.jsonl: no words with labels in it"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: str | bytes, message: str, tmp_path: Path, cache: Path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        open_words(file=str(path))
    assert str(caught.value).startswith(f"train_file: {path}") and "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


PIECES = [
    "\t",
    " ",
    "\n",
    "\n\n",
    "#",
    "# text = a b",
    "a",
    "1",
    "2",
    "1-2",
    "1.1",
    "_",
    "B-X",
    "I-X",
    "-DOCSTART-",
    "\r\n",
]
PIECES += ["\x85", "\ufeff", "1\ta\ta\tN\tN\tA=b\t0\troot\t_\tSpaceAfter=No\n", "# global.columns = FORM A\n", "a\tO\n"]
PIECES += ['{"tokens": ', '["a", "b"]', ', "tags": ', '["B-X", null]', "}\n", "[1]", '"text"', "{}"]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(PIECES)), name=st.sampled_from(["a.conll", "a.conllu", "a.iob2", "a.jsonl"]))
def test_any_file_is_read_or_refused(pieces: list[str], name: str, tmp_path: Path):
    """No traceback, and what is read fits together."""
    path = write(tmp_path / name, "".join(pieces))
    try:
        read = open_words(file=path)
    except UserError as error:
        assert path in str(error) and "\n" not in str(error)
        return
    assert sum(map(len, read.forms())) == read.num_words > 0
    for row in read.data:
        assert {len(row[name]) for name in ("words", "starts", "ends", *read.columns)} == {len(row["words"])}
        assert all(0 <= start <= end <= len(row["text"]) for start, end in zip(row["starts"], row["ends"], strict=True))


def test_what_is_not_there_is_named_by_its_key(tmp_path: Path):
    with pytest.raises(UserError, match=r"test_file: /no/file: no such file"):
        open_words(file="/no/file", key="test_file")
    with pytest.raises(UserError, match=r"test_file: .*: a folder, but no saved data set"):
        open_words(file=str(tmp_path), key="test_file")
    with pytest.raises(UserError, match=r"name one of validation_file .* and dataset_name"):
        open_words(key="validation_file")
    with pytest.raises(UserError, match=r"name one of train_file .* and dataset_name"):
        open_words(file="a", dataset_name="b")


def test_words_that_a_treebank_withholds_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    row = "{0}\t_\t_\tNOUN" + 6 * "\t_" + "\n"
    open_words(file=write(tmp_path / "a.conllu", row.format(1) + row.format(2) + "\n" + CONLLU))
    assert "sentences whose words are all '_'" in caplog.text and caplog.text.strip().endswith(": 1")


def test_iob1_is_read_as_iob2(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    read = open_words(file=write(tmp_path / "a.conll", "a I-PER\nb B-PER\nc O\nd I-LOC\ne I-LOC\nf I-PER\n"))
    assert read.schemes == {"ner": "iob1"}
    assert list(read.labels("ner")) == [["B-PER", "B-PER", "O", "B-LOC", "I-LOC", "B-PER"]]
    assert "begin a span" not in caplog.text
    read = open_words(file=write(tmp_path / "b.conll", "a S-PER\nb B-PER\nc E-PER\n"))
    assert (read.schemes, list(read.labels("ner"))) == ({"ner": "bioes"}, [["B-PER", "B-PER", "I-PER"]])
    read = open_words(file=write(tmp_path / "c.conll", "a B-PER\nb O\nc B-PER\nd I-LOC\n"))
    assert (read.schemes, list(read.labels("ner"))) == ({"ner": "iob2"}, [["B-PER", "O", "B-PER", "B-LOC"]])
    assert "tags I- that begin a span, read as B-: 1" in caplog.text


RECORDS = [
    dict(zip(("id", "tokens", "pos_tags", "chunk_tags", "ner_tags"), (str(number), *row), strict=True))
    for number, row in enumerate(ROWS)
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "jsonl.gz"])
def test_records(ending: str, tmp_path: Path):
    records = [{"id": "-", "tokens": [], "pos_tags": [], "chunk_tags": [], "ner_tags": []}, *RECORDS]
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        datasets.Dataset.from_list(records).to_parquet(path)
    else:
        write(path, json.dumps(records) if ending == "json" else "\n".join(map(json.dumps, records)))
    read = open_words(file=str(path))
    assert read.columns == ("pos_tags", "chunk_tags", "ner_tags")
    assert list(zip(read.data["words"], *map(read.labels, read.columns), strict=True)) == ROWS
    assert read.counts == {"empty sentences": 1, "sentences": 2, "words": 8}
    assert find_column(read, "ner") == "ner_tags"


def test_records_may_have_a_text_and_words_without_labels(tmp_path: Path):
    record = {"text": "Oh, aé!", "tokens": ["Oh", ",", "aé", "!"], "tags": ["O", None, "B-X", "O"], "words": 4 * [""]}
    read = open_words(file=write(tmp_path / "a.jsonl", json.dumps(record)))
    assert read.data["text"][0] == "Oh, aé!" and take_spans(read)[0] == record["tokens"]
    assert list(read.labels("tags")) == [["O", "", "B-X", "O"]]
    assert (read.columns, read.schemes) == (("tags",), {"tags": "iob2"})


def save(path: Path, ner: list[str]) -> datasets.Dataset:
    """Save CoNLL-2003 as the hub has it: labels are numbers of classes."""
    columns = {name: sorted({label for row in RECORDS for label in row[name]}) for name in ("pos_tags", "chunk_tags")}
    columns["ner_tags"] = ner
    features = {name: datasets.List(datasets.ClassLabel(names=names)) for name, names in columns.items()}
    features |= {"id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("string"))}
    data = datasets.Dataset.from_list(RECORDS, features=datasets.Features(features))
    datasets.DatasetDict(train=data, validation=data.select([1])).save_to_disk(path)
    return data


def test_saved_data_sets_have_names_of_labels(tmp_path: Path):
    save(tmp_path / "saved", ["O", "B-PER", "I-PER", "B-ORG", "B-MISC"])
    for where in ({"file": str(tmp_path / "saved")}, {"dataset_name": str(tmp_path / "saved")}):
        read = open_words(**where)
        assert [list(read.labels(column)) for column in ("pos_tags", "chunk_tags", "ner_tags")] == [
            [row[place] for row in ROWS] for place in (1, 2, 3)
        ]
        assert read.data["words"][:] == [row[0] for row in ROWS]
        assert open_words(**where, split="validation").data["words"][:] == [ROWS[1][0]]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        open_words(file=str(tmp_path / "saved"), split="test")


def test_hub_ids_lead_to_homes_without_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = save(tmp_path / "saved", ["O", "B-PER", "I-PER", "B-ORG", "B-MISC"])
    asked = []

    def load(name: str, config: str | None, **options: str | None) -> datasets.Dataset:
        asked.append((name, config, options["split"]))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load)
    read = open_words(dataset_name="conll2003", split="validation")
    assert (read.name, read.where, len(read)) == ("conll2003", "conll2003, split validation", 2)
    open_words(dataset_name="universal_dependencies", dataset_config_name="en_ewt")
    assert asked == [
        ("lhoestq/conll2003", None, "validation"),
        ("commul/universal_dependencies", "en_ewt", "train"),
    ]
    assert saved.find_home("eriktks/conll2003") == "lhoestq/conll2003"


@pytest.mark.parametrize("script", [True, False])
def test_universal_dependencies_of_the_hub(script: bool, tmp_path: Path):
    """As the old script gave them (a multiword token has a row of its own, features are dicts), and as CoNLL-U has."""
    record = {
        "text": "I don't.",
        "tokens": ["I", "do", "n't", "."],
        "upos": ["PRON", "AUX", "PART", "PUNCT"],
        "xpos": ["PRP", "VBP", None, "."],
        "feats": ["Number=Sing|Person=1", "Tense=Past", None, None],
        "head": ["0", "1", "1", "1"],
        "deprel": ["nsubj", "root", "advmod", "punct"],
    }
    if script:
        record = {name: value if name == "text" else [*value[:1], "_", *value[1:]] for name, value in record.items()}
        record["tokens"][1], record["head"][1] = "don't", "None"
        record["feats"] = ["{'Number': 'Sing', 'Person': '1'}", "None", "{'Tense': 'Past'}", "None", "None"]
    read = open_words(file=write(tmp_path / "a.jsonl", json.dumps(record)))
    assert read.words(0) == take_spans(read)[0] == ["I", "do", "n't", "."]
    assert read.data["text"][0] == "I don't."
    assert read.columns == ("upos", "xpos", "feats", "deprel", "feats:Number", "feats:Person", "feats:Tense")
    assert list(read.labels("upos")) == [["PRON", "AUX", "PART", "PUNCT"]]
    assert list(read.labels("deprel")) == [["nsubj", "root", "advmod", "punct"]]
    assert list(read.labels("xpos")) == [["PRP", "VBP", "", "."]]
    assert list(read.labels("feats:Tense")) == [["", "Past", "", ""]]
    assert list(read.labels("feats")) == [["Number=Sing|Person=1", "Tense=Past", "_", "_"]]


def test_numbers_without_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "a.jsonl", '{"tokens": ["a", "b", "c"], "ner_tags": [3, 0, -100]}')
    assert list(open_words(file=path).labels("ner_tags")) == [["3", "0", ""]]
    assert "the labels 'ner_tags' are numbers without names" in caplog.text


def test_find_column(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "turncoder")
    conll = open_words(file=write(tmp_path / "a.conll", CONLL))
    for task in ("ner", "ner_tags", "pos", "pos_tags", "chunk", "chunk_tags"):
        assert find_column(conll, task) == task.removesuffix("_tags")
    with pytest.raises(UserError, match=r"task = 'upos': no such column of labels in .*a.conll; it has pos, chunk, n"):
        find_column(conll, "upos")
    assert not caplog.records
    treebank = open_words(file=write(tmp_path / "a.conllu", CONLLU))
    assert find_column(treebank, "feats:Number") == find_column(treebank, "Number") == "feats:Number"
    assert not caplog.records
    assert find_column(treebank, "pos_tags") == "xpos"
    assert "task = 'pos_tags': a.conllu has UPOS and XPOS; XPOS is taken" in caplog.text
    with pytest.raises(UserError, match=r"tasks = 'ner_tags': no such column"):
        find_column(treebank, "ner_tags", key="tasks")
    single = open_words(file=write(tmp_path / "a.tsv", "a\tTitle\nb\tlower\n"))
    assert find_column(single, "case") == "tags"
    assert "task = 'case': 'tags', the only column of labels of a.tsv, is taken" in caplog.text
    for read in (single, conll):
        with pytest.raises(UserError, match=r"task = 'pos,ner' is taken for one name; .* apart: --task pos ner$"):
            find_column(read, "pos,ner")


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path):
    first = open_words(file=write(tmp_path / "a.conll", CONLL))
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere" / "b.conll", CONLL)
    read = words.read_sentences
    monkeypatch.setattr(words, "read_sentences", None)
    second = open_words(file=moved)
    assert second.data[:] == first.data[:] and second.fingerprint == first.fingerprint
    assert (second.name, second.counts, second.schemes) == ("b.conll", first.counts, first.schemes)
    monkeypatch.setattr(words, "read_sentences", read)
    assert open_words(file=write(tmp_path / "c.conll", CONLL + "\na B C O\n")).fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 2


PEAK = """
import sys
from turncoder.data.words import open_words
open_words(file=sys.argv[1])
base = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
open_words(file=sys.argv[2])
after = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
sys.stdout.write(str(int(after[0].split()[1]) - int(base[0].split()[1])))
"""


@pytest.mark.skipif(not psutil.LINUX, reason="reads /proc")
def test_memory_does_not_grow_with_the_file(shared: Path, tmp_path: Path):
    """Eight times the dev set takes about as much memory as twice it: 11 MB of text would be over 100 MB of objects."""
    content = (shared / "data" / "ud_english_ewt" / "en_ewt-ud-dev.conllu").read_bytes()
    paths = [write(tmp_path / f"{times}.conllu", content * times) for times in (2, 8)]
    done = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 25_000
