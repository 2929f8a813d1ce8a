"""Monitoring: a window of the prediction log is compared with the reference, shown, and kept."""

import logging
from datetime import datetime

from ondol.config.settings import Settings
from ondol.errors import UserError
from ondol.monitoring.decision import Decision
from ondol.monitoring.pictures import draw_drift
from ondol.monitoring.retraining import remind, settle
from ondol.monitoring.runs import WindowRuns
from ondol.monitoring.showing import as_markdown, column_rows, headline
from ondol.monitoring.truth import measure_windows
from ondol.monitoring.watching import Look, Watch, look
from ondol.monitoring.windows import Window, Windows
from ondol.orchestration.artifacts import publish_image, publish_link, publish_markdown, publish_table
from ondol.orchestration.progress import say
from ondol.project import Project

log = logging.getLogger(__name__)


def send_pending(project: Project) -> None:
    """Alert and ask for what an earlier run found and could not say; whether to train depends on the newest window."""
    if champion := project.champion:
        remind(project.settings, champion)


def compare(project: Project, watch: Watch, end: datetime) -> Look:
    """Read the prediction log up to `end` and compare it with the reference."""
    return look(project.settings, watch, end)


def measure_performance(project: Project, watch: Watch, window: Window) -> Window:
    """Measure the window, and those before it that count, against the labels that have come."""
    settings = project.settings
    windows = Windows(project.store)
    earlier = [w for w in windows.of(watch.champion) if w.judged and w.id != window.id][-settings.retrain.of :]
    *changed, newest = measure_windows(settings, watch, [*earlier, window])
    for old, new in zip(earlier, changed, strict=True):
        if new != old:
            windows.write(new)
            _show_figures(settings, new)
    return newest


def log_report(project: Project, found: Look, window: Window) -> Window:
    """Put report, figures and pictures where MLflow's and Prefect's UIs show them; return the window with its run."""
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
    except UserError as error:  # the MLflow server is down: all is in the store
        return window.model_copy(update={"notes": (*window.notes, str(error))})
    return window.model_copy(update={"run_id": run})


def save_window(project: Project, window: Window) -> None:
    """Write the window's record, and let old reports go."""
    settings = project.settings
    windows, kept = Windows(project.store), max(settings.monitor.keep, settings.retrain.of)
    windows.write(window)
    windows.prune(kept)
    try:
        WindowRuns(settings).prune(kept)
    except Exception as error:  # the MLflow server is down or lets nothing be removed: the next window tries again
        log.warning("Old reports stay in MLflow for now (%s).", type(error).__name__)


def decide(project: Project) -> tuple[Decision, str]:
    """Decide on the windows so far, and ask for training where it is wanted."""
    return settle(project.settings)


def report(project: Project, window: Window, decision: Decision, request: str) -> None:
    """Show in the log and in the Prefect UI what the window says and what was decided."""
    for sentence in (headline(window), *window.reasons, *window.notes):
        say(f"{sentence[0].upper()}{sentence[1:]}." if sentence else "")
    say(f"Training again is {'' if decision.wanted else 'not '}asked for: {decision.why}.")
    place = project.settings.show(Windows(project.store).path(window.id, "html"))
    publish_markdown("monitor", as_markdown(window, decision, request, place))


def _show_figures(settings: Settings, window: Window) -> None:
    """Show the new figures of an earlier window, where MLflow answers."""
    if window.run_id is None:
        return
    try:
        WindowRuns(settings).log_figures(window.run_id, window)
    except UserError:
        return  # they are in the store
