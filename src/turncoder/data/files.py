"""The texts of one file: a line, a JSON object, a CSV row or a Parquet row at a time, in constant memory.

Every reader yields one value per row, in order: a string, or for a column of token ids a NumPy array.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turncoder.data.records import (
    PARQUET_ROWS,
    RECORD_ENDINGS,
    decode,
    open_parquet,
    parse_json,
    parse_json_lines,
    read_rows,
    split_lines,
)
from turncoder.data.sentences import clean
from turncoder.errors import UserError
from turncoder.hub import is_local

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ENDINGS",
    "TOKEN_COLUMNS",
    "choose_column",
    "find_ending",
    "names_file",
    "read_arrow",
    "read_file",
    "refuse_file",
    "split_places",
]

logger = logging.getLogger("turncoder")

ENDINGS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
TOKEN_COLUMNS = ("input_ids", "packed")

Row = str | np.ndarray


def find_ending(path: Path) -> str | None:
    """Give the ending that says how ``path`` is read, ``.gz`` aside, or None when it is not one of ours."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def names_file(name: str) -> bool:
    """Tell a file or folder from a hub id: it exists, has an ending that is read, or begins like a path."""
    return is_local(name) or Path(name).name.lower().removesuffix(".gz").endswith((*ENDINGS, *RECORD_ENDINGS))


def split_places(place: str) -> list[Path]:
    """Split ``A,B`` into the files that it names; what is there under that very name is one."""
    return [Path(part).expanduser() for part in ([place] if Path(place).exists() else place.split(","))]


def refuse_file(folder: Path, key: str = "--output") -> None:
    """Refuse to write into what is a file, or lies in one; raises UserError."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    if not place.is_dir():
        raise UserError(f"{key} {folder}: {place} is a file; name a folder")


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
    if ending == ".txt":
        yield from split_lines(decode(path))
    else:
        yield from readers[ending](path, text_column, numbers)


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


def _take_text(
    row: Any, column: str | None, text_column: str | None, where: str, numbers: bool
) -> tuple[str | None, Row]:
    """Take the text out of one JSON object, or a text alone; the first object decides the column."""
    if isinstance(row, str) and column is None and text_column is None:
        return None, row
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
    yield from _read_objects(path, parse_json_lines(path), text_column, numbers)


def _read_json(path: Path, text_column: str | None, numbers: bool) -> Iterator[Row]:
    """Read a list of objects, or objects one after the other, without ever holding the whole of it."""
    yield from _read_objects(path, parse_json(path), text_column, numbers)


def _read_objects(
    path: Path, values: Iterable[tuple[int, Any]], text_column: str | None, numbers: bool
) -> Iterator[Row]:
    column = None
    for line, row in values:
        column, text = _take_text(row, column, text_column, f"{path}, line {line}", numbers)
        yield clean(text) if isinstance(text, str) else text


def _read_csv(path: Path, text_column: str | None, numbers: bool) -> Iterator[Row]:
    rows = read_rows(path)
    header = next(rows, (1, []))[1]
    place = header.index(choose_column(header, text_column, str(path)))
    for line, row in rows:
        if not place < len(row) <= len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}; quote the texts that hold "
                "commas"
            )
        yield row[place]


def _read_parquet(path: Path, text_column: str | None, numbers: bool) -> Iterator[Row]:
    with open_parquet(path) as file:
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
