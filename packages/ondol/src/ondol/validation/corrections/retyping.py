"""Mended rows in the types of the snapshot that they join, so that one cell's spelling does not retype a whole column.

They were held against the contract before, as they were written: whatever is cast here is known to be good.
"""

import pyarrow as pa
import pyarrow.compute as pc

from ondol.contract import Column, Contract
from ondol.contract.cleaning import clean_column
from ondol.errors import UserError
from ondol.ingestion.fitting import EXACT

TEXT = pa.string()
NUMBERS = (pa.int64(), pa.float64())
KINDS = {pa.int64(): "integer", pa.float64(): "number", pa.bool_(): "boolean", pa.timestamp("us"): "date"}


def kinds_of(schema: pa.Schema) -> dict[str, str]:
    """Return by column what a text format is to be read as, so that it comes back in the types of `schema`."""
    return {field.name: KINDS.get(field.type, "text") for field in schema}


def retype(table: pa.Table, schema: pa.Schema, contract: Contract) -> pa.Table:
    """Return rows that keep the contract in those columns of `schema` that they have, and in its types.

    A text that is one to the contract stays one, and so do a fraction among whole numbers and a whole number that a
    float64 would round: the column gives way.

    Raises:
        UserError: a value is none of its column's type.
    """
    columns = {column.name: column for column in contract.used}
    made = {}
    for field in schema:
        if field.name not in table.schema.names:
            continue
        values = table.column(field.name)
        same = _retype(values, field.type, columns.get(field.name))
        if same is None:
            raise UserError(
                f'"{field.name}" of the mended rows is not all {field.type}, as it is in the snapshot: write its '
                "values as `ml quarantine show --out FILE` does."
            )
        made[field.name] = same
    return pa.table(made)


def _retype(values: pa.ChunkedArray, kind: pa.DataType, column: Column | None) -> pa.ChunkedArray | None:
    """Return the same values as `kind`; None where there are none."""
    if values.type == kind:
        return values
    if column is not None and column.kind == "date" and values.type == TEXT and kind != TEXT:
        return _read(values, kind, column)  # by its listed formats
    made = _cast(values, kind)
    if column is None:
        return made
    if column.kind == "integer" and kind == pa.float64():
        read = pa.chunked_array([pa.array(clean_column(values, column)[0], pa.int64(), from_pandas=True)])
        return read if (pc.max(pc.abs(read)).as_py() or 0) >= EXACT else read.cast(kind)
    if column.kind == "text":  # 007 is no 7
        return values if made is None or not made.cast(TEXT).equals(values.cast(TEXT)) else made
    return _read(values, kind, column) if made is None else made


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Return the values as `kind`, where text tells them, or where one number is as good as the other."""
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), kind)])
    if values.type == TEXT:
        values = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(values, ""), None, values)
        if pa.types.is_integer(kind) and pc.any(pc.match_substring(values, "x", ignore_case=True)).as_py():
            return None  # Arrow reads 0x10 as 16
    elif kind != TEXT and not (values.type in NUMBERS and kind in NUMBERS):
        return None
    try:
        return values.cast(kind)
    except pa.ArrowException:
        return None


def _read(values: pa.ChunkedArray, kind: pa.DataType, column: Column) -> pa.ChunkedArray | None:
    """Return the values as `kind`, as the contract reads them."""
    series, _ = clean_column(values, column)
    if (series.dtype.kind == "M") != pa.types.is_timestamp(kind):
        return None
    read = series.dt.total_seconds() if series.dtype.kind == "m" else series
    made = pa.chunked_array([pa.array(read, from_pandas=True)])
    if kind == pa.int64() and made.type == pa.float64():
        return _to_integers(values, made, column)
    try:
        return made.cast(kind)
    except pa.ArrowException:
        return None


def _to_integers(values: pa.ChunkedArray, read: pa.ChunkedArray, column: Column) -> pa.ChunkedArray | None:
    """Return the numbers `read` as integers, those written as such exactly; as they are where numbers are asked for."""
    plain = pc.match_substring_regex(pc.utf8_trim_whitespace(values.cast(TEXT)), r"^[+-]?[0-9]+$")
    digits = pc.utf8_ltrim(pc.utf8_trim_whitespace(values.cast(TEXT)), "+")
    rest = pc.if_else(plain, None, read)
    try:
        exact = pc.if_else(plain, digits, None).cast(pa.int64())
        if (pc.max(pc.abs(rest)).as_py() or 0) < EXACT:
            return pc.coalesce(exact, rest.cast(pa.int64()))
    except pa.ArrowException:
        pass
    return read if column.kind == "number" else None
