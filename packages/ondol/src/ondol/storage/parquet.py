"""Parquet in row groups of one size, so that the same rows give the same bytes."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

T = TypeVar("T", pa.Array, pa.ChunkedArray)
ROW_GROUP = 131_072


def write_rows(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    """Write the rows of `batches`, all of one schema, to `path`, where there are any; return how many there were."""
    writer, rows = None, 0
    try:
        for group in _regroup(batches):
            if writer is None:
                texts = [f.name for f in group.schema if pa.types.is_string(f.type)]
                writer = pq.ParquetWriter(
                    path, group.schema, compression="zstd", compression_level=1, use_dictionary=texts
                )
            writer.write_table(group, row_group_size=ROW_GROUP)
            rows += group.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def unify(schemas: Iterable[pa.Schema], large: Collection[str] = ()) -> pa.Schema:
    """Return all columns of `schemas`, the last one's order first: integers beside numbers are numbers, others text.

    Args:
        schemas: Of the tables whose rows are to be one table.
        large: Columns with integers that a float64 would round: these are text beside numbers.
    """
    types: dict[str, pa.DataType] = {}
    for schema in reversed(list(schemas)):
        for field in schema:
            types[field.name] = _common(types.get(field.name, field.type), field.type, field.name in large)
    return pa.schema(list(types.items()))


def unify_files(footers: Iterable[pq.FileMetaData]) -> pa.Schema:
    """Return the columns and types that hold the rows of all files, given by their footers."""
    files = list(footers)
    schemas = [file.schema.to_arrow_schema() for file in files]
    if schemas and all(schema.equals(schemas[0]) for schema in schemas):
        return schemas[0]
    return unify(schemas, {name for file in files for name in _large_columns(file)})


def _large_columns(file: pq.FileMetaData) -> Iterator[str]:
    """Yield the columns of a file that hold integers beyond 2^53."""
    whole = {field.name for field in file.schema.to_arrow_schema() if pa.types.is_integer(field.type)}
    for group in (file.row_group(number) for number in range(file.num_row_groups)):
        for column in (group.column(place) for place in range(file.num_columns)):
            statistics = column.statistics if column.path_in_schema in whole else None
            if (
                statistics is not None
                and statistics.has_min_max
                and max(abs(statistics.min), abs(statistics.max)) > 2**53
            ):
                yield column.path_in_schema


def arrange_table(table: pa.Table, names: Iterable[str], rows: int) -> pa.Table:
    """Return `rows` rows in the columns `names`, each of its own type; one that they lack is missing in each."""
    present = set(table.schema.names)
    return pa.table({name: table.column(name) if name in present else pa.nulls(rows) for name in names})


def cast_table(table: pa.Table, schema: pa.Schema, rows: int) -> pa.Table:
    """Return `rows` rows in the columns and types of `schema`; a column that they lack is missing in each."""
    if table.schema.equals(schema):
        return table
    arrays = [
        cast_values(table.column(field.name), field.type)
        if field.name in table.schema.names
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def cast_values(values: T, kind: pa.DataType) -> T:
    """Return a column as `kind`, which holds all its values; NaN, which is a missing number, as a missing text."""
    if pa.types.is_floating(values.type) and pa.types.is_string(kind):
        values = pc.if_else(pc.is_nan(values), None, values)
    return values.cast(kind, safe=not pa.types.is_floating(kind))  # an integer is never refused


def _common(one: pa.DataType, other: pa.DataType, large: bool) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = {one, other} <= {pa.int64(), pa.float64()}
    return pa.float64() if numbers and not large else pa.string()


def _regroup(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield tables of exactly `ROW_GROUP` rows, and one with the rest."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count >= ROW_GROUP:
            table = pa.Table.from_batches(held)
            whole = count - count % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                yield table.slice(start, ROW_GROUP)
            held, count = table.slice(whole).to_batches(), count - whole
    if count:
        yield pa.Table.from_batches(held)
