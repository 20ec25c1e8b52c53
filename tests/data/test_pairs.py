"""Pairs and texts: the same rows from every kind of file, kept once, and what is wrong with them named."""

import csv
import gzip
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turncoder.data import pairs
from turncoder.data.corpus import open_corpus
from turncoder.data.pairs import hash_rows, open_pairs, open_texts
from turncoder.data.sentences import split_sentences
from turncoder.errors import UserError

ROWS = [("one", "two", "three"), ("vier", "fünf", "sechs"), ("седем", "осем", "девет"), ('"a", b', "c\td", "e")]
NAMES = ("anchor", "positive", "negative_1")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pairs"


def write(path: Path, records: list[dict]) -> Path:
    """Write records as other programs do; CSV and Parquet have all columns in all rows."""
    names = list(dict.fromkeys(name for record in records for name in record))
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf8")
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf8") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(records)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def triplets(*names: str) -> list[dict]:
    return [dict(zip(names, row, strict=True)) for row in ROWS]


def take(rows: pairs.Rows) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in rows.data]


def open_one(path: Path, **options) -> pairs.Rows:
    ((rows, _),) = open_pairs(file=str(path), **options)
    return rows


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "parquet.gz"])
@pytest.mark.parametrize("names", [("anchor", "positive", "negative"), ("query", "positive", "negative_1")])
def test_every_kind_of_file_gives_the_same_rows(ending: str, names: tuple[str, ...], tmp_path: Path):
    rows = open_one(write(tmp_path / f"set.{ending}", triplets(*names)))
    assert rows.data.column_names == list(NAMES)
    assert take(rows) == ROWS
    assert rows.name == "set" and rows.counts == {"rows": len(ROWS)} and not rows.prompts


@pytest.mark.parametrize("columns", [("c", "a"), ("b", "a", "c")])
def test_columns_name_what_counts(columns: tuple[str, ...], tmp_path: Path):
    rows = open_one(write(tmp_path / "set.csv", triplets("a", "b", "c")), columns=columns)
    assert take(rows) == [tuple(row["abc".index(name)] for name in columns) for row in ROWS]


@pytest.mark.parametrize("way", ["file", "dataset_name"])
@pytest.mark.parametrize("split", [True, False])
def test_saved_data_sets(way: str, split: bool, tmp_path: Path):
    data = datasets.Dataset.from_list(triplets("anchor", "positive", "negative"))
    whole = datasets.DatasetDict(train=data, validation=data.select([0])) if split else data
    whole.save_to_disk(tmp_path / "saved")
    ((rows, _),) = open_pairs(**{way: str(tmp_path / "saved")})
    assert take(rows) == ROWS


def test_a_folder_is_a_set_a_file(tmp_path: Path):
    for name, count in (("nq.jsonl", 4), ("fever.jsonl.gz", 3), ("msmarco_passage.parquet", 2)):
        write(tmp_path / name, triplets("query", "positive", "negative")[:count])
    (tmp_path / "README.md").write_text("not a set")
    opened = {rows.name: take(rows) for rows, _ in open_pairs(file=str(tmp_path))}
    assert opened == {"fever": ROWS[:3], "msmarco_passage": ROWS[:2], "nq": ROWS}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(0, 4), min_size=2, max_size=6), ending=st.sampled_from(["jsonl", "csv", "parquet"]))
def test_negatives_in_a_list_or_in_columns(counts: list[int], ending: str, tmp_path: Path):
    lists = [[f"not {row} {number}" for number in range(count)] for row, count in enumerate(counts)]
    sides = [{"anchor": f"a{row}", "positive": f"p{row}"} for row in range(len(counts))]
    fewest = min([count for count in counts if count], default=0)
    wanted = [
        (f"a{row}", f"p{row}", *texts[:fewest]) for row, texts in enumerate(lists) if len(texts) >= fewest or not fewest
    ]
    columns = [
        side | {f"negative_{number + 1}": text for number, text in enumerate([*texts, *[""] * (4 - len(texts))])}
        for side, texts in zip(sides, lists, strict=True)
    ]
    shapes = (
        [columns] if ending == "csv" else [columns, [s | {"negatives": t} for s, t in zip(sides, lists, strict=True)]]
    )
    for records in shapes:
        path = write(tmp_path / f"set.{ending}", records)
        if 0 < 2 * len(wanted) < len(counts):
            with pytest.raises(UserError, match=rf"{len(counts) - len(wanted)} of {len(counts)} rows of .*have no neg"):
                open_one(path)
            sides_alone = open_one(path, columns=("anchor", "positive"))
            assert len(sides_alone) == len(counts)
        elif len(wanted) < 2:
            with pytest.raises(UserError, match=r"1 rows to train on \(\d+ without a negative left out\)"):
                open_one(path)
        else:
            rows = open_one(path)
            assert take(rows) == wanted
            assert rows.counts.get("without a negative", 0) == len(counts) - len(wanted)


