"""The Prefect server as an ASGI application that refuses requests of other sites' pages and retries locked writes.

The servers of Prefect and MLflow answer every client that reaches their port, and Prefect's worker runs what the API
requests. A web page in a browser on the same machine can reach that port: by a cross-origin request, by a WebSocket, or
by a host name that resolves to 127.0.0.1 (DNS rebinding). So `ml up`, the commands and `ops/compose.yaml` start this
application, `uvicorn --factory ondol.orchestration.asgi:prefect`, and that of `ondol.registry.mlflow_server`.
"""

import asyncio
import base64
import hmac
import os
from collections.abc import Collection, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ondol.config import HOSTS, HOSTS_SETTING
from ondol.redaction import load_env_file
from ondol_serving.callers import read_headers, refuse_caller, require_host, split_hosts

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
# Media types (or none) that a browser sends to another origin without a preflight request.
UNASKED = (b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data")
HEADERS = [(b"content-security-policy", b"frame-ancestors 'self'"), (b"x-content-type-options", b"nosniff")]
RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)  # pauses before the next attempts after a locked database


class SameOrigin:
    """ASGI middleware: only allows requests from programs and from the application's own pages.

    The checks are those of the service, see `ondol_serving.callers`. Other sites cannot show the application in a frame
    either. With `json_only`, a body with a media type of HTML forms is refused with 415.
    """

    def __init__(
        self, app: "ASGIApp", hosts: Collection[str] = (), probes: Collection[str] = (), *, json_only: bool = False
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosts: The allowed host names in addition to loopback names.
            probes: Paths that answer for any Host, because health checks use an address or a container's name.
            json_only: Whether the application accepts only JSON bodies.
        """
        self.app, self.probes, self.json_only = app, frozenset(probes), json_only
        self.hosts = tuple(hosts)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, or refuse it; see ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await _refuse(scope, receive, send, *refusal)
        else:
            await self.app(scope, receive, send if scope["type"] == "websocket" else _with_headers(send))

    def _refusal(self, scope: "Scope") -> tuple[int, str] | None:
        """Return the status and the reason of a refusal; None if the request is allowed."""
        method = scope.get("method", "GET")
        headers, server = read_headers(scope["headers"]), scope.get("server")
        probed = _is_probe(scope, self.probes)
        server = None if server is None else tuple(server)
        if foreign := refuse_caller(method, headers, server, self.hosts, HOSTS_SETTING, any_host=probed):
            return foreign.status, foreign.message
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if self.json_only and method not in READING and has_body and kind in UNASKED:
            return 415, "Send the body as Content-Type: application/json"
        return None


class RequireLogin:
    """ASGI middleware: only passes on requests with a name and a password, as HTTP's Basic authentication.

    For MLflow: its own accounts need a database and packages of their own, and let routes through that have no rule.
    """

    def __init__(self, app: "ASGIApp", login: str, probes: Collection[str] = ()) -> None:
        """Wrap an application.

        Args:
            app: The application.
            login: The name and the password, with a colon between them.
            probes: Paths that answer without them.
        """
        self.app, self.probes = app, frozenset(probes)
        self.wanted = base64.b64encode(login.encode(errors="surrogateescape"))

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, or ask for the password; see ASGI."""
        if scope["type"] not in ("http", "websocket") or _is_probe(scope, self.probes) or self._knows(scope):
            await self.app(scope, receive, send)
        else:
            challenge = (b"www-authenticate", b'Basic realm="Ondol", charset="UTF-8"')
            await _refuse(scope, receive, send, 401, "Send the name and the password of this server", challenge)

    def _knows(self, scope: "Scope") -> bool:
        scheme, _, shown = read_headers(scope["headers"]).get(b"authorization", b"").strip().partition(b" ")
        return hmac.compare_digest(shown.strip(), self.wanted) and scheme.lower() == b"basic"


class RetryLocked:
    """ASGI middleware: repeats a request that Prefect answers with 503, which means that SQLite is locked.

    Two transactions that began with a read cannot both write: SQLite refuses the later one at once. Prefect's client
    then repeats the request after two seconds, which slowed down every second run.
    """

    def __init__(self, app: "ASGIApp") -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, with a few attempts if necessary; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = [await receive()]
        while received[-1].get("more_body"):
            received.append(await receive())
        for pause in RETRY_SECONDS:
            if await self._answer(scope, received, receive, send):
                return
            await asyncio.sleep(pause)
        await self.app(dict(scope), _replay(received, receive), send)

    async def _answer(
        self, scope: "Scope", received: list[MutableMapping[str, Any]], receive: "Receive", send: "Send"
    ) -> bool:
        """Pass on a request and its response; return False if the response is 503, which is not sent."""
        locked = False

        async def send_unless_locked(message: MutableMapping[str, Any]) -> None:
            nonlocal locked
            locked = locked or message.get("status") == 503
            if not locked:
                await send(message)

        try:
            await self.app(dict(scope), _replay(received, receive), send_unless_locked)
        except Exception:  # Starlette raises the error again after its answer
            if not locked:
                raise
        return not locked


def _replay(received: list[MutableMapping[str, Any]], receive: "Receive") -> "Receive":
    """Return a `receive` that repeats the received messages, and then receives new ones."""
    messages = iter(received)

    async def receive_again() -> MutableMapping[str, Any]:
        for message in messages:
            return message
        return await receive()

    return receive_again


def prefect() -> SameOrigin:
    """Return the Prefect server, configured by its own variables; `ML_PORTS__HOSTS` has additional hosts."""
    read_secrets()
    hosts = read_hosts()
    from prefect.server.api.server import create_app

    return SameOrigin(RetryLocked(create_app()), hosts, ("/api/health", "/api/ready"), json_only=True)


def read_hosts() -> list[str]:
    """Return the hosts in the environment, since no settings are read here; end the process if one is invalid."""
    try:
        return [require_host(host) for host in split_hosts(os.environ.get(HOSTS, ""))]
    except ValueError as error:
        raise SystemExit(f"{HOSTS} is {os.environ[HOSTS]!r}: {error}.") from None


def read_secrets() -> None:
    """Add `.env` of the working directory, and the password in the file `PGPASSWORD_FILE`, to the environment.

    In a container they are mounted, so that no variable of the container shows a secret.
    """
    load_env_file(Path())
    if path := os.environ.get("PGPASSWORD_FILE"):
        os.environ["PGPASSWORD"] = Path(path).read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")


def _is_probe(scope: "Scope", probes: Collection[str]) -> bool:
    return scope["path"] in probes and scope.get("method") in ("GET", "HEAD")


async def _refuse(
    scope: "Scope", receive: "Receive", send: "Send", status: int, reason: str, *more: tuple[bytes, bytes]
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})  # closing before it is accepted is a 403
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}.\n".encode()})


def _with_headers(send: "Send") -> "Send":
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            more = [header for header in HEADERS if header[0] not in names]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return send_with_headers
