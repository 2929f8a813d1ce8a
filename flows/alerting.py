"""Alerts to a webhook: written to an outbox first and sent in order, so that a receiver that is down loses none.

An alert is taken out of the outbox once it was received, so that one may arrive twice if this process is killed in
between: its `id` is the same then.
"""

import hashlib
import json
import logging
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from flows.settings import Settings
from flows.store.files import locked, read_json, write_json

Kind = Literal["gate-refused", "drift", "retrained", "promoted", "rolled-back", "run-failed", "log-dropped"]
SEND_SECONDS = 5.0
KEPT_UNSENT = 100  # where no webhook is named, only the last ones are kept for the day when one is
NEVER = (400, 413, 422)  # the receiver will not take this one, ever
log = logging.getLogger("flows.alerts")


@dataclass(frozen=True)
class Delivery:
    """How a delivery went; `problem` says without any secret why some still wait."""

    sent: int
    waiting: int
    problem: str | None = None


def alert(settings: Settings, kind: Kind, what: str, todo: str, key: str | None = None) -> None:
    """Tell people that something happened; never raises.

    Args:
        settings: Those of the project.
        kind: What sort of thing happened.
        what: What happened, in a sentence.
        todo: What to type or to look at.
        key: Alerts of the same key are one for `[alerts] repeat_hours`; default: the same kind and sentence.
    """
    try:
        if _persist(settings, kind, what, todo, key or f"{kind} {what}"):
            deliver(settings)
    except Exception as error:  # an alert must not end what it tells of
        log.warning("An alert could not be kept (%s).", type(error).__name__)


def deliver(settings: Settings) -> Delivery:
    """Send what waits, oldest first, until the receiver fails; never raises."""
    try:
        with locked(_folder(settings) / "lock", wait=True):
            return _deliver(settings)
    except Exception as error:
        log.warning("Alerts could not be sent (%s).", type(error).__name__)
        return Delivery(0, len(waiting(settings)), type(error).__name__)


def waiting(settings: Settings) -> list[Path]:
    """Return the alerts that were not sent yet, oldest first."""
    return sorted((_folder(settings) / "outbox").glob("*.json"))


def _folder(settings: Settings) -> Path:
    return settings.store_path / "alerts"


def _persist(settings: Settings, kind: Kind, what: str, todo: str, key: str) -> bool:
    """Put an alert into the outbox unless the same was raised not long ago; return whether it is new."""
    folder, now = _folder(settings), datetime.now(UTC)
    since = (now - timedelta(hours=settings.alerts.repeat_hours)).isoformat()
    digest = hashlib.sha256(key.encode()).hexdigest()
    with locked(folder / "lock", wait=True):
        recent = {k: at for k, at in (read_json(folder / "recent.json") or {}).items() if at > since}
        if digest in recent:
            return False
        made = {"kind": kind, "project": settings.project.name, "what": what, "todo": todo, "at": now.isoformat()}
        made["id"] = uuid.uuid4().hex
        write_json(folder / "outbox" / f"{now:%Y%m%dT%H%M%S%f}-{made['id']}.json", made)
        write_json(folder / "recent.json", recent | {digest: now.isoformat()})
        if settings.alerts.webhook is None:
            for path in waiting(settings)[:-KEPT_UNSENT]:
                path.unlink(missing_ok=True)
    return True


def _deliver(settings: Settings) -> Delivery:
    if settings.alerts.webhook is None:
        return Delivery(0, len(waiting(settings)), "no webhook is named")
    sent = 0
    for path in waiting(settings):
        problem, final = _send(settings, read_json(path) or {})
        if problem and not final:
            return Delivery(sent, len(waiting(settings)), problem)
        if problem:
            log.warning("The receiver refused an alert (%s): it is in %s.", problem, _folder(settings) / "refused")
            (_folder(settings) / "refused").mkdir(exist_ok=True)
            path.replace(_folder(settings) / "refused" / path.name)
        else:
            path.unlink()
            sent += 1
    return Delivery(sent, 0)


def _send(settings: Settings, message: dict[str, Any]) -> tuple[str | None, bool]:
    """Send one alert; return what was wrong, which holds no part of the address, and whether that will last."""
    assert settings.alerts.webhook is not None
    body = {"text": _slack_text(message)} if settings.alerts.format == "slack" else message
    headers = {"Content-Type": "application/json", "Idempotency-Key": message["id"], "User-Agent": "ml-alerts"}
    try:
        data = json.dumps(body, ensure_ascii=False).encode()
        request = urllib.request.Request(settings.alerts.webhook.get_secret_value(), data, headers)
        with urllib.request.urlopen(request, timeout=SEND_SECONDS):
            return None, False
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}", error.code in NEVER
    except Exception as error:  # an error's text may hold the address
        reason = getattr(error, "reason", None)
        return type(reason if isinstance(reason, Exception) else error).__name__, False


def _slack_text(message: dict[str, Any]) -> str:
    text = f"*{message['project']}*: {message['what']}\n{message['todo']}"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
