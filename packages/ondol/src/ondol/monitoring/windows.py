"""The records of windows: their results, and where the next one begins."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.config import Settings
from ondol.monitoring.drift import ColumnDrift
from ondol.monitoring.estimation import Estimate
from ondol.monitoring.log import Logged
from ondol.monitoring.performance import Performance
from ondol.orchestration.processes import mlflow_ui
from ondol.registry.champion import Champion
from ondol.registry.registry import Registry
from ondol.storage.files import read_record, scratch
from ondol.storage.store import Store

WindowVerdict = Literal["ok", "drift", "worse", "too small"]
SAMPLE = pa.schema(
    [
        ("request_id", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("prediction", pa.list_(pa.float64())),
    ]
)


class Window(BaseModel):
    """One window: [start, end) of the log of the bundle in production, with results and verdict.

    Attributes:
        id: Start and version. A window that was too small is replaced by a larger one with the same start.
        sampled: The number of compared rows.
        others: Requests that other bundles answered in this time; they are in no window of this bundle.
        latency: Milliseconds: `p50`, `p99`.
        estimate: The metrics estimated without labels; None for a regression, and in older records.
        notes: Sentences on what could not be evaluated.
        alerted: The verdicts for which an alert was sent.
        run_id: The MLflow run of the window.
    """

    id: str
    start: datetime
    end: datetime
    version: str
    bundle: str
    verdict: WindowVerdict
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
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()
    alerted: tuple[WindowVerdict, ...] = ()
    run_id: str | None = None

    @property
    def evaluated(self) -> bool:
        """Whether there were enough rows."""
        return self.verdict != "too small"

    @property
    def bad(self) -> bool:
        """Whether it is a reason to retrain."""
        return self.verdict in ("drift", "worse")


class Windows:
    """The windows of one store."""

    def __init__(self, store: Store) -> None:
        """Open `store`; creates nothing."""
        self.store = store
        self.folder = store.folder / "windows"

    def path(self, window: str, kind: str) -> Path:
        """Return the path of a window's record (`json`), report (`html`) or sample (`parquet`)."""
        return self.folder / f"{window}.{kind}"

    def write(self, window: Window) -> None:
        """Write a window's record, after which its rows count as evaluated."""
        self.store.write_bytes(self.path(window.id, "json"), window.model_dump_json(indent=1).encode())

    def of(self, champion: Champion) -> list[Window]:
        """Return the windows since the champion was put into production, oldest first."""
        since = datetime.fromisoformat(champion.since)
        return [window for window in self.of_bundles({champion.bundle}) if window.start >= since]

    def of_bundles(self, names: Set[str]) -> list[Window]:
        """Return the windows of the bundles with these names, oldest first."""
        found = [window for path in self.folder.glob("*.json") if (window := read_record(path, Window))]
        return sorted((window for window in found if window.bundle in names), key=lambda window: window.start)

    def next_start(self, champion: Champion) -> datetime:
        """Return the end of the champion's last evaluated window, else the time of its deployment."""
        ends = [window.end for window in self.of(champion) if window.evaluated]
        return max(ends, default=datetime.fromisoformat(champion.since))

    def write_report(self, window: str, html: str) -> Path:
        """Store a window's report and return its path."""
        path = self.path(window, "html")
        self.store.write_bytes(path, html.encode())
        return path

    def write_sample(
        self, window: str, logged: list[Logged], id_name: str | None, text: "Callable[[Any], str]"
    ) -> None:
        """Write the compared rows with their predictions, for labels that arrive later.

        A prediction is a list of probabilities in the order of the classes, or a value for regression.
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
            self.store.publish(made, path)

    def read_sample(self, window: str) -> pd.DataFrame | None:
        """Return a window's sample, or None if it was not kept."""
        path = self.store.fetch(self.path(window, "parquet"))
        return pd.read_parquet(path) if path.exists() else None

    def prune(self, keep: int) -> None:
        """Remove all but the newest reports and samples; the records are kept."""
        for kind in ("html", "parquet"):
            for path in list(self.store.sizes(self.folder, f"*.{kind}"))[:-keep]:
                self.store.remove(path)


def window_id(start: datetime, version: str) -> str:
    """Return the name of the window of `version` that begins at `start`."""
    return f"{start.astimezone(UTC):%Y%m%dT%H%M%S%f}-v{version}"


