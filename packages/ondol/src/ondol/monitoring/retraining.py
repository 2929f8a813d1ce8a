"""Decides whether to retrain, alerts, and requests the pipeline.

An alert depends only on the verdict: it is also sent while the loop is paused, cooling down, or waiting for training.
The decision is written first, then the alert and the event are sent, so that they survive a crash of the monitor.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import BaseModel

from ondol.config import Retrain
from ondol.monitoring.drift import ColumnDrift, DriftComparison
from ondol.monitoring.performance import Performance
from ondol.monitoring.windows import Window, Windows, WindowVerdict
from ondol.orchestration.alerts import alert, send_alerts
from ondol.orchestration.events import read_triggers, send_event
from ondol.project import Project
from ondol.registry.champion import Champion
from ondol.registry.rollout import running_rollout
from ondol.storage.files import locked, read_record, user_name, utc_now
from ondol.storage.store import Store

KEPT = 100  # changes


class LoopEntry(BaseModel):
    """One entry in the history of the loop."""

    at: str
    who: str
    what: str
    why: str


class TrainingRequest(BaseModel):
    """A training request. Saved before it is sent, so that it survives a crash of the monitor.

    Attributes:
        window: The latest window, which identifies the request.
        windows: All windows that led to it.
        emitted_at: When the Prefect event was confirmed; None until then.
    """

    window: str
    windows: tuple[str, ...]
    version: str
    bundle: str
    reason: str
    requested_at: str
    emitted_at: str | None = None


class Loop(BaseModel):
    """The state of the loop."""

    paused: LoopEntry | None = None
    wanted: TrainingRequest | None = None
    history: tuple[LoopEntry, ...] = ()


def read_loop(store: Store) -> Loop:
    """Return the state of the loop from the store."""
    return read_record(store.folder / "loop.json", Loop) or Loop()


def change_loop(store: Store, change: Callable[[Loop], Loop]) -> Loop:
    """Apply `change` to the state of the loop in one step, and return the new state."""
    with locked(store.folder / "loop.lock", wait=True):
        loop = change(read_loop(store))
        store.write_bytes(store.folder / "loop.json", (loop.model_dump_json(indent=1) + "\n").encode())
    return loop


def pause(store: Store, why: str) -> Loop:
    """Stop training requests until `resume`; windows are still evaluated."""
    made = _change("pause", why)
    return change_loop(store, lambda loop: _note(loop.model_copy(update={"paused": made}), made))


def resume(store: Store, why: str) -> Loop:
    """End a pause."""
    made = _change("resume", why)
    return change_loop(store, lambda loop: _note(loop.model_copy(update={"paused": None}), made))


def save_training_request(store: Store, wanted: TrainingRequest) -> Loop:
    """Save a training request."""
    made = LoopEntry(at=wanted.requested_at, who="monitor", what="retrain", why=wanted.reason)
    return change_loop(store, lambda loop: _note(loop.model_copy(update={"wanted": wanted}), made))


def confirm_training_request(store: Store, window: str) -> Loop:
    """Record that Prefect received the event of the training request of `window`."""

    def mark(loop: Loop) -> Loop:
        if loop.wanted is None or loop.wanted.window != window:
            return loop
        return loop.model_copy(update={"wanted": loop.wanted.model_copy(update={"emitted_at": utc_now()})})

    return change_loop(store, mark)


def _change(what: str, why: str) -> LoopEntry:
    return LoopEntry(at=utc_now(), who=user_name(), what=what, why=why)


def _note(loop: Loop, change: LoopEntry) -> Loop:
    return loop.model_copy(update={"history": (*loop.history, change)[-KEPT:]})


class Decision(BaseModel):
    """Whether retraining is needed, the reason, and the windows that led to it."""

    wanted: bool
    why: str
    windows: tuple[str, ...] = ()


def decide(
    windows: Sequence[Window],
    champion: Champion,
    rules: Retrain,
    loop: Loop,
    now: datetime,
    tried: str | None = None,
) -> Decision:
    """Decide whether to retrain: N of the last M windows and the latest one must be bad.

    Args:
        windows: The champion's windows, oldest first; those that were too small do not count.
        champion: The model in production.
        rules: The numbers of windows, and the cooldown.
        loop: Whether it is paused, and the last request.
        now: The time, UTC.
        tried: The version of a rollout that runs: a new one would end it without a decision.
    """
    last = [window for window in windows if window.evaluated][-rules.of :]
    bad = [window for window in last if window.bad]
    names = tuple(window.id for window in bad)
    if not last:
        return Decision(wanted=False, why="no window has had enough rows yet")
    if not last[-1].bad:
        return Decision(wanted=False, why="the latest window is ok")
    if len(bad) < rules.windows:
        counted = f"{len(bad)} of the last {rules.of} windows drifted or got worse"
        return Decision(wanted=False, why=f"{counted}, {rules.windows} are needed", windows=names)
    if loop.paused is not None:
        who = f"since {loop.paused.at} by {loop.paused.who} ({loop.paused.why})"
        return Decision(wanted=False, why=f"the loop is paused {who}: `ml loop resume` ends that", windows=names)
    if loop.wanted is not None and loop.wanted.window == last[-1].id:
        return Decision(wanted=False, why=f"training was requested at {loop.wanted.requested_at}", windows=names)
    if tried is not None:
        why = f"the rollout of version {tried} is not decided yet: `ml rollout status` shows it"
        return Decision(wanted=False, why=why, windows=names)
    until = cooldown_end(champion, rules, loop)
    if now < until:
        shown = f"{until:%Y-%m-%d %H:%M} UTC"
        return Decision(wanted=False, why=f"cooling down until {shown} ([retrain] cooldown_hours)", windows=names)
    return Decision(wanted=True, why=reason_of(bad), windows=names)


def cooldown_end(champion: Champion, rules: Retrain, loop: Loop) -> datetime:
    """Return the time from which training may be requested, after the last request and after a new champion."""
    times = [champion.since] + ([loop.wanted.requested_at] if loop.wanted else [])
    return max(map(datetime.fromisoformat, times)) + timedelta(hours=rules.cooldown_hours)


def reason_of(bad: Sequence[Window]) -> str:
    """Return the reason for retraining in words."""
    latest = "; ".join(bad[-1].reasons)
    return f"{len(bad)} of the last windows drifted or got worse; the latest: {latest}"


EVENT = "ml.retrain"


def resource_of(project: str) -> str:
    """Return the resource that the event is about: the project."""
    return f"ml.project.{project}"


def event_id(project: str, window: str) -> UUID:
    """Return the event's id, which is the same if a window's request is sent again."""
    return uuid5(NAMESPACE_URL, f"{resource_of(project)}/{window}")


def has_automation(project: str) -> bool:
    """Return True if the Prefect server has an enabled automation that is triggered by the project's event."""
    return any(matches(trigger, project) for trigger in read_triggers())


