"""Snapshots: immutable tables, named by the SHA-256 of their content.

A snapshot is a list of parts: Parquet files named by the SHA-256 of their bytes. A snapshot of a complete read has one
part, and the same name. A snapshot that grew names its parent and shares its parts; the numbers of rows that were
replaced since are stored, and these rows are left out. Parts are written in row groups of one size, so that the same
rows give the same bytes.

For a source with ids, `choose_newest` finds the new rows of a draft, and the older rows that they replace.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.errors import UserError
from ondol.storage.files import digest_file, digest_json, read_json, read_record, scratch, utc_now
from ondol.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from ondol.contract import Column

T = TypeVar("T", pa.Array, pa.ChunkedArray)
ROW_GROUP = 131_072
ROW = "_row"
# For messages: the name of a part, and the command that restores it.
MESSAGE = ("The snapshot's file", "run `ml ingest --full`")


def write_rows(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    """Write the rows of `batches`, all of one schema, to `path`, unless there are none; return their number."""
    writer, rows = None, 0
    try:
        for group in _regroup(batches):
            if writer is None:
                texts = [f.name for f in group.schema if pa.types.is_string(f.type)]
                writer = pq.ParquetWriter(
                    path, group.schema, compression="zstd", compression_level=1, use_dictionary=texts
                )
            writer.write_table(group, row_group_size=ROW_GROUP)
            rows += group.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def unify(schemas: Iterable[pa.Schema], large: Collection[str] = ()) -> pa.Schema:
    """Return all columns of `schemas`, the last one's order first: integers and floats become floats, others text.

    Args:
        schemas: The schemas of the tables to combine.
        large: Columns with integers that float64 would round: with floats they become text.
    """
    types: dict[str, pa.DataType] = {}
    for schema in reversed(list(schemas)):
        for field in schema:
            types[field.name] = _common(types.get(field.name, field.type), field.type, field.name in large)
    return pa.schema(list(types.items()))


def unify_files(footers: Iterable[pq.FileMetaData]) -> pa.Schema:
    """Return the columns and types for the rows of all files, from their footers."""
    files = list(footers)
    schemas = [file.schema.to_arrow_schema() for file in files]
    if schemas and all(schema.equals(schemas[0]) for schema in schemas):
        return schemas[0]
    return unify(schemas, {name for file in files for name in _large_columns(file)})


def _large_columns(file: pq.FileMetaData) -> Iterator[str]:
    """Yield the columns of a file with integers beyond 2^53."""
    whole = {field.name for field in file.schema.to_arrow_schema() if pa.types.is_integer(field.type)}
    for group in (file.row_group(number) for number in range(file.num_row_groups)):
        for column in (group.column(place) for place in range(file.num_columns)):
            statistics = column.statistics if column.path_in_schema in whole else None
            if (
                statistics is not None
                and statistics.has_min_max
                and max(abs(statistics.min), abs(statistics.max)) > 2**53
            ):
                yield column.path_in_schema


def arrange_table(table: pa.Table, names: Iterable[str], rows: int) -> pa.Table:
    """Return `rows` rows with the columns `names` in unchanged types; absent columns have only missing values."""
    present = set(table.schema.names)
    return pa.table({name: table.column(name) if name in present else pa.nulls(rows) for name in names})


def cast_table(table: pa.Table, schema: pa.Schema, rows: int) -> pa.Table:
    """Return `rows` rows in the columns and types of `schema`; absent columns have only missing values."""
    if table.schema.equals(schema):
        return table
    arrays = [
        cast_values(table.column(field.name), field.type)
        if field.name in table.schema.names
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def cast_values(values: T, kind: pa.DataType) -> T:
    """Convert a column to `kind`, which can represent all its values; as text, NaN becomes missing."""
    if pa.types.is_floating(values.type) and pa.types.is_string(kind):
        values = pc.if_else(pc.is_nan(values), None, values)
    return values.cast(kind, safe=not pa.types.is_floating(kind))  # integers are always accepted


def _common(one: pa.DataType, other: pa.DataType, large: bool) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = {one, other} <= {pa.int64(), pa.float64()}
    return pa.float64() if numbers and not large else pa.string()


def _regroup(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield tables of exactly `ROW_GROUP` rows, and one with the rest."""
    pending: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        pending.append(batch)
        count += batch.num_rows
        if count >= ROW_GROUP:
            table = pa.Table.from_batches(pending)
            whole = count - count % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                yield table.slice(start, ROW_GROUP)
            pending, count = table.slice(whole).to_batches(), count - whole
    if count:
        yield pa.Table.from_batches(pending)


_whole: set[tuple[Path, str]] = set()  # files whose digests this process has verified


