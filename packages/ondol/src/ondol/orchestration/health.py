"""Whether a server answers: any by the standard library, Prefect by its own client."""

import http.client
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Literal

from ondol.errors import UserError

if TYPE_CHECKING:
    import httpx


def answers(url: str, timeout: float = 5.0) -> bool:
    """Tell whether something sound answers at `url`; a proxy that wants a login answers too."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError, http.client.HTTPException):
        return False


def leads_elsewhere(before: str, after: str) -> bool:
    """Return True if a redirect leads to another host, port or scheme, but for http to https: no secret goes there."""
    from requests import Session

    with Session() as session:
        return session.should_strip_auth(before, after)


def ask(url: str, body: dict[str, Any], timeout: float = 5.0) -> Any | None:
    """Return Prefect's JSON answer to a POST of JSON, or None where there is none."""
    return _json_of(call_prefect("POST", url, timeout, json=body))


def look_up(url: str, timeout: float = 5.0) -> Any | None:
    """Return Prefect's JSON answer to a GET, or None where there is none."""
    return _json_of(call_prefect("GET", url, timeout))


def call_prefect(
    method: Literal["GET", "POST", "PATCH", "DELETE"], url: str, timeout: float, **request: Any
) -> "httpx.Response | None":
    """Return what Prefect answers, be it a refusal, or None where nobody does; nothing is tried again.

    Prefect's client brings what its settings say: credentials, CSRF tokens, certificates, headers.

    Args:
        method: The HTTP method.
        url: The whole address, with Prefect's `/api/` in it.
        timeout: How many seconds each step may take.
        request: What httpx takes for a request.

    Raises:
        UserError: Prefect redirects to another place, where credentials and headers do not go.
    """
    import httpx
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import get_current_settings, temporary_settings

    known = get_current_settings().api
    key, auth = (secret.get_secret_value() if secret else None for secret in (known.key, known.auth_string))
    root, api, _ = url.partition("/api/")

    def stay(request: httpx.Request) -> None:
        if leads_elsewhere(url, str(request.url)):
            place = request.url.netloc.decode().rpartition("@")[2]
            raise UserError(
                f"The Prefect server at {re.sub('//[^/@]*@', '//', root)} redirects to another place ({place}): set "
                "PREFECT_API_URL to that address, if it is to be trusted."
            )

    options = {"timeout": timeout, "event_hooks": {"request": [stay]}}
    try:
        with (
            temporary_settings({"client.max_retries": 0}),
            SyncPrefectClient(root + api, auth_string=auth, api_key=key, httpx_settings=options) as client,
        ):
            return client.request(method, url, **request)  # type: ignore[arg-type]
    except httpx.HTTPStatusError as error:
        return error.response
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        return None


def _json_of(answer: "httpx.Response | None") -> Any | None:
    try:
        return answer.json() if answer is not None and answer.is_success else None
    except ValueError:
        return None
