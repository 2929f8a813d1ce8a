"""Snapshots: Parquet files named by the SHA-256 of their content, never rewritten."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from flows.errors import UserError
from flows.store.files import digest_file, publish, read_json, scratch, write_bytes, write_json

ROW_GROUP = 131_072  # fixed, so that the same rows make the same bytes however the source was cut


class Snapshot(BaseModel):
    """What is known of a snapshot without opening it."""

    digest: str
    rows: int
    columns: tuple[str, ...]
    source: str
    created: str


class Snapshots:
    """The snapshots of one store."""

    def __init__(self, store: Path) -> None:
        """Look into the store at `store`; nothing is made."""
        self.folder = store / "snapshots"

    def path(self, digest: str) -> Path:
        """Return where the snapshot's Parquet file is."""
        return self.folder / f"{digest}.parquet"

    def get(self, digest: str) -> Snapshot:
        """Return the snapshot named by `digest` or by its first characters.

        Raises:
            UserError: there is none, or more than one.
        """
        found = sorted(self.folder.glob(f"{digest}*.json"))
        if len(found) != 1:
            known = "no such snapshot" if not found else "more than one such snapshot"
            raise UserError(f"{known.capitalize()} in {self.folder}: {digest}; run `ml ingest` to make one.")
        return Snapshot.model_validate_json(found[0].read_bytes())

    def by_fingerprint(self, fingerprint: str) -> Snapshot | None:
        """Return the snapshot that a source with `fingerprint` gave, or None."""
        digest = read_json(self.folder / "sources" / f"{fingerprint}.json")
        return self.get(digest) if digest and self.path(digest).exists() else None

    def write(self, batches: Iterable[pa.RecordBatch], source: str, fingerprint: str) -> Snapshot:
        """Write the rows of `batches` as a snapshot, or find that it is there already.

        Raises:
            UserError: there are no rows.
        """
        with scratch(self.folder / "new.parquet") as made:
            rows, columns = _write_parquet(batches, made, source)
            digest = digest_file(made)
            if not self.path(digest).exists():
                publish(made, self.path(digest))
        snapshot = Snapshot(
            digest=digest,
            rows=rows,
            columns=columns,
            source=source,
            created=datetime.now(UTC).isoformat("T", "seconds"),
        )
        if not (self.folder / f"{digest}.json").exists():
            write_bytes(self.folder / f"{digest}.json", snapshot.model_dump_json(indent=1).encode())
        write_json(self.folder / "sources" / f"{fingerprint}.json", digest)
        return snapshot

    def batches(self, digest: str, columns: list[str]) -> Iterator[pa.Table]:
        """Yield the snapshot's rows in order, `ROW_GROUP` at a time, with just `columns`."""
        with pq.ParquetFile(self.path(digest)) as file:
            for i in range(file.num_row_groups):
                yield file.read_row_group(i, columns=columns)


def _write_parquet(batches: Iterable[pa.RecordBatch], path: Path, source: str) -> tuple[int, tuple[str, ...]]:
    """Write rows in equal row groups; return their number and the columns' names."""
    rows, writer, waiting = 0, None, []
    try:
        for group in _regroup(batches):
            if writer is None:
                texts = [f.name for f in group.schema if pa.types.is_string(f.type)]
                writer = pq.ParquetWriter(
                    path, group.schema, compression="zstd", compression_level=1, use_dictionary=texts
                )
            writer.write_table(group, row_group_size=ROW_GROUP)
            rows += group.num_rows
            waiting = group.schema.names
    finally:
        if writer is not None:
            writer.close()
    if writer is None or rows == 0:
        raise UserError(f"{source} has no rows: there is nothing to learn from.")
    return rows, tuple(waiting)


def _regroup(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield tables of exactly `ROW_GROUP` rows, and one with the rest."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count >= ROW_GROUP:
            table = pa.Table.from_batches(held)
            whole = count - count % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                yield table.slice(start, ROW_GROUP)
            held, count = table.slice(whole).to_batches(), count - whole
    if count:
        yield pa.Table.from_batches(held)
