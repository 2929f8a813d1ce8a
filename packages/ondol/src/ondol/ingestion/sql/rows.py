"""The open rows of a table or query: a read-only session, one statement, a server-side cursor."""

import contextlib
import math
import re
import warnings
from typing import Any, Self

import pyarrow as pa
import sqlalchemy as sa

from ondol.errors import UserError, nearest
from ondol.ingestion.sql.address import Address
from ondol.ingestion.sql.since import select
from ondol.ingestion.sql.types import from_cursor, from_declared

FIRST_ROWS, MOST_ROWS = 4096, 65_536
BATCH_BYTES = 8 << 20
# What makes a session read only, in one state throughout, and in UTC.
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
COLON = re.compile(r"(?<![:\w]):(?=\w+(?!:))")  # what SQLAlchemy would take for a parameter


class Rows:
    """The rows of one statement while it runs.

    Attributes:
        names: The columns' names.
        declared: The type that the database tells for each, None where only its values tell.
        first: The columns of the first rows.
    """

    def __init__(self, engine: sa.Engine, address: Address, since: tuple[str, Any] | None, seconds: float) -> None:
        """Connect, begin and fetch the first rows, with `seconds` for each answer.

        Raises:
            UserError: there is no such table.
            sqlalchemy.exc.SQLAlchemyError: the database refuses; its driver's own errors may come as well.
        """
        self._connection = engine.connect()
        self._result: sa.CursorResult[Any] | None = None
        self._arrow: Any = None
        self._fresh = True
        try:
            for command in OPENING.get(engine.dialect.name, ()):
                self._connection.exec_driver_sql(command.format(milliseconds=math.ceil(seconds * 1000)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sa.exc.SAWarning)  # of types that SQLAlchemy does not know
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
        # DuckDB's cursors hold the whole result; a relation of its own streams.
        compiled = statement.compile(dialect=self._connection.dialect)  # type: ignore[attr-defined]
        values = [compiled.params[name] for name in compiled.positiontup or ()]
        driver: Any = self._connection.connection.driver_connection
        own = driver.cursor()  # DuckDB 2 refuses a connection where any result was not read to its end
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
        """End the session at once, whatever rows are left; the server rolls back."""
        left: Any = getattr(self._result and self._result.cursor, "_result", None)
        if hasattr(left, "unbuffered_active"):
            left.unbuffered_active = False  # or PyMySQL would first read all that is left
        if self._result is not None:
            with contextlib.suppress(Exception):  # a session that is lost cannot close its cursor
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
    """Return how many rows are to be fetched next, from what these weigh."""
    return max(1, min(MOST_ROWS, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))


def _find_target(connection: sa.Connection, address: Address) -> tuple[sa.FromClause, dict[str, pa.DataType | None]]:
    """Return what is selected from, and what a table declares of its columns.

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
    if inspector.dialect.name == "duckdb":  # its engine's own check leaves a result unread, which DuckDB 2 refuses
        return name in _list_tables(inspector, schema)
    return inspector.has_table(name, schema)


def _list_tables(inspector: sa.Inspector, schema: str | None) -> list[str]:
    return sorted({*inspector.get_table_names(schema), *inspector.get_view_names(schema)})


def _refuse(inspector: sa.Inspector, address: Address, schema: str | None, name: str, default: str | None) -> UserError:
    """Return the sentence for a table that is not named, or not there."""
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
    return UserError(f'"{address.shown}" names a table that is not there: {has}.{nearest(name, there)}')
