"""The interface of sources with optional extensions, and `open_source`, which opens one by the scheme of its URI.

A new source is a module with an opener `(uri, reading) -> Source` and one line in `OPENERS`.
"""

import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from ondol.config import Dialect, Fetch
from ondol.errors import UserError, nearest
from ondol.storage.remote_files import refuse_plain, resolve

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
Columns = Mapping[str, str] | None
OPENERS = {
    "": "ondol.ingestion.files:open_file",
    "sample": "ondol.ingestion.sample:open_sample",
    "rest": "ondol.ingestion.rest:open_rest",
    "kafka": "ondol.ingestion.kafka:open_kafka",
    "python": "ondol.ingestion.python:open_python",
    **dict.fromkeys(
        ("postgresql", "postgres", "mysql", "mariadb", "sqlite", "duckdb"), "ondol.ingestion.sql.source:open_sql"
    ),
    **dict.fromkeys(("s3", "gs", "az", "https", "http"), "ondol.ingestion.remote:open_remote"),
}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class Reading:
    """The settings for reading a source.

    Attributes:
        columns: The contract's kind ("number", "integer", "boolean", "text", "date") by column name. The columns of a
            text format are read as these kinds; other columns, and all if None, are read as text.
        root: The project's folder, to which paths are relative.
        fetch: Timeouts, retries and limits.
        required: The columns that all files must have if one of them has them; None for all of `columns`.
        quoted: Whether a quoted field of delimited text is text, even if it is "NA" or empty.
        dialect: The dialect of delimited text: the settings under [data].
        expected: If not None, the dialect is detected in each file, except for settings in `dialect`. The value lists
            names in the header, if there is one.
    """

    columns: Columns = None
    root: Path = field(default_factory=Path.cwd)
    fetch: Fetch = field(default_factory=Fetch)
    required: Collection[str] | None = None
    quoted: bool = False
    dialect: Dialect = field(default_factory=Dialect)
    expected: Collection[str] | None = None


class Source(Protocol):
    """A table that can be read again and again, in batches of bounded size.

    Attributes:
        uri: The address as the user wrote it, with secrets as `${NAME}`.
    """

    uri: str

    @property
    def schema(self) -> "pa.Schema":
        """Names and types, as far as they are known without reading all rows."""
        ...

    def fingerprint(self) -> str | None:
        """Return a SHA-256 that changes whenever the rows of `batches` may change.

        None if that cannot be known without reading them.
        """
        ...

    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the rows; all batches have one schema.

        Raises:
            UserError: the source is not a table, or is damaged.
            Retyped: a late value does not fit its column's type: discard the yielded rows and start again.
        """
        ...


@runtime_checkable
class SupportsSince(Protocol):
    """A source that can leave out old rows itself, such as a database."""

    def since(self, column: str, value: Any) -> Source:
        """Return the source of the rows whose `column` is at or after `value` (a number, text or datetime), or more."""
        ...


@runtime_checkable
class StreamingSource(Protocol):
    """A source that is read from the last position, and not from its start again.

    Attributes:
        position: A JSON-able value: the position after the yielded rows. It is stored together with the rows.
        key: A JSON-able value that identifies the stream to which a position belongs, for any address of it.
    """

    position: Any
    key: Any

    def resume(self, position: Any, full: bool = False) -> None:
        """Start at `position`; without one at the consumer group's offset, with `full` at the start."""
        ...

    def commit(self, position: Any) -> None:
        """Commit `position` to the source: all rows before it are stored."""
        ...


@runtime_checkable
class MultiFileSource(Protocol):
    """A source of files, of which the known ones can be left out."""

    def files(self) -> dict[str, str] | None:
        """Return a SHA-256 by file name, which changes whenever the file's rows may change; None if unknown."""
        ...

    def without(self, names: Collection[str]) -> Source:
        """Return the source of the other files, which may have no rows."""
        ...


class Retyped(Exception):
    """A column has another type than in the yielded batches: call `batches` again."""


def open_source(uri: str, reading: Reading | None = None) -> Source:
    """Open the table at `uri`: the path of a file, or an address whose scheme is in `OPENERS`.

    Raises:
        UserError: there is nothing there, or it is not a table.
    """
    refuse_plain(uri)
    module, _, function = _find_opener(uri).partition(":")
    opener: Callable[[str, Reading], Source] = getattr(importlib.import_module(module), function)
    return opener(uri, reading or Reading())


def _find_opener(uri: str) -> str:
    """Return the opener for the scheme of an address; the scheme may be inside a secret.

    Raises:
        UserError: the scheme is unknown.
    """
    found = SCHEME.match(uri) or SCHEME.match(resolve(uri))
    scheme = found[1].lower() if found else ""
    place = OPENERS.get(scheme) or OPENERS.get(scheme.partition("+")[0])
    if place is None and _is_dialect(scheme):
        place = OPENERS["sqlite"]
    if place is None:
        known = ", ".join(f"{name}://" for name in OPENERS if name)
        named = f'the unknown scheme "{scheme}"' if SCHEME.match(uri) else "an unknown scheme"
        near = nearest(scheme, OPENERS) if SCHEME.match(uri) else ""
        raise UserError(f'"{uri}" has {named}: use the path of a file, or {known}.{near}')
    return place


def _is_dialect(scheme: str) -> bool:
    """Return True if SQLAlchemy or an installed package has a dialect `scheme`."""
    import sqlalchemy as sa

    try:
        sa.URL.create(scheme).get_dialect()
    except (sa.exc.ArgumentError, ImportError):
        return False
    return True


def read_through(source: Source, consume: "Callable[[Iterator[pa.RecordBatch]], T]") -> T:
    """Return `consume(batches)`; call it again from the first row if a column had to be retyped.

    `consume` must be repeatable, for example overwrite its file each time.
    """
    try:
        return consume(source.batches())
    except Retyped:
        return consume(source.batches())
