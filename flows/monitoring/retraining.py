"""Asks for training again: the decision is kept first, then people and the pipeline are told, until it is certain."""

from datetime import UTC, datetime

from flows.alerting import alert, deliver
from flows.audit import utc_now
from flows.monitoring.decision import Decision, decide
from flows.monitoring.events import is_heard, send
from flows.monitoring.loop import Loop, Wanted, confirm, read_loop, want
from flows.monitoring.windows import Windows
from flows.settings import Settings
from flows.store.champion import Champion, read_champion

UNHEARD = (
    "Training is wanted, and no automation of this Prefect server waits for it: `ml up` starts one that does, "
    "`ml run` trains now."
)


def settle(settings: Settings) -> tuple[Decision, str]:
    """Decide on the windows as they stand, keep the decision, and tell of what nobody was told yet.

    Returns:
        The decision, and a sentence on the request that is open: empty where there is none or it has arrived.
    """
    champion = read_champion(settings.store_path)
    if champion is None:
        return Decision(wanted=False, why="no model is in service"), ""
    decision = decide_now(settings, champion)
    if decision.wanted:
        want(settings.store_path, _request(champion, decision))
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


def tell(settings: Settings, champion: Champion) -> str:
    """Alert people and send the event of an open request; return why it is still open, or nothing.

    Both may happen twice where the monitor is killed in between: alert and event carry the window's name.
    """
    wanted = open_request(read_loop(settings.store_path), champion)
    if wanted is None:
        return ""
    _alert(settings, wanted)
    project = settings.project.name
    try:
        if not is_heard(project):
            return UNHEARD
        send(project, wanted)
    except Exception as error:  # whatever a server that goes away raises: the next run sends it
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


def _alert(settings: Settings, wanted: Wanted) -> None:
    what = f"Version {wanted.version}: {wanted.reason}."
    todo = "`ml loop show` tells more, `ml run` trains now, `ml loop pause --why …` stops the loop."
    alert(settings, "drift", what, todo, key=f"drift-{wanted.window}")
