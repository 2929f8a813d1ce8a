"""The Prefect server as an ASGI application that refuses requests of other sites' pages and retries locked writes.

Prefect's and MLflow's servers answer everyone who reaches their port; Prefect's worker runs what the API says. A web
page that a browser on the same machine shows can reach that port: by a cross-origin request, by a WebSocket, or by a
name that its owner lets point to 127.0.0.1 (DNS rebinding). So `ml up`, the commands and `ops/compose.yaml` start the
application here, `uvicorn --factory ondol.orchestration.asgi:prefect`, and the one of `ondol.registry.mlflow_server`.
"""

import asyncio
import os
from collections.abc import Collection, MutableMapping
from typing import TYPE_CHECKING, Any

from ondol.config import HOSTS, HOSTS_SETTING
from ondol_serving.callers import read_headers, refuse_caller, require_host, split_hosts

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
# Media types, none among them, that a browser sends to another origin without asking that one first.
UNASKED = (b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data")
HEADERS = [(b"content-security-policy", b"frame-ancestors 'self'"), (b"x-content-type-options", b"nosniff")]
RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)  # before each further try of a request that met a locked database


class SameOrigin:
    """ASGI middleware: passes on requests of programs and of the application's own pages.

    Who may ask is decided as for the service, see `ondol_serving.callers`. Other sites cannot show the application in a
    frame either. With `json_only`, a body of a type that HTML forms send is refused with 415.
    """

    def __init__(
        self, app: "ASGIApp", hosts: Collection[str] = (), probes: Collection[str] = (), *, json_only: bool = False
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            hosts: The names under which browsers and programs reach it beside the loopback's.
            probes: Paths that answer under any Host: health checks name an address or a container.
            json_only: Whether every body that the application takes is JSON.
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
        """Return the status and the reason of a refusal, None if there is none."""
        method = scope.get("method", "GET")
        headers, server = read_headers(scope["headers"]), scope.get("server")
        probed = scope["path"] in self.probes and method in ("GET", "HEAD")
        server = None if server is None else tuple(server)
        if foreign := refuse_caller(method, headers, server, self.hosts, HOSTS_SETTING, any_host=probed):
            return foreign.status, foreign.message
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if self.json_only and method not in READING and has_body and kind in UNASKED:
            return 415, "Send the body as Content-Type: application/json"
        return None


class RetryLocked:
    """ASGI middleware: handles a request again that Prefect answers with 503, as it does when SQLite is locked.

    Two transactions that began by reading cannot both write: SQLite refuses the later one at once. Prefect leaves it to
    its client to send the request again, and the client waits two seconds first, which made one run in two slower.
    """

    def __init__(self, app: "ASGIApp") -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, after a few tries at most; see ASGI."""
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
        """Pass on a request and its response; return False if the response is 503, which is held back."""
        locked = False

        async def send_unless_locked(message: MutableMapping[str, Any]) -> None:
            nonlocal locked
            locked = locked or message.get("status") == 503
            if not locked:
                await send(message)

        try:
            await self.app(dict(scope), _replay(received, receive), send_unless_locked)
        except Exception:  # Starlette raises what it has answered once more
            if not locked:
                raise
        return not locked


def _replay(received: list[MutableMapping[str, Any]], receive: "Receive") -> "Receive":
    """Return a `receive` that gives what was received before, and then what comes."""
    messages = iter(received)

    async def receive_again() -> MutableMapping[str, Any]:
        for message in messages:
            return message
        return await receive()

    return receive_again


def prefect() -> SameOrigin:
    """Return the Prefect server, configured by its own variables; other hosts are in `ML_PORTS__HOSTS`."""
    hosts = read_hosts()
    from prefect.server.api.server import create_app

    return SameOrigin(RetryLocked(create_app()), hosts, ("/api/health", "/api/ready"), json_only=True)


def read_hosts() -> list[str]:
    """Return the hosts of the environment, since no settings are read here; the process ends where one is none."""
    try:
        return [require_host(host) for host in split_hosts(os.environ.get(HOSTS, ""))]
    except ValueError as error:
        raise SystemExit(f"{HOSTS} is {os.environ[HOSTS]!r}: {error}.") from None


async def _refuse(scope: "Scope", receive: "Receive", send: "Send", status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: a 403
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
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
