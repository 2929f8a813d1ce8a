"""What the service counts besides BentoML's own request metrics; both appear in `/metrics`."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter

    from service.bundle import Bundle
    from service.encoding import Rows


class Counters:
    """Predictions by model version, and categories that training never saw, by column (never by value)."""

    def __init__(self) -> None:
        """Register the counters; in a worker, where prometheus_client counts over processes."""
        from prometheus_client import Counter

        self._predictions = Counter("ml_predictions", "Rows predicted", ["model_version"])
        self._unknown = Counter("ml_unknown_categories", "Values never seen in training", ["column"])
        self._by_version = cache(self._predictions.labels)

    @property
    def unknown(self) -> "Counter":
        """The counter of unknown categories."""
        return self._unknown

    def count(self, bundle: "Bundle", rows: "Rows") -> None:
        """Count one call of the model."""
        self._by_version(bundle.version).inc(len(rows))
        for column, count in bundle.count_unknown(rows).items():
            self._unknown.labels(column).inc(count)


@cache
def counters() -> Counters:
    """Return the process's counters; prometheus_client refuses to register a name twice."""
    return Counters()
