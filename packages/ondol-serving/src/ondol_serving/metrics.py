"""Metrics of the service beside BentoML's own request metrics; both appear in `/metrics`."""

import errno
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ondol_serving.bundle import Bundle
    from ondol_serving.contract import Rows


# Size of each metrics file of a process; a histogram needs 4 KB for each pair of endpoint and status code.
RESERVED_BYTES = {"histogram": 1_048_576, "counter": 262_144, "gauge_all": 65_536, "gauge_livesum": 65_536}


class Counters:
    """Counters: predictions by model version, unseen categories by column (never by value), unlogged answers."""

    def __init__(self) -> None:
        """Register the counters. Must run in a worker, where prometheus_client sums over processes."""
        from prometheus_client import Counter

        self.predictions = Counter("ml_predictions", "Rows predicted", ["model_version"])
        self.unknown = Counter("ml_unknown_categories", "Values never seen in training", ["column"])
        self.dropped = Counter("ml_log_dropped", "Answers that the prediction log could not take")
        self.unknown_paths = Counter("ml_unknown_paths", "Requests for paths that the service does not have")
        self._by_version = cache(self.predictions.labels)

    def count(self, bundle: "Bundle", rows: "Rows") -> None:
        """Count one call of the model."""
        self._by_version(bundle.version).inc(len(rows))
        for column, count in bundle.count_unknown(rows).items():
            self.unknown.labels(column).inc(count)


@cache
def counters() -> Counters:
    """Return the process's counters; prometheus_client refuses to register a name twice."""
    return Counters()


def reserve_space() -> None:
    """Reserve disk space for the metrics files of this process.

    prometheus_client maps sparse files into memory, and a process that writes to such a page on a full disk is killed
    (SIGBUS). Files with allocated blocks can always be written. If the disk is already full, the process counts in its
    own memory, which `/metrics` does not show, and still serves.
    """
    if not (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")):
        return
    from prometheus_client import values

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
