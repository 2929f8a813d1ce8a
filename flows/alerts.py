"""Alerts: the flow that sends what could not be sent before, and the hooks that tell of a run's end."""

from contextlib import suppress
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State

from flows.alerting import alert, deliver, told_path
from flows.artifacts import publish_markdown
from flows.drops import tell_of_drops
from flows.errors import Refused
from flows.progress import say
from flows.settings import Settings, load_settings
from flows.store.champion import read_champion, version_of
from flows.store.files import read_note, write_json


@flow(name="alerts", flow_run_name="alerts", timeout_seconds=600)
def alerts() -> int:
    """Look for what nobody was told yet, and send what could not be sent; return how many alerts still wait."""
    settings = load_settings()
    tell_of_drops(settings)
    tell_of_champion(settings)
    done = deliver(settings)
    said = f"**{done.sent:,} sent, {done.waiting:,} wait**" + (f": {done.problem}." if done.waiting else ".")
    say(said.replace("**", ""))
    publish_markdown("alerts", said)
    return done.waiting


def tell_of_champion(settings: Settings) -> None:
    """Alert once that a new version was put into service: at its deploy, or later where that was killed before."""
    champion = read_champion(settings.store_path)
    told = told_path(settings)
    if champion is None or read_note(told) == champion.since:
        return
    change = champion.history[-1]
    if change.action == "deploy":
        instead = f" in place of version {version_of(change.before)}" if change.before else ""
        what = f"Version {champion.version} was trained and serves{instead}."
        todo = "`ml status` shows it."
        if change.before is not None:  # the first version has none before it to go back to
            todo = '`ml status` shows it; `ml rollback --why "…"` brings the one before back.'
        alert(settings, "retrained", what, todo, key=champion.bundle + champion.since)
    with suppress(OSError):  # a full disk: the same alert is not sent twice within `repeat_hours`
        write_json(told, champion.since)


def tell_of_failure(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Alert that a run failed or crashed, or that a gate refused: a flow's hook for both; the outermost tells."""
    if flow_run.parent_task_run_id is not None:
        return
    try:
        settings = load_settings()
    except Exception:  # settings that cannot be read are why it failed, and name no webhook either
        return
    error = _error_of(state)
    what = str(error) if error is not None and str(error) else state.message or state.name or "no reason is known"
    if isinstance(error, Refused):
        alert(settings, "gate-refused", what, "`ml status` shows the gates; the old version goes on serving.")
    else:
        again = (
            "The worker starts it again, three times at most. "
            if state.is_crashed() and flow_run.work_pool_name
            else ""
        )
        todo = f"{again}Look at run {flow_run.id} in Prefect; `ml doctor` checks the machine."
        alert(settings, "run-failed", f"The run of {flow.name} failed: {what}", todo)


def _error_of(state: State[Any]) -> Exception | None:
    """Return the exception that ended a run, where this process knows it."""
    data = getattr(state.data, "result", state.data)
    return data if isinstance(data, Exception) else None