def matches(trigger: dict[str, Any], project: str) -> bool:
    """Return True if a trigger of an automation, at any depth, names the event, and this project or no project."""
    text = json.dumps(trigger)
    about = "ml.project." not in text or f'"{resource_of(project)}"' in text
    return f'"{EVENT}"' in text and about


def send_retrain_event(project: str, wanted: TrainingRequest) -> None:
    """Send the event; see `ondol.orchestration.events.send_event`."""
    payload = {
        "version": wanted.version,
        "window": wanted.window,
        "windows": list(wanted.windows),
        "reason": wanted.reason,
    }
    resource = {"prefect.resource.id": resource_of(project), "prefect.resource.name": project}
    send_event(EVENT, resource, payload, event_id(project, wanted.window))


NO_AUTOMATION = (
    "Retraining is requested, but no automation of this Prefect server handles the request: `ml up` starts one, "
    "`ml run` trains now."
)


def decide_retraining(project: Project) -> tuple[Decision, str]:
    """Decide on the current windows, write the decision, and send alerts and a request that were not sent yet.

    Returns:
        The decision, and a sentence on the open request: empty if there is none or it was received.
    """
    champion = project.champion
    if champion is None:
        return Decision(wanted=False, why="no model is in production"), ""
    decision = decide_now(project, champion)
    if decision.wanted:
        save_training_request(project.store, _make_training_request(champion, decision))
    alert_verdicts(project, champion, decision)
    unsent = send_training_request(project, champion)
    send_alerts(project.settings)
    return decision, unsent


def decide_now(project: Project, champion: Champion) -> Decision:
    """Return the decision on the current windows and state of the loop."""
    windows, loop = Windows(project.store).of(champion), read_loop(project.store)
    rollout = running_rollout(project.store)
    tried = rollout.version if rollout else None
    return decide(windows, champion, project.settings.retrain, loop, datetime.now(UTC), tried)


def find_unsent_request(loop: Loop, champion: Champion) -> TrainingRequest | None:
    """Return the training request that Prefect has not received yet; a new champion closes it."""
    wanted = loop.wanted
    if wanted is None or wanted.emitted_at or loop.paused or wanted.bundle != champion.bundle:
        return None
    return wanted


def send_unsent_training_request(project: Project) -> None:
    """Send the alerts and the training request of an earlier monitor that was killed before it sent them."""
    if champion := project.champion:
        alert_verdicts(project, champion, decide_now(project, champion))
        send_training_request(project, champion)


