"""Flows and tasks, progress and alerts, servers and background processes: the only package that imports Prefect.

A flow is made of `stage`, `task` and `name_run` (`flow`); its steps say what they do, and show it in Prefect's
UI, by the functions of `reporting`. A command's Prefect server is in `server`, the processes of `ml up` in `processes`.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.orchestration.alerts import alert, send_alerts
    from ondol.orchestration.flow import name_run, stage, task
    from ondol.orchestration.reporting import publish_image, publish_link, publish_markdown, publish_table, say
else:
    __getattr__ = export(__name__)

__all__ = [
    "alert",
    "name_run",
    "publish_image",
    "publish_link",
    "publish_markdown",
    "publish_table",
    "say",
    "send_alerts",
    "stage",
    "task",
]
