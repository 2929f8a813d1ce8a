"""Of several rows with one id the newest stays: which rows of a draft are new, and which older ones they replace."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flows.contract import Column, clean
from flows.contract.repeats import hash_rows
from flows.store.parquet import cast_table, unify
from flows.store.snapshots import Block, Snapshot, Snapshots

OLDEST = np.iinfo(np.int64).min  # of a row without a watermark


@dataclass(frozen=True)
class Keys:
    """What tells rows apart, and which of two is newer.

    Attributes:
        id: The column that names a row.
        watermark: The column that grows; None where what is read later is newer.
    """

    id: Column
    watermark: Column | None

    @property
    def _columns(self) -> dict[str, Column]:
        return {column.name: column for column in (self.id, self.watermark) if column}

    @property
    def names(self) -> list[str]:
        """The columns that are read: one where the id is the watermark too."""
        return list(self._columns)

    def read(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids' hashes [rows, 2] and the watermarks [rows] as comparable numbers."""
        frame, _ = clean(table.select(self.names), list(self._columns.values()))
        hashes = hash_rows(frame[[self.id.name]])
        if self.watermark is None:
            return hashes, np.zeros(len(frame), np.int64)
        return hashes, as_number(frame[self.watermark.name])


def as_number(values: "pd.Series[Any]") -> np.ndarray:
    """Return cleaned watermarks as int64 (a date as microseconds) or float64, the least value where missing."""
    if values.dtype.kind == "M":
        return values.to_numpy().astype("datetime64[us]").view(np.int64)  # NaT is the least of all
    numbers = values.to_numpy(np.float64) if values.isna().any() or values.dtype.kind == "f" else values.to_numpy()
    return np.where(np.isnan(numbers), -np.inf, numbers) if numbers.dtype.kind == "f" else numbers.astype(np.int64)


@dataclass(frozen=True)
class Choice:
    """What becomes of the rows that were read.

    Attributes:
        new: A mask over them: which are appended.
        replaced: By the digest of each older part the numbers of its rows that give way.
        newest: The greatest watermark that was read, as `as_number` has it; None where no row has one.
    """

    new: np.ndarray
    replaced: dict[str, np.ndarray]
    newest: int | float | None


def choose(draft: Path, snapshots: Snapshots, head: Snapshot | None, keys: Keys) -> Choice:
    """Choose which rows of `draft` are new, and the rows that they replace.

    A row that is there already, unchanged, is not new; nor is one that is older than what is there.

    Args:
        draft: A Parquet file of the rows that were read.
        snapshots: Where `head` is.
        head: The snapshot that the rows are to be appended to.
        keys: How rows are told apart.
    """
    read = [keys.read(table) for table in _groups(draft, keys.names)]
    hashes, marks = (np.concatenate([one[i] for one in read]) for i in (0, 1))
    new = _newest(hashes, marks)
    replaced: dict[str, list[np.ndarray]] = {}
    for block in snapshots.blocks(head.digest) if head else ():
        theirs, their_marks = keys.read(block.read(keys.names))
        rows, matches = _match(theirs, hashes, new)
        older = their_marks[rows] < marks[matches]
        tied = their_marks[rows] == marks[matches]
        if tied.any():
            older[tied] = ~_same_content(block, rows[tied], draft, matches[tied])
        new[matches[~older]] = False
        if older.any():
            replaced.setdefault(block.part.digest, []).append(block.numbers[rows[older]])
    older_rows = {digest: np.concatenate(parts) for digest, parts in replaced.items()}
    newest = marks.max().item()
    return Choice(new, older_rows, None if keys.watermark is None or newest in (OLDEST, -np.inf) else newest)


def rows_of(draft: Path, wanted: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Yield the wanted rows of a draft."""
    start = 0
    with pq.ParquetFile(draft) as file:
        for batch in file.iter_batches():
            yield batch.filter(pa.array(wanted[start : start + batch.num_rows]))
            start += batch.num_rows


def _newest(hashes: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Return the mask of the newest row of each id; of equally new ones the last."""
    order = np.lexsort((np.arange(len(marks)), marks, hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    last = np.ones(len(order), bool)
    last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    new = np.zeros(len(order), bool)
    new[order[last]] = True
    return new


def _match(theirs: np.ndarray, hashes: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows with one id: numbers in `theirs`, and in `hashes` among those that are `new`."""
    ours = np.flatnonzero(new)
    ours = ours[np.argsort(hashes[ours, 0], kind="stable")]
    if not len(ours):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    places = np.searchsorted(hashes[ours, 0], theirs[:, 0]).clip(max=len(ours) - 1)
    rows = np.flatnonzero((hashes[ours[places]] == theirs).all(axis=1))
    return rows, ours[places[rows]]


def _same_content(block: Block, rows: np.ndarray, draft: Path, matches: np.ndarray) -> np.ndarray:
    """Tell for each pair whether the row of the block and the row of the draft hold the same."""
    old = block.read().take(pa.array(rows))
    schema = unify([old.schema, pq.read_schema(draft)])
    return _digest(old, schema) == _digest(_take(draft, matches), schema)


def _digest(table: pa.Table, schema: pa.Schema) -> np.ndarray:
    frame = cast_table(table, schema, len(table)).to_pandas()
    return pd.util.hash_pandas_object(frame, index=False).to_numpy()


def _take(draft: Path, rows: np.ndarray) -> pa.Table:
    """Return rows of a Parquet file by number, in the order of `rows`, a row group in memory at a time."""
    order = np.argsort(rows, kind="stable")
    wanted, parts, start = rows[order], [], 0
    for table in _groups(draft, None):
        first, last = np.searchsorted(wanted, [start, start + len(table)])
        if last > first:
            parts.append(table.take(pa.array(wanted[first:last] - start)))
        start += len(table)
    return pa.concat_tables(parts).take(pa.array(np.argsort(order, kind="stable")))


def _groups(path: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)