def alert_verdicts(project: Project, champion: Champion, decision: Decision) -> None:
    """Send an alert for each bad window, once for each verdict.

    Late labels can make an earlier window bad too. If this process is killed before an alert is recorded, it may be
    sent twice, with the same key.
    """
    windows = Windows(project.store)
    recent = [window for window in windows.of(champion) if window.evaluated][-project.settings.retrain.of :]
    for window in recent:
        if window.bad and window.verdict not in window.alerted:
            what, todo = describe_alert(window, decision)
            alert(project.settings, "drift", what, todo, key=f"drift-{window.id}-{window.verdict}")
            windows.write(window.model_copy(update={"alerted": (*window.alerted, window.verdict)}))


def describe_alert(window: Window, decision: Decision) -> tuple[str, str]:
    """Return the text of an alert on a window, and the remedy."""
    state = "retraining is requested" if decision.wanted else decision.why
    span = f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC"
    found = "; ".join((*window.reasons, *window.notes))
    what = f"Version {window.version}, {window.rows:,} rows from {span}: {found}. The loop: {state}."
    if decision.wanted:
        return what, "`ml loop show` shows details, `ml run` trains now, `ml loop pause --why …` stops the loop."
    return what, "`ml loop show` shows details, `ml run` trains now."


def send_training_request(project: Project, champion: Champion) -> str:
    """Send the event of an unsent training request; return why Prefect did not receive it, or an empty string.

    If the monitor is killed in between, the event may be sent twice, with the same id.
    """
    wanted = find_unsent_request(read_loop(project.store), champion)
    if wanted is None:
        return ""
    name = project.settings.project.name
    try:
        if not has_automation(name):
            return NO_AUTOMATION
        send_retrain_event(name, wanted)
    except Exception as error:  # any error of a server that is stopping: the next run sends it
        return (
            f"Retraining is requested, but the event could not be sent to Prefect ({type(error).__name__}): the next "
            "`ml monitor` sends it."
        )
    confirm_training_request(project.store, wanted.window)
    return ""


def _make_training_request(champion: Champion, decision: Decision) -> TrainingRequest:
    return TrainingRequest(
        window=decision.windows[-1],
        windows=decision.windows,
        version=champion.version,
        bundle=champion.bundle,
        reason=decision.why,
        requested_at=utc_now(),
    )


MOST_NAMED = 3


def assess_window(
    features: tuple[ColumnDrift, ...], prediction: ColumnDrift, performance: Performance | None, drift_share: float
) -> tuple[WindowVerdict, tuple[str, ...]]:
    """Return the verdict and its reasons in words.

    A window is worse if labels show it; otherwise it drifted if enough features, or the predictions, drifted.
    """
    reasons = []
    drifted = [column for column in features if column.drifted]
    if performance is not None and performance.lost:
        reasons.append(f"performance lost: {performance.sentence}")
    if features and len(drifted) / len(features) >= drift_share:
        names = ", ".join(c.name for c in by_distance(drifted)[:MOST_NAMED])
        more = ", …" if len(drifted) > MOST_NAMED else ""
        reasons.append(f"{len(drifted)} of {len(features)} columns drifted ({names}{more})")
    if prediction.drifted:
        reasons.append(f"the predictions drifted ({'; '.join(prediction.why)})")
    worse = performance is not None and performance.lost
    return ("worse" if worse else "drift" if reasons else "ok"), tuple(reasons)


def by_distance(columns: "tuple[ColumnDrift, ...] | list[ColumnDrift]") -> list[ColumnDrift]:
    """Sort columns: first drifted ones without a distance, then by distance relative to the limit."""

    def far(column: ColumnDrift) -> float:
        if column.score is None or column.limit is None:
            return float("inf") if column.drifted else -1.0
        return column.score / column.limit

    return sorted(columns, key=far, reverse=True)


def with_comparison(window: Window, comparison: DriftComparison, drift_share: float) -> Window:
    """Return the window with the results of the comparison."""
    verdict, reasons = assess_window(comparison.features, comparison.prediction, None, drift_share)
    found = {"columns": comparison.features, "prediction": comparison.prediction, "drift_share": comparison.share}
    return window.model_copy(update=found | {"verdict": verdict, "reasons": reasons})


def with_performance(window: Window, performance: Performance | None, drift_share: float) -> Window:
    """Return the window assessed again with the labels; without labels it is unchanged."""
    if performance is None or window.prediction is None:
        return window
    verdict, reasons = assess_window(window.columns, window.prediction, performance, drift_share)
    return window.model_copy(update={"performance": performance, "verdict": verdict, "reasons": reasons})
