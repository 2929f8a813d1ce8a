"""Compares two snapshots: columns, rows and distributions.

Missing values, minimum and maximum are computed from all rows. The median, the categories and the distance are computed
from every k-th row, at most `MOST_ROWS`. Only a few columns are read at a time, so memory is bounded.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ondol.snapshots.snapshots import Snapshot, Snapshots

TOP = 100  # categories that the distance distinguishes
MOVED = 0.2  # the population stability index that is commonly treated as a large shift


@dataclass
class ColumnStatistics:
    """One column of one snapshot.

    Attributes:
        rows: The number of rows.
        missing: The number of missing values.
        least: The smallest value, None for texts.
        most: The largest value, None for texts.
        sample: The values of evenly spaced rows, without missing ones.
    """

    rows: int = 0
    missing: int = 0
    least: Any = None
    most: Any = None
    sample: list[pa.ChunkedArray] = field(default_factory=list)

    def add(self, values: pa.ChunkedArray, chosen: pa.Array) -> None:
        """Add the values of a block, of which `chosen` are sampled."""
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), None, values)
        self.rows += len(values)
        self.missing += values.null_count
        if is_ordered(values.type) and values.null_count < len(values):
            ends = pc.min_max(values).as_py()
            self.least = ends["min"] if self.least is None else min(self.least, ends["min"])
            self.most = ends["max"] if self.most is None else max(self.most, ends["max"])
        self.sample.append(values.take(chosen).drop_null())

    @property
    def missing_share(self) -> float:
        """The share of missing values."""
        return self.missing / self.rows if self.rows else 0.0

    @property
    def median(self) -> Any:
        """The median of the sample, as one of its values; None if it is empty."""
        values = self.values
        return pa.scalar(np.sort(values)[len(values) // 2]).cast(self.type).as_py() if len(values) else None

    @property
    def type(self) -> pa.DataType:
        """The type of the values."""
        return self.sample[0].type

    @property
    def values(self) -> np.ndarray:
        """The sample as numbers, a date in microseconds since 1970."""
        arrays = [part.cast(pa.int64()) if pa.types.is_timestamp(part.type) else part for part in self.sample]
        return np.concatenate([array.to_numpy() for array in arrays]) if arrays else np.empty(0)

    @property
    def categories(self) -> Counter[str]:
        """The count of each text in the sample."""
        counted: Counter[str] = Counter()
        for part in self.sample:
            for pair in part.cast(pa.string()).value_counts().to_pylist():
                counted[pair["values"]] += pair["counts"]
        return counted


@dataclass(frozen=True)
class ColumnDiff:
    """A column that both snapshots have, of one type.

    Attributes:
        name: Its name.
        ordered: Whether it has numbers or dates, not categories.
        before: In the first snapshot.
        after: In the second.
        distance: The population stability index; None if a side has no values, or nearly all are distinct.
        came: Categories that only the second has, the most frequent first.
        went: Categories that only the first has.
    """

    name: str
    ordered: bool
    before: ColumnStatistics
    after: ColumnStatistics
    distance: float | None
    came: tuple[str, ...] = ()
    went: tuple[str, ...] = ()


def is_ordered(kind: pa.DataType) -> bool:
    """Return True if a type is numeric or a date."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)


def compare_column(name: str, before: ColumnStatistics, after: ColumnStatistics) -> ColumnDiff:
    """Compare a column of two snapshots."""
    if not is_ordered(before.type):
        return _compare_categories(name, before, after)
    ours, theirs = before.values, after.values
    if not len(ours) or not len(theirs):
        return ColumnDiff(name, True, before, after, None)
    edges = np.unique(np.quantile(ours, np.arange(1, 10) / 10, method="lower"))
    # A bin between each two edges, and one for each edge: so a value that many rows share has a separate bin.
    counts = [
        np.bincount(np.searchsorted(edges, v) + np.searchsorted(edges, v, "right"), minlength=2 * len(edges) + 1)
        for v in (ours, theirs)
    ]
    return ColumnDiff(name, True, before, after, stability(*counts))


def _compare_categories(name: str, before: ColumnStatistics, after: ColumnStatistics) -> ColumnDiff:
    ours, theirs = before.categories, after.categories
    if not ours or not theirs or any(len(c) > TOP and 2 * len(c) > c.total() for c in (ours, theirs)):
        return ColumnDiff(name, False, before, after, None)
    top = sorted({value for counted in (ours, theirs) for value, _ in counted.most_common(TOP)})
    counts = [np.array([c[v] for v in top] + [c.total() - sum(c[v] for v in top)]) for c in (ours, theirs)]
    came = tuple(value for value, _ in theirs.most_common() if value not in ours)
    went = tuple(value for value, _ in ours.most_common() if value not in theirs)
    return ColumnDiff(name, False, before, after, stability(*counts), came, went)


def stability(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the population stability index of two histograms: 0 if their shares are equal."""
    one, other = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (ours, theirs))
    return float(((one - other) * np.log(one / other)).sum())


MOST_ROWS = 100_000
COLUMNS_AT_ONCE = 16


@dataclass(frozen=True)
class Difference:
    """The differences of two snapshots.

    Attributes:
        before: The first.
        after: The second.
        added: The types of the columns that only the second has.
        removed: The types of the columns that only the first has.
        retyped: The types, before and after, of columns with a changed type.
        shared: Names of the columns that both have with the same type.
    """

    before: Snapshot
    after: Snapshot
    added: dict[str, str]
    removed: dict[str, str]
    retyped: dict[str, tuple[str, str]]
    shared: tuple[str, ...]


def compare_schemas(snapshots: Snapshots, one: str, other: str) -> Difference:
    """Compare the columns of two snapshots, given by their digests or prefixes of them."""
    before, after = snapshots.get(one), snapshots.get(other)
    ours, theirs = (
        {f.name: str(f.type) for f in snapshots.parts.schema(snapshot.parts)} for snapshot in (before, after)
    )
    both = [name for name in ours if name in theirs]
    return Difference(
        before=before,
        after=after,
        added={name: kind for name, kind in theirs.items() if name not in ours},
        removed={name: kind for name, kind in ours.items() if name not in theirs},
        retyped={name: (ours[name], theirs[name]) for name in both if ours[name] != theirs[name]},
        shared=tuple(name for name in both if ours[name] == theirs[name]),
    )


def compare_columns(snapshots: Snapshots, difference: Difference) -> Iterator[ColumnDiff]:
    """Yield the differences in the values of each shared column."""
    names = list(difference.shared)
    for start in range(0, len(names), COLUMNS_AT_ONCE):
        some = names[start : start + COLUMNS_AT_ONCE]
        ours, theirs = (read_both(snapshots, s, some) for s in (difference.before, difference.after))
        yield from (compare_column(name, ours[name], theirs[name]) for name in some)


def read_both(snapshots: Snapshots, snapshot: Snapshot, names: list[str]) -> dict[str, ColumnStatistics]:
    """Read some columns of a snapshot, a row group at a time."""
    sides = {name: ColumnStatistics() for name in names}
    step = -(-snapshot.rows // MOST_ROWS) or 1
    for block in snapshots.blocks(snapshot.digest):
        table = block.read_alike(names)
        chosen = pa.array(np.arange(-block.start % step, block.rows, step))
        for name, side in sides.items():
            side.add(table.column(name), chosen)
    return sides