def test_different_numbers_of_negatives_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    logging.getLogger("turncoder").propagate = True
    records = [{"anchor": "a", "positive": "b", "negative": n} for n in (["c", "d"], ["e"], ["f", "g", "h"])]
    open_one(write(tmp_path / "set.jsonl", records))
    assert "1 to 3 negatives; 1 of each count" in caplog.text


def test_real_triplets(shared: Path):
    for path in sorted((shared / "data" / "nli_triplets").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
        stripped = [[line[name].strip() for name in ("query", "positive", "negative")] for line in lines]
        good = [tuple(row) for row in stripped if all(row) and row[2] not in row[:2]]
        ((train, held_out),) = open_pairs(file=str(path), share=5.0)
        assert sorted(take(train) + take(held_out)) == sorted(good)
        assert not {row[0] for row in take(train)} & {row[0] for row in take(held_out)}
        assert 0.03 < len(held_out) / len(good) < 0.07
        assert train.counts["rows"] == len(train) and held_out.counts["rows"] == len(held_out)


@pytest.mark.parametrize("split", [False, True])
def test_real_texts(split: bool, shared: Path):
    path = shared / "data" / "wiki_paragraphs_en" / "wiki_en.txt"
    lines = path.read_text(encoding="utf8").split("\n")
    lines = lines[:3000] + lines[:100] + [""] * 7  # some twice, some empty
    corpus = open_corpus(file=str(write_lines(lines)))
    train, held_out = open_texts(corpus, split=split, share=10.0)
    pieces = [text.strip() for line in lines for text in (split_sentences(line) if split else [line]) if text.strip()]
    assert sorted(take(train) + take(held_out)) == [(text,) for text in sorted(set(pieces))]
    assert train.counts["repeated"] == len(pieces) - len(set(pieces)) > 0
    assert [row for (row,) in take(train)] == sorted(train.data["text"][:], key=pieces.index), "in their order"
    twice, _ = open_texts(corpus, split=split, distinct=False)
    assert [row for (row,) in take(twice)] == pieces


def write_lines(lines: list[str]) -> Path:
    path = pairs.default_cache().parent / "lines.txt"
    path.write_text("\n".join(lines), encoding="utf8")
    return path


@given(count=st.integers(1, 30), seed=st.integers(0, 99))
def test_samples_are_drawn_or_are_the_first(count: int, seed: int):
    data = datasets.Dataset.from_dict({"text": [str(number) for number in range(20)]})
    rows = pairs.Rows("set", data, counts={"rows": 20, "empty": 3})
    drawn, first = rows.select(count, seed), rows.select(count, None)
    assert first.data["text"][:] == data["text"][:count]
    assert len(set(drawn.data["text"][:])) == drawn.counts["rows"] == min(count, 20)
    assert drawn.counts["empty"] == 3


@given(st.lists(st.tuples(*3 * [st.sampled_from(["a", "b", "ä", "aa", "b a"])]), min_size=1, max_size=30))
def test_equal_texts_have_equal_hashes(texts: list[tuple[str, str, str]]):
    data = datasets.Dataset.from_dict(dict(zip(NAMES, map(list, zip(*texts, strict=True)), strict=True)))
    hash_NC = hash_rows(pairs.Rows("set", data))
    assert hash_NC.shape == (len(texts), 3)
    flat = [text for row in texts for text in row]
    assert [[x == y for y in flat] for x in flat] == [[x == y for y in hash_NC.ravel()] for x in hash_NC.ravel()]


def test_hashes_of_more_rows_than_are_hashed_together(monkeypatch: pytest.MonkeyPatch):
    rows = pairs.Rows("set", datasets.Dataset.from_dict({"text": [str(number) for number in range(100)]}))
    whole = hash_rows(rows)
    monkeypatch.setattr(pairs, "HASHED_ROWS", 7)
    assert (hash_rows(rows) == whole).all() and len(np.unique(whole)) == 100


GOOD = {"anchor": "a", "positive": "b", "negative": "c"}


@pytest.mark.parametrize(
    ("bad", "kind", "warning"),
    [
        ({"anchor": " "}, "with an empty side", "line 3: a row without anchor"),
        ({"positive": None}, "with an empty side", "line 3: a row without anchor"),
        ({"negative": ""}, "without a negative", "2 rows have no negative and are left out; --columns anchor positive"),
        ({"negative": "a "}, "with a false negative", "line 3: a row whose negative is its anchor"),
        ({"negative": "b"}, "with a false negative", "line 3: a row whose negative is its anchor or positive"),
    ],
)
def test_rows_that_cannot_be_used_are_left_out_and_told(
    bad: dict, kind: str, warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    logging.getLogger("turncoder").propagate = True
    caplog.set_level(logging.INFO, "turncoder")
    path = write(tmp_path / "set.jsonl", [GOOD, GOOD, GOOD | bad, GOOD | bad])
    rows = open_one(path)
    assert take(rows) == [("a", "b", "c")] * 2
    assert rows.counts == {"rows": 2, kind: 2}
    assert caplog.text.count(warning) == 1 and f"2 {kind} left out" in caplog.text
    caplog.clear()
    assert open_one(path).counts == rows.counts and f"2 {kind} left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"anchor": "a"}\n', "line 1: one column, 'anchor'.*simcse"),
        ("a.csv", "text\na\n", "line 2: one column, 'text'"),
        ("a.csv", "anchor,negative\na,b\n", "line 2: no positive among anchor, negative; .*--columns"),
        ("a.csv", "premise,positive\na,b\n", "line 2: no anchor among premise, positive; .*--columns"),
        (
            "a.jsonl",
            '{"anchor": "a", "positive": "b"}\n{"anchor": "a", "positive": "b", "score": 1}\n',
            "line 2.*'score'",
        ),
        (
            "a.jsonl",
            '{"anchor": "a", "positive": "b"}\n{"anchor": "a"}\n',
            "line 2: no column 'positive'; it has anchor",
        ),
        ("a.jsonl", '{"anchor": "a", "positive": "b"}\n{}\n', "line 2: no column 'anchor'; it has none"),
        ("a.jsonl", '{"anchor": "a", "positive": 3}\n', "line 1: 3 is no text"),
        ("a.jsonl", '{"anchor": "a", "positive": ["b"]}\n', r'line 1: \["b"\] is no text'),
        ("a.jsonl", '{"anchor": "a", "positive": "b", "negative": [{"text": "c"}]}\n', 'line 1: {"text": "c"} is no'),
        ("a.jsonl", '{"anchor": "a", "positive": "b"}\n{"anchor\n', "line 2: broken JSON"),
        ("a.jsonl", b'{"anchor": "a", "positive": "b"}\n{"anchor": "\xff"}\n', "line 2.*not UTF-8"),
        ("a.csv", "anchor,positive\na,b\na,b,c\n", "line 3: 3 fields"),
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", "\n\n", "no rows at all"),
        ("a.csv", "anchor,positive\n", "no rows at all"),
        ("a.jsonl", '{"anchor": "a", "positive": "b"}\n', "1 rows to train on; at least two"),
        ("a.jsonl", '{"anchor": "a", "positive": ""}\n' * 3, r"0 rows to train on \(3 with an empty side left out\)"),
        ("a.txt", "a\nb\n", "unknown ending '.txt'"),
        ("README", "a", "unknown ending"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(name: str, content: str | bytes, message: str, tmp_path: Path, cache: Path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        open_pairs(file=str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    if "to train on" not in message:
        assert not list(cache.glob("*")), "nothing half-written is left"


@pytest.mark.parametrize("columns", [("a", "x"), ("x", "a"), ("a", "b", "x")])
def test_columns_that_are_not_there(columns: tuple[str, ...], tmp_path: Path):
    path = write(tmp_path / "set.csv", triplets("a", "b", "c"))
    with pytest.raises(UserError, match=r"columns: no column 'x' in .*set\.csv; it has a, b, c"):
        open_pairs(file=str(path), columns=columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "gone.jsonl"}, "train_file: gone.jsonl: no such file"),
        ({"file": "empty"}, "train_file: empty: no pairs in this folder"),
        ({"dataset_name": "nobody/nothing"}, "dataset_name: 'nobody/nothing'.*cannot be loaded"),
    ],
)
def test_what_is_not_there(options: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        open_pairs(**options)
    assert "\n" not in str(caught.value)


def test_texts_that_are_no_texts_or_too_few(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2]}\n{"input_ids": [3]}\n')
    with pytest.raises(UserError, match="holds token ids"):
        open_texts(open_corpus(file=str(tmp_path / "a.jsonl")))
    (tmp_path / "b.txt").write_text("one\n\none\n one\n")
    with pytest.raises(UserError, match=r"1 rows to train on \((1 empty|2 repeated), (1 empty|2 repeated) left out\)"):
        open_texts(open_corpus(file=str(tmp_path / "b.txt")))


def test_half_a_surrogate_pair(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"anchor": "\\ud800a", "positive": "b"}\n' * 2)
    assert take(open_one(tmp_path / "a.jsonl")) == [("\ufffda", "b")] * 2
    (tmp_path / "b.jsonl").write_text('{"text": "\\ud800a"}\n{"text": "b"}\n')
    assert take(open_texts(open_corpus(file=str(tmp_path / "b.jsonl")))[0]) == [("\ufffda",), ("b",)]


def test_a_second_opening_parses_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "set.jsonl", triplets("anchor", "positive", "negative"))
    first = open_one(path, share=5.0)
    os.utime(path, (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "read_records", lambda path: pytest.fail("read again"))
        again = open_one(path, share=5.0)
    assert again.fingerprint == first.fingerprint and take(again) == take(first) and again.counts == first.counts
    assert len(list(cache.iterdir())) == 1
    others = [open_one(path, share=6.0), open_one(path, columns=("positive", "anchor"), share=5.0)]
    write(path, triplets("anchor", "positive", "negative")[::-1])
    others.append(open_one(path, share=5.0))
    assert len({rows.fingerprint for rows in [first, *others]}) == len(list(cache.iterdir())) == 4
    assert take(others[-1])[0] == ROWS[-1]


OPEN = "import sys; from turncoder.data.pairs import open_pairs; print(len(open_pairs(file=sys.argv[1])[0][0]))"


def test_two_processes_at_once(tmp_path: Path, cache: Path):
    path = write(tmp_path / "set.jsonl", triplets("anchor", "positive", "negative") * 2000)
    processes = [subprocess.Popen([sys.executable, "-c", OPEN, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [b"8000"] * 2
    assert len(list(cache.iterdir())) == 1


def test_the_slower_of_two_uses_what_the_faster_wrote(tmp_path: Path, cache: Path):
    path = write(tmp_path / "set.jsonl", triplets("anchor", "positive", "negative"))
    records, faster = pairs.read_records, []

    def read_slowly(path: Path):
        yield from records(path)
        if not faster:
            faster.append(True)
            faster.append(open_one(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "read_records", read_slowly)
        rows = open_one(path)
    assert take(rows) == take(faster[1]) == ROWS
    assert len(list(cache.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("pairs", 100), ("texts", 110)])
def test_memory_stays_flat(kind: str, most: int, tmp_path: Path):
    """Bytes a row, above what twice fewer take: pairs cost none, texts eight bytes of hash in a set."""

    def measure(count: int) -> int:
        path = tmp_path / f"rows.{'txt' if kind == 'texts' else 'jsonl'}"
        with path.open("w") as stream:
            for number in range(count):
                text = f"a short text {number}"
                stream.write(
                    f"{text}\n" if kind == "texts" else f'{{"anchor": "{text}", "positive": "its {number}"}}\n'
                )
        process = subprocess.Popen([sys.executable, "-c", OPEN if kind == "pairs" else OPEN_TEXTS, str(path)])
        peak, watched = 0, psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_full_info().uss)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                break
            time.sleep(0.01)  # counting its pages stops it
        assert process.wait() == 0
        return peak

    assert (measure(600_000) - measure(100_000)) / 500_000 < most


OPEN_TEXTS = (
    "import sys; from turncoder.data.corpus import open_corpus; from turncoder.data.pairs import open_texts; "
    "print(len(open_texts(open_corpus(file=sys.argv[1]))[0]))"
)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "a.csv"):
        write(tmp_path / name, [{"anchor": "one", "positive": "two"}, {"anchor": "three", "positive": "four"}])
    with pytest.raises(UserError, match=r"a\.csv and a\.jsonl are both the set 'a'"):
        open_pairs(file=str(tmp_path))
