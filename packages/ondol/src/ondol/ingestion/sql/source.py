"""SQL databases of any SQLAlchemy dialect, read through a server-side cursor in one transaction."""

import contextlib
import copy
import datetime as dt
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any, Self

import pyarrow as pa
import sqlalchemy as sa
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from ondol.errors import UserError, nearest
from ondol.ingestion.files import check_names
from ondol.ingestion.parquet import MOMENT, simplify
from ondol.ingestion.sources import Reading, Retyped, Source
from ondol.ingestion.sql.address import DatabaseAddress, make_engine, parse_address
from ondol.ingestion.sql.errors import explain_sql_error, find_rule, is_passing
from ondol.ingestion.sql.types import (
    FLOAT,
    INT,
    LADDER,
    TEXT,
    Binary,
    Unfit,
    fits,
    from_cursor,
    from_declared,
    infer,
    to_array,
)
from ondol.storage.remote_files import before_sleep
from ondol_serving.grammar import normalize

BY_CODE_POINT = {"postgresql": "C", "mysql": "utf8mb4_bin", "mariadb": "utf8mb4_bin"}  # collations
FIRST_DATE = dt.datetime(1000, 1, 1)  # of MySQL
ISO_DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*"


def tells_older(kind: pa.DataType, value: Any, dialect: str) -> bool:
    """Return True if a database can compare a column of `kind` with a watermark.

    It would compare dates or numbers in a text column as text, or refuse to. SQLite's columns may contain any type; the
    condition handles that.
    """
    if dialect == "sqlite" or isinstance(value, str):
        return True
    return kind == MOMENT if isinstance(value, dt.datetime) else kind in (INT, FLOAT)


def select(target: sa.FromClause, since: tuple[str, Any] | None, dialect: str) -> Any:
    """Return the statement for the target's rows, or for those at or after the value of `since`, or without a value."""
    if since is None:
        return target.element if isinstance(target, sa.Subquery) else sa.select(sa.text("*")).select_from(target)
    name, value = since
    column: sa.ColumnElement[Any] = sa.column(name)
    newer = _newer_in_sqlite(column, value) if dialect == "sqlite" else _newer(column, value, dialect)
    return sa.select(sa.text("*")).select_from(target).where(sa.or_(newer, column.is_(None)))


def _newer(column: sa.ColumnElement[Any], value: Any, dialect: str) -> sa.ColumnElement[bool]:
    if isinstance(value, str):  # texts are compared by code points, as everywhere in this package
        column = sa.cast(column, sa.Text())
        column = column.collate(BY_CODE_POINT[dialect]) if dialect in BY_CODE_POINT else column
    newer: sa.ColumnElement[bool] = column >= value
    if isinstance(value, dt.datetime) and dialect in ("mysql", "mariadb"):  # where 0000-00-00 means a missing date
        return sa.or_(newer, column < FIRST_DATE)
    return newer


def _newer_in_sqlite(column: sa.ColumnElement[Any], value: Any) -> sa.ColumnElement[bool]:
    """Return the condition for newer rows, and for rows with a format that does not sort."""
    if isinstance(value, dt.datetime):  # its dates are text: ISO 8601 sorts correctly, except for time zones
        day_before = (value - dt.timedelta(days=1)).date().isoformat()
        return sa.or_(column >= day_before, sa.not_(column.op("GLOB")(ISO_DATE)))
    newer = _newer(column, value, "sqlite")
    return newer if isinstance(value, str) else sa.or_(newer, sa.func.typeof(column) == "text")


FIRST_ROWS, MOST_ROWS = 4096, 65_536
BATCH_BYTES = 8 << 20
# Statements that make a session read-only, consistent and in UTC.
OPENING: dict[str, tuple[str, ...]] = {
    "postgresql": (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        "SET LOCAL statement_timeout = {milliseconds}",
        "SET LOCAL TIME ZONE 'UTC'",
    ),
    "mysql": (
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        "SET SESSION time_zone = '+00:00'",
    ),
    "sqlite": ("PRAGMA query_only = ON",),
}
OPENING["mariadb"] = OPENING["mysql"]
MOST_NAMED = 20
COLON = re.compile(r"(?<![:\w]):(?=\w+(?!:))")  # text that SQLAlchemy would take for a parameter


