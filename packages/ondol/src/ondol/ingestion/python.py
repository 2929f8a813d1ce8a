"""Rows that a function of the project returns (`python://model.source:rows`) or changes (`prepare`).

Its tables are stored as Parquet files in a temporary folder under `.ml/cache` while they are read. So types are decided
from all tables, memory is bounded by one table, and equal rows have an equal fingerprint.
"""

import re
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ondol.errors import UserError
from ondol.ingestion.files import RawFile
from ondol.ingestion.many import ManySource, open_parts
from ondol.ingestion.sources import Reading, Retyped, Source, StreamingSource
from ondol.orchestration.reporting import Ticker
from ondol.project import FILE, OWN_ERRORS, SOURCE, describe_error, import_code
from ondol.storage.files import scratch

ADDRESS = re.compile(r"python://(?P<module>\w+(?:\.\w+)*):(?P<function>\w+)")
Change = Callable[[pd.DataFrame], pd.DataFrame]
TABLES = "a pandas.DataFrame, a pyarrow.Table or a pyarrow.RecordBatch, or an iterable of these"


class PythonSource:
    """The tables that a function returns or yields; it is called once, when the first table is needed."""

    typed = True

    def __init__(self, uri: str, function: Callable[[], Any], reading: Reading, name: str = "") -> None:
        """Store the function, and its `name` for messages; it is not called yet."""
        self.uri = uri
        self._name = name or f'"{uri}"'
        self._function = function
        self._reading = reading
        self._files = ExitStack()
        self._table: ManySource | None = None
        weakref.finalize(self, self._files.close)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all rows."""
        return self._open().schema

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows and of their division into tables."""
        return self._open().fingerprint()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        return self._open().batches()

    def files(self) -> dict[str, str]:
        """Return a SHA-256 of each table by its number; see `sources.MultiFileSource`."""
        return self._open().files()

    def without(self, names: Collection[str]) -> ManySource:
        """Return the source of the other tables, which exist as long as this source."""
        return self._open().without(names)

    def _open(self) -> ManySource:
        if self._table is None:
            folder = self._files.enter_context(scratch(self._reading.root / ".ml/cache/sources/files"))
            folder.mkdir()
            try:
                files = self._write(folder)
            except Retyped:
                files = self._write(folder)
            if not files:
                raise UserError(f"{self._name} returned no table: return {TABLES}.")
            self._table = open_parts(self.uri, files, self._reading)
        return self._table

    def _write(self, folder: Path) -> dict[str, RawFile]:
        files, ticker = {}, Ticker("rows made")
        for number, table in enumerate(self._tables()):
            file = RawFile(self.uri, folder / f"{number:06}")
            pq.write_table(table, file.path)
            files[file.path.name] = file
            ticker.add(table.num_rows)
        ticker.close()
        return files

    def _tables(self) -> Iterator[pa.Table]:
        """Yield what the function returns, as Arrow tables.

        Raises:
            UserError: it failed, or returned something else.
        """
        try:
            made = self._function()
            for one in [made] if isinstance(made, pd.DataFrame | pa.Table | pa.RecordBatch) else _iterate(made):
                yield self._to_table(one)
        except (UserError, Retyped):
            raise
        except OWN_ERRORS as error:
            raise UserError(f"{self._name} failed: {describe_error(error)}.") from error

    def _to_table(self, value: Any) -> pa.Table:
        if isinstance(value, pd.DataFrame):
            return pa.Table.from_pandas(value, preserve_index=False).replace_schema_metadata(None)
        if isinstance(value, pa.RecordBatch):
            return pa.Table.from_batches([value])
        if isinstance(value, pa.Table):
            return value
        raise UserError(f"{self._name} returned {type(value).__name__}: return {TABLES}.")


def open_python(uri: str, reading: Reading) -> PythonSource:
    """Return the source for the function in `uri`.

    Raises:
        UserError: the address is invalid, or there is no such function.
    """
    found = ADDRESS.fullmatch(uri)
    if found is None:
        raise UserError(
            f'"{uri}" names no function: write python://module:function, such as python://model.source:rows.'
        )
    module, name = found["module"], found["function"]
    try:
        function = getattr(import_code(module), name, None)
    except UserError as error:
        raise UserError(f'"{uri}": {error}') from error
    if not callable(function):
        raise UserError(f'"{uri}": {module} has no function "{name}".')
    return PythonSource(uri, function, reading)


def change_rows(source: Source, change: Change, reading: Reading) -> PythonSource:
    """Return a source that applies `change` to the rows of `source`, a batch at a time.

    Args:
        source: The source of the original rows.
        change: A function that takes and returns a frame. Its columns have Arrow types (`pandas.ArrowDtype`), which
            keep integers in columns with missing values.
        reading: The settings for reading the changed rows.

    Raises:
        UserError: the source is a stream.
    """
    if isinstance(source, StreamingSource):
        raise UserError(
            f'"{source.uri}" is a stream, whose rows cannot be changed at ingest: change them at its writer.'
        )

    def frames() -> Iterator[pd.DataFrame]:
        for batch in source.batches():
            yield change(batch.to_pandas(types_mapper=pd.ArrowDtype))

    return PythonSource(source.uri, frames, reading, f'"{getattr(change, "__name__", repr(change))}" in {FILE(SOURCE)}')


def _iterate(value: Any) -> Iterable[Any]:
    return value if isinstance(value, Iterable) and not isinstance(value, str | bytes | dict) else [value]
