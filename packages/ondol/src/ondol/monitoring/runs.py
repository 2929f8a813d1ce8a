"""The windows in MLflow: an experiment of their own, one run each."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

from ondol.config.settings import Settings
from ondol.monitoring.windows import Window
from ondol.registry.tracking import Registry

MOST_LETTERS = 100  # of a column in the name of a metric
MOST_RUNS = 10_000  # that `prune` looks at
REPORT, RECORD = "report.html", "window.json"  # artifacts of a run, beside the pictures
ARTIFACTS_TAG, REMOVED = "report", "removed"  # the tag of a run whose artifacts `prune` removed, and its value


class WindowRuns(Registry):
    """The experiment `<project>-monitor`."""

    def __init__(self, settings: Settings) -> None:
        """Connect."""
        super().__init__(settings)
        self.name = f"{self.name}-monitor"

    def open_run(self, window: str) -> str:
        """Return the id of the run that shows a window; one that a killed monitor left is taken up again."""
        found = self.client.search_runs([self.experiment_id()], f"tags.window = '{window}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        with self.run(f"monitor-{window}", {"window": window}) as run:
            return run

    def log_window(self, window: Window, html: str, plots: dict[str, bytes]) -> str:
        """Show a window's figures, its report and its pictures; return the run's id."""
        run = self.open_run(window.id)
        report = {REPORT: html.encode()} if html else {}
        self.log_files(run, report | {f"{name}.png": png for name, png in plots.items()})
        self.log_figures(run, window)
        return run

    def log_figures(self, run: str, window: Window) -> None:
        """Show a window's figures and verdict, in the place of earlier ones."""
        self.log_results(run, metrics_of(window), {RECORD: window.model_dump(mode="json")})
        for name, value in {"verdict": window.verdict, "version": window.version}.items():
            self.client.set_tag(run, name, value)

    def prune(self, keep: int) -> int:
        """Remove all artifacts (report, pictures, record) of all but the newest `keep` windows; return how many.

        Metrics and tags stay in MLflow, and the record in the store.
        """
        runs = self.client.search_runs([self.experiment_id()], order_by=["start_time DESC"], max_results=MOST_RUNS)
        old = [run for run in runs[keep:] if run.data.tags.get(ARTIFACTS_TAG) != REMOVED]
        for run in old:
            self.remove_files(run)
            self.client.set_tag(run.info.run_id, ARTIFACTS_TAG, REMOVED)
        return len(old)

    def report_address(self, run: str) -> str:
        """Return where the MLflow UI shows the report."""
        return f"{self.run_address(run)}/artifacts/{REPORT}"


def metrics_of(window: Window) -> dict[str, float]:
    """Return a window's figures by the names of metrics."""
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
    return {name: value for name, value in figures.items() if value is not None}


def metric_names(columns: Iterable[str]) -> dict[str, str]:
    """Return for each column the name that stands for it in metrics.

    MLflow allows letters, digits and `_-. :`, takes `/` for a folder, allows 250 characters, and on some databases
    does not tell upper from lower case. A name that had to be changed, or differs from another in case alone, ends in a
    digest of the column's name: it stays the same in every window.
    """
    plain = {column: re.sub(r"[^\w. :-]", "_", column).strip(" .")[:MOST_LETTERS] for column in columns}
    alike = Counter(name.casefold() for column, name in plain.items() if name == column)
    return {
        column: name if name == column and alike[name.casefold()] == 1 else f"{name}-{_digest(column)}"
        for column, name in plain.items()
    }


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
