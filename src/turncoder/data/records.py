"""The records of one file, as they stand in it: lines, JSON objects, CSV rows, Parquet batches, in constant memory.

What is broken is named by its file and line.
"""

import codecs
import csv
import gzip
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from turncoder.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

__all__ = [
    "RECORD_ENDINGS",
    "decode",
    "list_records",
    "name_set",
    "open_parquet",
    "parse_json",
    "parse_json_lines",
    "read_records",
    "read_rows",
    "split_lines",
    "split_tabs",
    "take_value",
]

RECORD_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
CHUNK_BYTES = 1 << 20
PARQUET_ROWS = 256
BLANK = re.compile(r"\s*")

csv.field_size_limit(2**31 - 1)  # of the whole process: files that are read at once share it


def list_records(path: Path, key: str = "train_file") -> list[Path]:
    """List the files of records in a folder, in the order of their names; a file is its own list.

    Raises
    ------
    UserError
        There is none, or two have the same name before their endings; ``key`` is what the user gave ``path`` as.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError(f"{key}: {path}: no such file or folder")
    files = sorted(file for file in path.iterdir() if _find_ending(file))
    if not files:
        raise UserError(f"{key}: {path}: no pairs in this folder; looked for {', '.join(RECORD_ENDINGS)}")
    named: dict[str, Path] = {}
    for file in files:
        other = named.setdefault(name_set(file), file)
        if other is not file:
            raise UserError(
                f"{key}: {path}: {other.name} and {file.name} are both the set {name_set(file)!r}; rename one, or move "
                "it out of the folder"
            )
    return files


def name_set(path: Path) -> str:
    """Give the name of the set that a file of pairs is."""
    return path.name.partition(".")[0]


def _find_ending(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in RECORD_ENDINGS if name.endswith(ending)), None)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a JSONL, JSON, CSV, TSV or Parquet file, gzipped or not.

    Yields
    ------
    tuple of str and dict
        Where the record stands, for messages; and its columns with their values.

    Raises
    ------
    UserError
        Missing or empty file, unknown ending, a broken or short row, bytes that are not UTF-8.
    """
    ending = _find_ending(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if ending is None:
        raise UserError(
            f"{path}: unknown ending {path.suffix!r}; known: {', '.join(RECORD_ENDINGS)}, each also with .gz"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    readers: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
        ".jsonl": lambda path: _objects(path, parse_json_lines(path)),
        ".json": lambda path: _objects(path, parse_json(path)),
        ".csv": lambda path: _rows(path, read_rows(path)),
        ".tsv": lambda path: _rows(path, split_tabs(path)),
        ".parquet": _parquet_records,
    }
    yield from readers[ending](path)


def take_value(record: dict[str, Any], name: str, where: str) -> Any:
    """Take a value of the record at a place; raises UserError where it has none of that name."""
    if name not in record:
        raise UserError(f"{where}: no column {name!r}; there are {', '.join(record)}")
    return record[name]


def _objects(path: Path, values: Iterable[tuple[int, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, value in values:
        where = f"{path}, line {line}"
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object, found {json.dumps(value)[:40]}")
        yield where, value


def _rows(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    header = next(rows, (1, []))[1]
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}; quote the texts that hold "
                "commas (in .tsv: leave no tabs in them)"
            )
        yield f"{path}, line {line}", dict(zip(header, row, strict=True))


def split_tabs(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Split lines at tabs; a quotation mark is one, as in STS-B's files."""
    yield from ((number, line.split("\t")) for number, line in enumerate(split_lines(decode(path)), 1) if line)


def _parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); compress or download it again") from error


def decode(path: Path) -> Iterator[str]:
    """Yield the file as text, a chunk at a time; a byte that is not UTF-8 is named by its line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    first = True
    consumed = 0
    with _open(path) as stream:
        while True:
            data = stream.read(CHUNK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                byte = consumed - pending + error.start
                raise UserError(
                    f"{path}, line {_line_of_byte(path, byte)} (byte {byte}): not UTF-8; convert the file, "
                    "for example with iconv -f LATIN1 -t UTF-8"
                ) from error
            consumed += len(data)
            if first:
                text = text.removeprefix("\ufeff")
                first = False
            if text:
                yield text
            if not data:
                return


def _line_of_byte(path: Path, byte: int) -> int:
    line = 1
    with _open(path) as stream:
        while byte > 0 and (data := stream.read(min(CHUNK_BYTES, byte))):
            line += data.count(b"\n")
            byte -= len(data)
    return line


def split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield lines without their ends; only a newline ends a line, so U+2028 and its like stay in the text."""
    parts: list[str] = []
    for chunk in chunks:
        head, newline, rest = chunk.partition("\n")
        if not newline:
            parts.append(chunk)
            continue
        parts.append(head)
        yield "".join(parts).removesuffix("\r")
        lines = rest.split("\n")
        parts = [lines.pop()]
        if "\r" in rest:
            lines = [line.removesuffix("\r") for line in lines]
        yield from lines
    last = "".join(parts)
    if last:
        yield last.removesuffix("\r")


def parse_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for each line that is not blank."""
    for number, line in enumerate(split_lines(decode(path)), 1):
        if not line or line.isspace():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: broken JSON, {error.msg} at column {error.colno}") from error


def parse_json(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for each element of a JSON list, or each value of a stream of them."""
    scan = json.JSONDecoder().raw_decode
    buffer, at, line = "", 0, 1
    opened: bool | None = None  # None: nothing seen yet; True: inside a list; False: a stream of values, or closed
    chunks = decode(path)
    last = False
    while not last:
        parts, length = [buffer[at:]], 0
        while not last and length <= len(parts[0]):  # as much again as is there, or a long value is scanned ever anew
            chunk = next(chunks, None)
            last = chunk is None
            parts.append(chunk or "")
            length += len(parts[-1])
        buffer, at = "".join(parts), 0
        while True:
            start = BLANK.match(buffer, at).end()  # type: ignore[union-attr]
            line += buffer.count("\n", at, start)
            at = start
            mark = buffer[at : at + 1]
            if not mark:
                break
            if opened is None:
                opened = mark == "["
                at += int(opened)
                continue
            if opened and mark in ",]":
                opened = mark == ","
                at += 1
                continue
            try:
                value, end = scan(buffer, at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(buffer) - 16
                if cut and not last:
                    break
                broken = line + buffer.count("\n", at, error.pos)
                raise UserError(f"{path}, line {broken}: broken JSON, {error.msg}") from error
            yield line, value
            line += buffer.count("\n", at, end)
            at = end
    if opened:
        raise UserError(f"{path}, line {line}: broken JSON, the list is not closed by ']'")


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) for each row of a CSV file, the header first; blank lines are none."""
    reader = csv.reader((line + "\n" for line in split_lines(decode(path))), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: broken CSV, {error}") from error


@contextmanager
def open_parquet(path: Path) -> "Iterator[pyarrow.parquet.ParquetFile]":
    """Open a Parquet file, gzipped or not; raises UserError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        plain = path
        if path.name.lower().endswith(".gz"):  # Parquet is read from its end, so it has to lie there whole
            plain = Path(folder) / "unzipped.parquet"
            with _open(path) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
        try:
            file = pq.ParquetFile(plain)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: not a Parquet file ({error})") from error
        with file:
            yield file
