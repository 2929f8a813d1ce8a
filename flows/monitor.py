"""Monitor: the predictions since the last window are compared with the reference; drift asks for training."""

from ondol.monitoring.monitor import (
    compare,
    decide,
    log_report,
    measure_performance,
    only_monitor,
    open_watch,
    report,
    save_window,
    send_pending,
    window_end,
)
from ondol.orchestration.stage import name_run, stage, task
from ondol.project import open_project
from ondol.storage.reach import refresh


@stage(timeout_hours=1, alone=False)
def monitor() -> str:
    """Compare what was answered since the last window with the reference in the bundle; return the window's id.

    The window's record is written last: a run that is killed before that has judged nothing, and the next one takes
    up the same rows.

    Raises:
        UserError: nothing serves, its bundle has no reference, or another monitor is at work.
    """
    project = open_project()
    end = window_end(project.settings)
    refresh(project.store)
    with only_monitor(project.settings):
        watch = open_watch(project.settings)
        name_run("monitor", version=watch.champion.version)
        task(send_pending)(project)
        found = task(compare)(project, watch, end)
        window = task(measure_performance)(project, watch, found.window)
        logged = task(log_report)(project, found, window)
        task(save_window)(project, logged)
        decision, request = task(decide)(project)
        report(project, window, decision, request)
    return window.id
