"""Records: the same rows from every kind of file, read as independent readers do, and what is wrong with one named."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turncoder.data import records
from turncoder.data.records import read_records
from turncoder.errors import UserError

COLUMNS = ("anchor", "positive")


def write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    """Write rows with a third column in front, as other programs do."""
    names = ("source", *COLUMNS)
    full = [("x", *row) for row in rows]
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        pq.write_table(pa.table({name: [row[i] for row in full] for i, name in enumerate(names)}), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n\n" for row in full))
    elif kind == "tsv":
        path.write_text("".join("\t".join(row) + "\n" for row in [names, *full]), encoding="utf8", newline="")
    else:
        with path.open("w", newline="", encoding="utf8") as stream:
            csv.writer(stream).writerows([names, *full])
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz", "parquet.gz"])
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(*2 * [st.text(CHARACTERS | st.sampled_from("\"',;"), max_size=20)]), min_size=1, max_size=5)
)
def test_every_kind_of_file_holds_the_same_rows(rows: list[tuple[str, str]], ending: str, tmp_path: Path):
    path = write(tmp_path / f"pairs.{ending}", rows)
    assert [tuple(record[name] for name in COLUMNS) for _, record in read_records(path)] == rows


def test_csv_texts_may_hold_lines(tmp_path: Path):
    rows = [('one\ntwo, "three"', "four"), ("five", "six\r\nseven")]
    records = read_records(write(tmp_path / "a.csv", rows))
    read = [tuple(record[name] for name in COLUMNS) for _, record in records]
    assert read[0] == rows[0]
    assert read[1][1].split() == ["six", "seven"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty"),
        ("a.txt", b"a", "unknown ending '.txt'"),
        ("a.csv", b"anchor,positive\na,b\na,b,c\n", "line 3: 3 fields"),
        ("a.csv", b'anchor,positive\na,"b\n', "broken CSV"),
        ("a.tsv", b"anchor\tpositive\na\n", "line 2: 1 fields"),
        ("a.tsv", b"anchor\tpositive\na\t\xff\n", "line 2.*not UTF-8"),
        ("a.jsonl", b'{"anchor": "a"\n', "line 1: broken JSON"),
        ("a.jsonl", b"[1]\n", "line 1: expected an object"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.parquet.gz", b"PAR1", "not a whole gzip"),
        ("a.csv.gz", gzip.compress(b"anchor,positive\n" * 99, mtime=0)[:20], "not a whole gzip"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_records(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_value_is_not_scanned_ever_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"text": "a"}] * 1000}))
    scanned: list[int] = []
    scan = json.JSONDecoder.raw_decode

    def watch(self: json.JSONDecoder, text: str, at: int = 0) -> Any:
        scanned.append(len(text) - at)
        return scan(self, text, at)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", watch)
    monkeypatch.setattr(records, "CHUNK_BYTES", 64)
    assert len(list(records.parse_json(path))) == 1
    assert sum(scanned) < 3 * path.stat().st_size
