"""Monitor: a window of the prediction log is compared with the reference; what moved asks to train again."""

import logging
from datetime import datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import publish_image, publish_link, publish_markdown, publish_table
from flows.errors import UserError
from flows.monitoring.decision import Decision
from flows.monitoring.pictures import draw_drift
from flows.monitoring.retraining import remind as remind_of
from flows.monitoring.retraining import settle
from flows.monitoring.runs import WindowRuns
from flows.monitoring.showing import as_markdown, column_rows, headline
from flows.monitoring.truth import measure_windows
from flows.monitoring.watching import Look, Watch, look, only_monitor, open_watch, window_end
from flows.monitoring.windows import Window, Windows
from flows.naming import name_run
from flows.progress import say
from flows.settings import Settings, load_settings
from flows.stage import stage
from flows.store.champion import read_champion
from flows.store.reach import open_store, refresh

log = logging.getLogger("flows.monitor")


@stage(timeout_hours=1, alone=False)
def monitor() -> str:
    """Compare what was answered since the last window with the reference in the bundle; return the window's id.

    The window's record is written last: a run that is killed before that has judged nothing, and the next one takes
    up the same rows.

    Raises:
        UserError: nothing serves, its bundle has no reference, or another monitor is at work.
    """
    settings = load_settings()
    end = window_end(settings)
    refresh(open_store(settings))
    with only_monitor(settings):
        watch = open_watch(settings)
        name_run("monitor", version=watch.champion.version)
        remind(settings)
        found = compare(settings, watch, end)
        window = measure(settings, watch, found.window)
        keep(settings, show(settings, found, window))
        decision, request = decide(settings)
        for sentence in (headline(window), *window.reasons, *window.notes):
            say(f"{sentence[0].upper()}{sentence[1:]}." if sentence else "")
        say(f"Training again is {'' if decision.wanted else 'not '}asked for: {decision.why}.")
        publish_markdown("monitor", as_markdown(window, decision, request, report_place(settings, window)))
    return window.id


@task(name="remind", cache_policy=NO_CACHE)
def remind(settings: Settings) -> None:
    """Alert and ask for what an earlier run found and could not say; whether to train depends on the newest window."""
    champion = read_champion(settings.store_path)
    if champion:
        remind_of(settings, champion)


@task(name="compare", cache_policy=NO_CACHE)
def compare(settings: Settings, watch: Watch, end: datetime) -> Look:
    """Read the log and compare it."""
    return look(settings, watch, end)


@task(name="labels", cache_policy=NO_CACHE)
def measure(settings: Settings, watch: Watch, window: Window) -> Window:
    """Measure the window, and those before it that count, against the labels that have come."""
    windows = Windows(settings.store_path)
    earlier = [w for w in windows.of(watch.champion) if w.judged and w.id != window.id][-settings.retrain.of :]
    *changed, newest = measure_windows(settings, watch, [*earlier, window])
    for old, new in zip(earlier, changed, strict=True):
        if new != old:
            windows.write(new)
            _show_figures(settings, new)
    return newest


@task(name="show", cache_policy=NO_CACHE)
def show(settings: Settings, found: Look, window: Window) -> Window:
    """Put report, figures and pictures where MLflow's and Prefect's UIs show them; return the window with its run."""
    if found.comparison is None or found.sides is None:
        return window
    plots = draw_drift(found.comparison, found.sides, f"{window.sampled:,} of {window.rows:,} rows")
    publish_table("drift-by-column", column_rows(window))
    for name, png in plots.items():
        publish_image(f"plot-{name}", png, name.replace("-", " "))
    try:
        runs = WindowRuns(settings)
        run = runs.log_window(window, found.comparison.html, plots)
        publish_link("drift-report", runs.report_address(run), f"Drift report of window {window.id}")
    except UserError as error:  # the MLflow server is down: all is in the store
        return window.model_copy(update={"notes": (*window.notes, str(error))})
    return window.model_copy(update={"run_id": run})


@task(name="keep", cache_policy=NO_CACHE)
def keep(settings: Settings, window: Window) -> None:
    """Write the window's record, and let old reports go."""
    windows, kept = Windows(settings.store_path), max(settings.monitor.keep, settings.retrain.of)
    windows.write(window)
    windows.prune(kept)
    try:
        WindowRuns(settings).prune(kept)
    except Exception as error:  # the MLflow server is down or lets nothing be removed: the next window tries again
        log.warning("Old reports stay in MLflow for now (%s).", type(error).__name__)


@task(name="decide", cache_policy=NO_CACHE)
def decide(settings: Settings) -> tuple[Decision, str]:
    """Decide on the windows so far, and ask for training where it is wanted."""
    return settle(settings)


def report_place(settings: Settings, window: Window) -> str:
    """Return where the window's report is, as it is shown."""
    return settings.show(Windows(settings.store_path).path(window.id, "html"))


def _show_figures(settings: Settings, window: Window) -> None:
    """Show the new figures of an earlier window, where MLflow answers."""
    if window.run_id is None:
        return
    try:
        WindowRuns(settings).log_figures(window.run_id, window)
    except UserError:
        return  # they are in the store
