"""Monitor: the predictions since the last window are compared with the reference; drift requests retraining."""

from ondol.monitoring import (
    decide_retraining,
    detect_drift,
    load_context,
    log_window,
    measure_performance,
    monitor_lock,
    report_window,
    save_window,
    send_unsent_training_request,
    window_end,
)
from ondol.orchestration import name_run, stage, task
from ondol.project import open_project


@stage(timeout_hours=1, alone=False)
def monitor() -> str:
    """Compare the predictions since the last window with the reference data in the bundle; return the window's id.

    The window's record is written last: after a run that is killed before that, the next one uses the same rows.

    Raises:
        UserError: no model is in production, its bundle has no reference, or another monitor is running.
    """
    project = open_project()
    end = window_end(project)
    project.store.refresh()  # what other hosts wrote, if the store is remote
    with monitor_lock(project):
        context = load_context(project)
        name_run("monitor", version=context.champion.version)
        task(send_unsent_training_request)(project)
        drift = task(detect_drift)(project, context, end)
        window = task(measure_performance)(project, context, drift.window)
        window = task(log_window)(project, drift, window)
        task(save_window)(project, window)
        decision, request = task(decide_retraining)(project)
        report_window(project, window, decision, request)
    return window.id
