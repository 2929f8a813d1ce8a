"""One alert to the webhook, and what its receiver makes of it."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal

from ondol.config.settings import Settings

SEND_SECONDS = 5.0
LATER = (408, 425, 429)  # the receiver asks for patience, as it does with 500 and above
NO_WIDTH = "\u200b"  # parts what would mean something together
UNFIT = (400, 413, 422)  # the receiver will not take this one, ever


@dataclass(frozen=True)
class Outcome:
    """What became of an alert.

    Attributes:
        fate: `received`; `down`: nobody takes any now; `refused`: not by this address, or with these credentials;
            `unfit`: not this one, ever.
        problem: What was wrong, in words that hold no part of the address.
    """

    fate: Literal["received", "down", "refused", "unfit"]
    problem: str = ""


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the second request would go without the alert."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_StayHere)


def send(settings: Settings, message: dict[str, Any]) -> Outcome:
    """Send an alert; only an answer of 200 to 299 means that it was received."""
    assert settings.alerts.webhook is not None
    headers = {"Content-Type": "application/json", "Idempotency-Key": message["id"], "User-Agent": "ml-alerts"}
    body = {"text": _slack_text(message)} if settings.alerts.format == "slack" else message
    try:
        data = json.dumps(body, ensure_ascii=False).encode()
        request = urllib.request.Request(settings.alerts.webhook.get_secret_value(), data, headers)
        with _opener.open(request, timeout=SEND_SECONDS):
            return Outcome("received")
    except urllib.error.HTTPError as error:
        return _judge(error.code)
    except Exception as error:  # an error's text may hold the address
        reason = getattr(error, "reason", None)
        return Outcome("down", type(reason if isinstance(reason, Exception) else error).__name__)


def _judge(status: int) -> Outcome:
    if 300 <= status < 400:
        return Outcome("refused", f"it redirects ({status}): name the address it redirects to")
    if status in LATER or status >= 500:
        return Outcome("down", f"it answers {status}")
    return Outcome("unfit" if status in UNFIT else "refused", f"it answers {status}")


def _slack_text(message: dict[str, Any]) -> str:
    text = f"*{message['project']}*: {message['what']}\n{message['todo']}"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Receivers that take Slack's form also mention people by "@all" and show Markdown's links and pictures.
    return text.replace("@", f"@{NO_WIDTH}").replace("](", f"]{NO_WIDTH}(")
