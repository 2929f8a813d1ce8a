"""SQL databases: any that SQLAlchemy has a dialect for, read through a server-side cursor in one state."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Self

import pyarrow as pa
import sqlalchemy as sa
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from ondol.errors import UserError, nearest
from ondol.ingestion.files import check_names
from ondol.ingestion.parquet import simplify
from ondol.ingestion.sources import Reading, Retyped, Source
from ondol.ingestion.sql.address import Address, make_engine, parse_address
from ondol.ingestion.sql.errors import explain, find_rule, is_passing
from ondol.ingestion.sql.rows import FIRST_ROWS, Rows, next_size
from ondol.ingestion.sql.since import tells_older
from ondol.ingestion.sql.types import LADDER, TEXT, Binary, Unfit, fits, infer, to_array
from ondol.storage.waiting import before_sleep
from ondol_serving.grammar import normalize


def open_sql(uri: str, reading: Reading) -> Source:
    """Open the table or query at `uri`; nothing is connected to yet.

    Raises:
        UserError: it is no address, its driver is not installed, or its file does not exist.
    """
    return SqlSource(uri, parse_address(uri), reading)


class SqlSource:
    """One table or query of a database."""

    def __init__(self, uri: str, address: Address, reading: Reading) -> None:
        """Remember what is read; nothing is connected to.

        Raises:
            UserError: the driver is not installed, or the database's file does not exist.
        """
        self.uri = uri
        self._address = address
        self._reading = reading
        self._engine = make_engine(address, reading)
        self._types: dict[str, pa.DataType] | None = None
        self._raw: dict[str, str] = {}  # by the names in normal form, what the database calls them
        self._since: tuple[str, Any] | None = None

    @property
    def schema(self) -> pa.Schema:
        """Names and types, by what the database declares, and where it does not, by the first rows."""
        if self._types is None:
            with self._begin():
                pass
        return pa.schema(list((self._types or {}).items()))

    def fingerprint(self) -> None:
        """Return None: whether a table changed cannot be told without reading it."""
        return None

    def since(self, column: str, value: Any) -> Self:
        """Return the source of the rows whose `column` is at or after `value`, or missing; of all in a column of text.

        Raises:
            UserError: there is no such column.
        """
        if column not in self.schema.names:
            near = nearest(column, self.schema.names)
            raise UserError(f'"{self._address.shown}" has no column "{column}" to read from on.{near}')
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
        """Return fetched columns in the schema's types.

        Raises:
            Unfit: a value does not fit its column's.
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
        """Give each column the first type that holds all its values; its present one, where that does."""
        kept = {f.name: [f.type] if f.type == TEXT else [f.type, *LADDER] for f in self.schema}
        with self._begin() as rows:
            while columns := rows.fetch(FIRST_ROWS):
                for (name, kinds), values in zip(kept.items(), columns, strict=True):
                    kept[name] = [kind for kind in kinds if kind == TEXT or fits(values, kind)]
        self._types = {name: kinds[0] for name, kinds in kept.items()}

    @contextlib.contextmanager
    def _begin(self) -> Iterator[Rows]:
        """Give the open rows, tried for again while a failure may pass; one that stays is said in a sentence."""
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
            with retrying(Rows, self._engine, self._address, self._since, fetch.timeout_seconds) as rows:
                if self._types is None:
                    self._types = self._choose(rows)
                yield rows
        except (sa.exc.SQLAlchemyError, driver, pa.ArrowException, OSError, UnicodeError) as error:
            raise explain(error, self._address.shown, fetch.timeout_seconds) from None

    def _choose(self, rows: Rows) -> dict[str, pa.DataType]:
        """Return what each column is read as."""
        shown, kinds = self._address.shown, self._reading.columns or {}
        check_names(rows.names, shown)
        self._raw = {normalize(name): name for name in rows.names}
        values = rows.first or [()] * len(rows.names)
        found = zip(self._raw, rows.declared, values, strict=True)
        return {
            name: TEXT if kinds.get(name) == "text" else self._settle(name, declared, some)
            for name, declared, some in found
        }

    def _settle(self, name: str, declared: pa.DataType | None, values: Any) -> pa.DataType:
        if declared is None:
            return infer(values)
        return TEXT if pa.types.is_time(declared) else simplify(declared, name, self._address.shown, None)
