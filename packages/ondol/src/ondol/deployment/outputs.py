"""Tables written to a file, part by part: CSV, Parquet or JSON Lines, as its suffix says."""

import codecs
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson
import pyarrow as pa

from ondol.config.data import Dialect
from ondol.errors import UserError, nearest
from ondol.ingestion.cells import NUMERIC, write_numbers
from ondol.storage.privacy import make_folder

Kinds = Mapping[str, str]  # the contract's kind of each column by its name


class Output(Protocol):
    """A file that takes tables of one schema, one after the other."""

    def write_table(self, table: pa.Table) -> None:
        """Write rows behind those that are there."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def open_output(path: Path, schema: pa.Schema, dialect: Dialect | None = None, kinds: Kinds | None = None) -> Output:
    """Open a file for tables of `schema`, in the format that its suffix names; see `require_destination`.

    Args:
        path: The file.
        schema: Names and types; a name is there once.
        dialect: How a CSV file is written: its delimiter, its decimal sign, and a byte order mark where it names
            another encoding than UTF-8.
        kinds: The contract's kinds of the columns that it has.
    """
    return OPENERS[path.suffix.lower()](path, schema, dialect or Dialect(), kinds or {})


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

    def __init__(self, path: Path, schema: pa.Schema, dialect: Dialect, kinds: Kinds) -> None:
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

    def __init__(self, path: Path, schema: pa.Schema, dialect: Dialect, kinds: Kinds) -> None:
        """Open the file and write the header."""
        from pyarrow import csv

        self._decimal = dialect.decimal
        self._spelled = [field.name for field in schema if self._decimal != "." and _has_fractions(field, kinds)]
        self._schema = pa.schema([f.with_type(pa.string()) if f.name in self._spelled else f for f in schema])
        self._file = path.open("wb")
        if dialect.encoding != "utf-8":
            self._file.write(codecs.BOM_UTF8)
        options = csv.WriteOptions(delimiter=dialect.delimiter or ",")
        self._writer = csv.CSVWriter(self._file, self._schema, write_options=options)

    def write_table(self, table: pa.Table) -> None:
        """Write one line for each row."""
        for name in self._spelled:
            place, texts = self._schema.get_field_index(name), write_numbers(table.column(name), self._decimal)
            table = table.set_column(place, self._schema.field(place), texts)
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._file.close()


def _has_fractions(field: pa.Field, kinds: Kinds) -> bool:
    """Return True if a column's cells may have a decimal sign; seconds of a duration always have a point."""
    kind = field.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return kinds.get(field.name, "number") in NUMERIC
    return pa.types.is_string(kind) and kinds.get(field.name) in NUMERIC


def _open_parquet(path: Path, schema: pa.Schema, dialect: Dialect, kinds: Kinds) -> Output:
    from pyarrow import parquet

    return parquet.ParquetWriter(path, schema, compression="zstd")


OPENERS: dict[str, Callable[[Path, pa.Schema, Dialect, Kinds], Output]] = {
    ".csv": Csv,
    ".parquet": _open_parquet,
    ".jsonl": JsonLines,
}
