"""Alerts: raise those that were not raised before, and send what could not be sent."""

from prefect import flow

from ondol.monitoring import alert_dropped_records
from ondol.orchestration import publish_markdown, say, send_alerts, task
from ondol.project import open_project
from ondol.registry import alert_new_champion


# Not a stage: a failed run of this flow must raise no alert.
@flow(name="alerts", flow_run_name="alerts", timeout_seconds=600)
def alerts() -> int:
    """Raise alerts that are due and send all that wait; return how many still wait."""
    project = open_project()
    task(alert_dropped_records)(project)
    task(alert_new_champion)(project)
    delivery = task(send_alerts)(project.settings)
    summary = f"**{delivery.sent:,} sent, {delivery.waiting:,} wait**"
    summary += f": {delivery.problem}." if delivery.waiting else "."
    say(summary.replace("**", ""))
    publish_markdown("alerts", summary)
    return delivery.waiting
