"""Monitoring: compares the prediction log, window by window, with the reference in the bundle.

The steps of the flow are in `monitor`. `log` reads the predictions, `windows` stores the results, `drift` has the drift
methods, `performance` the metrics of labelled predictions, and `retraining` the rule that requests retraining. `replay`
sends logged requests through another version, and has the gate of that name. It is the only package that imports
Evidently.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.monitoring.log import alert_dropped_records
    from ondol.monitoring.monitor import (
        detect_drift,
        load_context,
        log_window,
        measure_performance,
        monitor_lock,
        report_window,
        save_window,
        window_end,
    )
    from ondol.monitoring.replay import check_replay
    from ondol.monitoring.retraining import decide_retraining, send_unsent_training_request
else:
    __getattr__ = export(__name__)

__all__ = [
    "alert_dropped_records",
    "check_replay",
    "decide_retraining",
    "detect_drift",
    "load_context",
    "log_window",
    "measure_performance",
    "monitor_lock",
    "report_window",
    "save_window",
    "send_unsent_training_request",
    "window_end",
]
