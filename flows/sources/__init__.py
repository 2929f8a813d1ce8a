"""Where rows come from: one interface, told apart by the URI's scheme.

A new source is a module with an opener `(uri, columns, root) -> Source` and one line in `OPENERS`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from flows.errors import UserError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
Columns = Mapping[str, str] | None
OPENERS = {"": "flows.sources.files:open_file", "sample": "flows.sources.sample:open_sample"}


class Source(Protocol):
    """A table that can be read again and again, in batches of bounded size.

    Attributes:
        uri: What the user wrote, fit to be shown (secrets are never part of it).
    """

    uri: str

    @property
    def schema(self) -> "pa.Schema":
        """Names and types, as far as they are known without reading all rows."""
        ...

    def fingerprint(self) -> str:
        """Return a SHA-256 that changes whenever the rows that `batches` yields may change."""
        ...

    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the rows; all batches have one schema.

        Raises:
            UserError: the source is no table, or is damaged.
            Retyped: a late value does not fit its column's type: what was yielded is void, start again.
        """
        ...


class Retyped(Exception):
    """A column turned out to be of another type after batches were yielded: call `batches` again."""


def open_source(uri: str, columns: Columns = None, root: Path | None = None) -> Source:
    """Open the table at `uri`.

    Args:
        uri: `sample://…` or the path of a file, relative to `root`.
        columns: The contract's kind ("number", "integer", "boolean", "text", "date") by column name.
            A text file's columns are read as these; others, and all where it is None, are read as text.
        root: The project's folder; default: the working directory.

    Raises:
        UserError: there is nothing there, or it is no table.
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme not in OPENERS:
        known = ", ".join(f"{name}://" for name in OPENERS if name)
        raise UserError(
            f'"{uri}" has the unknown scheme "{scheme}": use the path of a file, or {known}.{nearest(scheme, OPENERS)}'
        )
    module, _, function = OPENERS[scheme].partition(":")
    opener: Callable[..., Source] = getattr(importlib.import_module(module), function)
    return opener(uri) if scheme == "sample" else opener(uri, columns, root or Path.cwd())


def read_through(source: Source, consume: "Callable[[Iterator[pa.RecordBatch]], T]") -> T:
    """Return `consume(batches)`, called once more from the first row where a column had to be retyped.

    `consume` must begin anew each time it is called, as one that writes a file does.
    """
    try:
        return consume(source.batches())
    except Retyped:
        return consume(source.batches())