def _numbers_of(prediction: dict[str, Any]) -> list[float | None]:
    if "value" in prediction:
        return [prediction["value"]]
    return list(prediction["probabilities"].values())


MOST_LETTERS = 100  # characters of a column's name in the name of a metric
MOST_RUNS = 10_000  # runs that `prune` examines
REPORT, RECORD = "report.html", "window.json"  # artifacts of a run, besides the plots
ARTIFACTS_TAG, REMOVED = "report", "removed"  # the tag of a run whose artifacts `prune` removed, and its value


class WindowRuns(Registry):
    """The experiment `<project>-monitor`."""

    def __init__(self, settings: Settings) -> None:
        """Connect."""
        super().__init__(settings)
        self.name = f"{self.name}-monitor"

    def open_run(self, window: str) -> str:
        """Return the id of a window's run; the run of a killed monitor is used again."""
        found = self.client.search_runs([self.experiment_id()], f"tags.window = '{window}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        with self.run(f"monitor-{window}", {"window": window}) as run:
            return run

    def log_window(self, window: Window, html: str, plots: dict[str, bytes]) -> str:
        """Log a window's figures, report and plots; return the run's id."""
        run = self.open_run(window.id)
        report = {REPORT: html.encode()} if html else {}
        self.log_files(run, report | {f"{name}.png": png for name, png in plots.items()})
        self.log_figures(run, window)
        return run

    def log_figures(self, run: str, window: Window) -> None:
        """Log a window's figures and verdict in place of earlier ones."""
        self.log_results(run, window_metrics(window), {RECORD: window.model_dump(mode="json")})
        for name, value in {"verdict": window.verdict, "version": window.version}.items():
            self.client.set_tag(run, name, value)

    def prune(self, keep: int) -> int:
        """Remove the artifacts (report, plots, record) of all but the newest `keep` windows; return their number.

        Metrics and tags stay in MLflow, and the record in the store.
        """
        runs = self.client.search_runs([self.experiment_id()], order_by=["start_time DESC"], max_results=MOST_RUNS)
        old = [run for run in runs[keep:] if run.data.tags.get(ARTIFACTS_TAG) != REMOVED]
        for run in old:
            self.remove_files(run)
            self.client.set_tag(run.info.run_id, ARTIFACTS_TAG, REMOVED)
        return len(old)

    def report_address(self, run: str) -> str:
        """Return the address of the report in the MLflow UI."""
        return f"{mlflow_ui(self.settings)}{self.run_path(run)}/artifacts/{REPORT}"


def window_metrics(window: Window) -> dict[str, float]:
    """Return a window's figures by metric name."""
    figures: dict[str, float | None] = {
        "rows": window.rows,
        "requests": window.requests,
        "rows_per_hour": window.rows_per_hour,
        "drift_share": window.drift_share,
        "prediction_drift": window.prediction.score if window.prediction else None,
    }
    figures |= {f"latency_ms_{name}": value for name, value in window.latency.items()}
    names = metric_names(column.name for column in window.columns)
    figures |= {f"drift/{names[column.name]}": column.score for column in window.columns}
    figures |= {f"missing/{names[column.name]}": column.missing for column in window.columns if column.missing}
    if window.performance is not None:
        figures |= {f"labelled/{name}": value for name, value in window.performance.metrics.items()}
    if window.estimate is not None:
        figures |= {f"estimated/{name}": one.value for name, one in window.estimate.figures.items()}
    return {name: value for name, value in figures.items() if value is not None}


def metric_names(columns: Iterable[str]) -> dict[str, str]:
    """Return the name of each column in metric names.

    MLflow allows letters, digits and `_-. :`, treats `/` as a folder, allows 250 characters, and on some databases
    ignores case. A name that had to be changed, or that differs from another only in case, ends with a digest of the
    column's name, so it is the same in every window.
    """
    plain = {column: re.sub(r"[^\w. :-]", "_", column).strip(" .")[:MOST_LETTERS] for column in columns}
    alike = Counter(name.casefold() for column, name in plain.items() if name == column)
    return {
        column: name if name == column and alike[name.casefold()] == 1 else f"{name}-{_digest(column)}"
        for column, name in plain.items()
    }


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
