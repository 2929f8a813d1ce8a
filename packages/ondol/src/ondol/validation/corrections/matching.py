"""Rows are found by all that they hold. Of those looked for two 64-bit hashes each are kept in memory, no values.

Of two rows with one first hash only one is found, which among 1,000,000 happens with a probability of 3e-8.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ondol.contract import Column
from ondol.contract.uniqueness import hash_content
from ondol.snapshots.blocks import Block
from ondol.snapshots.snapshots import Snapshot, Snapshots


@dataclass(frozen=True)
class Places:
    """Where rows of a snapshot are, as arrays of one length.

    Attributes:
        position: Their numbers in the snapshot.
        part: Which of its parts they are in.
        number: Their numbers there.
    """

    position: np.ndarray
    part: np.ndarray
    number: np.ndarray

    def take(self, wanted: np.ndarray) -> "Places":
        """Return some of them, by number or by mask."""
        return Places(self.position[wanted], self.part[wanted], self.number[wanted])

    def by_part(self) -> dict[int, np.ndarray]:
        """Return by part the numbers of the rows there."""
        return {part: self.number[self.part == part] for part in np.unique(self.part).tolist()}


def join_places(places: Iterable[Places]) -> Places:
    """Return places one behind the other."""
    empty = np.empty(0, np.int64)
    parts = [Places(empty, empty, empty), *places]
    return Places(*(np.concatenate([getattr(one, name) for one in parts]) for name in ("position", "part", "number")))


class Wanted:
    """Rows that are looked for, equal ones under one key: a number from 0 on.

    Attributes:
        keys: Of each row the key.
        size: How many keys there are.
    """

    def __init__(
        self, tables: Iterable[pa.Table], names: Sequence[str], telling: str, columns: Mapping[str, Column]
    ) -> None:
        """Look for the rows of `tables` by what they hold in the columns `names`.

        Args:
            tables: The rows; other columns are ignored.
            names: The columns that count, at least one.
            telling: The one of them that tells most rows apart: whatever lacks its values is not looked at further.
            columns: Those of the contract, by which values are compared.
        """
        self._names, self._telling, self._columns = names, telling, columns
        hashes, told = [], []
        for table in tables:
            hashes.append(self._hash(table))
            told.append(self._tell(table))
        whole = np.concatenate(hashes)
        hashes.clear()
        self._told = np.sort(np.concatenate(told))  # np.unique takes ten times as long
        self._heads, first = np.unique(whole[:, 0], return_index=True)
        self._tails = whole[first, 1]
        self.size = len(first)
        self.keys = self._find(whole)

    def among(self, table: pa.Table) -> np.ndarray:
        """Return the key of each row of `table`, -1 where it is none that is looked for; a column may be missing."""
        return self._find(self._hash(table))

    def within(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows of `block` are looked for, and their keys; most blocks are read in one column alone."""
        told = self._tell(block.read([self._telling]))
        near = np.flatnonzero(self._told[_look_up(self._told, told)] == told)
        if not len(near):
            return near, near
        keys = self.among(block.read(self._names).take(pa.array(near)))
        return near[keys >= 0], keys[keys >= 0]

    def _find(self, hashes: np.ndarray) -> np.ndarray:
        at = _look_up(self._heads, hashes[:, 0])
        same = (self._heads[at] == hashes[:, 0]) & (self._tails[at] == hashes[:, 1])
        return np.where(same, at, -1)

    def _hash(self, table: pa.Table) -> np.ndarray:
        return hash_content(table, self._names, self._columns)

    def _tell(self, table: pa.Table) -> np.ndarray:
        return hash_content(table, [self._telling], self._columns)[:, 0]


def want(
    snapshots: Snapshots,
    snapshot: Snapshot,
    tables: Iterable[pa.Table],
    names: Sequence[str],
    columns: Mapping[str, Column],
) -> Wanted | None:
    """Prepare to look in a snapshot for the raw rows of `tables`, whose columns are `names`.

    Columns that the snapshot lacks do not count; None where it lacks them all. See `Wanted` for the rest.
    """
    shared = [name for name in names if name in snapshot.columns]
    if not shared:
        return None
    return Wanted(tables, shared, find_telling(next(snapshots.batches(snapshot.digest, shared))), columns)


def find_rows(
    snapshots: Snapshots, snapshot: Snapshot, raw: pa.Table, columns: Mapping[str, Column]
) -> tuple[np.ndarray, Places]:
    """Return which rows of `raw` the snapshot has, in order, and where each is; of equal ones the last."""
    wanted = want(snapshots, snapshot, [raw], raw.schema.names, columns)
    found = list(search(snapshots, snapshot, [wanted])) if wanted else []
    keys = np.concatenate([np.empty(0, np.int64), *(keys for _, keys, _ in found)])
    rows, others = pair(wanted.keys if wanted else keys, keys)
    order = np.argsort(rows)
    return rows[order], join_places(places for *_, places in found).take(others[order])


def search(
    snapshots: Snapshots, snapshot: Snapshot, wanted: Sequence[Wanted]
) -> Iterator[tuple[int, np.ndarray, Places]]:
    """Yield which rows of a snapshot are looked for, in one pass: which of `wanted` does, the keys and the places."""
    for block in snapshots.blocks(snapshot.digest):
        for which, one in enumerate(wanted):
            rows, keys = one.within(block)
            if len(rows):
                parts = np.full(len(rows), block.place)
                yield which, keys, Places(block.start + rows, parts, block.numbers[rows])


def pair(wanted: np.ndarray, offered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of equal keys, each number once: in `wanted` and in `offered`, of more than are wanted the last."""
    ours, theirs = (np.argsort(keys, kind="stable") for keys in (wanted, offered))
    keys, held = wanted[ours], offered[theirs]
    rank = np.arange(len(keys)) - np.searchsorted(keys, keys)  # among equal ones
    first = np.searchsorted(held, keys)
    count = np.searchsorted(held, keys, "right") - first
    served = rank < count
    count -= np.bincount(keys)[keys]
    chosen = first[served] + count[served].clip(min=0) + rank[served]
    return ours[served], theirs[chosen]


def find_telling(sample: pa.Table) -> str:
    """Return the column that tells most rows of a sample apart, of several rather one that is no text."""

    def rate(name: str) -> tuple[int, bool]:
        values = sample.column(name)
        if pa.types.is_null(values.type):  # a column that came later
            return 0, False
        return pc.count_distinct(values).as_py(), not pa.types.is_string(values.type)

    return max(sample.schema.names, key=rate)


def _look_up(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return where in `known`, which is sorted, each value would be; in order, they are found many times as fast."""
    order = np.argsort(values)
    at = np.empty(len(values), np.int64)
    at[order] = np.searchsorted(known, values[order])
    return at.clip(max=len(known) - 1)
