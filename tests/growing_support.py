"""A growing source, and the content of its snapshot."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pandas as pd
import pyarrow as pa

from ondol.config import Settings
from ondol.contract import Column, Contract
from ondol.ingestion import ingest
from ondol.ingestion.sources import Source
from ondol.project import Project
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.store import open_store

CONTRACT = Contract(
    problem="regression",
    target="y",
    columns=(
        Column(name="고객", kind="text", role="id"),
        Column(name="changed", kind="date", role="time"),
        Column(name="y", kind="number", role="target"),
    ),
)

DAYS = CONTRACT.model_copy(  # the watermark is a number
    update={"columns": (CONTRACT.columns[0], Column(name="day", kind="integer"), CONTRACT.columns[2])}
)

START = datetime(2026, 1, 1)


def project_of(settings: Settings, contract: Contract) -> Project:
    """Return a project whose contract is given, and not read from `model/schema.py`."""
    made = Project(settings)
    vars(made)["contract"] = contract
    return made


def grow(settings: Settings, contract: Contract, source: Source, full: bool = False) -> Snapshot:
    return ingest.grow(project_of(settings, contract), source, full)


Row = tuple[str, int, float]  # id, day (of `Table` since START), y


class Table:
    """A source whose rows the test changes; it records the requests."""

    uri = "test://table"
    schema = pa.schema([("고객", pa.string()), ("changed", pa.timestamp("us")), ("y", pa.float64())])

    def __init__(self, rows: list[Row], size: int = 3) -> None:
        self.rows = rows
        self.size = size
        self.given = 0

    def fingerprint(self) -> str | None:
        return None

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self.rows), self.size):
            part = self.rows[start : start + self.size]
            self.given += len(part)
            columns = zip(*((name, START + timedelta(days=day), y) for name, day, y in part), strict=True)
            yield pa.RecordBatch.from_arrays(
                [pa.array(values, field.type) for values, field in zip(columns, self.schema, strict=True)],
                schema=self.schema,
            )


def rows_of(chosen: Settings, snapshot: Snapshot) -> list[Row]:
    tables = list(Snapshots(open_store(chosen)).batches(snapshot.digest, ["고객", "changed", "y"]))
    frame = pa.concat_tables(tables).to_pandas() if tables else pd.DataFrame()
    assert len(frame) == snapshot.rows
    return [(name, (when - START).days, y) for name, when, y in frame.itertuples(index=False)]
