"""Corpora: every shape gives the same texts, and what is wrong with a file is said in one line."""

import gzip
import json
import os
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turncoder.config.stages import MntpConfig
from turncoder.data import corpus as corpora
from turncoder.data import files, records
from turncoder.data.corpus import open_corpora, open_corpus
from turncoder.errors import UserError

TEXTS = ["One, two.", 'She said "no"', "눈이 내린다", "a\u2028b", "", "last"]


def write(folder, ending, texts=TEXTS, column="text"):
    path = folder / f"corpus{ending}"
    if ending == ".txt":
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts), encoding="utf-8")
    elif ending == ".json":
        path.write_text(json.dumps([{column: text, "id": 1} for text in texts], ensure_ascii=False), encoding="utf-8")
    elif ending == ".csv":
        rows = "".join('1,"{}"\n'.format(text.replace('"', '""')) for text in texts)
        path.write_text(f"id,{column}\n{rows}", encoding="utf-8")
    else:
        pq.write_table(pa.table({"id": range(len(texts)), column: texts}), path, row_group_size=2)
    return path


def zip_file(path):
    zipped = path.with_name(path.name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return zipped


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("ending", files.ENDINGS)
def test_every_shape_gives_the_same_texts(tmp_path, ending, zipped):
    path = write(tmp_path, ending)
    corpus = open_corpus(file=zip_file(path) if zipped else path)
    assert list(corpus) == TEXTS
    assert list(corpus) == TEXTS, "a corpus can be read again"


@pytest.mark.parametrize(
    ("name", "written"),
    [("a.jsonl", '"One."\n""\n"Two."\n'), ("a.json", '["One.", "",\n"Two."]'), ("a.json", '"One." ""\n"Two."')],
)
def test_json_may_be_texts_alone(tmp_path, name, written):
    path = broken(tmp_path, name, written.encode())
    assert list(open_corpus(file=path)) == ["One.", "", "Two."]
    with pytest.raises(UserError, match=f'{name}, line 1: expected an object like .* found "One."'):
        list(open_corpus(file=path, text_column="story"))


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_half_a_surrogate_pair_is_no_character(tmp_path, ending):
    path = broken(tmp_path, f"a{ending}", b'{"text": "whole \\ud83d\\ude00, cut off \\ud83d"}\n')
    assert list(open_corpus(file=path)) == ["whole \U0001f600, cut off \ufffd"]


def test_folder_is_read_in_the_order_of_names_and_ignores_other_files(tmp_path):
    write(tmp_path, ".txt", ["1", "2"]).rename(tmp_path / "a.txt")
    (tmp_path / "b").mkdir()
    zip_file(write(tmp_path / "b", ".jsonl", ["3"]))
    (tmp_path / "LICENSE").write_text("not a text")
    (tmp_path / ".hidden.txt").write_text("not a text")
    (tmp_path / "b" / "c.txt").touch()
    assert list(open_corpus(file=tmp_path)) == ["1", "2", "3"]


def test_a_folder_with_a_test_file_says_that_it_is_read_too(tmp_path, caplog):
    write(tmp_path, ".txt", ["1"]).rename(tmp_path / "train.txt")
    write(tmp_path, ".txt", ["2"]).rename(tmp_path / "test-1.txt")
    assert list(open_corpus(file=tmp_path)) == ["2", "1"]
    assert "all 2 files are one corpus, test-1.txt too" in caplog.text


def test_a_local_copy_of_a_hub_dataset_keeps_its_splits(tmp_path):
    (tmp_path / "copy").mkdir()
    for name, texts in (("train", ["1", "2"]), ("validation", ["3"])):
        write(tmp_path / "copy", ".jsonl", texts).rename(tmp_path / "copy" / f"{name}.jsonl")
    train, validation = open_corpora(
        MntpConfig(model_name_or_path="m", dataset_name=str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))
    )
    assert list(train) == ["1", "2"]
    assert list(validation) == ["3"]


def test_categories_are_texts(tmp_path):
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(open_corpus(file=tmp_path / "a.parquet")) == ["a", "b", "a"]


@pytest.mark.parametrize("ending", files.ENDINGS[1:])
def test_text_column_is_named_or_text_or_the_first(tmp_path, ending, caplog):
    path = write(tmp_path, ending, column="body")
    assert list(open_corpus(file=path, text_column="body")) == TEXTS
    if ending == ".json":  # there `body` comes first
        assert list(open_corpus(file=path)) == TEXTS
        assert "text_column" in caplog.text


def test_custom_corpus_recipe_of_a_pretty_printed_list(tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=4))
    assert list(open_corpus(file=path)) == TEXTS
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    assert list(open_corpus(file=path)) == TEXTS, "JSON lines under the ending .json"


def test_saved_datasets_raw_and_tokenised(tmp_path):
    raw = datasets.Dataset.from_dict({"text": TEXTS})
    raw.save_to_disk(tmp_path / "raw")
    assert list(open_corpus(file=tmp_path / "raw")) == TEXTS
    parts = datasets.DatasetDict({"train": raw, "validation": raw.select([0])})
    parts.save_to_disk(tmp_path / "parts")
    train, validation = open_corpora(MntpConfig(model_name_or_path="m", train_file=str(tmp_path / "parts")))
    assert list(train) == TEXTS
    assert list(validation) == TEXTS[:1]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        open_corpus(file=tmp_path / "parts", split="test")
    for column in files.TOKEN_COLUMNS:
        datasets.Dataset.from_dict({column: [[1, 2, 3], [4]], "label": [0, 1]}).save_to_disk(tmp_path / column)
        corpus = open_corpus(file=tmp_path / column)
        assert corpus.tokenised
        assert [row.tolist() for row in corpus] == [[1, 2, 3], [4]]


