"""The files of snapshots: Parquet, named by the SHA-256 of their bytes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from flows.errors import UserError
from flows.store.files import digest_file, publish, scratch
from flows.store.parquet import large_columns, unify, write_rows
from flows.store.reach import fetch, is_published

ROW = "_row"
_whole: set[Path] = set()  # files whose bytes this process has held against their names


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


class Parts:
    """The files in one folder."""

    def __init__(self, folder: Path) -> None:
        """Look into `folder`; nothing is made."""
        self.folder = folder

    def place(self, digest: str) -> Path:
        """Return where a file belongs."""
        return self.folder / f"{digest}.parquet"

    def path(self, digest: str) -> Path:
        """Return where a file is, to be opened."""
        return fetch(self.place(digest))

    def has(self, digest: str) -> bool:
        """Tell whether a file is there."""
        return is_published(self.place(digest))

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
        files = [pq.read_metadata(self.path(part.digest)) for part in parts]
        schemas = [file.schema.to_arrow_schema() for file in files]
        if all(schema.equals(schemas[0]) for schema in schemas):
            return schemas[0]
        return unify(schemas, set().union(*map(large_columns, files)))

    def verify(self, part: Part) -> None:
        """Hold a part's bytes against its name, once in a process.

        Raises:
            UserError: a file is missing, or its bytes are no longer what they were.
        """
        for digest in filter(None, (part.digest, part.dropped)):
            path = self.path(digest)
            if path in _whole:
                continue
            if not path.exists():
                raise UserError(f"The snapshot's file {path} is missing: bring it back, or run `ml ingest --full`.")
            if digest_file(path) != digest:
                raise UserError(
                    f"The snapshot's file {path} was changed or damaged: bring it back, or remove it and run "
                    "`ml ingest --full`."
                )
            _whole.add(path)

    def _keep(self, made: Path) -> str:
        """Give the file at `made` its name."""
        digest = digest_file(made)
        if not self.has(digest):
            publish(made, self.place(digest))
        return digest
