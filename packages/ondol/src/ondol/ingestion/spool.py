"""A local file for the rows of a source until all types are known."""

import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ondol.errors import UserError
from ondol.ingestion.columns import BATCH_ROWS, LADDERS, Row, ValueKinds, by_name
from ondol.ingestion.files import check_names
from ondol.ingestion.json_files import JsonReader, parse, write
from ondol.ingestion.sources import Reading, Retyped
from ondol.orchestration.reporting import Ticker

HELD_BYTES = 64 << 20  # bytes fetched before the first batch is yielded, so that most types need no change after it
Pages = Iterator[list[Row]]


class RecordSource:
    """A source whose records are fetched once, page by page, and stored in a local file until all types are known.

    A subclass yields pages of flat rows from `_pages`. Later reads use the file.
    The file has no name, so nothing is left of it when the process ends or is killed.
    """

    typed = True

    def __init__(self, uri: str, reading: Reading) -> None:
        """Store the source and its settings; nothing is fetched."""
        self.uri = uri
        self.reading = reading
        self._spool: Spool | None = None

    @property
    def schema(self) -> pa.Schema:
        """Names and types, from as many records as are needed to see the contract's columns."""
        return self._guard(lambda spool: spool.schema())

    def fingerprint(self) -> None:
        """Return None: changes cannot be known without reading the rows."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        yield from self._guard(lambda spool: spool.batches())

    def _pages(self) -> Pages:
        """Fetch the pages of flat rows."""
        raise NotImplementedError

    def _guard(self, read: Callable[["Spool"], Any]) -> Any:
        """Return `read(spool)`; the spool is filled again after a failure."""
        if self._spool is None or self._spool.failed:
            self._spool = Spool(self._pages(), self.uri, self.reading)
        return read(self._spool)


class Spool:
    """Fetched rows, in a file without a name.

    Attributes:
        failed: Whether fetching ended in an error, so that the rest is missing.
    """

    def __init__(self, pages: Pages, uri: str, reading: Reading) -> None:
        """Start without rows; the file is in the project's folder if there is one."""
        home = reading.root / ".ml"
        self._folder = home if home.is_dir() else Path(tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._pages, self._uri, self._columns = pages, uri, reading.columns
        self._kinds = ValueKinds()
        self._reader = JsonReader()
        self._rows = self._size = 0
        self._ticker = Ticker("rows fetched")
        self.failed = False

    def schema(self) -> pa.Schema:
        """Fetch enough rows, and return their names and types; those of the contract if there are no rows."""
        needed = set(self._columns or ())
        while (self._size < HELD_BYTES or not needed <= self._kinds.names()) and self._fetch():
            pass
        if not self._rows:
            return pa.schema([(name, LADDERS[kind][0]) for name, kind in (self._columns or {}).items()])
        schema = self._kinds.schema(self._columns)
        check_names(schema.names, self._uri)
        return schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows.

        Raises:
            Retyped: a late record has a new column, or a value of another type; all rows are fetched by then.
        """
        schema, done, start = self.schema(), 0, 0
        while True:
            while self._rows - done < BATCH_ROWS and self._fetch():
                pass
            if self._rows == done:
                return
            if self._kinds.schema(self._columns) != schema:
                while self._fetch():
                    pass
                raise Retyped(self._uri)
            self._file.seek(start)
            lines = [line.decode() for line in islice(self._file, BATCH_ROWS)]
            start, done = self._file.tell(), done + len(lines)
            yield self._reader.batch(lines, schema, self._uri, partial(self._parse, lines))

    def _parse(self, lines: list[str]) -> list[Row]:
        return [parse(line, self._uri) for line in lines]

    def _fetch(self) -> bool:
        """Add the next page; return False if there is none."""
        self.failed = True
        page = next(self._pages, None)
        if page is not None:
            self._add(page)
        else:
            self._ticker.close()
        self.failed = False
        return page is not None

    def _add(self, page: list[Row]) -> None:
        self._kinds.add(by_name(page))
        try:
            self._file.seek(self._size)
            self._file.write(b"".join(write(row) + b"\n" for row in page))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f'The records of "{self._uri}" cannot be kept in {self._folder} while they are fetched '
                f"({error.strerror}): make room there."
            ) from None
        self._size = self._file.tell()
        self._rows += len(page)
        self._ticker.add(len(page))
