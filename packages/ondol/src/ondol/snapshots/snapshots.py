"""Snapshots: rows that are never rewritten, named by the SHA-256 of their content.

A snapshot is a list of parts, each a Parquet file named by the SHA-256 of its bytes. One that was read whole is one
part, and bears its name. One that grew names its parent, whose parts it shares; rows of these that were replaced since
are left out by their numbers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.errors import UserError
from ondol.snapshots.parts import Block, Part, Parts
from ondol.storage.files import digest_json, read_json, read_record, utc_now
from ondol.storage.store import Store


class Snapshot(BaseModel):
    """What is known of a snapshot without opening it.

    Attributes:
        digest: Its name.
        rows: How many rows it has.
        columns: Their names.
        source: Where they came from, as the user wrote it.
        created: When, ISO 8601 in UTC.
        parent: The snapshot that it grew from.
        parts: Its files, the oldest first.
        watermark: The newest value of the watermark column, where there is one.
    """

    digest: str
    rows: int
    columns: tuple[str, ...]
    source: str
    created: str
    parent: str | None = None
    parts: tuple[Part, ...] = ()
    watermark: Any = None

    def model_post_init(self, context: Any, /) -> None:
        """Give a snapshot of one part, as older ones are recorded, that part."""
        if not self.parts:
            self.parts = (Part(digest=self.digest, rows=self.rows),)


class Snapshots:
    """The snapshots of one store."""

    def __init__(self, store: Store) -> None:
        """Open `store`; creates nothing."""
        self.store = store
        self.folder = store.folder / "snapshots"
        self.parts = Parts(store, self.folder)

    def get(self, digest: str) -> Snapshot:
        """Return the snapshot named by `digest` or by its first characters.

        Raises:
            UserError: there is none, or more than one, or this is no digest.
        """
        if not re.fullmatch("[0-9a-f]+", digest):
            raise UserError(f'"{digest}" is no digest: give the first characters of one that `ml data log` shows.')
        found = sorted(self.folder.glob(f"{digest}*.json"))
        if len(found) > 1:
            raise UserError(
                f"More than one such snapshot in {self.folder}: {digest}; give more characters of its digest."
            )
        if not found:
            raise UserError(f"No such snapshot in {self.folder}: {digest}; run `ml ingest` to make one.")
        snapshot = read_record(found[0], Snapshot)
        if snapshot is None:
            raise UserError(f"{found[0]} is gone: another command removed it meanwhile.")
        return snapshot

    def by_fingerprint(self, fingerprint: str | None) -> Snapshot | None:
        """Return the snapshot that a source with `fingerprint` gave, or None."""
        digest = read_json(self.folder / "sources" / f"{fingerprint}.json") if fingerprint else None
        if not digest or not (self.folder / f"{digest}.json").exists():  # its record was removed: it is made again
            return None
        snapshot = self.get(digest)
        return snapshot if self.is_whole(snapshot) else None

    def is_whole(self, snapshot: Snapshot) -> bool:
        """Return True if all files of a snapshot are there."""
        files = [digest for part in snapshot.parts for digest in (part.digest, part.dropped) if digest]
        return all(self.parts.has(digest) for digest in files)

    def write(self, batches: Iterable[pa.RecordBatch], source: str, fingerprint: str | None) -> Snapshot:
        """Write the rows of `batches` as a snapshot, or find that it is there already.

        Raises:
            UserError: there are no rows.
        """
        part = self.parts.write(batches)
        if part is None:
            raise UserError(f"{source} has no rows: there is nothing to train on.")
        snapshot = self.record([part], source)
        if fingerprint:
            self.store.write_json(self.folder / "sources" / f"{fingerprint}.json", snapshot.digest)
        return snapshot

    def record(
        self, parts: Iterable[Part], source: str, parent: Snapshot | None = None, watermark: Any = None
    ) -> Snapshot:
        """Record a snapshot of `parts`, which are written already, or find that it is there already.

        Raises:
            UserError: a file of them is gone: another host or project may have collected it as garbage.
        """
        kept = tuple(parts)
        self.parts.require(kept)
        alone = len(kept) == 1 and kept[0].dropped is None and parent is None
        content = [[part.digest, part.dropped] for part in kept] + [parent.digest if parent else None]
        snapshot = Snapshot(
            digest=kept[0].digest if alone else digest_json(content),
            rows=sum(part.rows - part.drops for part in kept),
            columns=tuple(self.parts.schema(kept).names),
            source=source,
            created=utc_now(),
            parent=parent.digest if parent else None,
            parts=kept,
            watermark=watermark,
        )
        path = self.folder / f"{snapshot.digest}.json"
        if not self.store.has(path):
            self.store.write_bytes(path, snapshot.model_dump_json(indent=1).encode())
        return snapshot

    def succeed(
        self, parent: Snapshot, gone: Mapping[int, np.ndarray], part: Part | None, watermark: Any = None
    ) -> Snapshot:
        """Record the snapshot that follows `parent`: without some of its rows, and with those of `part` behind.

        Args:
            parent: The snapshot that grows.
            gone: By which of its parts it is the numbers of the rows that are left out.
            part: What is new, written already.
            watermark: The newest value of the watermark column.
        """
        kept = [self.parts.drop(one, gone[i]) if i in gone else one for i, one in enumerate(parent.parts)]
        return self.record([*kept, *([part] if part else [])], parent.source, parent, watermark)

    def blocks(self, digest: str) -> Iterator[Block]:
        """Yield the snapshot's rows in order, a row group at a time, unread.

        Raises:
            UserError: a file is missing, or its bytes are no longer what they were.
        """
        snapshot = self.get(digest)
        for part in snapshot.parts:
            self.parts.verify(part)
        schema = self.parts.schema(snapshot.parts)
        start = 0
        for place, part in enumerate(snapshot.parts):
            gone = self.parts.dropped(part)
            with pq.ParquetFile(self.parts.path(part.digest)) as file:
                offset = 0
                for group in range(file.num_row_groups):
                    stored = file.metadata.row_group(group).num_rows
                    numbers = np.setdiff1d(np.arange(offset, offset + stored), gone, assume_unique=True)
                    yield Block(start, len(numbers), part, place, numbers, file, group, offset, schema)
                    start += len(numbers)
                    offset += stored

    def batches(self, digest: str, columns: list[str]) -> Iterator[pa.Table]:
        """Yield the snapshot's rows in order, a row group at a time, with just `columns`."""
        return (block.read(columns) for block in self.blocks(digest))

    def schema(self, digest: str) -> pa.Schema:
        """Return the columns and types of a snapshot."""
        return self.parts.schema(self.get(digest).parts)