class Part(BaseModel):
    """One Parquet file of a snapshot.

    Attributes:
        digest: The SHA-256 of its bytes.
        rows: How many rows it holds, the replaced ones too.
        dropped: The digest of the file with the numbers of replaced rows; None if there are none.
        drops: The number of replaced rows.
    """

    digest: str
    rows: int
    dropped: str | None = None
    drops: int = 0


def require_whole(path: Path, digest: str | None, what: str, again: str) -> None:
    """Check that a file exists and has its SHA-256, once per process.

    Args:
        path: The file.
        digest: The SHA-256; None to check only that the file exists.
        what: The name of the file in messages.
        again: The command that restores it.

    Raises:
        UserError: it is missing, or its bytes have changed.
    """
    if not path.exists():
        raise _missing(path, what, again)
    if digest is None or (path, digest) in _whole:
        return
    if digest_file(path) != digest:
        raise UserError(f"{what} {path} was changed or damaged: restore it, or remove it and {again}.")
    _whole.add((path, digest))


def _missing(path: Path, what: str, again: str) -> UserError:
    return UserError(f"{what} {path} is missing: restore it, or {again}.")


def _names(part: Part) -> list[str]:
    return [digest for digest in (part.digest, part.dropped) if digest]


class Parts:
    """The files of parts in one folder of a store."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Open `folder` of `store`; creates nothing."""
        self.store = store
        self.folder = folder

    def place(self, digest: str) -> Path:
        """Return the path of a file, which may not exist."""
        return self.folder / f"{digest}.parquet"

    def path(self, digest: str) -> Path:
        """Return the path of a file, downloaded if necessary.

        Raises:
            UserError: it is missing.
        """
        path = self.store.fetch(self.place(digest))
        require_whole(path, None, *MESSAGE)
        return path

    def has(self, digest: str) -> bool:
        """Return True if a file is there."""
        return self.store.has(self.place(digest))

    def write(self, batches: Iterable[pa.RecordBatch]) -> Part | None:
        """Write rows of one schema as a part, unless it already exists; None if there are no rows."""
        with self.draft(batches) as made:
            return self.keep(made) if made else None

    @contextmanager
    def draft(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Path | None]:
        """Write rows to a temporary file, which is removed unless `keep` is called; yield it, or None without rows."""
        with scratch(self.folder / "new.parquet") as made:
            yield made if write_rows(batches, made) else None

    def keep(self, made: Path) -> Part:
        """Turn a draft into a part, by giving it its name."""
        rows = pq.read_metadata(made).num_rows
        return Part(digest=self._publish(made), rows=rows)

    def drop(self, part: Part, rows: np.ndarray) -> Part:
        """Return `part` without some of its rows, given by their numbers in its file."""
        gone = np.union1d(self.dropped(part), rows)
        with scratch(self.folder / "new.parquet") as made:
            pq.write_table(pa.table({ROW: pa.array(gone, pa.int64())}), made, compression="zstd")
            return part.model_copy(update={"dropped": self._publish(made), "drops": len(gone)})

    def dropped(self, part: Part) -> np.ndarray:
        """Return the numbers of the rows of a part that were replaced, in order."""
        if part.dropped is None:
            return np.empty(0, np.int64)
        return pq.read_table(self.path(part.dropped)).column(ROW).to_numpy()

    def schema(self, parts: Iterable[Part]) -> pa.Schema:
        """Return the columns and types for the rows of all `parts`."""
        return unify_files(pq.read_metadata(self.path(part.digest)) for part in parts)

    def verify(self, part: Part) -> None:
        """Verify a part's digest, once per process.

        Raises:
            UserError: a file is missing, or its bytes have changed.
        """
        for digest in _names(part):
            require_whole(self.path(digest), digest, *MESSAGE)

    def require(self, parts: Iterable[Part]) -> None:
        """Check that all files exist, without reading them.

        Raises:
            UserError: one is missing.
        """
        there = {path.stem for path in self.store.sizes(self.folder, "*.parquet")}
        for digest in (digest for part in parts for digest in _names(part)):
            if digest not in there:
                raise _missing(self.place(digest), *MESSAGE)

    def _publish(self, made: Path) -> str:
        """Move the file at `made` to its final name."""
        digest = digest_file(made)
        place = self.place(digest)
        if not self.has(digest):
            self.store.publish(made, place)
        with suppress(OSError):  # mark it as used: `ml data gc` removes files by this time
            os.utime(place)
        return digest


@dataclass(frozen=True)
class Block:
    """Rows of a snapshot, at most a row group.

    Attributes:
        start: The number of its first row in the snapshot.
        rows: How many rows it has.
        part: Their part.
        place: The index of this part in the snapshot.
        numbers: Their numbers in the part.
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
        """Return the rows with the types of the part; only `columns`, if given.

        A column may have another type than in other blocks, because a cast could lose information.
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
        """Return the rows in types for the rows of all blocks."""
        names = self._schema.names if columns is None else columns
        return cast_table(self.read(names), pa.schema([self._schema.field(name) for name in names]), self.rows)


