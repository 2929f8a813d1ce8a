"""Metrics of monitoring and retraining for Prometheus, read from the store at each scrape and served by the worker.

`[monitor] metrics = "127.0.0.1:9464"` switches it on. What the service measures is at its own `/metrics`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ondol.config import Settings
from ondol.errors import UserError
from ondol.evaluation.metrics import Interval
from ondol.monitoring.drift import ColumnDrift
from ondol.monitoring.retraining import by_distance, find_unsent_request, read_loop
from ondol.monitoring.windows import Window, Windows
from ondol.orchestration.alerts import waiting
from ondol.registry.champion import read_champion
from ondol.storage.store import open_store
from ondol_serving.names import printable

MOST_COLUMNS = 50  # the columns farthest beyond their limits; each is a separate series
READ_SECONDS = 10.0  # seconds for which values are cached: a store may have thousands of windows
VERDICTS = ("ok", "drift", "worse")
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {  # by name: the help text, and the labels
    "ml_store_readable": ("Whether the store can be read", ()),
    "ml_loop_paused": ("Whether the loop is paused", ()),
    "ml_alerts_waiting": ("Alerts that were not sent yet", ()),
    "ml_alerts_webhook": ("Whether alerts have a receiver", ()),
    "ml_champion_since_seconds": ("When the version was put into service", ("version",)),
    "ml_loop_request_open": ("Whether retraining is requested and Prefect has not received the event", ()),
    "ml_window_min_rows": ("Rows that a window needs to be evaluated", ()),
    "ml_windows": ("Evaluated windows of the version in production", ("verdict",)),
    "ml_window_end_seconds": ("When the last evaluated window ended", ()),
    "ml_window_rows": ("Rows of the last evaluated window", ()),
    "ml_window_verdict": ("1 for the verdict on the last evaluated window", ("verdict",)),
    "ml_window_drift_share": ("Share of drifted columns in the last evaluated window", ()),
    "ml_prediction_drift": ("Distance of the predictions to the reference, and its limit", ("what",)),
    "ml_column_drift": ("Distance of a column to the reference over its limit", ("column",)),
    "ml_column_missing": ("Share of missing values of a column", ("column",)),
    "ml_live_metric": ("The metric on labelled rows, and on the holdout", ("metric", "what")),
    "ml_estimated_metric": ("The metric of the last evaluated window, estimated without labels", ("metric", "what")),
    "ml_estimate_reliable": ("Whether that window is like the reference, so that the estimate is reliable", ()),
    "ml_labelled_rows": ("Labelled rows of the last window with labels", ()),
    "ml_live_metric_window_end_seconds": ("When the last window with labels ended", ()),
}


class LoopCollector(Collector):
    """The gauges of the loop."""

    def __init__(self, settings: Settings) -> None:
        """Read the store of `settings` at each scrape."""
        self.settings = settings
        self._read_at = float("-inf")
        self._gauges: list[GaugeMetricFamily] = []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges; if the store cannot be read, they are missing and `ml_store_readable` is 0."""
        if time.monotonic() - self._read_at > READ_SECONDS:
            try:
                self._gauges = [_gauge("ml_store_readable", 1.0), *self._read()]
            except (UserError, OSError, ValueError):
                self._gauges = [_gauge("ml_store_readable", 0.0)]
            self._read_at = time.monotonic()
        return self._gauges

    def _read(self) -> Iterator[GaugeMetricFamily]:
        store = open_store(self.settings)
        loop, champion = read_loop(store), read_champion(store)
        yield _gauge("ml_loop_paused", float(loop.paused is not None))
        yield _gauge("ml_alerts_waiting", float(len(waiting(self.settings))))
        yield _gauge("ml_alerts_webhook", float(self.settings.alerts.webhook is not None))
        if champion is None:
            return
        since = datetime.fromisoformat(champion.since).timestamp()
        yield _labelled("ml_champion_since_seconds", {champion.version: since})
        wanted = find_unsent_request(loop, champion) is not None
        yield _gauge("ml_loop_request_open", float(wanted))
        if self.settings.log.enabled:  # without a log, windows are never evaluated
            needed = float(self.settings.monitor.min_rows)
            yield _gauge("ml_window_min_rows", needed)
        windows = [window for window in Windows(store).of(champion) if window.evaluated]
        counts = {verdict: float(sum(w.verdict == verdict for w in windows)) for verdict in VERDICTS}
        yield _labelled("ml_windows", counts)
        if windows:
            yield from _of_window(windows[-1])
        if measured := [window for window in windows if window.performance is not None]:
            yield from _of_performance(measured[-1])


