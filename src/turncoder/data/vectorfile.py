"""A file of vectors, ``.npy`` or ``.parquet``, that gets its name when it is whole."""

from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["VectorFile"]


class VectorFile:
    """A context in which vectors are appended; the file is renamed to its name at the end, and gone after an error.

    Parameters
    ----------
    path
        ``.npy`` (float32), or ``.parquet`` with the columns ``embedding`` and, given ids, ``id``.
    rows, dimension
        How many vectors there will be, and how wide they are.
    """

    def __init__(self, path: Path, rows: int, dimension: int) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.rows, self.dimension = rows, dimension
        self.stream: IO[bytes] = self.partial.open("wb")
        self.writer: Any = None

    def __enter__(self) -> "VectorFile":
        if self.path.suffix == ".npy":
            shape = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.dimension)}
            np.lib.format.write_array_header_1_0(self.stream, shape)
        return self

    def append(self, ids: list[str] | None, vectors: np.ndarray) -> None:
        """Append vectors float32 [N, D]."""
        if self.path.suffix == ".npy":
            self.stream.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.dimension)
        columns = (
            {"embedding": embedding} if ids is None else {"id": pa.array(ids, pa.string()), "embedding": embedding}
        )
        table = pa.table(columns)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.stream, table.schema)
        self.writer.write_table(table)

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if self.writer is not None:
                self.writer.close()
            self.stream.close()
            if kind is None:
                self.partial.replace(self.path)
        finally:
            self.partial.unlink(missing_ok=True)
