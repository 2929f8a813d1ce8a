"""Alerts to a webhook: stored in an outbox and sent in order, so that none is lost.

An alert is removed from the outbox after it was received. If this process is killed in between, it may arrive twice,
with the same `id`. If a full disk cannot store an alert, it waits in this process and is still sent.
"""

import hashlib
import json
import logging
import os
import threading
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ondol.config import Settings, is_address, load_settings
from ondol.errors import Refused, UserError
from ondol.redaction import redact
from ondol.storage.files import locked, read_note, write_json
from ondol_serving.names import printable

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

SEND_SECONDS = 5.0
LATER = (408, 425, 429)  # the receiver asks to retry later, as with 500 and above
NO_WIDTH = "\u200b"  # breaks up text that would have a meaning in Slack
UNFIT = (400, 413, 422)  # the receiver will never accept this alert


@dataclass(frozen=True)
class AlertResult:
    """The result of sending an alert.

    Attributes:
        fate: `received`; `down`: the receiver accepts no alert now; `refused`: wrong address or credentials; `unfit`:
            it never accepts this alert.
        problem: The problem in words, without any part of the address.
    """

    fate: Literal["received", "down", "refused", "unfit"]
    problem: str = ""


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because the second request would not contain the alert."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_StayHere)


def send(settings: Settings, message: dict[str, Any]) -> AlertResult:
    """Send an alert; only an answer of 200 to 299 means that it was received."""
    assert settings.alerts.webhook is not None
    headers = {"Content-Type": "application/json", "Idempotency-Key": message["id"], "User-Agent": "ml-alerts"}
    body = {"text": _slack_text(message)} if settings.alerts.format == "slack" else message
    try:
        data = json.dumps(body, ensure_ascii=False).encode()
        request = urllib.request.Request(settings.alerts.webhook.get_secret_value(), data, headers)
        with _opener.open(request, timeout=SEND_SECONDS):
            return AlertResult("received")
    except urllib.error.HTTPError as error:
        return _result_of(error.code)
    except Exception as error:  # an error's text may hold the address
        reason = getattr(error, "reason", None)
        return AlertResult("down", type(reason if isinstance(reason, Exception) else error).__name__)


def _result_of(status: int) -> AlertResult:
    if 300 <= status < 400:
        return AlertResult("refused", f"it redirects ({status}): name the address it redirects to")
    if status in LATER or status >= 500:
        return AlertResult("down", f"it answers {status}")
    return AlertResult("unfit" if status in UNFIT else "refused", f"it answers {status}")


def _slack_text(message: dict[str, Any]) -> str:
    text = f"*{message['project']}*: {message['what']}\n{message['todo']}"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Receivers of Slack's format may also mention people by "@all" and show Markdown links and pictures.
    return text.replace("@", f"@{NO_WIDTH}").replace("](", f"]{NO_WIDTH}(")


AlertKind = Literal[
    "gate-refused",
    "drift",
    "retrained",
    "rollout-promoted",
    "rollout-withdrawn",
    "promoted",
    "rolled-back",
    "released",
    "release-failed",
    "run-failed",
    "log-dropped",
]
Message = dict[str, Any]
KEPT_UNSENT = 100  # without a webhook, only the last ones are kept, until one is set
REFUSED_DAYS = 7  # a wrong address may be corrected within this time; then refused alerts are put aside
log = logging.getLogger(__name__)
_unkept: dict[tuple[Path, str], Message | None] = {}  # by outbox and key; None after it was received
_at_unkept = threading.Lock()


@dataclass(frozen=True)
class Delivery:
    """The result of a delivery; `problem` says why some alerts still wait, without secrets."""

    sent: int
    waiting: int
    problem: str = ""


def alert(settings: Settings, kind: AlertKind, what: str, todo: str, key: str | None = None) -> None:
    """Send an alert; never raises.

    Args:
        settings: Those of the project.
        kind: The kind of event.
        what: What happened, in a sentence.
        todo: The command to run, or what to check.
        key: An alert with the same key is not repeated for `[alerts] repeat_hours`; default: kind and sentence.
    """
    what = printable(redact(what))  # it may contain the error of any library, with names and values of the data
    digest = hashlib.sha256((key or f"{kind} {what}").encode()).hexdigest()
    made = {"kind": kind, "project": settings.project.name, "what": what, "todo": todo}
    made |= {"at": datetime.now(UTC).isoformat(), "id": uuid.uuid4().hex}
    try:
        new = _keep_new(settings, made, digest)
    except Exception as error:  # such as a full disk; an alert must not end the run that it reports
        log.warning("An alert could not be kept (%s): it waits in this process.", type(error).__name__)
        with _at_unkept:
            new = _unkept.setdefault((outbox(settings), digest), made) is made
    if new:
        send_alerts(settings)


def send_alerts(settings: Settings) -> Delivery:
    """Send the waiting alerts, oldest first, until the receiver fails; never raises."""
    direct = _deliver_unkept(settings)
    try:
        with locked(_folder(settings) / "lock", wait=True):
            done = _deliver_kept(settings)
    except Exception as error:
        log.warning("Alerts could not be sent (%s).", type(error).__name__)
        done = Delivery(0, len(waiting(settings)), type(error).__name__)
    return Delivery(direct.sent + done.sent, direct.waiting + done.waiting, done.problem or direct.problem)


def outbox(settings: Settings) -> Path:
    """Return the folder of waiting alerts."""
    return _folder(settings) / "outbox"


