"""The types that columns of a SQL table are read as."""

import datetime as dt
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

from ondol.ingestion.columns import EXACT
from ondol.ingestion.parquet import MOMENT, cast_batch

TEXT, INT, FLOAT, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
LADDER = (INT, FLOAT, BOOL, MOMENT, TEXT)
DECLARED: tuple[tuple[tuple[type, ...], pa.DataType], ...] = (
    ((sa.Boolean,), BOOL),
    ((sa.Integer, mysql.YEAR, mysql.BIT), INT),
    ((sa.Numeric, sa.Float), FLOAT),  # in SQLAlchemy 2.1, Float no longer inherits Numeric
    ((sa.DateTime, sa.Date), MOMENT),
    ((sa.String, sa.Enum, sa.Uuid, sa.JSON, sa.ARRAY, sa.Time, sa.Interval), TEXT),
)
OF_PYTHON: dict[type, pa.DataType] = {
    **{int: INT, float: FLOAT, Decimal: FLOAT, bool: BOOL, str: TEXT},
    **{dt.datetime: MOMENT, dt.date: MOMENT, dt.time: TEXT},
}
# The types of the MySQL protocol, as cursors number them.
OF_MYSQL = {
    **dict.fromkeys((1, 2, 3, 8, 9, 13, 16), INT),
    **dict.fromkeys((0, 4, 5, 246), FLOAT),
    **dict.fromkeys((7, 10, 12, 14), MOMENT),
}
ONE_BIT = (1, 16)  # TINYINT and BIT: MySQL stores booleans in them with a width of 1
NO_DATE = "0000-00-00"  # MySQL's value for a missing date


class Unfit(Exception):
    """A value does not fit its column's type."""


class Binary(Exception):
    """A column holds bytes."""


def from_declared(declared: TypeEngine[Any]) -> pa.DataType | None:
    """Return the type for a column with a declared type; None if it depends on the values."""
    if isinstance(declared, postgresql.DOMAIN):
        return from_declared(declared.data_type)
    if isinstance(declared, mysql.TINYINT) and declared.display_width == 1:
        return BOOL
    if isinstance(declared, mysql.BIT) and declared.length in (None, 1):
        return BOOL
    return next((kind for classes, kind in DECLARED if isinstance(declared, classes)), None)


def from_cursor(description: Sequence[Any], dialect: sa.Dialect) -> pa.DataType | None:
    """Return the type for a column of a query, from its cursor; None if it depends on the values."""
    code, size = description[1], description[3]
    if isinstance(code, type):
        return OF_PYTHON.get(code)
    if dialect.driver == "pymysql":
        return BOOL if code in ONE_BIT and size == 1 else OF_MYSQL.get(code)
    if dialect.driver == "psycopg":
        from psycopg import adapters

        known = adapters.types.get(code)
        named = known and dialect.ischema_names.get(known.regtype)  # type: ignore[attr-defined]
        return from_declared(named()) if named else None
    return None


def infer(values: Sequence[Any]) -> pa.DataType:
    """Return the first type that fits all `values`; text stays text, even if it looks like another type."""
    seen = _types(values)
    if not seen or seen & {str, bytes}:
        return TEXT
    return next(kind for kind in LADDER if fits(values, kind))


def fits(values: Sequence[Any], kind: pa.DataType) -> bool:
    """Return True if a column of `kind` represents all `values` exactly."""
    try:
        to_array(values, kind)
    except Unfit:
        return False
    return True


def to_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Convert the values to a column of `kind`.

    Raises:
        Unfit: a value cannot be represented in it.
        Binary: a value is bytes.
    """
    if isinstance(values, pa.Array):  # of DuckDB, whose types are strict
        if pa.types.is_decimal(values.type) and kind == FLOAT and _rounds(values):
            raise Unfit
        batch = pa.RecordBatch.from_arrays([values], ["values"])
        return cast_batch(batch, pa.schema([("values", kind)])).column(0)
    seen = _types(values)
    if bytes in seen and kind in (INT, BOOL):  # MySQL's BIT
        values = [int.from_bytes(v) if isinstance(v, bytes) else v for v in values]
        seen = _types(values)
    if kind == TEXT:
        return pa.array(values if seen <= {str} else [_to_text(v) for v in values], TEXT)
    if kind == MOMENT:
        return _to_moments(values, seen)
    if kind == BOOL and seen <= {int, bool} and {v for v in values if v is not None} <= {0, 1}:
        return pa.array([None if v is None else bool(v) for v in values], BOOL)
    if kind == INT and seen <= {int}:
        try:
            return pa.array(values, INT)
        except OverflowError:
            raise Unfit from None
    if kind == FLOAT and seen <= {int, float, Decimal}:
        if seen & {int, Decimal} and any(_is_rounded(v) for v in values if isinstance(v, int | Decimal)):
            raise Unfit
        return pa.array([None if v is None else float(v) for v in values], FLOAT)
    raise Unfit


def _is_rounded(value: Any) -> bool:
    """Return True if float64 cannot represent an integer or a decimal exactly."""
    return math.isfinite(value) and abs(value) > EXACT and Decimal(float(value)) != value


def _rounds(values: pa.Array) -> bool:
    return any(_is_rounded(value) for value in values.to_pylist() if value is not None)


def _types(values: Sequence[Any]) -> set[type]:
    return set(map(type, values)) - {type(None)}


def _to_moments(values: Sequence[Any], seen: set[type]) -> pa.Array:
    if str in seen:
        values = [None if isinstance(v, str) and v.startswith(NO_DATE) else v for v in values]
        seen = _types(values)
    if seen == {str}:
        return _parse(pa.array(values, TEXT))
    if not seen <= {dt.datetime, dt.date}:
        raise Unfit
    return pa.array([_to_moment(v) for v in values], MOMENT)


def _to_moment(value: Any) -> dt.datetime | None:
    if value is None or not isinstance(value, dt.datetime):
        return value and dt.datetime(value.year, value.month, value.day)
    return value if value.tzinfo is None else value.astimezone(dt.UTC).replace(tzinfo=None)


def _parse(texts: pa.Array) -> pa.Array:
    """Parse dates that SQLite stores as ISO 8601 text; those with a time zone are converted to UTC."""
    for kind in (MOMENT, pa.timestamp("us", "UTC")):
        try:
            return pc.cast(pc.cast(texts, kind), MOMENT)
        except pa.ArrowInvalid:
            pass
    raise Unfit


def _to_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None  # as in a column of floats
    if isinstance(value, bytes | bytearray | memoryview):
        raise Binary
    if isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False, default=_to_text)
    if isinstance(value, dt.datetime):
        return value.isoformat(" ")
    if isinstance(value, dt.timedelta):  # a TIME of MySQL, an interval
        seconds, micros = divmod(abs(value) // dt.timedelta(microseconds=1), 1_000_000)
        sign = "-" if value < dt.timedelta() else ""
        part = f".{micros:06}" if micros else ""
        return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{part}"
    return str(value)
