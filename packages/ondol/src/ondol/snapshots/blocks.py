"""Blocks: what is read of a snapshot at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ondol.snapshots.parts import Part
from ondol.storage.parquet import arrange_table, cast_table


@dataclass(frozen=True)
class Block:
    """Up to a row group of a snapshot's rows.

    Attributes:
        start: The number of its first row in the snapshot.
        rows: How many rows it has.
        part: Where they are.
        place: Which of the snapshot's parts this is.
        numbers: Their numbers there.
    """

    start: int
    rows: int
    part: Part
    place: int
    numbers: np.ndarray
    _file: pq.ParquetFile
    _group: int
    _offset: int
    _schema: pa.Schema

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows as they were read, with just `columns` where they are given.

        A column may be of another type than in other blocks: a cast could lose what was written.
        """
        names = self._schema.names if columns is None else columns
        present = [name for name in names if name in self._file.schema_arrow.names]
        table = self._file.read_row_group(self._group, columns=present)
        stored = self._file.metadata.row_group(self._group).num_rows
        table = arrange_table(table, names, stored)
        if self.rows == stored:
            return table
        return table.take(pa.array(self.numbers - self._offset))

    def read_alike(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows in the types that hold those of all blocks."""
        names = self._schema.names if columns is None else columns
        return cast_table(self.read(names), pa.schema([self._schema.field(name) for name in names]), self.rows)
