"""Rows written as Parquet in row groups of one size, so that the same rows make the same bytes however they came."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return all columns of `schemas`, the last one's order first: integers beside numbers are numbers, others text."""
    types: dict[str, pa.DataType] = {}
    for schema in reversed(list(schemas)):
        for field in schema:
            types[field.name] = _common(types.get(field.name, field.type), field.type)
    return pa.schema(list(types.items()))


def cast_table(table: pa.Table, schema: pa.Schema, rows: int) -> pa.Table:
    """Return `rows` rows in the columns and types of `schema`; a column that they lack is missing in each."""
    if table.schema.equals(schema):
        return table
    arrays = [
        table.column(field.name).cast(field.type) if field.name in table.schema.names else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    numbers = {pa.int64(), pa.float64()}
    return pa.float64() if {one, other} <= numbers else pa.string()


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
