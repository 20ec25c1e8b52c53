"""A file of vectors, ``.npy`` or ``.parquet``, that gets its name when it is whole."""

import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from turncoder.errors import UserError

__all__ = ["VectorFile", "is_whole"]


def is_whole(path: Path, rows: int, dimension: int) -> bool:
    """Say whether a file is there and holds so many vectors: a power cut leaves names without content."""
    if not path.exists():
        return False
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r").shape == (rows, dimension)
        import pyarrow.parquet as pq

        return pq.ParquetFile(path).metadata.num_rows == rows
    except (ValueError, OSError, EOFError):
        return False


class VectorFile:
    """A context in which vectors are appended; the file is renamed to its name at the end, and gone after an error.

    Parameters
    ----------
    path
        ``.npy`` (float32), or ``.parquet``.
    rows, dimension
        How many vectors there will be (None: as many as come, in ``.parquet``), and how wide they are.
    column
        Where in ``.parquet`` the vectors are, after what stands beside them.
    """

    def __init__(self, path: Path, rows: int | None, dimension: int, *, column: str = "embedding") -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.{os.getpid()}.partial")
        self.rows, self.dimension, self.column, self.written = rows, dimension, column, 0
        self.stream: IO[bytes] = self.partial.open("wb")
        self.writer: Any = None

    def __enter__(self) -> "VectorFile":
        if self.path.suffix == ".npy":
            shape = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.dimension)}
            np.lib.format.write_array_header_1_0(self.stream, shape)
        return self

    def append(self, columns: dict[str, Any] | None, vectors: np.ndarray) -> None:
        """Append vectors float32 [N, D], and in ``.parquet`` what stands beside them, N of each."""
        self.written += len(vectors)
        if self.path.suffix == ".npy":
            self.stream.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.dimension)
        table = pa.table({**(columns or {}), self.column: embedding})
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.stream, table.schema)
        self.writer.write_table(table)

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if self.writer is not None:
                self.writer.close()
            if kind is None:
                self.stream.flush()
                os.fsync(self.stream.fileno())
            self.stream.close()
            if kind is None and self.rows not in (None, self.written):
                raise UserError(
                    f"{self.path}: {self.written} texts came where {self.rows} were counted before; the input changed "
                    "meanwhile: begin again"
                )
            if kind is None:
                self.partial.replace(self.path)
        finally:
            self.partial.unlink(missing_ok=True)