class Snapshot(BaseModel):
    """The record of a snapshot.

    Attributes:
        digest: Its name.
        rows: How many rows it has.
        columns: Their names.
        source: The source, as the user wrote it.
        created: The time of creation, ISO 8601 in UTC.
        parent: The snapshot from which it grew.
        parts: Its files, the oldest first.
        watermark: The newest value of the watermark column, if there is one.
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
        """Add the part to a snapshot with one part that an older version recorded."""
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
        """Return the snapshot with this digest or prefix of a digest.

        Raises:
            UserError: there is none, or more than one, or this is not a digest.
        """
        if not re.fullmatch("[0-9a-f]+", digest):
            raise UserError(
                f'"{digest}" is not a snapshot digest: use the first characters of one listed by `ml data log`.'
            )
        found = sorted(self.folder.glob(f"{digest}*.json"))
        if len(found) > 1:
            raise UserError(
                f"More than one such snapshot in {self.folder}: {digest}; give more characters of its digest."
            )
        if not found:
            raise UserError(f"No such snapshot in {self.folder}: {digest}; run `ml ingest` to make one.")
        snapshot = read_record(found[0], Snapshot)
        if snapshot is None:
            raise UserError(f"{found[0]} no longer exists: another command removed it in the meantime.")
        return snapshot

    def by_fingerprint(self, fingerprint: str | None) -> Snapshot | None:
        """Return the snapshot of a source with this `fingerprint`, or None."""
        digest = read_json(self.folder / "sources" / f"{fingerprint}.json") if fingerprint else None
        if not digest or not (self.folder / f"{digest}.json").exists():  # its record was removed: it is created again
            return None
        snapshot = self.get(digest)
        return snapshot if self.is_whole(snapshot) else None

    def is_whole(self, snapshot: Snapshot) -> bool:
        """Return True if all files of a snapshot exist."""
        files = [digest for part in snapshot.parts for digest in (part.digest, part.dropped) if digest]
        return all(self.parts.has(digest) for digest in files)

    def write(self, batches: Iterable[pa.RecordBatch], source: str, fingerprint: str | None) -> Snapshot:
        """Write the rows of `batches` as a snapshot, unless it already exists.

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
        """Record a snapshot of written `parts`, unless it already exists.

        Raises:
            UserError: a file is missing: another host or project may have deleted it as garbage.
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
        """Record the successor of `parent`: without some of its rows, and with the rows of `part` at the end.

        Args:
            parent: The snapshot that grows.
            gone: For each of its parts (by index), the numbers of the rows to leave out.
            part: The part with new rows, already written.
            watermark: The newest value of the watermark column.
        """
        kept = [self.parts.drop(one, gone[i]) if i in gone else one for i, one in enumerate(parent.parts)]
        return self.record([*kept, *([part] if part else [])], parent.source, parent, watermark)

    def blocks(self, digest: str) -> Iterator[Block]:
        """Yield the snapshot's rows in order, as blocks that are not read yet.

        Raises:
            UserError: a file is missing, or its bytes have changed.
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
        """Yield the snapshot's rows in order, a row group at a time; only `columns`, if given."""
        return (block.read(columns) for block in self.blocks(digest))

    def schema(self, digest: str) -> pa.Schema:
        """Return the columns and types of a snapshot."""
        return self.parts.schema(self.get(digest).parts)


OLDEST = np.iinfo(np.int64).min  # the watermark of a row without one


@dataclass(frozen=True)
class Keys:
    """The columns that identify rows and decide which of two rows is newer.

    Attributes:
        id: The column that identifies a row.
        watermark: The growing column; None if rows that are read later are newer.
        columns: All columns of the contract, by name.
    """

    id: "Column"
    watermark: "Column | None"
    columns: "Mapping[str, Column]"

    @property
    def _keys(self) -> "dict[str, Column]":
        return {column.name: column for column in (self.id, self.watermark) if column}

    @property
    def names(self) -> list[str]:
        """The columns to read: only one if the id is also the watermark."""
        return list(self._keys)

    def read(self, group: "Block | DraftGroup", columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids' hashes [rows, 2] and the watermarks [rows] as comparable numbers.

        A row without a readable id is identified by all its values in `columns`.
        """
        from ondol.contract.checking import clean, hash_content, hash_rows

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

    def __init__(self, groups: Sequence["DraftGroup"], names: Sequence[str], columns: "Mapping[str, Column]") -> None:
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
        from ondol.contract.checking import hash_content

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
