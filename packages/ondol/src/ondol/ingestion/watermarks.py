"""How far a source was read by its watermark, a column of dates or numbers that grow.

A watermark is kept as a number; of a date, as microseconds since 1970.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from ondol.config.settings import Settings
from ondol.contract import Column, Contract, clean
from ondol.errors import UserError, nearest
from ondol.ingestion.sources import Source
from ondol.snapshots.upsert import Keys

EPOCH = datetime(1970, 1, 1)


def find_keys(settings: Settings, contract: Contract, source: Source) -> Keys:
    """Return the id and the watermark.

    Raises:
        UserError: there is no column with the role id, or the watermark is none of the contract, or a text.
    """
    identity = contract.role("id")
    if identity is None:
        raise UserError(
            f'"{source.uri}" is read bit by bit, which needs a column with metadata={{"role": "id"}} in '
            "model/schema.py, so that a row that comes again is known."
        )
    columns, watermark = contract.by_name, settings.data.watermark
    column = None if watermark is None else columns.get(watermark)
    if watermark is not None and column is None:
        known = nearest(watermark, columns) or f" It has: {', '.join(columns)}."
        raise UserError(f'[data] watermark in config.toml names "{watermark}", no column of model/schema.py.{known}')
    if column and column.kind not in ("integer", "number", "date"):
        raise UserError(
            f'The watermark "{column.name}" is a {column.kind} in model/schema.py: name a date or a number.'
        )
    return Keys(identity, column, columns)


class WentBack(UserError):
    """The newest row that was read before is no longer there."""


def require_forward(
    source: Source, watermark: Column | None, before: int | float | None, newest: int | float | None
) -> None:
    """Check that what was read reaches as far as what was read before, whose newest row is read again each time.

    Raises:
        WentBack: it does not.
    """
    if watermark is None or before is None:
        return
    if newest is None or newest < before:
        was, now = (show(watermark, value) for value in (before, newest))
        raise WentBack(
            f'The watermark of "{source.uri}" went back: "{watermark.name}" was {was} and is '
            f"{'in no row' if now is None else now} now; if the source began anew, run `ml ingest --full`."
        )


def find_start(watermark: Column | None, before: int | float | None, lateness: float) -> int | float | datetime | None:
    """Return the value from which on rows are read, None for all."""
    if watermark is None or before is None:
        return None
    if watermark.kind == "date":
        return EPOCH + timedelta(microseconds=int(before)) - timedelta(days=lateness)
    return before - (int(lateness) if lateness.is_integer() else lateness)


def not_before(batches: Iterator[pa.RecordBatch], watermark: Column | None, since: Any) -> Iterator[pa.RecordBatch]:
    """Yield the rows whose watermark is at or after `since`, or missing: of these nobody knows how old they are."""
    for batch in batches:
        if since is None or watermark is None:
            yield batch
            continue
        frame, _ = clean(pa.Table.from_batches([batch]).select([watermark.name]), [watermark])
        values = frame[watermark.name]
        yield batch.filter(pa.array((values.isna() | (values >= since)).to_numpy(bool)))


def show(watermark: Column | None, value: int | float | None) -> Any:
    """Return a watermark as it is told: a date in ISO 8601, UTC."""
    if watermark is None or value is None:
        return None
    if watermark.kind == "date":
        return (EPOCH + timedelta(microseconds=int(value))).isoformat()
    return value
