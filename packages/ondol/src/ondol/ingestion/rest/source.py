"""APIs as sources: JSON in pages.

`rest+https://api.example.org/v1/customers?limit=500#records=data.items&next=meta.next_cursor&param=cursor`: what stands
before `#` is asked for, what follows says how it is read (`ondol.ingestion.rest.plan`, docs/data.md).
"""

from datetime import UTC, datetime
from typing import Any

from ondol.errors import UserError
from ondol.ingestion.records import Row, flatten
from ondol.ingestion.rest.pages import Pager, set_parameter
from ondol.ingestion.rest.plan import Plan, split_uri
from ondol.ingestion.rest.session import Api
from ondol.ingestion.sources import Reading, Source
from ondol.ingestion.spool import Pages, RecordSource
from ondol.storage.addresses import resolve


class RestSource(RecordSource):
    """The records of an API, in pages."""

    def __init__(self, uri: str, reading: Reading, plan: Plan, address: str, after: str | None = None) -> None:
        """Remember the address, its secrets not filled in, and the watermark to begin at."""
        super().__init__(uri, reading)
        self._plan, self._address, self._after = plan, address, after

    def since(self, column: str, value: Any) -> Source:
        """Return the records at or after `value`, where the API has a parameter for it; otherwise all."""
        return RestSource(self.uri, self.reading, self._plan, self._address, say_moment(value))

    def _pages(self) -> Pages:
        plan, address = self._plan, resolve(self._address)
        if plan.since and self._after is not None:
            address = set_parameter(address, plan.since, self._after)
        with Api(self.uri, plan.header, self.reading.fetch) as api:
            pager = Pager(plan, api, address, self.uri)
            for records in pager.pages():
                rows = [self._flatten(record, pager.place) for record in records]
                self._refuse_strangers(rows, pager.place)
                yield rows

    def _flatten(self, record: Any, place: str) -> Row:
        if not isinstance(record, dict):
            raise UserError(f'{place} of "{self.uri}" has a record that is no object: check records=….')
        return flatten(record, self.uri, place, self._plan.drop)

    def _refuse_strangers(self, rows: list[Row], place: str) -> None:
        """Refuse a page of which no record has any of the contract's columns."""
        columns = self.reading.columns or {}
        if rows and columns and not any(columns.keys() & row.keys() for row in rows):
            raise UserError(
                f'{place} of "{self.uri}" has none of the contract\'s columns, but {", ".join(list(rows[0])[:10])}: '
                "check records=…, or update the contract."
            )


def open_rest(uri: str, reading: Reading) -> RestSource:
    """Return the source at `uri`; nothing is asked yet.

    Raises:
        UserError: the address is no such address.
    """
    address, plan = split_uri(uri)
    return RestSource(uri, reading, plan, address)


def say_moment(value: Any) -> str:
    """Return a watermark as an API takes it: moments in UTC, as 2024-01-31T09:00:00Z."""
    if not isinstance(value, datetime):
        return str(value)
    moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return moment.isoformat().replace("+00:00", "Z")
