"""Alerts: raise those that were not raised before, and send what could not be sent."""

from prefect import flow

from flows.alerting import deliver
from flows.artifacts import publish_markdown
from flows.drops import tell_of_drops
from flows.progress import say
from flows.settings import load_settings
from flows.store.champion import alert_new_champion


@flow(name="alerts", flow_run_name="alerts", timeout_seconds=600)
def alerts() -> int:
    """Raise alerts that are due and send all that wait; return how many still wait."""
    settings = load_settings()
    tell_of_drops(settings)
    alert_new_champion(settings)
    done = deliver(settings)
    said = f"**{done.sent:,} sent, {done.waiting:,} wait**" + (f": {done.problem}." if done.waiting else ".")
    say(said.replace("**", ""))
    publish_markdown("alerts", said)
    return done.waiting
