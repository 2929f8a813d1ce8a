"""Whether a server answers, asked over HTTP by the standard library."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any


def answers(url: str, timeout: float = 5.0) -> bool:
    """Tell whether something sound answers at `url`; a proxy that wants a login answers too."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError, http.client.HTTPException):
        return False


def ask(url: str, body: dict[str, Any], timeout: float = 5.0) -> Any | None:
    """Return the JSON answer to a POST of JSON, or None where there is none."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def look_up(url: str, timeout: float = 5.0) -> Any | None:
    """Return the JSON answer to a GET, or None where there is none."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):
        return None
