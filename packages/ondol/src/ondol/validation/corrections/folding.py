"""Several mends make one snapshot in one pass, though a later one may mend what an earlier one made.

Candidates are the rows that may give way: those of the snapshot that some mend looks for, and behind them the mended
rows, the oldest first. Each mend in turn takes the last candidates that are there and equal its raw rows, and puts its
mended rows there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ondol.contract import Column
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.validation.corrections.matching import Places, Wanted, join_places, pair, search, want


@dataclass(frozen=True)
class _Group:
    """Mends whose raw rows have the same columns.

    Attributes:
        wanted: These rows.
        keys: By mend, those of its rows.
        candidates: The numbers of those that are wanted, in order.
        theirs: Their keys.
    """

    wanted: Wanted
    keys: dict[int, np.ndarray]
    candidates: np.ndarray
    theirs: np.ndarray

    def take(self, mend: int, there: np.ndarray, start: int) -> None:
        """Have the rows of a mend, which are the candidates from `start` on, there instead of their raw ones."""
        ours = self.keys[mend]
        asked = np.zeros(self.wanted.size, bool)
        asked[ours] = True
        near = np.flatnonzero(there[self.candidates] & asked[self.theirs])
        rows, others = pair(ours, self.theirs[near])
        there[self.candidates[near[others]]] = False
        there[start + rows] = True


def fold(
    snapshots: Snapshots, snapshot: Snapshot, mends: Sequence[Sequence[Path]], columns: Mapping[str, Column]
) -> tuple[Places, list[np.ndarray]]:
    """Return where the rows that give way are, and for each mend a mask of its rows that stand in for them.

    Args:
        snapshots: Where the snapshot is.
        snapshot: What is mended.
        mends: Two files each, with raw rows and with those that stand in for them; the oldest mend first.
        columns: Those of the contract, by which values are compared.
    """
    looks = _look(snapshots, snapshot, mends, columns)
    found = list(search(snapshots, snapshot, [wanted for wanted, _ in looks]))
    places = join_places(places for *_, places in found)
    places = places.take(np.unique(places.position, return_index=True)[1])
    starts = np.cumsum([len(places.position), *(pq.read_metadata(raw).num_rows for raw, _ in mends)])
    groups: dict[int, _Group] = {}
    for which, (wanted, keys) in enumerate(looks):
        hits = [(np.searchsorted(places.position, one.position), theirs) for at, theirs, one in found if at == which]
        made = [_among(wanted, mended, starts[mend]) for mend, (_, mended) in enumerate(mends[: max(keys)])]
        empty = (np.empty(0, np.int64),) * 2
        candidates, theirs = (np.concatenate(parts) for parts in zip(empty, *hits, *made, strict=True))
        groups |= dict.fromkeys(keys, _Group(wanted, keys, candidates, theirs))
    there = np.arange(starts[-1]) < starts[0]
    for mend in sorted(groups):
        groups[mend].take(mend, there, starts[mend])
    return places.take(~there[: starts[0]]), np.split(there, starts[:-1])[1:]


def read_tables(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of a file, a row group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _look(
    snapshots: Snapshots, snapshot: Snapshot, mends: Sequence[Sequence[Path]], columns: Mapping[str, Column]
) -> list[tuple[Wanted, dict[int, np.ndarray]]]:
    """Return for each set of columns the raw rows that have them, and by mend the keys of its own."""
    by_names: dict[tuple[str, ...], list[int]] = {}
    for mend, (raw, _) in enumerate(mends):
        by_names.setdefault(tuple(pq.read_schema(raw).names), []).append(mend)
    looks = []
    for names, ours in by_names.items():
        files = [mends[mend][0] for mend in ours]
        wanted = want(snapshots, snapshot, chain.from_iterable(map(read_tables, files)), names, columns)
        if wanted:
            ends = np.cumsum([pq.read_metadata(file).num_rows for file in files])[:-1]
            looks.append((wanted, dict(zip(ours, np.split(wanted.keys, ends), strict=True))))
    return looks


def _among(wanted: Wanted, mended: Path, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which candidates, from `start` on, the rows of a file are that are wanted, and their keys."""
    keys = np.concatenate([wanted.among(table) for table in read_tables(mended)])
    rows = np.flatnonzero(keys >= 0)
    return start + rows, keys[rows]
