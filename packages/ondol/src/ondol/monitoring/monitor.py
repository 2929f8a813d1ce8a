"""Steps of the monitor flow: compare a window of predictions with the reference, compute metrics, and report."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from ondol.config import Settings
from ondol.errors import UserError
from ondol.evaluation.targets import Reference, read_reference
from ondol.monitoring.drift import DriftComparison, Sides, compare_sides, pair_sides, plain_text, window_frame
from ondol.monitoring.estimation import Estimate, Estimator, estimate_window
from ondol.monitoring.labels import Labels, read_labels
from ondol.monitoring.log import Logged, Tally, sample_logged, tally_window
from ondol.monitoring.performance import measure
from ondol.monitoring.report import as_markdown, column_rows, draw_drift, headline
from ondol.monitoring.retraining import Decision, with_comparison, with_performance
from ondol.monitoring.windows import Window, WindowRuns, Windows, window_id
from ondol.orchestration.reporting import publish_image, publish_link, publish_markdown, publish_table, say
from ondol.project import Project
from ondol.registry.bundles import Bundle, open_bundle
from ondol.registry.champion import Champion, require_champion
from ondol.storage.files import sole
from ondol.storage.log_upload import LAG_SECONDS
from ondol.storage.store import fetch_log

LOG_DELAY_SECONDS = 1.0  # seconds between an answer's time and its record in the file
SEED = 0


@dataclass(frozen=True)
class MonitorContext:
    """The champion, its bundle and the reference in the bundle."""

    champion: Champion
    bundle: Bundle
    reference: Reference


@dataclass(frozen=True)
class WindowResult:
    """A window and, if it had enough rows, its comparison."""

    window: Window
    sides: Sides | None = None
    comparison: DriftComparison | None = None


def load_context(project: Project) -> MonitorContext:
    """Return the champion with its bundle and reference.

    Raises:
        UserError: no model is in production, or its bundle has no reference.
    """
    champion = require_champion(project.store)
    bundle = open_bundle(project.store, champion.bundle)
    return MonitorContext(champion, bundle, read_reference(bundle))


@contextmanager
def monitor_lock(project: Project) -> Iterator[None]:
    """Hold the monitor's lock: two at once would evaluate the same rows.

    Raises:
        UserError: another monitor holds it.
    """
    complaint = "Another `ml monitor` is running on this store: wait until it ends."
    with sole(project.store.folder / "monitor.lock", complaint):
        yield


def window_end(project: Project) -> datetime:
    """Return the time up to which the log is complete: now, or earlier with an object store, because of the upload."""
    lag = LAG_SECONDS if project.store.remote else 0.0
    return datetime.now(UTC) - timedelta(seconds=lag)


def wait_until(end: datetime) -> None:
    """Wait until the answers before `end` are in the log."""
    time.sleep(max(0.0, end.timestamp() + LOG_DELAY_SECONDS - datetime.now(UTC).timestamp()))


def describe_window(context: MonitorContext, start: datetime, end: datetime, tally: Tally) -> Window:
    """Return the window with its volume and latency."""
    hours = max((end - start).total_seconds(), 1.0) / 3600
    latency = dict(zip(("p50", "p99"), np.quantile(tally.ms, (0.5, 0.99)).tolist(), strict=True)) if tally.ms else {}
    return Window(
        id=window_id(start, context.champion.version),
        start=start,
        end=end,
        version=context.champion.version,
        bundle=context.bundle.name,
        verdict="ok",
        requests=tally.requests,
        rows=tally.rows,
        others=tally.others,
        unreadable=tally.unreadable,
        rows_per_hour=tally.rows / hours,
        latency=latency,
    )


def too_small(window: Window, least: int) -> Window:
    """Return the window as too small; its rows are added to the next one."""
    reason = (
        f"{window.rows:,} rows since {window.start:%Y-%m-%d %H:%M} UTC are too few to evaluate: {least:,} are needed"
    )
    return window.model_copy(update={"verdict": "too small", "reasons": (reason,)})


def _save_files(
    windows: Windows, context: MonitorContext, window: Window, logged: list[Logged], comparison: DriftComparison
) -> None:
    identity = context.reference.contract.role("id")
    windows.write_sample(window.id, logged, identity.name if identity else None, plain_text)
    if comparison.report is not None:
        windows.write_report(window.id, comparison.html)


def measure_windows(project: Project, context: MonitorContext, windows: list[Window]) -> list[Window]:
    """Return the windows with their performance, if labels have arrived and the samples still exist.

    If labels cannot be read, a note is added; drift is evaluated anyway.
    """
    settings = project.settings
    if settings.monitor.labels is None:
        return windows
    kept = {window.id: Windows(project.store).read_sample(window.id) for window in windows if window.evaluated}
    samples = {name: sample for name, sample in kept.items() if sample is not None}
    try:
        labels = read_labels(settings, context.reference.contract, list(samples.values()))
    except UserError as error:
        return [window.model_copy(update={"notes": (str(error),)}) for window in windows]
    estimated = any(window.estimate for window in windows if window.id in samples)
    estimator = Estimator.fit(context.reference) if estimated else None
    return [
        _measure(settings, context, window, samples[window.id], labels, estimator if window.estimate else None)
        if window.id in samples
        else window
        for window in windows
    ]


def _measure(
    settings: Settings,
    context: MonitorContext,
    window: Window,
    sample: pd.DataFrame,
    labels: Labels,
    estimator: Estimator | None,
) -> Window:
    rows, least = labels.join(sample), settings.monitor.min_rows
    if len(rows) < least:
        note = f"{len(rows):,} of {len(sample):,} compared rows have a label, too few to evaluate: {least:,} are needed"
        return window.model_copy(update={"notes": (note,)})
    holdout = context.bundle.meta.get("metrics") or {}
    found = measure(context.reference.contract, holdout, rows, settings.gates, settings.monitor, estimator)
    if found is None:
        note = f"the metric cannot be measured on {len(rows):,} labelled rows: they may be of one class only"
        return window.model_copy(update={"notes": (note,)})
    return with_performance(window.model_copy(update={"notes": ()}), found, settings.monitor.drift_share)


log = logging.getLogger(__name__)


def detect_drift(project: Project, context: MonitorContext, end: datetime) -> WindowResult:
    """Compare the log from the end of the last window to `end`; store the report and the sample.

    The window's record is written later: until then, the rows belong to no window, and the next run uses them.
    """
    store, rules = project.store, project.settings.monitor
    windows = Windows(store)
    start = windows.next_start(context.champion)
    wait_until(end)
    fetch_log(store, start)
    tally = tally_window(store.folder / "log", start, end, context.bundle.name)
    window = describe_window(context, start, end, tally)
    if tally.rows < rules.min_rows:
        return WindowResult(too_small(window, rules.min_rows))
    logged = sample_logged(tally, rules.sample_rows, SEED)
    sides = pair_sides(context.reference, window_frame(context.reference, logged))
    comparison = compare_sides(sides, context.reference.output, rules)
    _save_files(windows, context, window, logged, comparison)
    estimate = _estimate(project.settings, context.reference, logged, sides, comparison)
    window = window.model_copy(update={"sampled": len(logged), "estimate": estimate})
    return WindowResult(with_comparison(window, comparison, rules.drift_share), sides, comparison)


def _estimate(
    settings: Settings, reference: Reference, logged: list[Logged], sides: Sides, comparison: DriftComparison
) -> Estimate | None:
    """Return the estimate of the metrics of logged rows without labels; None for a regression."""
    if reference.contract.classes is None:
        return None  # a value does not say how far it may be off
    probabilities = np.array([list(row.prediction["probabilities"].values()) for row in logged], np.float64)
    finite = np.isfinite(probabilities).all(axis=1)
    return estimate_window(reference, probabilities[finite], sides, comparison, settings.gates.metric, settings.monitor)


def measure_performance(project: Project, context: MonitorContext, window: Window) -> Window:
    """Compute the metrics of the window and of recent ones with the labels that have arrived."""
    settings = project.settings
    windows = Windows(project.store)
    earlier = [w for w in windows.of(context.champion) if w.evaluated and w.id != window.id][-settings.retrain.of :]
    *changed, newest = measure_windows(project, context, [*earlier, window])
    for old, new in zip(earlier, changed, strict=True):
        if new != old:
            windows.write(new)
            _show_figures(settings, new)
    return newest


def log_window(project: Project, found: WindowResult, window: Window) -> Window:
    """Log report, figures and plots to MLflow and Prefect; return the window with its MLflow run."""
    if found.comparison is None or found.sides is None:
        return window
    plots = draw_drift(found.comparison, found.sides, f"{window.sampled:,} of {window.rows:,} rows")
    publish_table("drift-by-column", column_rows(window))
    for name, png in plots.items():
        publish_image(f"plot-{name}", png, name.replace("-", " "))
    try:
        runs = WindowRuns(project.settings)
        run = runs.log_window(window, found.comparison.html, plots)
        publish_link("drift-report", runs.report_address(run), f"Drift report of window {window.id}")
    except UserError as error:  # the MLflow server is down: the store has everything
        return window.model_copy(update={"notes": (*window.notes, str(error))})
    return window.model_copy(update={"run_id": run})


def save_window(project: Project, window: Window) -> None:
    """Write the window's record, and remove old reports."""
    settings = project.settings
    windows, kept = Windows(project.store), max(settings.monitor.keep, settings.retrain.of)
    windows.write(window)
    windows.prune(kept)
    try:
        WindowRuns(settings).prune(kept)
    except Exception as error:  # the MLflow server is down or does not allow removal: the next window tries again
        log.warning("Old reports stay in MLflow for now (%s).", type(error).__name__)


def report_window(project: Project, window: Window, decision: Decision, request: str) -> None:
    """Show the window and the decision in the log and in the Prefect UI."""
    estimated = [window.estimate.sentence] if window.estimate else []
    for sentence in (headline(window), *window.reasons, *estimated, *window.notes):
        say(f"{sentence[0].upper()}{sentence[1:]}." if sentence else "")
    say(f"{'Retraining is requested' if decision.wanted else 'No retraining'}: {decision.why}.")
    place = project.settings.show(Windows(project.store).path(window.id, "html"))
    publish_markdown("monitor", as_markdown(window, decision, request, place))


def _show_figures(settings: Settings, window: Window) -> None:
    """Update the figures of an earlier window in MLflow, if it answers."""
    if window.run_id is None:
        return
    try:
        WindowRuns(settings).log_figures(window.run_id, window)
    except UserError:
        return  # the store has them
