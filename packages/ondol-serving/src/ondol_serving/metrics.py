"""Metrics of the service; BentoML shows them at `/metrics`, summed over the workers."""

import asyncio
import errno
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ondol_serving.access import HEALTH, METRICS

if TYPE_CHECKING:
    from ondol_serving.bundle import Bundle
    from ondol_serving.contract import Rows


WRITE_SECONDS = 0.01
WRITE_COUNT = 32  # of one endpoint; more together would delay other requests
# Size of each metrics file of a process; a histogram needs 4 KB for each pair of endpoint and status code.
RESERVED_BYTES = {"histogram": 1_048_576, "counter": 262_144, "gauge_all": 65_536, "gauge_livesum": 65_536}


class Counters:
    """Counters: predictions by model version, unseen categories by column (never by value), unlogged answers."""

    def __init__(self) -> None:
        """Register the counters. Must run in a worker, where prometheus_client sums over processes."""
        from prometheus_client import Counter

        self.predictions = Counter("ml_predictions", "Rows predicted", ["model_version"])
        self.explanations = Counter("ml_explanations", "Rows explained", ["model_version"])
        self.unknown = Counter("ml_unknown_categories", "Values never seen in training", ["column"])
        self.dropped = Counter("ml_log_dropped", "Answers that the prediction log could not take")
        self.failures = Counter(
            "ml_rollout_failures", "Requests of a rollout on which a model failed", ["model_version", "role"]
        )
        self.unknown_paths = Counter("ml_unknown_paths", "Requests for paths that the service does not have")
        self._by_version = cache(self.predictions.labels)

    def count(self, bundle: "Bundle", rows: "Rows") -> None:
        """Count one call of the model."""
        self.add(bundle.version, len(rows), bundle.count_unknown(rows))

    def add(self, version: str, rows: int, unknown: dict[str, int]) -> None:
        """Count predicted rows, and values never seen in training by column."""
        self._by_version(version).inc(rows)
        for column, count in unknown.items():
            self.unknown.labels(column).inc(count)

    def count_failure(self, bundle: "Bundle", role: str) -> None:
        """Count a request of a rollout on which a model failed."""
        self.failures.labels(bundle.version, role).inc()


class RequestMetrics:
    """Counts requests by endpoint and status, under the names and labels of BentoML's own metrics.

    BentoML's middleware counts only what BentoML answers. What is counted here is written some milliseconds later, for
    all requests together: otherwise its six metrics would take a tenth of the time of a prediction.
    """

    def __init__(self) -> None:
        """Register the metrics. Must run in a worker, as for `Counters`."""
        from bentoml._internal.configuration.containers import BentoMLContainer
        from bentoml._internal.context import server_context
        from prometheus_client import Counter, Gauge, Histogram

        names = ("service_name", "service_version", "runner_name")
        server = (server_context.bento_name, server_context.bento_version, server_context.service_name)
        by_status = ("endpoint", *names, "http_response_code")
        buckets = BentoMLContainer.duration_buckets.get()
        prefix = "bentoml_service_request"
        self.duration = Histogram(
            f"{prefix}_duration_seconds", "API HTTP request duration in seconds", by_status, buckets=buckets
        )
        self.total = Counter(f"{prefix}_total", "Total number of HTTP requests", by_status)
        self.in_progress = Gauge(
            f"{prefix}_in_progress",
            "Total number of HTTP requests in progress now",
            ("endpoint", *names),
            multiprocess_mode="livesum",
        )
        self.last = Gauge(
            "bentoml_service_last_request_timestamp_seconds", "Timestamp of the last received request", names
        )
        self._last = self.last.labels(*server)
        self._in_progress = cache(lambda path: self.in_progress.labels(path, *server))
        self._duration = cache(lambda path, status: self.duration.labels(path, *server, status))
        self._total = cache(lambda path, status: self.total.labels(path, *server, status))
        self._scheduled = False
        self._asked = 0.0  # when the last request arrived, probes excluded
        self._running: dict[str, int] = defaultdict(int)
        self._seconds: dict[tuple[str, int], list[float]] = defaultdict(list)  # of answers that are not written yet
        self._refused: dict[str, int] = defaultdict(int)  # likewise

    def start(self, paths: Iterable[str]) -> None:
        """Start the counts of `paths` at 0, since a rate needs a first value."""
        for path in paths:
            for status in (200, 500):
                self._total(path, status)

    def begin(self, path: str) -> None:
        """Count a request in progress."""
        self._running[path] += 1
        if path not in HEALTH and path != METRICS:
            self._asked = time.time()
        self._schedule()

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answer; `end` follows. Those of `/metrics` are left out: a scrape would change what it reads."""
        if path == METRICS:
            return
        waiting = self._seconds[path, status]
        waiting.append(seconds)
        if len(waiting) >= WRITE_COUNT:
            self.write()

    def count_refused(self, path: str) -> None:
        """Count a request that was refused at its head, without a duration: it would hide slow answers."""
        self._refused[path] += 1
        self._schedule()

    def end(self, path: str) -> None:
        """End the count of `begin`."""
        self._running[path] -= 1
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(WRITE_SECONDS, self._write_scheduled)

    def _write_scheduled(self) -> None:
        self._scheduled = False
        self.write()

    def write(self) -> None:
        """Write what has been counted."""
        if self._asked:
            self._last.set(self._asked)
        for path, running in self._running.items():
            self._in_progress(path).set(running)
        for (path, status), seconds in self._seconds.items():
            self._total(path, status).inc(len(seconds))
            observe = self._duration(path, status).observe
            for one in seconds:
                observe(one)
        for path, refused in self._refused.items():
            self._total(path, 503).inc(refused)
        self._seconds.clear()
        self._refused.clear()


@cache
def counters() -> Counters:
    """Return the process's counters; prometheus_client refuses to register a name twice."""
    return Counters()


@cache
def request_metrics() -> RequestMetrics:
    """Return the process's request metrics."""
    return RequestMetrics()


def prepare_files() -> None:
    """Prepare the metrics files of this process, before anything is counted.

    prometheus_client maps sparse files into memory, and a process that writes to such a page on a full disk is killed
    (SIGBUS). Files with allocated blocks can always be written. If the disk is already full, the process counts in its
    own memory, which `/metrics` does not show, and still serves.
    """
    if not (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")):
        return
    from prometheus_client import values

    # It asks the system for the process id at every count, to notice a fork. Workers are started, not forked.
    process = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: process)
    files = {Path(folder) / f"{kind}_{os.getpid()}.db": size for kind, size in RESERVED_BYTES.items()}
    try:
        for path, size in files.items():
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return  # a file system that cannot reserve
        values.ValueClass = values.MutexValue
        for path in files:
            path.unlink(missing_ok=True)
