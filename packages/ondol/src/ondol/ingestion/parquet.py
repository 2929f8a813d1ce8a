"""Parquet files, with their types reduced to those of a contract."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ondol.contract.checking import PER_SECOND
from ondol.errors import UserError
from ondol.ingestion.files import FileSource, NoRows, RawFile, check_names
from ondol.ingestion.sources import Columns
from ondol_serving.grammar import normalize

BATCH_ROWS = 65_536
MOMENT = pa.timestamp("us")
SAFE_DIGITS = 18  # precision of a decimal that always fits an int64
ORDER, DURATION = b"order", b"duration"  # information of a field's metadata beyond its plain type


class ParquetSource(FileSource):
    """One Parquet file."""

    def __init__(self, file: RawFile, columns: Columns) -> None:
        """Read the footer.

        Raises:
            UserError: the file is damaged, has no rows, or has nested or binary columns.
        """
        super().__init__(file, columns)
        with self._explain():
            footer = pq.read_metadata(file.path)
            stored = _with_integers(_with_orders(footer.schema.to_arrow_schema(), file.path), footer)
            stored = _with_moments(stored, footer)
        check_names(stored.names, self.uri)
        if footer.num_rows == 0:
            raise NoRows(f'"{self.uri}" has columns but no rows: name a file with rows.')
        self.renamed = frozenset(map(normalize, stored.names)).difference(stored.names)
        stored = pa.schema([field.with_name(normalize(field.name)) for field in stored])
        self.schema = pa.schema([_describe(f, simplify(f.type, f.name, self.uri, columns)) for f in stored])
        self.vacant = frozenset(f.name for f in stored if pa.types.is_null(f.type))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        # Spark's 96-bit timestamps exceed 64-bit nanoseconds.
        with self._explain(), pq.ParquetFile(self.file.path, coerce_int96_timestamp_unit="us") as file:
            for batch in file.iter_batches(BATCH_ROWS):
                try:
                    made = cast_batch(batch, self.schema)
                except pa.ArrowInvalid as error:
                    raise UserError(self._explain_value(batch, error)) from None
                yield made

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowNotImplementedError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(
                f'"{self.uri}" is a Parquet file with content that cannot be read here ({reason}): write it '
                "with plain columns, as pandas and pyarrow do."
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0].split(":")[0].rstrip(".")
            raise UserError(f'"{self.uri}" is not a complete Parquet file ({reason}): fetch it again.') from None

    def _explain_value(self, batch: pa.RecordBatch, error: Exception) -> str:
        """Return an error on a value that cannot be read in a complete file."""
        reason = str(error).splitlines()[0].rstrip(".")
        for column, field in zip(batch.columns, self.schema, strict=True):
            try:
                _cast(column, field.type)
            except pa.ArrowInvalid:
                return (
                    f'Column "{field.name}" of "{self.uri}" holds {column.type} with a value that cannot be read as '
                    f"{field.type} ({reason}): write it within those bounds, or as text."
                )
        return f'"{self.uri}" holds a value that cannot be read ({reason}): write it as text.'


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows in the types of `schema`, in UTC without a zone."""
    arrays = [_cast(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def simplify(kind: pa.DataType, name: str, uri: str, columns: Columns) -> pa.DataType:
    """Return the type in which a column is read: int64, float64 (seconds of a duration), bool, string or timestamp.

    Raises:
        UserError: the column holds lists, structures or bytes.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return simplify(kind.value_type, name, uri, columns)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return pa.string()
    if types.is_decimal(kind) and (columns or {}).get(name) == "integer":
        return pa.string()  # 12345678901234567.00 is exact as text
    plain = _simplify_value(kind)
    if plain is None:
        raise UserError(f'Column "{name}" of "{uri}" holds {kind}: write it as plain values, or leave it out.')
    return pa.string() if (columns or {}).get(name) == "text" else plain


def _simplify_value(kind: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_time(kind):  # read as a duration from its text, as from a database
        return pa.string()
    if types.is_uint64(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_duration(kind):
        return pa.float64()
    if types.is_integer(kind):
        return pa.int64()
    if types.is_timestamp(kind) or types.is_date(kind):
        return MOMENT
    return None


def _with_orders(schema: pa.Schema, path: Path) -> pa.Schema:
    """Return the file's schema; fields of ordered dictionaries get their values, in order, as metadata."""
    ordered = [f.name for f in schema if pa.types.is_dictionary(f.type) and f.type.ordered and _is_text(f.type)]
    if not ordered:
        return schema
    with pq.ParquetFile(path) as file:
        first = next(file.iter_batches(1))
    for name in ordered:
        place = schema.get_field_index(name)
        order = json.dumps(first.column(place).dictionary.to_pylist(), ensure_ascii=False)
        schema = schema.set(place, schema.field(place).with_metadata({ORDER: order}))
    return schema


def _with_integers(schema: pa.Schema, footer: pq.FileMetaData) -> pa.Schema:
    """Return the file's schema, with unsigned and whole decimal columns in a type that represents them exactly.

    That is int64, or text if a value exceeds it. Data warehouses write integers as decimals of 38 digits.
    """
    for place, field in enumerate(schema):
        whole = pa.types.is_decimal(field.type) and field.type.scale == 0
        if whole or pa.types.is_uint64(field.type):
            fits = (whole and field.type.precision <= SAFE_DIGITS) or _fits_int64(footer, field.name)
            schema = schema.set(place, field.with_type(pa.int64() if fits else pa.string()))
    return schema


def _fits_int64(footer: pq.FileMetaData, name: str) -> bool:
    """Return True if all values of a column fit into 64 bits, by the footer's statistics."""
    return all(
        statistics is not None
        and statistics.has_min_max
        and all(-(2**63) <= end < 2**63 for end in (statistics.min, statistics.max))
        for statistics in _statistics(footer, name)
    )


def _with_moments(schema: pa.Schema, footer: pq.FileMetaData) -> pa.Schema:
    """Return the file's schema, with timestamps that may lie outside the years 1 to 9999 as text.

    Text keeps them exactly; 64-bit microseconds would overflow.
    """
    for place, field in enumerate(schema):
        coarse = pa.types.is_timestamp(field.type) and field.type.unit in ("s", "ms")
        if (coarse or pa.types.is_date(field.type)) and not _fits_moment(footer, field.name):
            schema = schema.set(place, field.with_type(pa.string()))
    return schema


def _fits_moment(footer: pq.FileMetaData, name: str) -> bool:
    """Return True if all values of a column are valid dates in Python, by the footer's statistics."""
    try:
        return all(
            statistics is not None and statistics.has_min_max and statistics.min <= statistics.max
            for statistics in _statistics(footer, name)
        )
    except (ValueError, OverflowError):
        return False


def _statistics(footer: pq.FileMetaData, name: str) -> Iterator[pq.Statistics | None]:
    """Yield the footer's statistics of a column for each row group with values."""
    for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
        column = next(c for c in map(group.column, range(footer.num_columns)) if c.path_in_schema == name)
        statistics = column.statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count < column.num_values:
            yield statistics


def _is_text(kind: pa.DictionaryType) -> bool:
    return pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)


def _describe(stored: pa.Field, kind: pa.DataType) -> pa.Field:
    """Return a column's field for reading; its metadata describes the original type, for `ml init`."""
    metadata = {DURATION: "s"} if pa.types.is_duration(stored.type) else {}
    if order := (stored.metadata or {}).get(ORDER):
        metadata[ORDER] = order
    return pa.field(stored.name, kind, metadata=metadata or None)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type) and pa.types.is_timestamp(kind):
        if column.type.unit == "ns":  # a plain cast rounds timestamps before 1970 up
            column = pc.floor_temporal(column.cast(pa.timestamp("ns")), unit="microsecond")
        return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(kind)
    if pa.types.is_duration(column.type):
        ticks = column.cast(pa.int64()).cast(pa.float64(), safe=False)
        return pc.divide(ticks, float(PER_SECOND[column.type.unit]))
    if pa.types.is_decimal(column.type) and pa.types.is_floating(kind):
        column = column.cast(pa.string())  # Arrow's cast of a decimal to a float rounds twice
    return column if column.type == kind else column.cast(kind, safe=not pa.types.is_floating(kind))
