"""Flows and tasks, progress and alerts, servers and background processes: the only package that imports Prefect.

A flow uses `stage`, `task` and `name_run` from `flow`; its steps log and publish results with the functions of
`reporting`. The Prefect server of a command is in `server`, the processes of `ml up` are in `processes`.
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