def serve_metrics(settings: Settings) -> None:
    """Serve the gauges at `[monitor] metrics` from a thread, if that is set.

    Raises:
        UserError: the address is in use.
    """
    if settings.monitor.metrics is None:
        return
    host, _, port = settings.monitor.metrics.rpartition(":")
    registry = CollectorRegistry()
    registry.register(LoopCollector(settings))
    try:
        start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, OverflowError) as error:  # the latter for a port beyond 65535
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"[monitor] metrics = {settings.monitor.metrics} cannot be opened ({why}): choose another port."
        ) from None


def _of_window(window: Window) -> Iterator[GaugeMetricFamily]:
    """Yield the gauges of the last evaluated window."""
    yield _gauge("ml_window_end_seconds", window.end.timestamp())
    yield _gauge("ml_window_rows", float(window.rows))
    verdicts = {verdict: float(window.verdict == verdict) for verdict in VERDICTS}
    yield _labelled("ml_window_verdict", verdicts)
    yield _gauge("ml_window_drift_share", window.drift_share)
    if window.prediction is not None:
        distance = {"distance": window.prediction.score, "limit": window.prediction.limit}
        yield _labelled("ml_prediction_drift", distance)
    columns = by_distance(window.columns)[:MOST_COLUMNS]
    yield _labelled("ml_column_drift", dict(map(_ratio, columns)))
    yield _labelled("ml_column_missing", {column.name: column.missing for column in columns})
    if window.estimate is not None:
        yield _figures("ml_estimated_metric", window.estimate.metric, window.estimate.figures[window.estimate.metric])
        yield _gauge("ml_estimate_reliable", float(not window.estimate.doubts))


def _of_performance(window: Window) -> Iterator[GaugeMetricFamily]:
    """Yield the gauges of the last window with labels."""
    live = window.performance
    assert live is not None
    yield _figures("ml_live_metric", live.metric, live.figure, holdout=live.before.value if live.before else None)
    yield _gauge("ml_labelled_rows", float(live.rows))
    yield _gauge("ml_live_metric_window_end_seconds", window.end.timestamp())


def _ratio(column: ColumnDrift) -> tuple[str, float | None]:
    return column.name, column.score / column.limit if column.score is not None and column.limit else None


def _family(name: str) -> GaugeMetricFamily:
    about, labels = GAUGES[name]
    return GaugeMetricFamily(name, about, labels=labels)


def _gauge(name: str, value: float | None) -> GaugeMetricFamily:
    family = _family(name)
    if value is not None:
        family.add_metric([], value)
    return family


def _figures(name: str, metric: str, figure: Interval, **more: float | None) -> GaugeMetricFamily:
    """Return a gauge with a figure, the ends of its interval, and others beside it."""
    family = _family(name)
    for what, value in {"value": figure.value, "low": figure.low, "high": figure.high, **more}.items():
        if value is not None:
            family.add_metric([metric, what], value)
    return family


def _labelled(name: str, by_value: Mapping[str, float | None]) -> GaugeMetricFamily:
    """Return a gauge with one label; values that are None are left out."""
    family = _family(name)
    for value, figure in by_value.items():
        if figure is not None:
            family.add_metric([printable(value, one_line=True)], figure)
    return family
