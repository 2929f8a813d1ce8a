"""Which rows a database leaves out as older than a watermark: only those that it certainly tells right."""

import datetime as dt
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from ondol.ingestion.parquet import MOMENT
from ondol.ingestion.sql.types import FLOAT, INT

BY_CODE_POINT = {"postgresql": "C", "mysql": "utf8mb4_bin", "mariadb": "utf8mb4_bin"}  # collations
FIRST_DATE = dt.datetime(1000, 1, 1)  # of MySQL
ISO_DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*"


def tells_older(kind: pa.DataType, value: Any, dialect: str) -> bool:
    """Tell whether a database can hold a column that is read as `kind` against a watermark.

    A date or number in a column of text it would compare letter by letter, or refuse to. SQLite's columns hold
    anything, which the condition itself looks at.
    """
    if dialect == "sqlite" or isinstance(value, str):
        return True
    return kind == MOMENT if isinstance(value, dt.datetime) else kind in (INT, FLOAT)


def select(target: sa.FromClause, since: tuple[str, Any] | None, dialect: str) -> Any:
    """Return the statement that yields the target's rows, with those at or after the value of `since`, or missing."""
    if since is None:
        return target.element if isinstance(target, sa.Subquery) else sa.select(sa.text("*")).select_from(target)
    name, value = since
    column: sa.ColumnElement[Any] = sa.column(name)
    newer = _newer_in_sqlite(column, value) if dialect == "sqlite" else _newer(column, value, dialect)
    return sa.select(sa.text("*")).select_from(target).where(sa.or_(newer, column.is_(None)))


def _newer(column: sa.ColumnElement[Any], value: Any, dialect: str) -> sa.ColumnElement[bool]:
    if isinstance(value, str):  # a later text is one of higher code points, as everywhere else
        column = sa.cast(column, sa.Text())
        column = column.collate(BY_CODE_POINT[dialect]) if dialect in BY_CODE_POINT else column
    newer: sa.ColumnElement[bool] = column >= value
    if isinstance(value, dt.datetime) and dialect in ("mysql", "mariadb"):  # where 0000-00-00 is missing
        return sa.or_(newer, column < FIRST_DATE)
    return newer


def _newer_in_sqlite(column: sa.ColumnElement[Any], value: Any) -> sa.ColumnElement[bool]:
    """Return the condition of a newer row, or of one that another program wrote in a way that does not sort."""
    if isinstance(value, dt.datetime):  # its dates are text: in ISO 8601 they sort, but for their zones
        day_before = (value - dt.timedelta(days=1)).date().isoformat()
        return sa.or_(column >= day_before, sa.not_(column.op("GLOB")(ISO_DATE)))
    newer = _newer(column, value, "sqlite")
    return newer if isinstance(value, str) else sa.or_(newer, sa.func.typeof(column) == "text")
