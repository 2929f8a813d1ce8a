"""Rows that a person mended stand in for the raw ones wherever the source gives these again.

`snapshots/mended/<source>.json` lists them, and every ingest goes through it. A raw row is known by all that it holds,
so a row that the source itself has changed since is left as the source has it.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from flows.contract.repeats import hash_table
from flows.store.files import digest_json, read_json, write_json
from flows.store.parquet import cast_table, unify
from flows.store.parts import Part
from flows.store.snapshots import Snapshot, Snapshots


class Mend(BaseModel):
    """Rows that were mended together.

    Attributes:
        raw: The file with the rows as the source gave them.
        mended: The file with those that stand in for them, in the same order.
        rows: How many there are.
        validation: Whose quarantine they were in.
    """

    raw: str
    mended: str
    rows: int
    validation: str


class Place(NamedTuple):
    """Where a row of a snapshot is: its number there, and its file and number in this."""

    position: int
    part: str
    number: int


def keep_mend(snapshots: Snapshots, source: str, mend: Mend) -> None:
    """Remember what was mended in the rows of `source`."""
    mends = [*read_mends(snapshots, source), mend]
    write_json(_path(snapshots, source), [one.model_dump() for one in mends])


def read_mends(snapshots: Snapshots, source: str) -> list[Mend]:
    """Return what was mended in the rows of `source`, the oldest first."""
    return [Mend.model_validate(one) for one in read_json(_path(snapshots, source)) or []]


def mend_snapshot(snapshots: Snapshots, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with mended rows in place of those raw ones that it has; itself where it has none."""
    mends = read_mends(snapshots, snapshot.source)
    if not mends:
        return snapshot
    name = digest_json([snapshot.digest, [[mend.raw, mend.mended] for mend in mends]])
    memo = snapshots.folder / "mended" / "made" / f"{name}.json"
    if (digest := read_json(memo)) and snapshots.is_whole(snapshots.get(digest)):
        return snapshots.get(digest)
    for mend in mends:
        raw, mended = (_read(snapshots, one, mend.rows) for one in (mend.raw, mend.mended))
        snapshot = replace_rows(snapshots, snapshot, mended, find_rows(snapshots, snapshot, raw))
    write_json(memo, snapshot.digest)
    return snapshot


def find_rows(snapshots: Snapshots, snapshot: Snapshot, raw: pa.Table) -> dict[int, Place]:
    """Return for each row of `raw` that the snapshot has where it is; of equal ones the last."""
    names = [name for name in raw.schema.names if name in snapshot.columns]
    schema = unify([raw.select(names).schema, pa.schema([snapshots.schema(snapshot.digest).field(n) for n in names])])
    ours = _hash(raw.select(names), schema)
    wanted: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(ours.tolist()):
        wanted[tuple(key)].append(row)
    seen: dict[tuple[int, ...], list[Place]] = defaultdict(list)
    for block in snapshots.blocks(snapshot.digest):
        theirs = _hash(block.read(names), schema)
        for row in np.flatnonzero(np.isin(theirs[:, 0], ours[:, 0])).tolist():
            place = Place(block.start + row, block.part.digest, int(block.numbers[row]))
            seen[tuple(theirs[row].tolist())].append(place)
    return {
        row: place
        for key, rows in wanted.items()
        for row, place in zip(rows, seen.get(key, [])[-len(rows) :], strict=False)
    }


def replace_rows(snapshots: Snapshots, snapshot: Snapshot, mended: pa.Table, places: Mapping[int, Place]) -> Snapshot:
    """Record the snapshot without the rows at `places`, and behind it those of `mended` that stand in for them."""
    if not places:
        return snapshot
    gone: dict[str, list[int]] = defaultdict(list)
    for place in places.values():
        gone[place.part].append(place.number)
    part = snapshots.parts.write(mended.take(pa.array(sorted(places))).combine_chunks().to_batches())
    rows = {digest: np.array(numbers) for digest, numbers in gone.items()}
    return snapshots.succeed(snapshot, rows, part, snapshot.watermark)


def _hash(table: pa.Table, schema: pa.Schema) -> np.ndarray:
    return hash_table(cast_table(table, schema, len(table)))


def _read(snapshots: Snapshots, digest: str, rows: int) -> pa.Table:
    snapshots.parts.verify(Part(digest=digest, rows=rows))
    return pq.read_table(snapshots.parts.path(digest))


def _path(snapshots: Snapshots, source: str) -> Path:
    return snapshots.folder / "mended" / f"{digest_json(source)}.json"
