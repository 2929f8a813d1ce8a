"""Two snapshots side by side: their columns, and how the values of each moved.

Missing values, the least and the greatest are of all rows. The median, the categories and the distance are of evenly
spaced rows, every k-th, at most `MOST_ROWS`. A few columns are read at a time, so that memory stays bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ondol.snapshots.distributions import Column, Side, compare_sides
from ondol.snapshots.snapshots import Snapshot, Snapshots

MOST_ROWS = 100_000
COLUMNS_AT_ONCE = 16


@dataclass(frozen=True)
class Difference:
    """What two snapshots differ in.

    Attributes:
        before: The first.
        after: The second.
        added: The types of the columns that only the second has.
        removed: The types of the columns that only the first has.
        retyped: The types, before and after, of those that have another.
        shared: Names of the columns that both have, of one type.
    """

    before: Snapshot
    after: Snapshot
    added: dict[str, str]
    removed: dict[str, str]
    retyped: dict[str, tuple[str, str]]
    shared: tuple[str, ...]


def compare_schemas(snapshots: Snapshots, one: str, other: str) -> Difference:
    """Compare the columns of two snapshots, named by their digests or the first characters of these."""
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


def compare_columns(snapshots: Snapshots, difference: Difference) -> Iterator[Column]:
    """Yield how the values of each shared column moved."""
    names = list(difference.shared)
    for start in range(0, len(names), COLUMNS_AT_ONCE):
        some = names[start : start + COLUMNS_AT_ONCE]
        ours, theirs = (read_sides(snapshots, s, some) for s in (difference.before, difference.after))
        yield from (compare_sides(name, ours[name], theirs[name]) for name in some)


def read_sides(snapshots: Snapshots, snapshot: Snapshot, names: list[str]) -> dict[str, Side]:
    """Read some columns of a snapshot, a row group at a time."""
    sides = {name: Side() for name in names}
    step = -(-snapshot.rows // MOST_ROWS) or 1
    for block in snapshots.blocks(snapshot.digest):
        table = block.read_alike(names)
        chosen = pa.array(np.arange(-block.start % step, block.rows, step))
        for name, side in sides.items():
            side.add(table.column(name), chosen)
    return sides
