"""What a source is, with its optional abilities, and `open_source`, which opens one by the scheme of its URI.

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
    """How a source is read.

    Attributes:
        columns: The contract's kind ("number", "integer", "boolean", "text", "date") by column name. A text
            format's columns are read as these; others, and all where it is None, are read as text.
        root: The project's folder, to which paths are relative.
        fetch: Timeouts, retries and limits.
        required: The columns that all of several files must have, where one has them; None for all of `columns`.
        quoted: Whether a quoted field of delimited text is text, also "NA" and an empty one.
        dialect: How delimited text is written: the settings under [data].
        expected: Where not None, the dialect is found in each file, but for what `dialect` sets. These are names that
            a header has, if there is one.
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
        uri: What the user wrote, fit to be shown: a secret is `${NAME}` in it.
    """

    uri: str

    @property
    def schema(self) -> "pa.Schema":
        """Names and types, as far as they are known without reading all rows."""
        ...

    def fingerprint(self) -> str | None:
        """Return a SHA-256 that changes whenever the rows that `batches` yields may change.

        None if that is unknown without reading them.
        """
        ...

    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the rows; all batches have one schema.

        Raises:
            UserError: the source is not a table, or is damaged.
            Retyped: a late value does not fit its column's type: what was yielded is void, start again.
        """
        ...


@runtime_checkable
class SupportsSince(Protocol):
    """A source that can leave out old rows where they live, as a database can."""

    def since(self, column: str, value: Any) -> Source:
        """Return the source of the rows whose `column` is at or after `value` (a number, text or datetime), or more."""
        ...


@runtime_checkable
class StreamingSource(Protocol):
    """A source that is read on from a position, and never from its start again.

    Attributes:
        position: A JSON-able value: where the rows that were yielded end. It is stored together with the rows.
        key: A JSON-able value: what a position holds in, however it is reached.
    """

    position: Any
    key: Any

    def resume(self, position: Any, full: bool = False) -> None:
        """Begin at `position`; without one at the consumer group's offset, with `full` at the start."""
        ...

    def commit(self, position: Any) -> None:
        """Commit `position` to the source: all rows before it are stored."""
        ...


@runtime_checkable
class MultiFileSource(Protocol):
    """A source of files, of which those that are known can be left out."""

    def files(self) -> dict[str, str] | None:
        """Return by each file's name a SHA-256 that changes whenever its rows may; None if that is unknown."""
        ...

    def without(self, names: Collection[str]) -> Source:
        """Return the source of the other files, which may be without rows."""
        ...


class Retyped(Exception):
    """A column turned out to be of another type after batches were yielded: call `batches` again."""


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
    """Return the opener of the address's scheme, which may be inside its secret.

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
    """Return True if SQLAlchemy knows `scheme`: of its own, or by a package that is installed."""
    import sqlalchemy as sa

    try:
        sa.URL.create(scheme).get_dialect()
    except (sa.exc.ArgumentError, ImportError):
        return False
    return True


def read_through(source: Source, consume: "Callable[[Iterator[pa.RecordBatch]], T]") -> T:
    """Return `consume(batches)`, called once more from the first row where a column had to be retyped.

    `consume` must start again each time it is called, as one that writes a file does.
    """
    try:
        return consume(source.batches())
    except Retyped:
        return consume(source.batches())
