"""Monitor: the predictions since the last window are compared with the reference; drift requests retraining."""

from ondol.monitoring import (
    compare,
    decide,
    log_report,
    measure_performance,
    only_monitor,
    open_context,
    report_window,
    save_window,
    send_pending,
    window_end,
)
from ondol.orchestration import name_run, stage, task
from ondol.project import open_project


@stage(timeout_hours=1, alone=False)
def monitor() -> str:
    """Compare what was answered since the last window with the reference in the bundle; return the window's id.

    The window's record is written last: after a run that is killed before that, the next one uses the same rows.

    Raises:
        UserError: no model is in production, its bundle has no reference, or another monitor is running.
    """
    project = open_project()
    end = window_end(project.settings)
    project.store.refresh()
    with only_monitor(project.settings):
        context = open_context(project.settings)
        name_run("monitor", version=context.champion.version)
        task(send_pending)(project)
        found = task(compare)(project, context, end)
        window = task(measure_performance)(project, context, found.window)
        logged = task(log_report)(project, found, window)
        task(save_window)(project, logged)
        decision, request = task(decide)(project)
        report_window(project, window, decision, request)
    return window.id
