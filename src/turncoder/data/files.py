"""The texts of one file: a line, a JSON object, a CSV row or a Parquet row at a time, in constant memory.

Every reader yields one value per row, in order: a string, or for a column of token ids a NumPy array.
"""

import codecs
import csv
import gzip
import json
import logging
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from turncoder.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENDINGS", "TOKEN_COLUMNS", "choose_column", "find_ending", "read_arrow", "read_file", "read_lines"]

logger = logging.getLogger("turncoder")

ENDINGS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
TOKEN_COLUMNS = ("input_ids", "packed")
CHUNK_BYTES = 1 << 20
PARQUET_ROWS = 256
BLANK = re.compile(r"\s*")

Row = str | np.ndarray


def find_ending(path: Path) -> str | None:
    """Give the ending that says how ``path`` is read, ``.gz`` aside, or None when it is not one of ours."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def read_file(path: Path, text_column: str | None = None, *, numbers: bool = False) -> Iterator[Row]:
    """Yield the texts of one file, whatever its shape.

    Parameters
    ----------
    path
        A file with one of the known endings, gzipped or not.
    text_column
        The column or key that holds the text; None means ``text``, else the first one. Unused for ``.txt``.
    numbers
        Numbers are taken for their digits, as in a column of ids.

    Raises
    ------
    UserError
        Missing or empty file, unknown ending, wrong column, broken row, bytes that are not UTF-8.
    """
    ending = find_ending(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if ending == ".txt" and numbers:
        raise UserError(f"{path} has lines and no columns; a column of ids needs another kind of file")
    if ending is None:
        raise UserError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(ENDINGS)}, each also with .gz")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; give one with at least one line of text")
    readers = {".jsonl": _read_json_lines, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        if ending == ".txt":
            yield from _split_lines(_decode(path))
        else:
            yield from readers[ending](path, text_column, numbers)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); compress or download it again") from error


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, gzipped or not, without their ends.

    Raises
    ------
    UserError
        Bytes that are not UTF-8, or not a whole gzip file.
    """
    try:
        yield from _split_lines(_decode(path))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); compress or download it again") from error


def choose_column(columns: Iterable[str], text_column: str | None, where: str) -> str:
    """Name the column that holds the text: the one asked for, else ``text``, else the first, as LLM2Vec does.

    Raises
    ------
    UserError
        The column asked for is not there; the message names those that are.
    """
    names = list(columns)
    if not names:
        raise UserError(f"{where}: no columns at all; text is looked for in the column 'text' or in text_column")
    if text_column is not None:
        if text_column not in names:
            raise UserError(f"{where}: text_column {text_column!r} is not there; the columns are {', '.join(names)}")
        return text_column
    if "text" in names:
        return "text"
    tokens = next((name for name in TOKEN_COLUMNS if name in names), None)
    if tokens is not None:
        return tokens
    logger.warning("%s: no column 'text'; the first one, %r, is taken (text_column names another)", where, names[0])
    return names[0]


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _decode(path: Path) -> Iterator[str]:
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


def _split_lines(chunks: Iterable[str]) -> Iterator[str]:
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


def _take_text(row: Any, column: str | None, text_column: str | None, where: str, numbers: bool) -> tuple[str, Row]:
    """Take the text out of one JSON object; the first object decides the column."""
    if not isinstance(row, dict):
        raise UserError(f'{where}: expected an object like {{"text": "..."}}, found {json.dumps(row)[:40]}')
    if column is None:
        column = choose_column(row, text_column, where)
    if column not in row:
        raise UserError(f"{where}: no key {column!r}; the keys are {', '.join(row) or 'none'} (text_column names one)")
    value = row[column]
    if value is None:
        value = ""
    if numbers and isinstance(value, int):
        value = str(value)
    if column in TOKEN_COLUMNS and isinstance(value, list) and all(isinstance(token, int) for token in value):
        return column, np.asarray(value, dtype=np.int64)
    if not isinstance(value, str) and numbers:
        raise UserError(f"{where}: {column!r} is neither a text nor a whole number but {json.dumps(value)[:40]}")
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} is not a text but {json.dumps(value)[:40]} (text_column names another)")
    return column, value


def _read_json_lines(path: Path, text_column: str | None, numbers: bool) -> Iterator[Row]:
    column = None
    for number, line in enumerate(_split_lines(_decode(path)), 1):
        if not line or line.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: broken JSON, {error.msg} at column {error.colno}") from error
        column, text = _take_text(row, column, text_column, where, numbers)
        yield text


def _read_json(path: Path, text_column: str | None, numbers: bool) -> Iterator[Row]:
    """Read a list of objects, or objects one after the other, without ever holding the whole of it."""
    column = None
    for line, row in _parse_json(path):
        column, text = _take_text(row, column, text_column, f"{path}, line {line}", numbers)
        yield text


def _parse_json(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for each element of a JSON list, or each value of a stream of them."""
    scan = json.JSONDecoder().raw_decode
    buffer, at, line = "", 0, 1
    opened: bool | None = None  # None: nothing seen yet; True: inside a list; False: a stream of values, or closed
    chunks = _decode(path)
    last = False
    while not last:
        chunk = next(chunks, None)
        last = chunk is None
        buffer, at = buffer[at:] + (chunk or ""), 0
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


def _read_csv(path: Path, text_column: str | None, numbers: bool) -> Iterator[Row]:
    limit = csv.field_size_limit()
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(line + "\n" for line in _split_lines(_decode(path)))
    try:
        header = next(reader, [])
        place = header.index(choose_column(header, text_column, str(path)))
        for row in reader:
            if not row:
                continue
            if len(row) <= place:
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, but column {header[place]!r} is number "
                    f"{place + 1}; quote the texts that hold commas"
                )
            yield row[place]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: broken CSV, {error}") from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path, text_column: str | None, numbers: bool) -> Iterator[Row]:
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
            column = choose_column(file.schema_arrow.names, text_column, str(path))
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[column]):
                yield from read_arrow(batch.column(0), column, str(path), numbers=numbers)


def read_arrow(
    values: "pa.Array | pa.ChunkedArray", column: str, where: str, *, numbers: bool = False
) -> Iterator[Row]:
    """Yield the rows of an Arrow column of strings, or of lists of token ids.

    Raises
    ------
    UserError
        The column holds neither.
    """
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        for chunk in values.chunks:
            yield from read_arrow(chunk, column, where, numbers=numbers)
        return
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if numbers and pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    kind = values.type
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if any(fits(kind) for fits in strings):
        yield from (text or "" for text in values.to_pylist())
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) and (
        pa.types.is_integer(kind.value_type)
    ):
        for row in values:
            yield np.asarray(row.values, dtype=np.int64) if row.is_valid else np.empty(0, dtype=np.int64)
    else:
        raise UserError(f"{where}: column {column!r} holds {kind}, neither text nor token ids (text_column names one)")