def alerted_champion_path(settings: Settings) -> Path:
    """Return the file that records the champion of the last alert."""
    return _folder(settings) / "champion.json"


def refused(settings: Settings) -> Path:
    """Return the folder of rejected alerts; if moved into the outbox, they are sent again."""
    return _folder(settings) / "refused"


def waiting(settings: Settings) -> list[Path]:
    """Return the alerts that were not sent yet, oldest first."""
    return sorted(outbox(settings).glob("*.json"))


def _folder(settings: Settings) -> Path:
    """Return the local folder of alerts: each host sends its own, also if a remote store does not answer."""
    return (settings.home if is_address(settings.store) else settings.folder_of(settings.store)) / "alerts"


def _keep_new(settings: Settings, message: Message, digest: str) -> bool:
    """Put an alert into the outbox unless it was raised recently; return whether it is new."""
    since = (datetime.now(UTC) - timedelta(hours=settings.alerts.repeat_hours)).isoformat()
    path = _folder(settings) / "recent.json"
    with locked(_folder(settings) / "lock", wait=True):
        recent = {k: at for k, at in (read_note(path) or {}).items() if at > since}
        if digest in recent:
            return False
        _queue(settings, message)
        try:
            write_json(path, recent | {digest: message["at"]})
        except OSError:  # the disk is full: the same alert may be raised again too early
            log.warning("When an alert was raised could not be kept.")
        if settings.alerts.webhook is None:
            for old in waiting(settings)[:-KEPT_UNSENT]:
                old.unlink(missing_ok=True)
    return True


def _queue(settings: Settings, message: Message) -> None:
    at = datetime.fromisoformat(message["at"])
    write_json(outbox(settings) / f"{at:%Y%m%dT%H%M%S%f}-{message['id']}.json", message)


def _deliver_unkept(settings: Settings) -> Delivery:
    """Store the alerts that a full disk could not store, or send them directly."""
    sent, left, problem = 0, 0, ""
    with _at_unkept:
        for place, message in _unkept.items():
            if message is None or place[0] != outbox(settings):
                continue
            try:
                _queue(settings, message)
                _unkept[place] = None
            except OSError:
                problem = _send_directly(settings, message)
                _unkept[place] = message if problem else None
                sent, left = sent + (not problem), left + bool(problem)
    return Delivery(sent, left, problem)


def _send_directly(settings: Settings, message: Message) -> str:
    """Send an alert without an outbox; return the problem."""
    return send(settings, message).problem if settings.alerts.webhook is not None else "no webhook is named"


def _deliver_kept(settings: Settings) -> Delivery:
    """Send the alerts in the outbox; a rejected alert does not delay later ones."""
    if settings.alerts.webhook is None:
        return Delivery(0, len(waiting(settings)), "no webhook is named")
    sent, problem = 0, ""
    for path in waiting(settings):
        message = read_note(path)
        if not isinstance(message, dict):
            _put_aside(settings, path, "the file is damaged")
            continue
        outcome = send(settings, message)
        if outcome.fate == "received":
            path.unlink()
            sent += 1
            continue
        if outcome.fate == "unfit" or (outcome.fate == "refused" and _is_old(path)):
            _put_aside(settings, path, outcome.problem)
            continue
        problem = outcome.problem
        if outcome.fate == "down":
            break
    return Delivery(sent, len(waiting(settings)), problem)


def _is_old(path: Path) -> bool:
    made = datetime.strptime(path.name.partition("-")[0], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
    return datetime.now(UTC) - made > timedelta(days=REFUSED_DAYS)


def _put_aside(settings: Settings, path: Path, problem: str) -> None:
    log.warning("An alert was not taken (%s): it is in %s.", problem, refused(settings))
    refused(settings).mkdir(exist_ok=True)
    path.replace(refused(settings) / path.name)


def alert_failed_run(flow: Any, flow_run: "FlowRun", state: "State[Any]") -> None:
    """Hook of a flow: send an alert if the outermost run failed or crashed, or if a gate refused.

    A user's mistake in a command on a terminal, such as a missing file, sends no alert, because it is printed there.
    """
    error = _error_of(state)
    if flow_run.parent_task_run_id is not None or (_is_mistake(error) and _is_typed(flow_run)):
        return
    try:
        settings = load_settings()
    except Exception:  # if the settings cannot be read, there is no webhook either
        return
    what = str(error) if error is not None and str(error) else state.message or state.name or "no reason is known"
    if isinstance(error, Refused):
        alert(settings, "gate-refused", what, "`ml report` shows the gates; the old version stays in production.")
    else:
        # Only a worker runs deployments. The name of its pool is not known here: Prefect's answer to it lacks it.
        restarted = state.is_crashed() and flow_run.deployment_id is not None
        again = "The worker starts it again, three times at most. " if restarted else ""
        todo = f"{again}See run {flow_run.id} in Prefect; `ml doctor` checks the machine."
        alert(settings, "run-failed", f"The run of {flow.name} failed: {what}", todo)


def _is_mistake(error: Exception | None) -> bool:
    return isinstance(error, UserError) and not isinstance(error, Refused)


def _is_typed(flow_run: "FlowRun") -> bool:
    """Return True if a run belongs to a process on a terminal, not to a deployment, cron or a workflow."""
    return flow_run.deployment_id is None and any(map(os.isatty, (0, 1, 2)))


def _error_of(state: "State[Any]") -> Exception | None:
    """Return the exception that ended a run, if this process knows it."""
    data = getattr(state.data, "result", state.data)
    return data if isinstance(data, Exception) else None