def test_a_shuffled_dataset_is_read_in_its_own_order(tmp_path):
    raw = datasets.Dataset.from_dict({"text": [str(i) for i in range(700)]}).shuffle(seed=1)
    raw.save_to_disk(tmp_path / "raw")
    assert list(open_corpus(file=tmp_path / "raw")) == raw["text"][:]


def test_script_datasets_are_read_from_their_parquet_homes(monkeypatch):
    seen = []

    def load(name, config, split, cache_dir):
        seen.append((name, config, split))
        return datasets.Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = open_corpus(dataset_name="wikitext", dataset_config_name="wikitext-103-raw-v1")
    assert seen == [("Salesforce/wikitext", "wikitext-103-raw-v1", "train")]
    assert list(corpus) == TEXTS


def test_unknown_hub_id_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="dataset_name: 'nobody/nothing'") as caught:
        open_corpus(dataset_name="nobody/nothing")
    assert "\n" not in str(caught.value)


def test_fingerprint_is_of_the_content(tmp_path):
    path = write(tmp_path, ".txt")
    stamp = path.stat().st_mtime_ns
    before = open_corpus(file=path).fingerprint
    moved = path.rename(tmp_path / "moved.txt")
    assert open_corpus(file=moved).fingerprint == before
    moved.write_bytes(moved.read_bytes().replace(b"One", b"Two"))
    os.utime(moved, ns=(stamp, stamp))
    assert open_corpus(file=moved).fingerprint != before, "same name, size and date, other content"


def broken(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.xyz", b"text", r"unknown ending '.xyz'; known: .txt"),
        ("a.txt", b"fine\nfine\ncaf\xe9\n", r"line 3 \(byte 13\): not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "line 3: broken JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2: expected an object"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "line 2: no key 'text'; the keys are body"),
        ("a.jsonl", b'{"text": 1}\n', "line 1: 'text' is not a text but 1"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"\n]', "line 3: broken JSON"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"}\n', "the list is not closed"),
        ("a.csv", b"text,label\na,1\n", "text_column 'nope' is not there; the columns are text, label"),
        ("a.csv", b'text\n"Well, he said\nand left\n', "line 3: broken CSV"),
        ("a.parquet", b"no parquet at all", "not a Parquet file"),
        ("a.txt.gz", b"no gzip at all", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"text\n" * 1000, mtime=0)[:-9], "not a whole gzip file"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, message):
    path = broken(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        list(open_corpus(file=path, text_column="nope" if "nope" in message else None))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_csv_row_names_its_line(tmp_path):
    for row, fields in ((b"2", 1), (b"2,Well, then", 3)):
        path = broken(tmp_path, "a.csv", b"label,text\n1,fine\n" + row + b"\n")
        with pytest.raises(UserError, match=f"line 3: {fields} fields, but the header has 2; quote the texts"):
            list(open_corpus(file=path))


def test_wrong_column_type_and_wrong_column_of_a_saved_dataset(tmp_path):
    datasets.Dataset.from_dict({"score": [0.5]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="column 'score' holds double"):
        open_corpus(file=tmp_path / "saved")
    with pytest.raises(UserError, match="the columns are score"):
        open_corpus(file=tmp_path / "saved", text_column="text")


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match=r"train_file: .*no such file"):
        open_corpus(file=tmp_path / "nope.txt")
    paths = {"train_file": str(write(tmp_path, ".txt")), "validation_file": str(tmp_path / "nope.txt")}
    with pytest.raises(UserError, match=r"validation_file: .*no such file"):
        open_corpora(MntpConfig(model_name_or_path="m", **paths))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text in this folder"):
        open_corpus(file=tmp_path / "empty")
    with pytest.raises(UserError, match="name one of train_file"):
        open_corpus()


def test_ids_of_a_tokenised_corpus_are_checked():
    with pytest.raises(UserError, match="token id 99999 is outside of the tokenizer's"):
        corpora.check_ids(np.array([1, 99999]), 512, "here")
    with pytest.raises(UserError, match="token id -1"):
        corpora.check_ids(np.array([-1]), 10, "here")


@settings(max_examples=60, deadline=None)
@example(texts=["\r"], chunk=1, indent=None, escape=False)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20),
    st.integers(1, 40),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
)
def test_readers_do_not_mind_where_chunks_end(tmp_path_factory, texts, chunk, indent, escape):
    folder = tmp_path_factory.mktemp("chunks")
    path = folder / "a.json"
    path.write_text(json.dumps([{"text": text} for text in texts], indent=indent, ensure_ascii=escape), "utf-8")
    lines = folder / "a.txt"
    lines.write_bytes("\n".join(texts).encode())
    before, records.CHUNK_BYTES = records.CHUNK_BYTES, chunk
    try:
        assert list(files.read_file(path)) == texts
        if lines.stat().st_size:
            expected = lines.read_bytes().decode().removeprefix("\ufeff").split("\n")
            expected = expected if expected[-1] else expected[:-1]  # what follows the last line end, if anything does
            assert list(files.read_file(lines)) == [line.removesuffix("\r") for line in expected]
    finally:
        records.CHUNK_BYTES = before


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".json", ".csv"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    path = write(tmp_path, ending, ["word " * 60] * 40000)  # 12 MB
    corpus = open_corpus(file=path)
    tracemalloc.start()
    count = sum(1 for _ in corpus)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40000
    assert peak < 8e6, f"{peak / 1e6:.1f} MB for a file of {path.stat().st_size / 1e6:.1f} MB"
