"""The windows of the log that were compared, one record each, and the cursor that they make."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.monitoring.drift import ColumnDrift
from ondol.monitoring.log import Logged
from ondol.monitoring.performance import Performance
from ondol.registry.champion import Champion
from ondol.storage.files import publish, read_record, scratch, write_bytes
from ondol.storage.reach import fetch, remove, sizes

Verdict = Literal["ok", "drift", "worse", "too small"]
SAMPLE = pa.schema(
    [
        ("request_id", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("prediction", pa.list_(pa.float64())),
    ]
)


class Window(BaseModel):
    """One window: [start, end) of the log of the bundle in service, what was found, and the verdict.

    Attributes:
        id: Names it: start and version. A window that was too small is replaced by the larger one of the same start.
        sampled: How many of its rows were compared.
        others: Requests that another bundle answered meanwhile; they belong to no window of this one.
        latency: Milliseconds: `p50`, `p99`.
        notes: What could not be looked at, in words.
        alerted: The verdicts that people were alerted of.
        run_id: The MLflow run that shows it.
    """

    id: str
    start: datetime
    end: datetime
    version: str
    bundle: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    requests: int = 0
    rows: int = 0
    sampled: int = 0
    others: int = 0
    unreadable: int = 0
    rows_per_hour: float = 0.0
    latency: dict[str, float] = {}
    drift_share: float | None = None
    columns: tuple[ColumnDrift, ...] = ()
    prediction: ColumnDrift | None = None
    performance: Performance | None = None
    notes: tuple[str, ...] = ()
    alerted: tuple[Verdict, ...] = ()
    run_id: str | None = None

    @property
    def judged(self) -> bool:
        """Whether there were rows enough."""
        return self.verdict != "too small"

    @property
    def bad(self) -> bool:
        """Whether it speaks for training again."""
        return self.verdict in ("drift", "worse")


class Windows:
    """The windows of one store."""

    def __init__(self, store: Path) -> None:
        """Look into the store at `store`; nothing is made."""
        self.folder = store / "windows"

    def path(self, window: str, kind: str) -> Path:
        """Return where a window's record (`json`), report (`html`) or sample (`parquet`) is."""
        return self.folder / f"{window}.{kind}"

    def write(self, window: Window) -> None:
        """Keep a window: with this, and not before, its rows are judged."""
        write_bytes(self.path(window.id, "json"), window.model_dump_json(indent=1).encode())

    def of(self, champion: Champion) -> list[Window]:
        """Return the windows since the champion was put into service, oldest first."""
        since = datetime.fromisoformat(champion.since)
        paths = sorted(self.folder.glob("*.json"))
        found = [window for path in paths if (window := read_record(path, Window))]
        return sorted((w for w in found if w.bundle == champion.bundle and w.start >= since), key=lambda w: w.start)

    def next_start(self, champion: Champion) -> datetime:
        """Return where the last judged window of the champion ended; where none did, when it began to serve."""
        ends = [window.end for window in self.of(champion) if window.judged]
        return max(ends, default=datetime.fromisoformat(champion.since))

    def write_report(self, window: str, html: str) -> Path:
        """Keep a window's report and return where."""
        path = self.path(window, "html")
        write_bytes(path, html.encode())
        return path

    def write_sample(
        self, window: str, logged: list[Logged], id_name: str | None, text: "Callable[[Any], str]"
    ) -> None:
        """Keep which rows were compared and what was answered: labels come later.

        A classification's prediction is its probabilities in the order of the classes, a regression's its value.
        """
        path = self.path(window, "parquet")
        rows = [
            (row.request_id, row.row, row.features.get(id_name or ""), _numbers_of(row.prediction)) for row in logged
        ]
        columns = zip(*rows, strict=True) if rows else ([] for _ in SAMPLE)
        request, place, ids, predictions = columns
        arrays = [request, place, [None if i is None else text(i) for i in ids], predictions]
        table = pa.table([pa.array(a, f.type) for a, f in zip(arrays, SAMPLE, strict=True)], schema=SAMPLE)
        with scratch(path) as made:
            pq.write_table(table, made, compression="zstd")
            publish(made, path)

    def read_sample(self, window: str) -> pd.DataFrame | None:
        """Return a window's sample, or None where it was not kept."""
        path = fetch(self.path(window, "parquet"))
        return pd.read_parquet(path) if path.exists() else None

    def prune(self, keep: int) -> None:
        """Remove all but the newest reports and samples; the records stay."""
        for kind in ("html", "parquet"):
            for path in list(sizes(self.folder, f"*.{kind}"))[:-keep]:
                remove(path)


def window_id(start: datetime, version: str) -> str:
    """Return the name of the window of `version` that begins at `start`."""
    return f"{start.astimezone(UTC):%Y%m%dT%H%M%S%f}-v{version}"


def _numbers_of(prediction: dict[str, Any]) -> list[float | None]:
    if "value" in prediction:
        return [prediction["value"]]
    return list(prediction["probabilities"].values())
