"""Alerts people of bad windows, and asks for training again.

An alert depends on the verdict alone: it is also sent while the loop is paused, cools down, or waits for training.
The decision is written first, then the alert and the event are sent, so that a killed monitor forgets nothing.
"""

from datetime import UTC, datetime

from ondol.config.settings import Settings
from ondol.monitoring.decision import Decision, decide
from ondol.monitoring.events import is_heard, send
from ondol.monitoring.loop import Loop, Wanted, confirm, read_loop, want
from ondol.monitoring.windows import Window, Windows
from ondol.orchestration.alerting import alert, deliver
from ondol.registry.champion import Champion, read_champion
from ondol.storage.audit import utc_now

UNHEARD = (
    "Training is wanted, and no automation of this Prefect server waits for it: `ml up` starts one that does, "
    "`ml run` trains now."
)


def settle(settings: Settings) -> tuple[Decision, str]:
    """Decide on the windows as they stand, write the decision, and send what was not sent yet.

    Returns:
        The decision, and a sentence on the request that is open: empty where there is none or it has arrived.
    """
    champion = read_champion(settings.store_path)
    if champion is None:
        return Decision(wanted=False, why="no model is in service"), ""
    decision = decide_now(settings, champion)
    if decision.wanted:
        want(settings.store_path, _request(champion, decision))
    alert_verdicts(settings, champion, decision)
    untold = tell(settings, champion)
    deliver(settings)
    return decision, untold


def decide_now(settings: Settings, champion: Champion) -> Decision:
    """Return what the windows and the loop say at this moment."""
    store = settings.store_path
    return decide(Windows(store).of(champion), champion, settings.retrain, read_loop(store), datetime.now(UTC))


def open_request(loop: Loop, champion: Champion) -> Wanted | None:
    """Return the request that the pipeline has not heard of yet; with another champion it is settled."""
    wanted = loop.wanted
    if wanted is None or wanted.emitted_at or loop.paused or wanted.bundle != champion.bundle:
        return None
    return wanted


def remind(settings: Settings, champion: Champion) -> str:
    """Alert people and the pipeline of what an earlier monitor found, which was killed before it could."""
    alert_verdicts(settings, champion, decide_now(settings, champion))
    return tell(settings, champion)


def alert_verdicts(settings: Settings, champion: Champion, decision: Decision) -> None:
    """Alert people of the windows that are bad, once for each window and verdict.

    Labels that come late make an earlier window bad too. An alert may be sent twice if this process is killed before
    it is noted; it has the same key.
    """
    windows = Windows(settings.store_path)
    recent = [window for window in windows.of(champion) if window.judged][-settings.retrain.of :]
    for window in recent:
        if window.bad and window.verdict not in window.alerted:
            what, todo = describe_alert(window, decision)
            alert(settings, "drift", what, todo, key=f"drift-{window.id}-{window.verdict}")
            windows.write(window.model_copy(update={"alerted": (*window.alerted, window.verdict)}))


def describe_alert(window: Window, decision: Decision) -> tuple[str, str]:
    """Return what an alert says of a window, and what there is to do."""
    state = "training again is wanted" if decision.wanted else decision.why
    span = f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC"
    found = "; ".join((*window.reasons, *window.notes))
    what = f"Version {window.version}, {window.rows:,} rows from {span}: {found}. The loop: {state}."
    if decision.wanted:
        return what, "`ml loop show` tells more, `ml run` trains now, `ml loop pause --why …` stops the loop."
    return what, "`ml loop show` tells more, `ml run` trains now."


def tell(settings: Settings, champion: Champion) -> str:
    """Send the event of an open request; return why it is still open, or nothing.

    The event may be sent twice if the monitor is killed in between: it carries the window's name.
    """
    wanted = open_request(read_loop(settings.store_path), champion)
    if wanted is None:
        return ""
    project = settings.project.name
    try:
        if not is_heard(project):
            return UNHEARD
        send(project, wanted)
    except Exception as error:  # any error of a server that stops: the next run sends it
        return (
            f"Training is wanted, and Prefect could not be told ({type(error).__name__}): the next `ml monitor` does."
        )
    confirm(settings.store_path, wanted.window)
    return ""


def _request(champion: Champion, decision: Decision) -> Wanted:
    return Wanted(
        window=decision.windows[-1],
        windows=decision.windows,
        version=champion.version,
        bundle=champion.bundle,
        reason=decision.why,
        requested_at=utc_now(),
    )
