"""Keeps the newest row of each id: finds the new rows of a draft, and the older rows that they replace."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ondol.contract import Column, clean
from ondol.contract.checking import hash_content, hash_rows
from ondol.snapshots.snapshots import Block, Snapshot, Snapshots, arrange_table, unify

OLDEST = np.iinfo(np.int64).min  # the watermark of a row without one


@dataclass(frozen=True)
class Keys:
    """The columns that identify rows and decide which of two rows is newer.

    Attributes:
        id: The column that identifies a row.
        watermark: The growing column; None if rows that are read later are newer.
        columns: All columns of the contract, by name.
    """

    id: Column
    watermark: Column | None
    columns: Mapping[str, Column]

    @property
    def _keys(self) -> dict[str, Column]:
        return {column.name: column for column in (self.id, self.watermark) if column}

    @property
    def names(self) -> list[str]:
        """The columns to read: only one if the id is also the watermark."""
        return list(self._keys)

    def read(self, group: "Block | DraftGroup", columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids' hashes [rows, 2] and the watermarks [rows] as comparable numbers.

        A row without a readable id is identified by all its values in `columns`.
        """
        frame, _ = clean(group.read(self.names), list(self._keys.values()))
        hashes = hash_rows(frame[[self.id.name]])
        nameless = np.flatnonzero(frame[self.id.name].isna())
        if len(nameless):
            hashes[nameless] = hash_content(group.read(columns).take(pa.array(nameless)), columns, self.columns)
        if self.watermark is None:
            return hashes, np.zeros(len(frame), np.int64)
        return hashes, as_number(frame[self.watermark.name])


def as_number(values: "pd.Series[Any]") -> np.ndarray:
    """Return cleaned watermarks as int64 (dates: microseconds) or float64; missing ones are the smallest value."""
    if values.dtype.kind == "M":
        return values.to_numpy().astype("datetime64[us]").view(np.int64)  # NaT is the smallest value
    if values.dtype.kind == "f":
        return values.fillna(-np.inf).to_numpy()
    return values.fillna(OLDEST).to_numpy(np.int64)


@dataclass(frozen=True)
class Choice:
    """The rows to append and to replace.

    Attributes:
        new: A mask of the read rows: those to append.
        replaced: For each part of `head` (by index), the numbers of the replaced rows.
        newest: The greatest watermark of the read rows, as in `as_number`; None if no row has one.
    """

    new: np.ndarray
    replaced: dict[int, np.ndarray]
    newest: int | float | None


def choose_newest(draft: Path, snapshots: Snapshots, head: Snapshot | None, keys: Keys) -> Choice:
    """Choose which rows of `draft` are new, and the rows that they replace.

    Rows that are already in the snapshot unchanged, or older than the row there, are not new.

    Args:
        draft: A Parquet file of the read rows.
        snapshots: The snapshots of the store.
        head: The snapshot to extend.
        keys: The columns that identify rows.
    """
    columns = unify([*([snapshots.schema(head.digest)] if head else []), pq.read_schema(draft)]).names
    groups = _groups(draft)
    hashes, marks = _read_keys(groups, columns, keys)
    new = _newest(hashes, marks)
    ours = np.flatnonzero(new)
    ours = ours[np.argsort(hashes[ours, 0])]
    contents = Contents(groups, columns, keys.columns)
    replaced: dict[int, list[np.ndarray]] = {}
    for block in snapshots.blocks(head.digest) if head else ():
        theirs, their_marks = keys.read(block, columns)
        rows, matches = _match(theirs, hashes, ours)
        older = their_marks[rows] < marks[matches]
        tied = their_marks[rows] == marks[matches]
        if tied.any():
            older[tied] = ~contents.equal(block, rows[tied], matches[tied])
        new[matches[~older]] = False
        if older.any():
            replaced.setdefault(block.place, []).append(block.numbers[rows[older]])
    older_rows = {place: np.concatenate(parts) for place, parts in replaced.items()}
    newest = marks.max().item()
    return Choice(new, older_rows, None if keys.watermark is None or newest in (OLDEST, -np.inf) else newest)


def rows_of(draft: Path, wanted: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Yield the selected rows of a draft."""
    start = 0
    with pq.ParquetFile(draft) as file:
        for batch in file.iter_batches():
            yield batch.filter(pa.array(wanted[start : start + batch.num_rows]))
            start += batch.num_rows


def _read_keys(groups: "Sequence[DraftGroup]", columns: Sequence[str], keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    read = [keys.read(group, columns) for group in groups]
    return np.concatenate([hashes for hashes, _ in read]), np.concatenate([marks for _, marks in read])


def _newest(hashes: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Return the mask of the newest row of each id; among equally new rows, the last one."""
    order = np.lexsort((np.arange(len(marks)), marks, hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    last = np.ones(len(order), bool)
    last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    new = np.zeros(len(order), bool)
    new[order[last]] = True
    return new


def _match(theirs: np.ndarray, hashes: np.ndarray, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows with the same id: positions in `theirs` and in `hashes`, which `ours` sorts."""
    places = np.searchsorted(hashes[ours, 0], theirs[:, 0]).clip(max=len(ours) - 1)
    rows = np.flatnonzero((hashes[ours[places]] == theirs).all(axis=1))
    return rows, ours[places[rows]]


class Contents:
    """The content of a draft's rows as hashes; a row group is read once, when one of its rows is needed."""

    def __init__(self, groups: Sequence["DraftGroup"], names: Sequence[str], columns: Mapping[str, Column]) -> None:
        """Compare the rows of `groups` in the columns `names`, read with the contract's `columns`."""
        self._groups, self._names, self._columns = groups, names, columns
        self._starts = np.cumsum([0, *(group.rows for group in groups[:-1])])
        self._hashes: dict[int, np.ndarray] = {}

    def equal(self, block: Block, theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
        """Return whether the rows of each pair (of `block` and the draft) are equal."""
        return (self._hash(block.read(self._names).take(pa.array(theirs))) == self._of(ours)).all(axis=1)

    def _of(self, rows: np.ndarray) -> np.ndarray:
        numbers = np.searchsorted(self._starts, rows, "right") - 1
        made = np.empty((len(rows), 2), np.uint64)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            made[here] = self._group(number)[rows[here] - self._starts[number]]
        return made

    def _group(self, number: int) -> np.ndarray:
        if number not in self._hashes:
            self._hashes[number] = self._hash(self._groups[number].read(self._names))
        return self._hashes[number]

    def _hash(self, table: pa.Table) -> np.ndarray:
        return hash_content(table, self._names, self._columns)


@dataclass(frozen=True)
class DraftGroup:
    """A row group of a draft, not read yet."""

    path: Path
    number: int
    rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return the rows in `columns`; absent columns have only missing values."""
        with pq.ParquetFile(self.path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            return arrange_table(file.read_row_group(self.number, columns=present), columns, self.rows)


def _groups(draft: Path) -> list[DraftGroup]:
    stored = pq.read_metadata(draft)
    return [DraftGroup(draft, number, stored.row_group(number).num_rows) for number in range(stored.num_row_groups)]
