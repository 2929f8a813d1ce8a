"""The Parquet files of a snapshot, and the blocks that they are read in."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.errors import UserError
from ondol.storage.files import digest_file, scratch
from ondol.storage.parquet import arrange_table, cast_table, unify_files, write_rows
from ondol.storage.store import Store

ROW = "_row"
MESSAGE = ("The snapshot's file", "run `ml ingest --full`")  # what messages call a part, and what makes it again
_whole: set[tuple[Path, str]] = set()  # files whose digests this process has verified


class Part(BaseModel):
    """One Parquet file of a snapshot.

    Attributes:
        digest: The SHA-256 of its bytes.
        rows: How many rows it holds, the replaced ones too.
        dropped: Names the file with the numbers of its rows that were replaced; None where there are none.
        drops: How many these are.
    """

    digest: str
    rows: int
    dropped: str | None = None
    drops: int = 0


def require_whole(path: Path, digest: str | None, what: str, again: str) -> None:
    """Check that a file exists and has its SHA-256, once per process.

    Args:
        path: The file.
        digest: The SHA-256; None where the bytes are not to be looked at.
        what: What messages call it.
        again: What makes it again.

    Raises:
        UserError: it is missing, or its bytes are no longer what they were.
    """
    if not path.exists():
        raise _missing(path, what, again)
    if digest is None or (path, digest) in _whole:
        return
    if digest_file(path) != digest:
        raise UserError(f"{what} {path} was changed or damaged: bring it back, or remove it and {again}.")
    _whole.add((path, digest))


def _missing(path: Path, what: str, again: str) -> UserError:
    return UserError(f"{what} {path} is missing: restore it, or {again}.")


def _names(part: Part) -> list[str]:
    return [digest for digest in (part.digest, part.dropped) if digest]


class Parts:
    """The files in one folder of a store."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Open `folder` of `store`; creates nothing."""
        self.store = store
        self.folder = folder

    def place(self, digest: str) -> Path:
        """Return where a file belongs."""
        return self.folder / f"{digest}.parquet"

    def path(self, digest: str) -> Path:
        """Return where a file is, to be opened.

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
        """Write rows, all of one schema, or find that they are there already; None where there are none."""
        with self.draft(batches) as made:
            return self.keep(made) if made else None

    @contextmanager
    def draft(self, batches: Iterable[pa.RecordBatch]) -> Iterator[Path | None]:
        """Write rows to a file that is removed again unless it is kept; yield it, None where there are no rows."""
        with scratch(self.folder / "new.parquet") as made:
            yield made if write_rows(batches, made) else None

    def keep(self, made: Path) -> Part:
        """Give a draft its name."""
        rows = pq.read_metadata(made).num_rows
        return Part(digest=self._keep(made), rows=rows)

    def drop(self, part: Part, rows: np.ndarray) -> Part:
        """Return `part` without some more of its rows, given by their numbers in its file."""
        gone = np.union1d(self.dropped(part), rows)
        with scratch(self.folder / "new.parquet") as made:
            pq.write_table(pa.table({ROW: pa.array(gone, pa.int64())}), made, compression="zstd")
            return part.model_copy(update={"dropped": self._keep(made), "drops": len(gone)})

    def dropped(self, part: Part) -> np.ndarray:
        """Return the numbers of the rows of a part that were replaced, in order."""
        if part.dropped is None:
            return np.empty(0, np.int64)
        return pq.read_table(self.path(part.dropped)).column(ROW).to_numpy()

    def schema(self, parts: Iterable[Part]) -> pa.Schema:
        """Return the columns and types that hold the rows of all `parts`."""
        return unify_files(pq.read_metadata(self.path(part.digest)) for part in parts)

    def verify(self, part: Part) -> None:
        """Verify a part's digest, once per process.

        Raises:
            UserError: a file is missing, or its bytes are no longer what they were.
        """
        for digest in _names(part):
            require_whole(self.path(digest), digest, *MESSAGE)

    def require(self, parts: Iterable[Part]) -> None:
        """Check that all files are there; their bytes are not looked at.

        Raises:
            UserError: one is missing.
        """
        there = {path.stem for path in self.store.sizes(self.folder, "*.parquet")}
        for digest in (digest for part in parts for digest in _names(part)):
            if digest not in there:
                raise _missing(self.place(digest), *MESSAGE)

    def _keep(self, made: Path) -> str:
        """Give the file at `made` its name."""
        digest = digest_file(made)
        place = self.place(digest)
        if not self.has(digest):
            self.store.publish(made, place)
        with suppress(OSError):  # used again: the removal of old files goes by this time
            os.utime(place)
        return digest


@dataclass(frozen=True)
class Block:
    """Up to a row group of a snapshot's rows.

    Attributes:
        start: The number of its first row in the snapshot.
        rows: How many rows it has.
        part: Where they are.
        place: Which of the snapshot's parts this is.
        numbers: Their numbers there.
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
        """Return the rows as they were read, with just `columns` where they are given.

        A column may be of another type than in other blocks: a cast could lose what was written.
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
        """Return the rows in the types that hold those of all blocks."""
        names = self._schema.names if columns is None else columns
        return cast_table(self.read(names), pa.schema([self._schema.field(name) for name in names]), self.rows)
