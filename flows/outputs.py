"""Tables written to a file, part by part: CSV, Parquet or JSON Lines, as its suffix says."""

import codecs
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import orjson
import pyarrow as pa

from flows.errors import UserError, nearest
from flows.privacy import make_folder
from flows.sections import Dialect


class Output(Protocol):
    """A file that takes tables of one schema, one after the other."""

    def write_table(self, table: pa.Table) -> None:
        """Write rows behind those that are there."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def open_output(path: Path, schema: pa.Schema, dialect: Dialect | None = None) -> Output:
    """Open a file for tables of `schema`, in the format that its suffix names; see `require_destination`.

    A CSV file has the delimiter of `dialect`, and a byte order mark where the dialect has another encoding than UTF-8.
    """
    return OPENERS[path.suffix.lower()](path, schema, dialect or Dialect())


def require_destination(path: Path) -> Path:
    """Return `path` where a file of a known format can be written, its folder made.

    Raises:
        UserError: the suffix names no format, or a folder or a file is in the way.
    """
    suffix = path.suffix.lower()
    suffixes = list(OPENERS)
    if suffix not in OPENERS:
        hint = nearest(suffix, suffixes) if suffix else ""
        raise UserError(f'"{path}" names no format: end it in {", ".join(suffixes[:-1])} or {suffixes[-1]}.{hint}')
    if path.is_dir():
        raise UserError(f'"{path}" is a folder: name a file.')
    try:
        make_folder(path.parent)
    except OSError as error:
        raise UserError(f'The folder "{path.parent}" cannot be made ({error.strerror}): name another.') from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f'The folder "{path.parent}" may not be written to: name another.')
    return path


class JsonLines:
    """One JSON object for each row; missing values, and numbers that JSON lacks, are null."""

    def __init__(self, path: Path, schema: pa.Schema, dialect: Dialect) -> None:
        """Open the file; objects need no schema and no dialect."""
        self._file = path.open("wb")

    def write_table(self, table: pa.Table) -> None:
        """Write one line for each row."""
        names = table.column_names
        for row in zip(*map(_to_list, table.columns), strict=True):
            self._file.write(orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _to_list(values: pa.ChunkedArray) -> list[Any]:
    """Return a column's values as orjson takes them; Arrow's own `to_pylist` makes them one by one."""
    kind = values.type
    whole = (pa.types.is_integer(kind) or pa.types.is_boolean(kind)) and not values.null_count
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if whole or text or pa.types.is_floating(kind) or kind == pa.timestamp("us"):
        return values.to_numpy().tolist()  # a missing number is NaN, which becomes null
    found = values.to_pylist()
    if pa.types.is_temporal(kind):  # orjson would write zones to the minute, and no nanoseconds
        return [value.isoformat() if hasattr(value, "isoformat") else value for value in found]
    return found


class Csv:
    """Delimited text in UTF-8."""

    def __init__(self, path: Path, schema: pa.Schema, dialect: Dialect) -> None:
        """Open the file and write the header."""
        from pyarrow import csv

        self._file = path.open("wb")
        if dialect.encoding != "utf-8":
            self._file.write(codecs.BOM_UTF8)
        options = csv.WriteOptions(delimiter=dialect.delimiter or ",")
        self._writer = csv.CSVWriter(self._file, schema, write_options=options)

    def write_table(self, table: pa.Table) -> None:
        """Write one line for each row."""
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._file.close()


def _open_parquet(path: Path, schema: pa.Schema, dialect: Dialect) -> Output:
    from pyarrow import parquet

    return parquet.ParquetWriter(path, schema, compression="zstd")


OPENERS: dict[str, Callable[[Path, pa.Schema, Dialect], Output]] = {
    ".csv": Csv,
    ".parquet": _open_parquet,
    ".jsonl": JsonLines,
}
