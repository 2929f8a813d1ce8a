"""Blocks: what is read of a snapshot at a time."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.store.parquet import cast_table
from flows.store.parts import Part


@dataclass(frozen=True)
class Block:
    """Up to a row group of a snapshot's rows.

    Attributes:
        start: The number of its first row in the snapshot.
        rows: How many rows it has.
        part: Where they are.
        numbers: Their numbers there.
    """

    start: int
    rows: int
    part: Part
    numbers: np.ndarray
    _file: pq.ParquetFile
    _group: int
    _offset: int
    _schema: pa.Schema

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Return the rows, with just `columns` where they are given."""
        wanted = self._schema if columns is None else pa.schema([self._schema.field(name) for name in columns])
        present = [name for name in wanted.names if name in self._file.schema_arrow.names]
        table = self._file.read_row_group(self._group, columns=present)
        stored = self._file.metadata.row_group(self._group).num_rows
        table = cast_table(table, wanted, stored)
        if self.rows == stored:
            return table
        return table.take(pa.array(self.numbers - self._offset))