class QueryRows:
    """The rows of one statement while it runs.

    Attributes:
        names: The names of the columns.
        declared: The declared type of each column, None if it is unknown.
        first: The columns of the first rows.
    """

    def __init__(
        self, engine: sa.Engine, address: DatabaseAddress, since: tuple[str, Any] | None, seconds: float
    ) -> None:
        """Connect, begin and fetch the first rows; each answer may take `seconds`.

        Raises:
            UserError: there is no such table.
            sqlalchemy.exc.SQLAlchemyError: the database refuses; errors of the driver are possible too.
        """
        self._connection = engine.connect()
        self._result: sa.CursorResult[Any] | None = None
        self._arrow: Any = None
        self._fresh = True
        try:
            for command in OPENING.get(engine.dialect.name, ()):
                self._connection.exec_driver_sql(command.format(milliseconds=math.ceil(seconds * 1000)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sa.exc.SAWarning)  # warnings about types that SQLAlchemy does not know
                target, declared = _find_target(self._connection, address)
            self._execute(select(target, since, engine.dialect.name))
            self._describe(declared, engine.dialect)
            self.first = self._fetch(FIRST_ROWS)
        except BaseException:
            self.close()
            raise

    def _execute(self, statement: "sa.Executable") -> None:
        if self._connection.dialect.name != "duckdb":
            streaming = self._connection.execution_options(stream_results=True)
            self._result = streaming.execute(statement)
            return
        # DuckDB's cursors hold the whole result in memory; its relations stream.
        compiled = statement.compile(dialect=self._connection.dialect)  # type: ignore[attr-defined]
        values = [compiled.params[name] for name in compiled.positiontup or ()]
        driver: Any = self._connection.connection.driver_connection
        own = driver.cursor()  # DuckDB 2 refuses a connection with a result that was not read to its end
        own.sql("SET TimeZone = 'UTC'")
        self._arrow = own.sql(compiled.string, params=values).to_arrow_reader(MOST_ROWS)

    def _describe(self, declared: dict[str, pa.DataType | None], dialect: sa.Dialect) -> None:
        self.declared: list[pa.DataType | None]
        if self._arrow is not None:
            self.names, self.declared = self._arrow.schema.names, self._arrow.schema.types
        else:
            columns = self._result.cursor.description if self._result is not None else []  # type: ignore[union-attr]
            self.names = [column[0] for column in columns]
            self.declared = [declared.get(column[0]) or from_cursor(column, dialect) for column in columns]

    def fetch(self, size: int) -> list[Any]:
        """Return the columns of the next rows, about `size` of them; an empty list at the end."""
        if self._fresh:
            self._fresh = False
            return self.first
        self.first = []
        return self._fetch(size)

    def _fetch(self, size: int) -> list[Any]:
        if self._arrow is not None:
            batch = next(self._arrow, None)
            return [] if batch is None else list(batch.columns)
        return list(zip(*self._result.fetchmany(size), strict=True)) if self._result is not None else []

    def close(self) -> None:
        """End the session at once, also with unread rows; the server rolls back."""
        left: Any = getattr(self._result and self._result.cursor, "_result", None)
        if hasattr(left, "unbuffered_active"):
            left.unbuffered_active = False  # otherwise PyMySQL would first read all remaining rows
        if self._result is not None:
            with contextlib.suppress(Exception):  # a lost session cannot close its cursor
                self._result.close()
        self._connection.invalidate()
        self._connection.close()

    def __enter__(self) -> Self:
        """Return the rows."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self.close()


def next_size(batch: pa.RecordBatch) -> int:
    """Return the number of rows to fetch next, from the size of these rows."""
    return max(1, min(MOST_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))


def _find_target(
    connection: sa.Connection, address: DatabaseAddress
) -> tuple[sa.FromClause, dict[str, pa.DataType | None]]:
    """Return the target of the SELECT, and the declared types of a table's columns.

    Raises:
        UserError: none is named, or there is no such table.
    """
    if address.query:
        return sa.text(COLON.sub(r"\:", address.query) + "\n").columns().subquery("q"), {}
    inspector = sa.inspect(connection)
    schema, name = None, address.table or ""
    default = connection.dialect.default_schema_name
    if "." in name and not _has_table(inspector, name, None):
        schema, _, name = name.rpartition(".")
    if not name or not _has_table(inspector, name, schema):
        raise _refuse(inspector, address, schema, name, default)
    if connection.dialect.name == "duckdb":
        return sa.table(name, schema=schema), {}
    declared = {column["name"]: from_declared(column["type"]) for column in inspector.get_columns(name, schema)}
    return sa.table(name, schema=schema), declared


def _has_table(inspector: sa.Inspector, name: str, schema: str | None) -> bool:
    if inspector.dialect.name == "duckdb":  # the engine's own check leaves a result unread, which DuckDB 2 refuses
        return name in _list_tables(inspector, schema)
    return inspector.has_table(name, schema)


def _list_tables(inspector: sa.Inspector, schema: str | None) -> list[str]:
    return sorted({*inspector.get_table_names(schema), *inspector.get_view_names(schema)})


def _refuse(
    inspector: sa.Inspector, address: DatabaseAddress, schema: str | None, name: str, default: str | None
) -> UserError:
    """Return the error for a missing table name, or a table that does not exist."""
    there = _list_tables(inspector, schema)
    more = f" and {len(there) - MOST_NAMED} more" if len(there) > MOST_NAMED else ""
    named = ", ".join(f'"{table}"' for table in there[:MOST_NAMED]) + more
    where = f'schema "{schema or default}"' if schema or default else "the database"
    has = f"{where} has {named}" if there else f"{where} has no tables, so name another as schema.table"
    if not name:
        return UserError(f'"{address.shown}" names no table: write one, or a SELECT, after "#"; {has}.')
    if any(letter.isspace() for letter in name):
        return UserError(
            f'"{address.shown}" names neither a table nor a query, which begins with SELECT or WITH '
            f"(a source is only read); {has}."
        )
    return UserError(f'"{address.shown}" names a table that does not exist: {has}.{nearest(name, there)}')


def open_sql(uri: str, reading: Reading) -> Source:
    """Open the table or query at `uri`; no connection is made yet.

    Raises:
        UserError: the address is invalid, its driver is not installed, or its file does not exist.
    """
    return SqlSource(uri, parse_address(uri), reading)


class SqlSource:
    """One table or query of a database."""

    def __init__(self, uri: str, address: DatabaseAddress, reading: Reading) -> None:
        """Store the address and the settings; no connection is made.

        Raises:
            UserError: the driver is not installed, or the database's file does not exist.
        """
        self.uri = uri
        self._address = address
        self._reading = reading
        self._engine = make_engine(address, reading)
        self._types: dict[str, pa.DataType] | None = None
        self._raw: dict[str, str] = {}  # the database's names by the names in normal form
        self._since: tuple[str, Any] | None = None

    @property
    def schema(self) -> pa.Schema:
        """Names and types, as declared in the database, else from the first rows."""
        if self._types is None:
            with self._begin():
                pass
        return pa.schema(list((self._types or {}).items()))

    def fingerprint(self) -> None:
        """Return None: changes of a table cannot be known without reading it."""
        return None

    def since(self, column: str, value: Any) -> Self:
        """Return the source of the rows whose `column` is at or after `value` or missing; of all for a text column.

        Raises:
            UserError: there is no such column.
        """
        if column not in self.schema.names:
            near = nearest(column, self.schema.names)
            raise UserError(f'"{self._address.shown}" has no column "{column}" for the watermark.{near}')
        narrowed = copy.copy(self)
        if tells_older(self.schema.field(column).type, value, self._engine.dialect.name):
            narrowed._since = (self._raw[column], value)
        return narrowed

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`. A column gets a wider type if a value does not fit."""
        while True:
            yielded = False
            with self._begin() as rows:
                try:
                    size = FIRST_ROWS
                    while columns := rows.fetch(size):
                        batch = self._to_batch(columns)
                        size = next_size(batch)
                        yielded = True
                        yield batch
                    return
                except Unfit:
                    pass
            self._retype()
            if yielded:
                raise Retyped(self.uri)

    def _to_batch(self, columns: list[Any]) -> pa.RecordBatch:
        """Convert fetched columns to the schema's types.

        Raises:
            Unfit: a value does not fit its column's type.
        """
        schema = self.schema
        return pa.RecordBatch.from_arrays(
            [self._convert(f, values) for f, values in zip(schema, columns, strict=True)], schema=schema
        )

    def _convert(self, field: pa.Field, values: Any) -> pa.Array:
        try:
            return to_array(values, field.type)
        except Binary:
            raise UserError(
                f'Column "{field.name}" of "{self._address.shown}" holds bytes: name the columns that you want '
                "in a query, SELECT … FROM …, without it."
            ) from None

    def _retype(self) -> None:
        """Give each column the first type that fits all its values; keep the current type if it fits."""
        kept = {f.name: [f.type] if f.type == TEXT else [f.type, *LADDER] for f in self.schema}
        with self._begin() as rows:
            while columns := rows.fetch(FIRST_ROWS):
                for (name, kinds), values in zip(kept.items(), columns, strict=True):
                    kept[name] = [kind for kind in kinds if kind == TEXT or fits(values, kind)]
        self._types = {name: kinds[0] for name, kinds in kept.items()}

    @contextlib.contextmanager
    def _begin(self) -> Iterator[QueryRows]:
        """Yield the open rows, with retries of transient failures; another failure becomes a UserError."""
        fetch = self._reading.fetch
        retrying = Retrying(
            stop=stop_after_attempt(1 + fetch.retries),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            retry=retry_if_exception(is_passing),
            before_sleep=before_sleep(lambda error: f'"{self._address.shown}" {find_rule(error).what}'),
            reraise=True,
        )
        driver = self._engine.dialect.loaded_dbapi.Error
        try:
            with retrying(QueryRows, self._engine, self._address, self._since, fetch.timeout_seconds) as rows:
                if self._types is None:
                    self._types = self._choose(rows)
                yield rows
        except (sa.exc.SQLAlchemyError, driver, pa.ArrowException, OSError, UnicodeError) as error:
            raise explain_sql_error(error, self._address.shown, fetch.timeout_seconds) from None

    def _choose(self, rows: QueryRows) -> dict[str, pa.DataType]:
        """Return the type of each column."""
        shown, kinds = self._address.shown, self._reading.columns or {}
        check_names(rows.names, shown)
        self._raw = {normalize(name): name for name in rows.names}
        values = rows.first or [()] * len(rows.names)
        found = zip(self._raw, rows.declared, values, strict=True)
        return {
            name: TEXT if kinds.get(name) == "text" else self._decide_type(name, declared, some)
            for name, declared, some in found
        }

    def _decide_type(self, name: str, declared: pa.DataType | None, values: Any) -> pa.DataType:
        if declared is None:
            return infer(values)
        return TEXT if pa.types.is_time(declared) else simplify(declared, name, self._address.shown, None)
