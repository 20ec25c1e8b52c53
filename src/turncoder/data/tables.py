"""Rows of several columns: the pairs, triplets and scores that people bring."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from turncoder.data.files import read_lines
from turncoder.errors import UserError

__all__ = ["TABLES", "read_table"]

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
PARQUET_ROWS = 1024


def read_table(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the values of some columns, a row at a time.

    Parameters
    ----------
    path
        A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file, each also ``.gz``. CSV and TSV begin with their column
        names; CSV quotes as RFC 4180 says, TSV not at all (in STS-B a quotation mark is one).
    columns
        Those that are read, in the order of the values; other columns are left alone.

    Yields
    ------
    tuple
        Where the row stands, for messages, and its values: strings, or what JSON or Parquet holds.

    Raises
    ------
    UserError
        No such file, an unknown ending, an empty file, a column that is not there, a broken row.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    ending = next((one for one in TABLES if path.name.lower().removesuffix(".gz").endswith(one)), None)
    if ending is None:
        raise UserError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(TABLES)}, each also with .gz")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; it needs the columns {', '.join(columns)}")
    if ending == ".parquet":
        yield from _read_parquet(path, columns)
    elif ending == ".jsonl":
        yield from _read_json_lines(path, columns)
    elif ending == ".tsv":
        rows = ((number, line.split("\t")) for number, line in enumerate(read_lines(path), 1) if line)
        yield from _choose_fields(path, rows, columns)
    else:
        yield from _choose_fields(path, _read_csv(path), columns)


def _check_columns(where: str, names: Iterable[str], columns: Sequence[str]) -> None:
    known = list(names)
    missing = [column for column in columns if column not in known]
    if missing:
        have = ", ".join(known)
        have = have[:100] + "..." if len(have) > 100 else have or "none"
        raise UserError(f"{where}: no column {missing[0]!r}; needed are {', '.join(columns)}, there are {have}")


def _choose_fields(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[tuple[str, list[Any]]]:
    number, header = next(rows, (1, []))
    _check_columns(f"{path}, line {number}", header, columns)
    places = [header.index(column) for column in columns]
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} fields, but there are {len(header)} columns")
        yield f"{path}, line {number}", [row[place] for place in places]


def _read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    limit = csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: broken CSV, {error}") from error
    finally:
        csv.field_size_limit(limit)


def _read_json_lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line or line.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: broken JSON, {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with {', '.join(columns)}, found {line[:40]}")
        _check_columns(where, row, columns)
        yield where, [row[column] for column in columns]


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = io.BytesIO(gzip.decompress(path.read_bytes())) if path.name.lower().endswith(".gz") else path
        file = pq.ParquetFile(source)
    except (EOFError, gzip.BadGzipFile, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a Parquet file ({error})") from error
    with file:
        _check_columns(str(path), file.schema_arrow.names, columns)
        number = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=list(columns)):
            for row in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                number += 1
                yield f"{path}, row {number}", list(row)
